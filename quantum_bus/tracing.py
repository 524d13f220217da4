"""Starts the bus's spans: through OpenTelemetry's API, or, where its SDK is behind that, in a quarter of the time.

The shorter way is :mod:`~quantum_bus.sdk_spans`'s. What it takes of the SDK is not all public, so it is compared first,
once, with what this SDK makes of the same calls; where anything differs, the API is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    SpanContext,
    SpanKind,
    Tracer,
    TraceState,
)

from . import propagation
from .spans import Attributes, Begin, Begun, Made

# More than a span of the bus's has.
_MOST_ATTRIBUTES: Final = 32

# What two spans never have in common, or is compared by what stands in it.
_OWN: Final = {
    "_attributes",
    "_end_time",
    "_events",
    "_links",
    "_lock",
    "_record_end_metrics",
    "_start_time",
    "_status",
}


class Spans:
    """Begins spans.

    Args:
        tracer: gives the tracer. Asked when the first span is begun: an SDK may be set up until then.
    """

    def __init__(self, tracer: Callable[[], Tracer]) -> None:
        self._tracer = tracer
        self._begin: Begin | None = None

    def begin(
        self,
        name: str,
        context: Context,
        parent: SpanContext,
        kind: SpanKind,
        attributes: Attributes,
        linked: Sequence[SpanContext] = (),
    ) -> Begun:
        """Begin a span.

        Args:
            context: the one it begins in.
            parent: the span that it continues: the one that is current in there, or a remote one where none is. Invalid
                where there is neither.
            attributes: strings and numbers; the caller has no more use of them.
            linked: valid ones.
        """
        begin = self._begin
        if begin is None:
            tracer = self._tracer()
            begin = self._begin = short_way(tracer) or _through_the_api(tracer)
        return begin(name, context, parent, kind, attributes, linked)


def _through_the_api(tracer: Tracer) -> Begin:
    def begin(
        name: str,
        context: Context,
        parent: SpanContext,
        kind: SpanKind,
        attributes: Attributes,
        linked: Sequence[SpanContext],
    ) -> Begun:
        links = [Link(context) for context in linked] if linked else ()
        return Made(tracer.start_span(name, propagation.continuing(parent, context), kind, attributes, links))

    return begin


def short_way(tracer: Any) -> Begin | None:
    """The short way, where the tracer is the SDK's own, its limits leave room, and the spans come out the same."""
    if not type(tracer).__module__.startswith("opentelemetry.sdk."):
        return None
    try:
        from opentelemetry.sdk.trace import Tracer as SdkTracer

        from . import sdk_spans

        if type(tracer) is not SdkTracer or not _comes_out_the_same():
            return None
        limits = tracer._span_limits
        most = limits.max_span_attributes
        if limits.max_span_attribute_length is not None or (most is not None and most < _MOST_ATTRIBUTES):
            return None
        return sdk_spans.begin_by(tracer)
    except Exception:  # noqa: BLE001 - another SDK than those that are known
        return None


@lru_cache(maxsize=1)
def _comes_out_the_same() -> bool:
    """Whether this SDK itself makes the same spans: of a root, of a child, and where the parent was not sampled."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON

    from . import sdk_spans

    class SameIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return 1

        def generate_span_id(self) -> int:
            return 2

    exported: list[ReadableSpan] = []

    class Exporting(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            exported.append(span)

    provider = TracerProvider(
        sampler=DEFAULT_ON,
        resource=Resource.get_empty(),
        id_generator=SameIds(),
        shutdown_on_exit=False,
        meter_provider=NoOpMeterProvider(),  # these spans are nobody's: the SDK is not to count them
    )
    provider.add_span_processor(Exporting())
    tracer = provider.get_tracer("quantum_bus")
    state = TraceState([("vendor", "1")])
    sampled, dropped = (
        SpanContext(3, 4, True, flags, state) for flags in (propagation.SAMPLED, propagation.NOT_SAMPLED)
    )
    both = [sampled, dropped]
    for parent, linked in ((INVALID_SPAN_CONTEXT, both), (sampled, both), (dropped, both), (sampled, [])):
        context = Context()
        for added in (False, True):
            seen = []
            for way in (_through_the_api(tracer), sdk_spans.begin_by(tracer)):
                begun = way("name", context, parent, SpanKind.CONSUMER, {"a": 1, "b": "2"}, linked)
                begun.put("c", 3)
                begun.started()
                span = begun.span()
                if added:
                    span.add_event("event", {"e": 5}, 6)
                    span.add_link(dropped)
                begun.put("d", 4)
                begun.end()
                seen.append([begun.context, span.is_recording(), *map(_facts, exported), *_state(span, added=added)])
                exported.clear()
            if seen[0] != seen[1]:
                return False
    return True


def _facts(span: Any) -> list[Any]:
    """All that is exported of a span, but when it was."""
    facts = [type(span), sorted(vars(span)), span.name, span.context, span.parent, span.kind, dict(span.attributes)]
    facts += [(event.name, event.timestamp, dict(event.attributes)) for event in span.events]
    facts += [(link.context, dict(link.attributes)) for link in span.links]
    facts += [span.dropped_attributes, span.dropped_events, span.dropped_links]
    facts += [span.status.status_code, span.status.description, span.resource, span.instrumentation_scope]
    facts += [type(span.start_time), type(span.end_time), span.start_time <= span.end_time]
    return facts


def _state(span: Any, *, added: bool) -> list[Any]:
    """All there is to a span that somebody has added to, but what no two have in common."""
    if not added or not hasattr(span, "attributes"):  # it did not record
        return []
    bounds = [span._links._dq.maxlen, span._events._dq.maxlen]
    return bounds + [
        {name: None if name in _OWN else value for name, value in vars(held).items()}
        for held in (span, span._attributes)
    ]
