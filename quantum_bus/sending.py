"""The span, metric and log scope around a publish; asyncio and threads enter the same one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from types import TracebackType
from typing import Final, NamedTuple, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)

from . import envelope, names, propagation, tally
from .delivery import Failure
from .envelope import Outgoing
from .spans import CACHED_STREAMS, Attributes, Begun, record_failure
from .tally import Count
from .tracing import Spans

_PRODUCER: Final = SpanKind.PRODUCER


class Destination(NamedTuple):
    """What every publish to one stream has in common.

    Attributes:
        span_name: of its spans.
        attributes: on its spans and metrics; not to be changed.
        sent: how many messages it was sent.
    """

    span_name: str
    attributes: Attributes
    sent: Count


class Sends:
    """What the scopes of one bus share.

    Args:
        common: attributes of everything the bus does.
        sampled: whether a context that we have to make ourselves is flagged as sampled.
        send_baggage: whether the current baggage goes out with a message.
        meter_provider: instead of the global one.
    """

    def __init__(
        self,
        spans: Spans,
        common: Attributes,
        *,
        sampled: bool,
        send_baggage: bool,
        meter_provider: MeterProvider | None,
    ) -> None:
        self.spans = spans
        self.sampled = sampled
        self.send_baggage = send_baggage
        self._common = common
        self.sent, self.duration = tally.instruments(
            meter_provider,
            sums=(names.METRIC_SENT, "Messages the producer attempted to send to the broker."),
            durations=(
                names.METRIC_OPERATION_DURATION,
                "Duration of messaging operations initiated by a producer or consumer client.",
            ),
        )
        self.destination = lru_cache(CACHED_STREAMS)(self._destination)

    def _destination(self, stream: str) -> Destination:
        attributes = {
            **self._common,
            names.ATTR_OPERATION_NAME: names.OPERATION_SEND,
            names.ATTR_OPERATION_TYPE: names.OPERATION_SEND,
            names.ATTR_DESTINATION: stream,
        }
        return Destination(f"{names.OPERATION_SEND} {stream}", attributes, self.sent.of(attributes))


_log: Final = logging.getLogger(names.INSTRUMENTATION_NAME)


class Sending:
    """A publish in progress.

    Attributes:
        context: the context that goes onto the wire.
        carried: the W3C fields that go with each message: that context, and the baggage.
        failed: items that Redis did not take; set by the caller of a ``publish_many``.
    """

    __slots__ = (
        "_begun",
        "_current",
        "_destination",
        "_many",
        "_outgoing",
        "_sends",
        "_started",
        "carried",
        "context",
        "failed",
    )

    def __init__(self, sends: Sends, stream: str, outgoing: Sequence[Outgoing], *, many: bool) -> None:
        self._sends = sends
        self._destination = sends.destination(stream)
        self._outgoing = outgoing
        self._many = many
        self.failed = 0
        self._begun: Begun

    def correlation_id(self, outgoing: Outgoing) -> str:
        """The id the caller named or is in the flow of, else that of the trace this publish is in."""
        return outgoing.correlation_id or "%032x" % self.context.trace_id  # noqa: UP031 - as for a traceparent

    def sent(self, entry_id: str) -> None:
        """Redis stored the message under this id."""
        self._begun.put(names.ATTR_ENTRY_ID, entry_id)

    def on_its_way(self, *, alone: bool = True) -> None:
        """The message is written: what can be done while Redis is at work is done now.

        Args:
            alone: nothing else waits to be done.
        """
        self._begun.started()
        if alone:
            self._sends.duration.tell(tally.WORTH_TELLING)

    def __enter__(self) -> Self:
        sends = self._sends
        span_name, common, _ = self._destination
        outgoing = self._outgoing[0]
        # Looked up once, for the SDK too: it would ask four times. Outside of any span and baggage it is empty.
        current = self._current = propagation.read_context()
        parent = propagation.span_context(current)
        flow = outgoing.correlation_id or ("%032x" % parent.trace_id if parent.is_valid else None)  # noqa: UP031
        attributes: Attributes
        if self._many:
            attributes = {**common, names.ATTR_BATCH_COUNT: len(self._outgoing)}
            one_flow = self._one_flow()
        else:
            attributes = {
                **common,
                names.ATTR_MESSAGE_ID: outgoing.message_id,
                names.ATTR_BODY_SIZE: len(outgoing.data),
            }
            if outgoing.event is not None:
                attributes[names.ATTR_EVENT] = outgoing.event
            one_flow = True
        if one_flow and flow is not None:
            attributes[names.ATTR_CONVERSATION_ID] = flow
        self._started = perf_counter()
        begun = self._begun = sends.spans.begin(span_name, current, parent, _PRODUCER, attributes)
        own = begun.context
        if own.is_valid and own.span_id != parent.span_id:
            if one_flow and flow is None:
                begun.put(names.ATTR_CONVERSATION_ID, "%032x" % own.trace_id)  # noqa: UP031
        elif parent.is_valid:
            own = propagation.child_of(parent)
        else:
            own = propagation.mint(outgoing.correlation_id, sampled=sends.sampled)
        self.context: SpanContext = own
        self.carried = envelope.carried(
            own, propagation.baggage_header(current) if current and sends.send_baggage else ""
        )
        return self

    def _one_flow(self) -> bool:
        first = self._outgoing[0].correlation_id
        return all(outgoing.correlation_id == first for outgoing in self._outgoing)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        sends, begun = self._sends, self._begun
        elapsed = perf_counter() - self._started
        _, attributes, sent = self._destination
        count = len(self._outgoing)
        if error is not None:
            failure = Failure.of(error)
            attributes = attributes | {names.ATTR_ERROR_TYPE: failure.error_type}
            sent = sends.sent.of(attributes)
            record_failure(begun.span(), failure)
        elif self.failed:
            begun.span().set_status(Status(StatusCode.ERROR, f"{self.failed} of {count} messages were not confirmed"))
            sends.sent.of(attributes | {names.ATTR_ERROR_TYPE: "PublishError"}).add(self.failed)
            count -= self.failed
        sends.duration.record(elapsed, attributes, self._current)
        if count:
            sent.add(count)
        try:
            begun.end()
        except Exception:  # noqa: BLE001 - a span processor of the user's; what became of the message is known
            _log.exception("A span could not be ended", extra={"event": names.EVENT_BUS_INTERNAL_ERROR})
