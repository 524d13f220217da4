"""Streams that grow no longer than they must: what every group has handled is freed, but for the newest of it.

Nothing is freed that a group may still need: neither what it has pending, nor what it was not given. A group that
nobody reads for holds everything back; past a number of entries that is said, and nothing is deleted. Retries and
delayed messages have copies of their own. The same script notes each group's low-water mark, where it is made again if
it vanishes. Pure state, shared by both twins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from . import streams
from .config import BusConfig
from .streams import Command, Keys

# Seconds between two looks at a stream; between two steps where there is more to free.
EVERY: Final = 5.0
SOON: Final = 0.05
# How finely what is kept is counted: marks for each `keep` entries, and how many there may be in all.
MARKS_IN_KEEP: Final = 10
MOST_MARKS: Final = 1_000
# Entries that one step looks at where no mark tells how many there are, and that it frees at most.
PAGE: Final = 500
FREED_TOGETHER: Final = 10_000
# Seconds for which a group that vanished is waited for, and holds back what it had not handled.
VANISHED: Final = 86_400
# An alarm is over when so much of the cap is reached again.
ALARM_ENDS: Final = 0.9


class Alarm(NamedTuple):
    """A stream has grown past its cap; ``group`` has come least far in it, empty where there is no group."""

    stream: str
    length: int
    group: str


class Upkeep:
    """When a consumer looks after its streams, and what it finds.

    Args:
        keys: of each stream.
        clock: monotonic seconds.
    """

    def __init__(self, keys: Iterable[Keys], bus: BusConfig, *, clock: Callable[[], float]) -> None:
        self._keys = tuple(keys)
        self._bus = bus
        self._clock = clock
        self._next = clock() + _spread(EVERY / 4)
        self._alarmed: set[str] = set()

    def pause(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next - self._clock())

    def commands(self) -> list[Command]:
        """One for each stream."""
        keep = -1 if self._bus.keep is None else self._bus.keep
        step = max(1, keep // MARKS_IN_KEEP)
        return [
            streams.UPKEEP.call(
                [keys.stream, keys.notes, keys.marks], keep, step, MOST_MARKS, PAGE, FREED_TOGETHER, VANISHED
            )
            for keys in self._keys
        ]

    def answered(self, replies: Sequence[Any]) -> list[Alarm]:
        """The replies to :meth:`commands`, or none where Redis did not answer; which streams have passed the cap."""
        alarms = []
        more = False
        for keys, reply in zip(self._keys, replies, strict=False):
            if not isinstance(reply, list):
                continue
            _, goes_on, length, group = reply
            more = more or bool(goes_on)
            if length > self._bus.cap and keys.stream not in self._alarmed:
                self._alarmed.add(keys.stream)
                alarms.append(Alarm(keys.stream, length, group.decode(errors="backslashreplace")))
            elif length < self._bus.cap * ALARM_ENDS:
                self._alarmed.discard(keys.stream)
        self._next = self._clock() + (SOON if more else _spread(EVERY))
        return alarms


def _spread(seconds: float) -> float:
    """About so long, so that consumers that were started together do not ask together."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
