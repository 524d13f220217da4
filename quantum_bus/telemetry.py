"""The span, metric and log scope around each publish and each handling; asyncio and threads enter the same ones.

Names and attributes follow OpenTelemetry's messaging conventions. The library needs ``opentelemetry-api`` only. Where
no SDK is configured the API makes no span of its own, so the scope makes or continues the W3C context itself: what
leaves always carries a valid ``traceparent``, and a service downstream that has an SDK joins the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from types import TracebackType
from typing import Self

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TracerProvider

from . import names, propagation
from .breaker import CircuitState
from .config import TraceMode
from .delivery import Failure
from .envelope import Incoming, Outgoing
from .sending import Sending, Sends
from .spans import CACHED_STREAMS, Attributes, record_failure


class Telemetry:
    """Makes the scopes of one bus.

    Args:
        sampled: whether a context that we have to make ourselves is flagged as sampled.
        send_baggage: whether the current baggage goes out with a message.
        server: Redis's host and port, where known.
        tracer_provider: instead of the global one.
        meter_provider: instead of the global one.
    """

    def __init__(
        self,
        *,
        sampled: bool = True,
        send_baggage: bool = True,
        server: tuple[str, int | None] | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.sampled = sampled
        self.send_baggage = send_baggage
        self.tracer = trace.get_tracer(names.INSTRUMENTATION_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(names.INSTRUMENTATION_NAME, meter_provider=meter_provider)
        buckets = list(names.DURATION_BUCKETS)
        self.process_duration = meter.create_histogram(
            names.METRIC_PROCESS_DURATION,
            unit="s",
            description="Duration of processing operation.",
            explicit_bucket_boundaries_advisory=buckets,
        )
        self.consumed = meter.create_counter(
            names.METRIC_CONSUMED, unit="{message}", description="Messages that were delivered to the application."
        )
        self.retries = meter.create_counter(
            names.METRIC_RETRIES, unit="{message}", description="Handler runs that ended in another attempt."
        )
        self.dead_letters = meter.create_counter(
            names.METRIC_DEAD_LETTERS,
            unit="{message}",
            description="Messages moved to a dead-letter stream, by reason.",
        )
        self.in_flight = meter.create_up_down_counter(
            names.METRIC_IN_FLIGHT, unit="{message}", description="Messages in a handler at this moment."
        )
        self._lost = meter.create_counter(
            names.METRIC_LOST,
            unit="{message}",
            description="Messages deleted from their stream before they were handled.",
        )
        self._leases_lost = meter.create_counter(
            names.METRIC_LEASES_LOST, unit="{message}", description="Messages another consumer took over meanwhile."
        )
        self._recovered = meter.create_counter(
            names.METRIC_RECOVERED,
            unit="{message}",
            description="Messages taken over from consumers that are gone or gave them up.",
        )
        self._skipped = meter.create_counter(
            names.METRIC_SKIPPED,
            unit="{message}",
            description="Messages not handled again: their id was handled before.",
        )
        self._redelivered = meter.create_counter(
            names.METRIC_REDELIVERED,
            unit="{message}",
            description="Messages that came again because an earlier handler run never settled them.",
        )
        self._breaker_state = meter.create_gauge(
            names.METRIC_BREAKER_STATE, description="Circuit breaker of a subscriber: 0 closed, 2 open."
        )
        self._common: Attributes = {names.ATTR_SYSTEM: names.SYSTEM_REDIS}
        if server is not None:
            self._common[names.ATTR_SERVER_ADDRESS] = server[0]
            if server[1] is not None:
                self._common[names.ATTR_SERVER_PORT] = server[1]
        self.sends = Sends(
            self.tracer,
            self._common,
            sampled=sampled,
            send_baggage=send_baggage,
            meter_provider=meter_provider,
        )
        self.process_attributes = lru_cache(CACHED_STREAMS)(self._process_attributes)

    def _process_attributes(self, stream: str, group: str) -> Attributes:
        """What every handling of ``stream`` by ``group`` has in common. Not to be changed by the caller."""
        return {
            **self._common,
            names.ATTR_OPERATION_NAME: names.OPERATION_PROCESS,
            names.ATTR_OPERATION_TYPE: names.OPERATION_PROCESS,
            names.ATTR_DESTINATION: stream,
            names.ATTR_GROUP: group,
        }

    def retried(self, stream: str, group: str, error_type: str) -> None:
        """Count a handler run that ended in another attempt; ``error_type`` is the class of the error that ended it."""
        self.retries.add(1, self.process_attributes(stream, group) | {names.ATTR_ERROR_TYPE: error_type})

    def dead_lettered(self, stream: str, group: str, reason: str) -> None:
        """Count a message that has reached the dead-letter stream; ``reason`` is one of ``names.REASON_*``."""
        self.dead_letters.add(1, self.process_attributes(stream, group) | {names.ATTR_ERROR_TYPE: reason})

    def lost(self, stream: str, group: str) -> None:
        """Count a message that was deleted from its stream before it was handled."""
        self._lost.add(1, self.process_attributes(stream, group))

    def lease_lost(self, stream: str, group: str) -> None:
        """Count a message that another consumer took over while this one held it."""
        self._leases_lost.add(1, self.process_attributes(stream, group))

    def recovered(self, stream: str, group: str, count: int) -> None:
        """Count messages taken over from consumers that did not renew their leases."""
        if count:
            self._recovered.add(count, self.process_attributes(stream, group))

    def skipped(self, stream: str, group: str) -> None:
        """Count a message that was acknowledged unhandled, because its id was handled before."""
        self._skipped.add(1, self.process_attributes(stream, group))

    def redelivered(self, stream: str, group: str) -> None:
        """Count a message whose last run was begun, here or elsewhere, and never settled."""
        self._redelivered.add(1, self.process_attributes(stream, group))

    def breaker_state(self, streams: Sequence[str], group: str, state: CircuitState) -> None:
        """Set the state of a subscriber's circuit breaker."""
        for stream in streams:
            self._breaker_state.set(state.value, self.process_attributes(stream, group))

    def sending(self, outgoing: Outgoing) -> Sending:
        """The scope of one ``publish``."""
        return Sending(self.sends, outgoing.stream, (outgoing,), many=False)

    def sending_many(self, stream: str, outgoing: Sequence[Outgoing]) -> Sending:
        """The scope of one ``publish_many``: one span, whose context every item carries."""
        return Sending(self.sends, stream, outgoing, many=True)


class Handling:
    """A handler run in progress: its span is current, and the correlation id in force.

    The scope must be left in the context it was entered in. ``finish`` is called before it is left.

    Attributes:
        span_context: of the run, for the next attempt to link to.
    """

    __slots__ = (
        "_attributes",
        "_context",
        "_error",
        "_incoming",
        "_outcome",
        "_scope",
        "_span",
        "_started",
        "_telemetry",
        "_token",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        incoming: Sequence[Incoming],
        *,
        group: str,
        consumer: str,
        batch: bool,
        mode: TraceMode,
        attempt: int,
        previous: Sequence[SpanContext],
    ) -> None:
        first = incoming[0]
        self._telemetry = telemetry
        self._incoming = incoming
        self._attributes = telemetry.process_attributes(first.stream, group)
        self._outcome = names.OUTCOME_ACK
        self._error: Failure | None = None
        attributes = dict(self._attributes)
        attributes[names.ATTR_CLIENT_ID] = consumer
        links = [Link(item.context) for item in incoming]
        links += [Link(context) for context in previous]
        correlation_id = first.correlation_id
        if batch:
            attributes[names.ATTR_BATCH_COUNT] = len(incoming)
            parent = Context()
        else:
            attributes[names.ATTR_MESSAGE_ID] = first.message_id
            attributes[names.ATTR_ENTRY_ID] = first.id
            attributes[names.ATTR_BODY_SIZE] = len(first.raw)
            attributes[names.ATTR_ATTEMPT] = attempt
            if first.event is not None:
                attributes[names.ATTR_EVENT] = first.event
            parent = first.baggage
            if mode == "continue":
                parent = trace.set_span_in_context(NonRecordingSpan(first.context), parent)
        one_flow = all(item.correlation_id == correlation_id for item in incoming)
        if one_flow:
            attributes[names.ATTR_CONVERSATION_ID] = correlation_id
        self._started = perf_counter()
        span: Span = telemetry.tracer.start_span(
            f"{names.OPERATION_PROCESS} {first.stream}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )
        if not span.get_span_context().is_valid:
            span = NonRecordingSpan(propagation.mint(sampled=telemetry.sampled))
        self._span = span
        self._context = trace.set_span_in_context(span, parent)
        if not one_flow:  # what a batch of several flows logs and publishes is a flow of its own
            correlation_id = f"{span.get_span_context().trace_id:032x}"
        self._scope = propagation.message_scope(correlation_id, first.message_id if len(incoming) == 1 else None)

    @property
    def span_context(self) -> SpanContext:
        return self._span.get_span_context()

    def finish(self, outcome: str, failure: Failure | None = None) -> None:
        """Say how the run ended: one of ``names.OUTCOME_*``, and what was wrong, if anything was."""
        self._outcome = outcome
        self._error = failure

    def __enter__(self) -> Self:
        self._telemetry.in_flight.add(len(self._incoming), self._attributes)
        self._token = otel_context.attach(self._context)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        telemetry = self._telemetry
        elapsed = perf_counter() - self._started
        count = len(self._incoming)
        self._scope.__exit__(kind, error, stack)
        otel_context.detach(self._token)
        attributes = self._attributes
        telemetry.in_flight.add(-count, attributes)
        if error is not None:
            self._error = Failure.of(error)
            self._outcome = names.OUTCOME_ABANDONED
        if self._error is not None:
            attributes = attributes | {names.ATTR_ERROR_TYPE: self._error.error_type}
            record_failure(self._span, self._error)
        self._span.set_attribute(names.ATTR_OUTCOME, self._outcome)
        telemetry.process_duration.record(elapsed, attributes)
        telemetry.consumed.add(count, attributes)
        self._span.end()
