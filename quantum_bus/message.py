"""The message as a handler sees it: what it carries, and how it may be settled by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from .envelope import Incoming
from .errors import ConfigurationError, MessageAlreadySettled
from .propagation import format_traceparent


class Settlement(Protocol):
    """How a message reaches Redis again: asyncio's consumer awaits, the threads' blocks.

    ``held`` is what the consumer knows the message by.
    """

    def ack(self, held: Any) -> Any: ...
    def nack(self, held: Any) -> Any: ...
    def term(self, held: Any, reason: str) -> Any: ...
    def in_progress(self, held: Any) -> Any: ...


class Message:
    """One message, being handled.

    Returning from the handler acks it, raising retries it, raising :class:`~quantum_bus.Reject` dead-letters it.
    The methods below do the same by hand, before the handler ends; settle a message once. In an ``async def``
    handler they are awaited; in a ``def`` handler they block and return when Redis has answered.

    Attributes:
        id: the stream entry's id.
        group: the consumer group it is handled for.
        attempt: handler runs of this group so far, this one included.
        retry_delay: what ``nack`` was given.
        term_reason: what ``term`` was given.
    """

    __slots__ = ("_held", "_incoming", "_settled", "_settlement", "attempt", "group", "retry_delay", "term_reason")

    def __init__(
        self, incoming: Incoming, *, group: str, attempt: int, settlement: Settlement, held: object = None
    ) -> None:
        self._incoming = incoming
        self._held = held
        self._settlement = settlement
        self._settled: str | None = None
        self.retry_delay: float | None = None
        self.term_reason = ""
        self.group = group
        self.attempt = attempt

    @property
    def id(self) -> str:
        """The stream entry's id, as ``"1735900523456-0"``."""
        return self._incoming.id

    @property
    def message_id(self) -> str:
        """The publisher's id for it, the same in every retry; of a foreign entry, the entry's id."""
        return self._incoming.message_id

    @property
    def stream(self) -> str:
        """The stream's full name, with the bus's prefix."""
        return self._incoming.stream

    @property
    def event(self) -> str | None:
        """The event's name, as ``"INTENT_CREATED"``."""
        return self._incoming.event

    @property
    def key(self) -> str | None:
        """The ordering key."""
        return self._incoming.key

    @property
    def data(self) -> Any:
        """The payload as JSON value, integers of any size exact.

        Where the handler takes its payload as ``dict``, or without an annotation, it is the same object.
        """
        return self._incoming.data

    @property
    def raw(self) -> bytes:
        """The payload's JSON bytes, as they stood in the entry."""
        return self._incoming.raw

    @property
    def correlation_id(self) -> str:
        """The flow's id."""
        return self._incoming.correlation_id

    @property
    def causation_id(self) -> str | None:
        """The ``message_id`` of the message in whose handler this one was published."""
        return self._incoming.causation_id

    @property
    def service(self) -> str | None:
        """The publishing service."""
        return self._incoming.service

    @property
    def ts(self) -> str | None:
        """When it was published: RFC 3339, UTC, microseconds."""
        return self._incoming.ts

    @property
    def headers(self) -> Mapping[str, str]:
        """The publisher's own headers."""
        return self._incoming.headers

    @property
    def extra(self) -> Mapping[str, str]:
        """Entry fields that the wire format does not know."""
        return self._incoming.extra

    @property
    def traceparent(self) -> str:
        """The context it was published in, as W3C ``traceparent``."""
        return format_traceparent(self._incoming.context)

    @property
    def settled(self) -> str | None:
        """What settled it: ``"ack"``, ``"nack"``, ``"term"``, ``"return"`` when its handler has ended; else None."""
        return self._settled

    def close(self) -> str | None:
        """Its handler has ended: what is not settled by hand is settled by that. Called by the bus.

        Returns:
            What has settled it before.
        """
        settled = self._settled
        if settled is None:
            self._settled = "return"
        return settled

    def ack(self) -> Awaitable[None]:
        """Tell Redis that the message is handled; it is never given to this group again.

        While Redis is away it is tried again and again.

        Raises:
            MessageAlreadySettled: it was settled before.
            LeaseLost: another consumer owns it by now; nothing was changed.
            ConnectionLost: the bus was stopped before Redis had confirmed it; the message may come again.
        """
        self._settle("ack")
        return self._settlement.ack(self._held)  # type: ignore[no-any-return]  # blocking in a def handler

    def nack(self, delay: float | None = None) -> Awaitable[None]:
        """Have the handler run again, ``delay`` seconds from now (default: as the subscriber's ``retry`` says).

        Counts as a failed attempt: after the last one the message is dead-lettered.

        Raises:
            MessageAlreadySettled: it was settled before.
            LeaseLost: another consumer owns it by now; nothing was changed.
        """
        if delay is not None:
            number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
            if not number or not 0 <= delay < float("inf"):
                raise ConfigurationError(f"delay={delay!r}: give seconds, 0 or more")
        self._settle("nack")
        self.retry_delay = delay
        return self._settlement.nack(self._held)  # type: ignore[no-any-return]

    def term(self, reason: str) -> Awaitable[None]:
        """Move the message to the dead-letter stream with this reason. While Redis is away it is tried again and again.

        Raises:
            MessageAlreadySettled: it was settled before.
            LeaseLost: another consumer owns it by now; nothing was changed.
            ConnectionLost: the bus was stopped before Redis had confirmed it; the message may come again.
        """
        if not isinstance(reason, str):
            raise ConfigurationError(f"reason={reason!r}: give a str")
        self._settle("term")
        self.term_reason = reason
        return self._settlement.term(self._held, reason)  # type: ignore[no-any-return]

    def in_progress(self) -> Awaitable[None]:
        """Renew the lease: the handler is alive and needs longer.

        Raises:
            MessageAlreadySettled: it was settled before.
            LeaseLost: another consumer owns it by now.
            ConnectionLost: Redis did not answer.
        """
        if self._settled is not None:
            raise MessageAlreadySettled(f"message {self.id} of {self.stream} is settled: {self._settled} was called")
        return self._settlement.in_progress(self._held)  # type: ignore[no-any-return]

    def _settle(self, how: str) -> None:
        if self._settled is not None:
            raise MessageAlreadySettled(
                f"{how}: message {self.id} of {self.stream} is settled already, by {self._settled}; settle it once"
            )
        self._settled = how

    def __repr__(self) -> str:
        return (
            f"Message(id={self.id!r}, stream={self.stream!r}, event={self.event!r}, "
            f"correlation_id={self.correlation_id!r}, attempt={self.attempt})"
        )
