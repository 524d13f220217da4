"""The instruments of a bus, and the span, metric and log scope around each publish; asyncio and threads enter the same
ones. That around each handling is :mod:`~quantum_bus.handling`'s.

Names and attributes follow OpenTelemetry's messaging conventions. The library needs ``opentelemetry-api`` only. Where
no SDK is configured the API makes no span of its own, so the scope makes or continues the W3C context itself: what
leaves always carries a valid ``traceparent``, and a service downstream that has an SDK joins the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from . import names, tally
from .breaker import CircuitState
from .envelope import Outgoing
from .sending import Sending, Sends
from .spans import CACHED_STREAMS, Attributes
from .tracing import Spans


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
        self.spans = Spans(lambda: trace.get_tracer(names.INSTRUMENTATION_NAME, tracer_provider=tracer_provider))
        meter = metrics.get_meter(names.INSTRUMENTATION_NAME, meter_provider=meter_provider)
        self.consumed, self.process_duration = tally.instruments(
            meter_provider,
            sums=(names.METRIC_CONSUMED, "Messages that were delivered to the application."),
            durations=(names.METRIC_PROCESS_DURATION, "Duration of processing operation."),
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
            self.spans,
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
