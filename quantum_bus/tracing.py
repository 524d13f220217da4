"""Starts the bus's spans: through OpenTelemetry's API, or, where its SDK is behind that, in half the time.

The SDK checks and cleans every attribute of a span; the bus's own are names and plain values of its own making. So the
span is put together here, of the SDK's own class and by its own sampler, ids, limits and processors, and takes its
attributes unchecked: 7 µs instead of 19 with nine of them, and most of that while Redis is at work. What it takes is
not all public, so it is compared first, once, with what this SDK makes of the same calls; where anything differs, the
API is used.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from time import time_ns
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)

from . import names, propagation
from .spans import Attributes

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

_log: Final = logging.getLogger(names.INSTRUMENTATION_NAME)


class Begun:
    """A span that has begun: its context is known, and it is made when it is first asked for.

    What it is begun for can be on its way by then: making it takes ten times as long as beginning it.

    Attributes:
        context: the span's own; invalid where nothing traces.
    """

    __slots__ = ("_arguments", "_attributes", "_make", "_span", "context")

    def __init__(
        self,
        context: SpanContext,
        attributes: Attributes,
        span: Span | None,
        make: Callable[..., Span] | None = None,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self.context = context
        self._attributes = attributes
        self._span = span
        self._make = make
        self._arguments = arguments

    def put(self, key: str, value: str | int) -> None:
        """Give it one more attribute."""
        span = self._span
        if span is None:
            self._attributes[key] = value
        elif isinstance(span, _TakesUnchecked):
            span.take(key, value)
        else:
            span.set_attribute(key, value)

    def span(self) -> Span:
        """The span. A span processor that raises as it starts costs the span, not what it was begun for."""
        if self._span is None:
            assert self._make is not None
            try:
                self._span = self._make(self.context, self._attributes, *self._arguments)
            except Exception:  # noqa: BLE001 - a processor of the user's
                self._span = NonRecordingSpan(self.context)
                _log.exception("A span could not be started", extra={"event": names.EVENT_BUS_INTERNAL_ERROR})
        return self._span


Begin = Callable[[str, Context, SpanContext, SpanKind, Attributes, Sequence[Link]], Begun]


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
        links: Sequence[Link] = (),
    ) -> Begun:
        """Begin a span.

        Args:
            context: the one it begins in.
            parent: of the span that is current in there; invalid where there is none.
            attributes: strings and numbers; the caller has no more use of them.
        """
        begin = self._begin
        if begin is None:
            tracer = self._tracer()
            begin = self._begin = short_way(tracer) or _through_the_api(tracer)
        return begin(name, context, parent, kind, attributes, links)


class _TakesUnchecked:
    """What the spans of the short way are besides the SDK's."""

    def take(self, key: str, value: str | int) -> None:
        raise NotImplementedError


def _through_the_api(tracer: Tracer) -> Begin:
    def begin(
        name: str, context: Context, _: SpanContext, kind: SpanKind, attributes: Attributes, links: Sequence[Link]
    ) -> Begun:
        span = tracer.start_span(name, context, kind, attributes, links)
        return Begun(span.get_span_context(), attributes, span)

    return begin


def short_way(tracer: Any) -> Begin | None:
    """The short way, where the tracer is the SDK's own, its limits leave room, and the spans come out the same."""
    if not type(tracer).__module__.startswith("opentelemetry.sdk."):
        return None
    from opentelemetry.sdk.trace import Tracer as SdkTracer

    try:
        if type(tracer) is not SdkTracer or not _comes_out_the_same():
            return None
        limits = tracer._span_limits
        most = limits.max_span_attributes
        if limits.max_span_attribute_length is not None or (most is not None and most < _MOST_ATTRIBUTES):
            return None
        return _short_way(tracer)
    except Exception:  # noqa: BLE001 - another SDK than those that are known
        return None


@lru_cache(maxsize=1)
def _span_class() -> type[Any]:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

    blank = object.__new__

    class BusSpan(SdkSpan, _TakesUnchecked):
        """A span of the bus's."""

        def take(self, key: str, value: str | int) -> None:
            with self._lock:
                own: Any = self._attributes
                if self._end_time is None and (own.maxlen is None or len(own._dict) < own.maxlen):
                    own._dict[key] = value
                    return
            self.set_attribute(key, value)  # ended or filled by the handler: what then is the SDK's to say

        def _readable_span(self) -> ReadableSpan:
            # Attribute by attribute: a third of the time of setting `__dict__`, and half of its memory.
            span: Any = blank(ReadableSpan)
            span._name = self._name
            span._context = self._context
            span._kind = self._kind
            span._instrumentation_info = self._instrumentation_info
            span._instrumentation_scope = self._instrumentation_scope
            span._parent = self._parent
            span._start_time = self._start_time
            span._end_time = self._end_time
            span._attributes = self._attributes
            span._events = self._events
            span._links = self._links
            span._resource = self._resource
            span._status = self._status
            return span  # type: ignore[no-any-return]

    return BusSpan


@lru_cache(maxsize=1)
def _unfilled_list() -> type[Any]:
    from opentelemetry.sdk.util import BoundedList

    filling = threading.Lock()

    class Unfilled(BoundedList):  # type: ignore[type-arg]  # its stub's alone
        """Events or links of a span that has none: what holds them is made with the first one.

        Two deques and locks a span are 2 µs and 1.3 KB, and a publish's span hardly ever needs them.
        """

        dropped = 0

        def __init__(self, maxlen: int | None) -> None:
            self._maxlen = maxlen

        def __getattr__(self, name: str) -> Any:
            if name not in ("_dq", "_lock"):
                raise AttributeError(name)
            with filling:
                if name not in self.__dict__:
                    super().__init__(self._maxlen)
            return self.__dict__[name]

        def __len__(self) -> int:
            return super().__len__() if "_dq" in self.__dict__ else 0

        def __iter__(self) -> Iterator[Any]:
            return super().__iter__() if "_dq" in self.__dict__ else iter(())

    return Unfilled


def _links_of(limits: Any) -> Callable[[Sequence[Link]], Any]:
    """What a span holds its links in; None where the SDK has to look at them first."""
    from opentelemetry.attributes import BoundedAttributes
    from opentelemetry.sdk.util import BoundedList

    most, unfilled, nothing = limits.max_links, _unfilled_list(), BoundedAttributes(immutable=True)
    blank, new_lock = object.__new__, threading.Lock

    def links_of(links: Sequence[Link]) -> Any:
        if not links:
            return unfilled(most)
        for link in links:
            if link.attributes or not link.context.is_valid:
                return None
            link._attributes = nothing
        if most is not None and len(links) > most:
            return BoundedList.from_seq(most, links)
        held: Any = blank(BoundedList)
        held.dropped = 0
        held._dq = deque(links, most)
        held._lock = new_lock()
        return held

    return links_of


def _maker(tracer: Any) -> Callable[..., Span]:
    """What makes the SDK's span of what has begun, and starts it."""
    from opentelemetry.attributes import BoundedAttributes

    new_span, blank, new_lock = _span_class(), object.__new__, threading.Lock
    limits, scope, info = tracer._span_limits, tracer._instrumentation_scope, tracer.instrumentation_info
    resource, processor, sampler = tracer.resource, tracer.span_processor, tracer.sampler
    most, most_events = limits.max_span_attributes, limits.max_events
    unfilled, links_of, unset = _unfilled_list(), _links_of(limits), Status(StatusCode.UNSET)

    def make(
        own_context: SpanContext,
        own: Attributes,
        theirs: Attributes | None,
        name: str,
        above: SpanContext | None,
        kind: SpanKind,
        links: Sequence[Link],
        count_end: Callable[[], None],
        start_time: int,
        context: Context,
    ) -> Span:
        held_links = None if theirs is not None else links_of(links)
        if held_links is None:
            span = new_span(
                name=name,
                context=own_context,
                parent=above,
                sampler=sampler,
                resource=resource,
                attributes=theirs,
                span_processor=processor,
                kind=kind,
                links=links,
                instrumentation_info=info,
                limits=limits,
                instrumentation_scope=scope,
                record_end_metrics=count_end,
            )
            span.set_attributes(own)
            span.start(start_time, context)
            return span  # type: ignore[no-any-return]
        # As its constructors leave it, in a fifth of their 5 µs.
        attributes: Any = blank(BoundedAttributes)
        attributes._dict = own
        attributes.maxlen = most
        attributes.dropped = 0
        attributes.max_value_len = None
        attributes._lock = new_lock()
        attributes._immutable = False
        span = blank(new_span)
        span._name = name
        span._context = own_context
        span._kind = kind
        span._instrumentation_info = info
        span._instrumentation_scope = scope
        span._parent = above
        span._start_time = start_time
        span._end_time = None
        span._attributes = attributes
        span._events = unfilled(most_events)
        span._links = held_links
        span._resource = resource
        span._status = unset
        span._sampler = sampler
        span._trace_config = None
        span._record_exception = True
        span._set_status_on_exception = True
        span._span_processor = processor
        span._limits = limits
        span._lock = new_lock()
        span._record_end_metrics = count_end
        processor.on_start(span, parent_context=context)
        return span  # type: ignore[no-any-return]

    return make


def _short_way(tracer: Any) -> Begin:
    """As the SDK's ``start_span``, but for the attributes."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    make, flags = _maker(tracer), propagation.FLAGS
    enabled, count = tracer._is_enabled, tracer._tracer_metrics.start_span
    sampler, ids = tracer.sampler, tracer.id_generator
    new_context = propagation.valid_context if type(ids) is RandomIdGenerator else SpanContext
    sampled, random = TraceFlags.SAMPLED, TraceFlags.RANDOM_TRACE_ID

    def begin(
        name: str,
        context: Context,
        parent: SpanContext,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link],
    ) -> Begun:
        if not enabled():
            return Begun(parent, attributes, NonRecordingSpan(parent))
        above: SpanContext | None = None
        if parent.is_valid:
            above = parent
            trace_id = parent.trace_id
            bits = parent.trace_flags & random
        else:
            trace_id = ids.generate_trace_id()
            bits = random if ids.is_trace_id_random() else 0
        result = sampler.should_sample(context, trace_id, name, kind, attributes, links)
        decision = result.decision
        if decision.is_sampled():
            bits |= sampled
        own_context = new_context(trace_id, ids.generate_span_id(), False, flags[bits], result.trace_state)
        if not decision.is_recording():
            count(above, decision)
            return Begun(own_context, attributes, NonRecordingSpan(own_context))
        # Attributes of a sampler's own are the SDK's to clean, and the bus's own come behind them.
        own, theirs = (attributes, None) if result.attributes == attributes else ({}, result.attributes)
        return Begun(
            own_context, own, None, make, (theirs, name, above, kind, links, count(above, decision), time_ns(), context)
        )

    return begin


@lru_cache(maxsize=1)
def _comes_out_the_same() -> bool:
    """Whether this SDK itself makes the same spans: of a root, of a child, and where the parent was not sampled."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON

    class SameIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return 1

        def generate_span_id(self) -> int:
            return 2

    provider = TracerProvider(
        sampler=DEFAULT_ON, resource=Resource.get_empty(), id_generator=SameIds(), shutdown_on_exit=False
    )
    tracer = provider.get_tracer("quantum_bus")
    state = TraceState([("vendor", "1")])
    sampled, dropped = (
        SpanContext(3, 4, True, flags, state) for flags in (propagation.SAMPLED, propagation.NOT_SAMPLED)
    )
    links = [Link(sampled), Link(dropped)]
    for parent, linked in ((INVALID_SPAN_CONTEXT, links), (sampled, links), (dropped, links), (sampled, [])):
        context = propagation.with_span(NonRecordingSpan(parent), Context())
        seen = []
        for way in (_through_the_api(tracer), _short_way(tracer)):
            begun = way("name", context, parent, SpanKind.CONSUMER, {"a": 1, "b": "2"}, linked)
            begun.put("c", 3)
            span = begun.span()
            begun.put("d", 4)
            if parent is sampled:
                span.add_event("event", {"e": 5}, 6)
                span.add_link(dropped)
            span.end()
            seen.append([begun.context, *_facts(span)])
        if seen[0] != seen[1]:
            return False
    return True


def _alike(held: Any) -> dict[str, Any]:
    """What it holds: the same in two spans that were made alike, but for these, which are a span's own."""
    return {name: None if name in _OWN else value for name, value in vars(held).items()}


def _facts(span: Any) -> list[Any]:
    """All there is to a span, but when it was."""
    facts = [span.get_span_context()]
    if hasattr(span, "attributes"):  # it did record
        facts += [_alike(held) for held in (span, span._attributes, span._readable_span())]
        facts += [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events]
        facts += [(link.context, dict(link.attributes or {})) for link in span.links]
        facts += [span._links._dq.maxlen, span._events._dq.maxlen, span.dropped_events, span.dropped_links]
        facts += [span.status.status_code, span.status.description]
    return facts
