"""What a consumer holds: read from Redis, not yet settled. Pure state, for asyncio and threads alike.

A message is *ready* (may be given to a handler), *running*, or *settling* (its outcome is on its way to Redis). A
consumer reads no more than :meth:`Inbox.room` says, so it never holds more than it may. The caller guards an inbox that
threads share.

A message whose last run was never settled is a *suspect*: it may be what killed its process. Suspects run alone, one
after the other, though beside others: so the death of a process is counted against one of them, not against all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from opentelemetry.trace import SpanContext

from .envelope import Incoming
from .errors import ConnectionLost, LeaseLost
from .streams import Delivery

# Messages are read ahead of their handlers as many as were handled in so many seconds, no more than may run at once,
# and whole batches: fast handlers find the next ones here instead of waiting for a read, and slow ones leave them be.
READ_AHEAD: Final = 0.01
# How often it is looked how fast they are, seconds.
PACE_EVERY: Final = 0.005
# Seconds after the last run's end when what was read ahead is given up.
SURPLUS_AFTER: Final = 1.0


class Held(msgspec.Struct, eq=False):
    """A message in a consumer's hands.

    Attributes:
        source: the key it is pending in: its stream, or the group's retry stream.
        source_id: its entry's id there.
        payload: what the handler's annotation makes of it.
        attempt: handler runs begun so far, in any process.
        noted: those of them that its entry itself tells of, and the delivery count does not.
        first_failed_at: RFC 3339 time of the first failure, empty before.
        last_span: the span of the last run, for the next one to link to.
        started: when its last run began, seconds since the epoch; 0 before.
        duration: how long that took, seconds.
        lost: it has been found to be this consumer's no more.
        gone: because its stream has it no more, not because another consumer took it over.
        unsettled: it comes from a consumer that is gone.
        cut: values at its entry's end that are a retry's own; below 0 for what is no retry and among them.
        turn: how often it was given to a run.
        aside: the last turn in which it turned out not to be run.
    """

    incoming: Incoming
    source: str
    source_id: str
    payload: Any = None
    attempt: int = 0
    noted: int = 0
    first_failed_at: str = ""
    last_span: SpanContext | None = None
    started: float = 0.0
    duration: float = 0.0
    lost: bool = False
    gone: bool = False
    unsettled: bool = False
    cut: int = 0
    turn: int = 0
    aside: int = 0

    def begin(self, now: float) -> None:
        """A run begins: it counts as an attempt. ``now`` is in seconds since the epoch."""
        self.attempt += 1
        self.turn += 1
        self.started = now

    def put_back(self) -> None:
        """The run that was about to begin does not: it is no attempt."""
        self.attempt -= 1
        self.aside = self.turn

    @property
    def key(self) -> tuple[str, str]:
        """What it is held under: where it is pending."""
        return (self.source, self.source_id)

    @property
    def is_suspect(self) -> bool:
        """Whether its last run was begun and never settled: its process died, or lost the lease."""
        return self.unsettled and self.attempt > self.noted

    @property
    def is_retry(self) -> bool:
        """Whether it came from the group's retry stream."""
        return self.source != self.incoming.stream

    def lease_lost(self) -> LeaseLost:
        """The error to raise where another consumer turns out to own it."""
        if self.gone:
            return LeaseLost(f"message {self.incoming.id} of {self.incoming.stream} was deleted from it meanwhile")
        return LeaseLost(
            f"message {self.incoming.id} of {self.incoming.stream} belongs to another consumer by now; nothing was "
            "changed"
        )

    def unsettled_by_stop(self) -> ConnectionLost:
        """The error to raise for who settles it by hand, where the bus was stopped before Redis had confirmed that."""
        return ConnectionLost(
            f"the bus was stopped before Redis had confirmed that message {self.incoming.id} of "
            f"{self.incoming.stream} is settled; it may come again"
        )


class Inbox:
    """The messages of one consumer.

    Args:
        concurrency: handlers that may run at once.
        batch: messages that one handler may take.
        streams: how many streams are read together. A read's COUNT applies to each of them, so one may bring
            that many messages; the inbox has room for it as soon as one handler is free. Retries that are due come on
            top, at most as many again.
        clock: monotonic seconds; without one nothing is read ahead.
    """

    def __init__(self, *, concurrency: int, batch: int, streams: int, clock: Callable[[], float] | None = None) -> None:
        self._batch = batch
        self._streams = streams
        self._concurrency = concurrency
        self.capacity = concurrency * batch + streams - 1
        self._held: dict[tuple[str, str], Held] = {}
        self._ready: deque[Held] = deque()
        self._suspects: deque[Held] = deque()
        self._suspect: Held | None = None
        self._settling = 0
        self.running = 0
        self._clock = clock
        self._ahead = 0
        self._ran = 0  # messages since the pace was looked at
        self._pace_since = self._last_ran = clock() if clock is not None else 0.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._held

    def not_held(self, deliveries: Iterable[Delivery]) -> int:
        """How many of them are not held yet."""
        return sum((delivery.source, delivery.source_id) not in self._held for delivery in deliveries)

    def room(self) -> int:
        """Entries of each stream that may be read now; 0 where none may.

        What is settling takes up no room, nor does what is read ahead, as long as both are no more than it may hold:
        where Redis takes no outcomes (a dead-letter key of the wrong type), reading on would fill the memory.
        """
        if self._clock is not None:
            self._look_at_pace(self._clock())
        more = min(self._ahead + self._settling, self.capacity)
        room = (self.capacity + more - len(self._held)) // self._streams
        if 0 < room < self._ahead // 2 and 2 * len(self._ready) >= self._concurrency * self._batch:
            return 0  # the next runs are here already: a larger read serves better, a little later
        return room

    def _look_at_pace(self, now: float) -> None:
        passed = now - self._pace_since
        if passed >= PACE_EVERY:
            batches = min(self._concurrency, int(self._ran / passed * READ_AHEAD) // self._batch)
            self._ahead = batches * self._batch
            self._ran = 0
            self._pace_since = now

    def surplus(self) -> Sequence[Held]:
        """Hand back what was read ahead, where handlers do not come to it after all; it is held no longer."""
        too_many = len(self._held) - self.capacity
        if self._clock is None or too_many <= 0 or self._clock() - self._last_ran < SURPLUS_AFTER:
            return ()
        surplus = [self._ready.pop() for _ in range(min(too_many, len(self._ready)))]
        for held in surplus:
            del self._held[held.key]
        return surplus

    def take(self, held: Held) -> None:
        """A message was read, and may be handled."""
        # `key` and `is_suspect` spelled out, here and in `release`: calling them is 1.5 % of a batched message.
        self._held[held.source, held.source_id] = held
        (self._suspects if held.unsettled and held.is_suspect else self._ready).append(held)

    def hold(self, held: Held) -> None:
        """A message was read that no handler will see: it is settled right away."""
        self._held[held.key] = held
        self._settling += 1

    def next_run(self, *, parked: bool = True) -> Sequence[Held] | None:  # noqa: ARG002 - nothing is parked here
        """The messages of the next handler run, now running; None where nothing is ready or no handler is free."""
        if self.running >= self._concurrency:
            return None
        if self._suspects and self._suspect is None:
            self.running += 1
            self._suspect = self._suspects.popleft()
            return [self._suspect]
        if not self._ready:
            return None
        self.running += 1
        return [self._ready.popleft() for _ in range(min(self._batch, len(self._ready)))]

    def ran(self, run: Sequence[Held]) -> None:
        """A handler run has ended."""
        self.running -= 1
        if self._clock is not None:
            self._ran += len(run)
            self._last_ran = self._clock()
        if self._suspect is run[0]:
            self._suspect = None

    def set_aside(self, key: tuple[str, str]) -> Held | None:
        """A message that was about to be run is not: it is another consumer's, or was skipped. Held no longer."""
        held = self._held.pop(key, None)
        if held is not None:
            held.put_back()
        return held

    def postpone(self, key: tuple[str, str]) -> Held | None:
        """A message that was about to be run is not, for now: its outcome is on its way."""
        held = self._held.get(key)
        if held is not None:
            held.put_back()
            self._settling += 1
        return held

    def settling(self, number: int = 1) -> None:
        """So many messages' outcomes are decided and on their way; they take up no room any more."""
        self._settling += number

    def release(self, held: Held, again: float | None = None) -> None:  # noqa: ARG002 - see lanes.Lanes.release
        """A settling message's outcome has reached Redis."""
        key = (held.source, held.source_id)
        if self._held.get(key) is held:
            del self._held[key]
            self._settling -= 1

    def drop(self, held: Held) -> None:
        """A running message is another consumer's: it is not held any longer."""
        if self._held.get(held.key) is held:
            del self._held[held.key]

    def lose(self, key: tuple[str, str], *, gone: bool = False) -> Held | None:
        """Another consumer owns it by now, or it is deleted: what has not been begun is not held any longer."""
        held = self._held.get(key)
        if held is not None:
            held.lost = True
            held.gone = held.gone or gone
            for waiting in (self._ready, self._suspects):
                if held in waiting:
                    waiting.remove(held)
                    del self._held[key]
        return held

    def pause(self) -> float | None:
        """Seconds until something that is held becomes ready by itself: never."""
        return None

    def keys(self) -> Sequence[tuple[str, str]]:
        """Everything held, for its leases to be renewed; may be called from another thread."""
        return tuple(self._held)

    def drop_waiting(self) -> Sequence[Held]:
        """Hand back what is ready and has not been begun; it is held no longer."""
        dropped = (*self._suspects, *self._ready)
        self._ready.clear()
        self._suspects.clear()
        for held in dropped:
            del self._held[held.key]
        return dropped
