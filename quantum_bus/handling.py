"""The span, metric and log scope around each handler run; asyncio and threads enter the same one.

Its half of :mod:`~quantum_bus.telemetry`, where the instruments are made.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import Final, NamedTuple, Self

from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, SpanKind

from . import names, propagation, tally
from .config import TraceMode
from .delivery import Failure
from .envelope import Incoming
from .spans import Attributes, record_failure
from .tally import Count
from .telemetry import Telemetry

_CONSUMER: Final = SpanKind.CONSUMER


class _Prepared(NamedTuple):
    """What all runs on one stream have in common."""

    name: str
    attributes: Attributes
    span_attributes: Attributes
    consumed: Count


class Handlings:
    """Makes the scopes of one subscriber's handler runs, and knows how many messages they have.

    That is told for many runs at once: one call of the SDK takes as long as all else that is done here for a message.
    :meth:`tell` is to be called while handlers run, and when they have ended.

    Args:
        consumer: its name in the group.
        batch: runs are of several messages.
    """

    def __init__(self, telemetry: Telemetry, *, group: str, consumer: str, batch: bool, mode: TraceMode) -> None:
        self.telemetry = telemetry
        self.batch = batch
        self.continues = mode == "continue"
        self._group = group
        self._consumer = consumer
        self._prepared: dict[str, _Prepared] = {}
        self._lock = threading.Lock()
        self._in_flight: dict[str, int] = {}

    def of(self, incoming: Sequence[Incoming], *, attempt: int, previous: Sequence[SpanContext] = ()) -> Handling:
        """The scope of one run.

        Args:
            attempt: of the message, where it is one.
            previous: the spans of earlier runs.
        """
        return Handling(self, incoming, attempt, previous)

    def prepared(self, stream: str) -> _Prepared:
        """What all runs on a stream have in common; a subscriber has a handful of streams."""
        prepared = self._prepared.get(stream)
        if prepared is None:
            attributes = self.telemetry.process_attributes(stream, self._group)
            prepared = self._prepared[stream] = _Prepared(
                f"{names.OPERATION_PROCESS} {stream}",
                attributes,
                {**attributes, names.ATTR_CLIENT_ID: self._consumer},
                self.telemetry.consumed.of(attributes),
            )
        return prepared

    def moved(self, stream: str, count: int) -> None:
        """So many messages more are in a handler; below 0: fewer."""
        with self._lock:
            self._in_flight[stream] = self._in_flight.get(stream, 0) + count  # half of a Counter's time

    def tell(self) -> None:
        """Have the metrics say how many there are by now, and how long those that have ended took."""
        self.telemetry.process_duration.tell(tally.WORTH_TELLING)
        if not self._in_flight:
            return
        with self._lock:
            changes = [item for item in self._in_flight.items() if item[1]]
            self._in_flight.clear()
        for stream, change in changes:
            self.telemetry.in_flight.add(change, self.prepared(stream).attributes)


class Handling:
    """A handler run in progress: its span is current, and the correlation id in force.

    The scope must be left in the context it was entered in. ``finish`` is called before it is left.

    Attributes:
        span_context: of the run, for the next attempt to link to.
    """

    __slots__ = (
        "_begun",
        "_causation_id",
        "_context",
        "_correlation_id",
        "_error",
        "_handlings",
        "_incoming",
        "_outcome",
        "_prepared",
        "_scope",
        "_started",
        "_token",
        "span_context",
    )

    def __init__(
        self, handlings: Handlings, incoming: Sequence[Incoming], attempt: int, previous: Sequence[SpanContext]
    ) -> None:
        first = incoming[0]
        self._handlings = handlings
        self._incoming = incoming
        self._prepared = prepared = handlings.prepared(first.stream)
        self._outcome = names.OUTCOME_ACK
        self._error: Failure | None = None
        attributes = prepared.span_attributes.copy()
        correlation_id: str | None = first.correlation_id
        above = INVALID_SPAN_CONTEXT
        if handlings.batch:
            linked = [item.context for item in incoming]
            attributes[names.ATTR_BATCH_COUNT] = len(incoming)
            around = first.baggage
            for item in incoming:
                if item.correlation_id != correlation_id:
                    correlation_id, around = None, propagation.NO_BAGGAGE
                    break
                if item.baggage is not around and item.baggage != around:
                    around = propagation.NO_BAGGAGE
        else:
            linked = [first.context]
            attributes[names.ATTR_MESSAGE_ID] = first.message_id
            attributes[names.ATTR_ENTRY_ID] = first.id
            attributes[names.ATTR_BODY_SIZE] = len(first.raw)
            attributes[names.ATTR_ATTEMPT] = attempt
            if first.event is not None:
                attributes[names.ATTR_EVENT] = first.event
            around = first.baggage
            if handlings.continues:
                above = first.context
        if previous:
            linked += previous
        if correlation_id is not None:
            attributes[names.ATTR_CONVERSATION_ID] = correlation_id
        self._started = perf_counter()
        begun = handlings.telemetry.spans.begin(prepared.name, around, above, _CONSUMER, attributes, linked)
        context = begun.context
        if context.is_valid:
            span = begun.span()
        else:
            context = propagation.mint(sampled=handlings.telemetry.sampled)
            span = NonRecordingSpan(context)
        self._begun = begun
        self.span_context = context
        self._context = propagation.with_span(span, around)
        # what a batch of several flows logs and publishes is a flow of its own
        self._correlation_id = correlation_id or f"{context.trace_id:032x}"
        self._causation_id = first.message_id if len(incoming) == 1 else None

    def finish(self, outcome: str, failure: Failure | None = None) -> None:
        """Say how the run ended: one of ``names.OUTCOME_*``, and what was wrong, if anything was."""
        self._outcome = outcome
        self._error = failure

    def __enter__(self) -> Self:
        self._handlings.moved(self._incoming[0].stream, len(self._incoming))
        self._token = propagation.enter_context(self._context)
        self._scope = propagation.enter_message(self._correlation_id, self._causation_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        elapsed = perf_counter() - self._started
        propagation.leave_message(self._scope)
        propagation.leave_context(self._token)
        if error is not None:
            self._error = Failure.of(error)
            self._outcome = names.OUTCOME_ABANDONED
        telemetry, begun = self._handlings.telemetry, self._begun
        count = len(self._incoming)
        _, attributes, _, consumed = self._prepared
        if self._error is not None:
            attributes = attributes | {names.ATTR_ERROR_TYPE: self._error.error_type}
            consumed = telemetry.consumed.of(attributes)
            record_failure(begun.span(), self._error)
        begun.put(names.ATTR_OUTCOME, self._outcome)
        telemetry.process_duration.record(elapsed, attributes, propagation.read_context())
        consumed.add(count)
        self._handlings.moved(self._incoming[0].stream, -count)
        begun.end()
