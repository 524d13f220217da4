"""Which consumer of a group is the active one where messages are handled in order: a lease on each stream.

A consumer *leads* a stream while its lease lasts, in terms: each begins when the lease is acquired, and ends when it is
lost, or when its last renewal began longer ago than it lasts. That is looked up on the process's own clock, so that one
which was stopped, or cut off from Redis, knows by itself that others may lead by now. The heartbeat renews the lease
from its own thread; the consumer asks from another whether it leads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from . import streams
from .streams import Command, Keys

# How long a lease lasts, as a share of `ack_wait`: with a standby's next try, others take over within `ack_wait`.
LASTS: Final = 0.75
# Tries in one `ack_wait`: a standby's to take the lease, the leader's to renew it.
TRIES: Final = 8
# A standby's longest pause, seconds: after a graceful stop nobody leads for so long.
LONGEST_PAUSE: Final = 1.0

NOT_LEADING: Final = 0


class Leadership:
    """The leases of one consumer, one for each of its streams.

    Args:
        keys: of each stream, by its name.
        changed: called when a term begins or ends, from the heartbeat's thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: Mapping[str, Keys],
        consumer: str,
        ack_wait: float,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._keys = {stream: its.lease for stream, its in keys.items()}
        self._consumer = consumer
        self._ack_wait = ack_wait
        self._lasts = LASTS * ack_wait
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._asked = 0.0
        self._until = dict.fromkeys(keys, 0.0)
        self._numbers = dict.fromkeys(keys, 0)
        self._resigned = False
        self.holders: dict[str, str] = {}
        """By stream: who leads it, where another consumer does."""
        self.refusal: object = None
        """What Redis last said instead of an answer."""

    def term(self, stream: str) -> int:
        """The number of the term that this consumer leads the stream in, above 0; 0 where it does not lead."""
        with self._lock:
            return self._numbers[stream] if self._clock() < self._until[stream] else NOT_LEADING

    def stands_by(self) -> bool:
        """Whether this consumer leads none of its streams, and another one does."""
        return bool(self.holders) and not any(map(self.term, self._keys))

    def end(self, stream: str) -> None:
        """Something shows that another consumer leads, or has led: the next renewal begins a new term."""
        with self._lock:
            self._until[stream] = 0.0

    def pause(self) -> float:
        """Seconds until the leases are to be asked for again."""
        pause = self._ack_wait / TRIES
        return pause if all(map(self.term, self._keys)) else min(pause, LONGEST_PAUSE)

    def commands(self) -> list[Command]:
        """Acquire or renew every lease."""
        with self._lock:
            self._asked = self._clock()
            if self._resigned:
                return []
            return [
                streams.LEAD.call([lease], self._consumer, int(self._lasts * 1000)) for lease in self._keys.values()
            ]

    def answered(self, replies: Sequence[Any]) -> None:
        """The replies to :meth:`commands`, in order; an error in its place is no answer."""
        changed = False
        with self._lock:
            now = self._clock()
            for stream, reply in zip(self._keys, replies, strict=False):
                led = now < self._until[stream]
                if not isinstance(reply, list):
                    changed |= self.refusal is None
                    self.refusal = reply
                elif reply[0] == b"held":
                    holder = reply[1].decode()
                    changed |= led or self.holders.get(stream) != holder
                    self.holders[stream] = holder
                    self._until[stream] = 0.0
                else:
                    if not led or reply[0] == b"acquired":  # others may have led meanwhile
                        self._numbers[stream] += 1
                        changed = True
                    self.holders.pop(stream, None)
                    self.refusal = None
                    self._until[stream] = self._asked + self._lasts
        if changed:
            self._changed()

    def resign(self) -> list[Command]:
        """Give every lease up, for good."""
        with self._lock:
            self._resigned = True
            for stream in self._until:
                self._until[stream] = 0.0
            lasts_ms = int(self._lasts * 1000)
            return [streams.RESIGN.call([lease], self._consumer, lasts_ms) for lease in self._keys.values()]
