"""What a consumer holds: read from Redis, not yet settled. Pure state, for asyncio and threads alike.

A message is *ready* (may be given to a handler), *running*, *parked* (waits for its next attempt) or *settling* (its
outcome is on its way to Redis). A consumer reads no more than :meth:`Inbox.room` says, so it never holds more than it
may. The caller guards an inbox that threads share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import SpanContext

from .delivery import Failure
from .envelope import Incoming
from .errors import LeaseLost


@dataclass(slots=True, eq=False)
class Held:
    """A message in a consumer's hands.

    Attributes:
        payload: what the handler's annotation makes of it.
        attempt: handler runs begun so far.
        first_failed_at: RFC 3339 time of the first failure, empty before.
        last_failure: what went wrong last.
        last_span: the span of the last run, for the next one to link to.
    """

    incoming: Incoming
    payload: Any = None
    attempt: int = 0
    first_failed_at: str = ""
    last_failure: Failure | None = None
    last_span: SpanContext | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is held under: stream and entry id."""
        return (self.incoming.stream, self.incoming.id)

    def lease_lost(self) -> LeaseLost:
        """The error to raise where another consumer turns out to own it."""
        return LeaseLost(
            f"message {self.incoming.id} of {self.incoming.stream} belongs to another consumer by now; nothing was "
            "changed"
        )


class Inbox:
    """The messages of one consumer.

    Args:
        concurrency: handlers that may run at once.
        batch: messages that one handler may take.
        streams: how many streams are read together. A read's COUNT applies to each of them, so one may bring
            that many messages; the inbox has room for it as soon as one handler is free.
    """

    def __init__(self, *, concurrency: int, batch: int, streams: int) -> None:
        self._batch = batch
        self._streams = streams
        self._concurrency = concurrency
        self.capacity = concurrency * batch + streams - 1
        self._held: dict[tuple[str, str], Held] = {}
        self._ready: deque[Held] = deque()
        self._settling = 0
        self.running = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._held

    def room(self) -> int:
        """Entries of each stream that may be read now; 0 where none may.

        What is settling takes up no room, as long as it is no more than the consumer may hold: where Redis takes no
        outcomes (a dead-letter key of the wrong type), reading on would fill the memory.
        """
        return (self.capacity - len(self._held) + min(self._settling, self.capacity)) // self._streams

    def take(self, held: Held) -> None:
        """A message was read, and may be handled."""
        self._held[held.key] = held
        self._ready.append(held)

    def hold(self, held: Held) -> None:
        """A message was read that no handler will see: it is settled right away."""
        self._held[held.key] = held
        self._settling += 1

    def next_run(self) -> Sequence[Held] | None:
        """The messages of the next handler run, now running; None where nothing is ready or no handler is free."""
        if not self._ready or self.running >= self._concurrency:
            return None
        self.running += 1
        return [self._ready.popleft() for _ in range(min(self._batch, len(self._ready)))]

    def ran(self) -> None:
        """A handler run has ended."""
        self.running -= 1

    def again(self, held: Held) -> None:
        """A parked message may be handled again."""
        self._ready.append(held)

    def settling(self) -> None:
        """A message's outcome is decided and on its way; it takes up no room any more."""
        self._settling += 1

    def release(self, held: Held) -> None:
        """A settling message's outcome has reached Redis."""
        if self._held.pop(held.key, None) is not None:
            self._settling -= 1

    @property
    def idle(self) -> bool:
        """Whether no handler runs and none is due to: what is parked or settling does not count."""
        return not self.running and not self._ready
