"""How fast streams are written to, and handled by each group: by the newest entries and completion records. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .inquiry import Inquiry, Refusals, asked
from .state import age, entry_id
from .streams import PACE, Keys

# Entries, and completion entries, that are looked at of each stream.
SAMPLE: Final = 50
# A rate is over this many seconds at least: entries of one moment would tell of any.
SHORTEST: Final = 1.0


@dataclass(frozen=True, slots=True)
class StreamPace:
    """Messages a second, by what came last: the longer nothing comes, the lower it gets.

    Attributes:
        written: into the stream; None where Redis does not tell.
        handled: runs that ended, retries included, of each group that keeps records.
    """

    written: float | None
    handled: Mapping[str, float]


def paces(streams: Sequence[str], now: float) -> Inquiry[dict[str, StreamPace]]:
    """The pace of each stream: one command each.

    Args:
        now: the server's time, seconds since 1970.
    """
    commands = [PACE.call([stream, Keys.of(stream, "").completed], SAMPLE) for stream in streams]
    replies = yield from asked(commands, Refusals())  # without EVAL there are no rates, and nothing else is missing
    return {stream: _pace(reply, now) for stream, reply in zip(streams, replies, strict=True)}


def _pace(reply: Any, now: float) -> StreamPace:
    if not reply:
        return StreamPace(None, {})
    count, oldest, oldest_record, *counts = reply
    groups = zip(counts[::2], counts[1::2], strict=True)
    return StreamPace(
        _rate(count, oldest, now),
        {
            name.decode(errors="backslashreplace"): rate
            for name, number in groups
            if (rate := _rate(number, oldest_record, now)) is not None
        },
    )


def _rate(count: int, oldest: bytes, now: float) -> float | None:
    if not oldest:
        return 0.0
    since = age(entry_id(oldest), now)
    return None if since is None else count / max(SHORTEST, since)
