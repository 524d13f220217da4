"""What the spans of sending and of processing have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from . import names
from .delivery import Failure

Attributes = dict[str, AttributeValue]

# Streams whose attribute sets are kept ready; a program that makes up stream names must not fill the memory.
CACHED_STREAMS: Final = 1024


class Begun(Protocol):
    """A span that has begun: its context is known, and can be on its way."""

    @property
    def context(self) -> SpanContext:
        """The span's own; invalid where nothing traces."""

    def put(self, key: str, value: str | int) -> None:
        """Give it one more attribute."""

    def started(self) -> None:
        """What it was begun for is on its way: time to tell the span processors that want to know.

        One that raises costs the span, not what it was begun for.
        """

    def span(self) -> Span:
        """The span, for others to see; it has :meth:`started` by then."""

    def end(self) -> None:
        """It is over."""


Begin = Callable[[str, Context, SpanContext, SpanKind, Attributes, Sequence[SpanContext]], Begun]
"""Begins a span, with what :meth:`quantum_bus.tracing.Spans.begin` is given."""


class Made:
    """One that is there already, and is no own of the bus's."""

    __slots__ = ("_span", "context")

    def __init__(self, span: Span) -> None:
        self.context = span.get_span_context()
        self._span = span

    def put(self, key: str, value: str | int) -> None:
        self._span.set_attribute(key, value)

    def started(self) -> None:
        pass

    def span(self) -> Span:
        return self._span

    def end(self) -> None:
        self._span.end()


def record_failure(span: Span, failure: Failure) -> None:
    """As ``record_exception`` would, but masked and bounded."""
    if not span.is_recording():
        return
    span.set_attribute(names.ATTR_ERROR_TYPE, failure.error_type)
    span.set_status(Status(StatusCode.ERROR, failure.message))
    event: Attributes = {
        names.ATTR_EXCEPTION_TYPE: failure.error_type,
        names.ATTR_EXCEPTION_MESSAGE: failure.message,
    }
    if failure.stack:
        event[names.ATTR_EXCEPTION_STACK] = failure.stack
    span.add_event(names.EXCEPTION_EVENT, event)
