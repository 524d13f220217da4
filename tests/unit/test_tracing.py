"""The short way to a span: the same one as through OpenTelemetry's API, whatever the SDK is set up for."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    ProxyTracerProvider,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from quantum_bus import tracing
from quantum_bus.tracing import Begun, Spans, short_way

ATTRIBUTES = {"messaging.system": "redis", "messaging.message.body.size": 12, "messaging.message.id": "m"}


class Counting(IdGenerator):
    """Ids that two providers make alike."""

    def __init__(self, *, random: bool) -> None:
        self._random = random
        self._last = 0

    def generate_trace_id(self) -> int:
        self._last += 1
        return self._last << 64 | self._last

    def generate_span_id(self) -> int:
        self._last += 1
        return self._last

    def is_trace_id_random(self) -> bool:
        return self._random


class Adding(Sampler):
    """Adds attributes, one of which has to be cleaned, and a trace state."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def should_sample(self, parent_context: Any, trace_id: Any, name: Any, kind: Any = None, attributes: Any = None,
                      links: Any = None, trace_state: Any = None) -> SamplingResult:  # fmt: skip
        own = {**attributes, "sampler": [1, 2], "seen": len(links or ())}
        return SamplingResult(self._decision, own, TraceState([("sampler", "1")]))

    def get_description(self) -> str:
        return "Adding"


class Touching(SpanProcessor):
    """As a baggage processor does."""

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        span.set_attribute("touched", f"{span.name} in {bool(parent_context)}")


SAMPLERS: dict[str, Sampler] = {
    "default": DEFAULT_ON,
    "on": ALWAYS_ON,
    "off": ALWAYS_OFF,
    "half": ParentBased(TraceIdRatioBased(0.5)),
    "adding": Adding(Decision.RECORD_AND_SAMPLE),
    "recording": Adding(Decision.RECORD_ONLY),
}


def one_way(quick: bool, sampler: str, *, random: bool, limits: SpanLimits | None = None) -> tuple[Any, Any]:
    """A way to start spans, and where they are exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=SAMPLERS[sampler],
        resource=Resource({"service.name": "test"}),
        id_generator=Counting(random=random),
        span_limits=limits,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(Touching())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("quantum_bus", "1")
    begin = short_way(tracer) if quick else None
    assert (begin is not None) is quick
    return begin or tracing._through_the_api(tracer), exporter


def facts(spans: Sequence[ReadableSpan]) -> list[Any]:
    return [
        [
            span.name, span.context, span.parent, span.kind, dict(span.attributes or {}), span.resource,
            span.instrumentation_scope, span.status.status_code, span.status.description, span.dropped_attributes,
            [(link.context, dict(link.attributes or {})) for link in span.links],
            [(event.name, dict(event.attributes or {})) for event in span.events],
            type(span), sorted(vars(span)),
        ]
        for span in spans
    ]  # fmt: skip


def contexts() -> st.SearchStrategy[SpanContext]:
    states = st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])])
    made = st.builds(
        SpanContext,
        st.integers(1, 2**128 - 1),
        st.integers(1, 2**64 - 1),
        st.booleans(),
        st.integers(0, 3).map(TraceFlags),
        states,
    )
    return st.just(INVALID_SPAN_CONTEXT) | made


values = st.text(max_size=20) | st.integers(0, 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()


@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    random=st.booleans(),
    parent=contexts(),
    links=st.lists(contexts(), max_size=3),
    attributes=st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=12),
    more=st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=4),
    fails=st.booleans(),
)
def test_the_span_is_that_of_the_api(
    sampler: str,
    random: bool,
    parent: SpanContext,
    links: list[SpanContext],
    attributes: dict[str, Any],
    more: dict[str, Any],
    fails: bool,
) -> None:
    context = set_span_in_context(NonRecordingSpan(parent), Context()) if parent.is_valid else Context()
    seen = []
    for quick in (False, True):
        begin, exporter = one_way(quick, sampler, random=random)
        begun: Begun = begin("send s", context, parent, SpanKind.PRODUCER, attributes.copy(), [Link(c) for c in links])
        begun.put("early", 1)
        span = begun.span()
        recording = span.is_recording()
        span.set_attribute("handler", "own")
        span.add_event("seen", {"n": 1})
        if fails:
            span.set_status(Status(StatusCode.ERROR, "wrong"))
        for key, value in more.items():
            begun.put(key, value)
        span.end()
        seen.append([recording, begun.context, span.get_span_context(), facts(exporter.get_finished_spans())])
    assert seen[0] == seen[1]


def spans_of(**options: Any) -> tuple[Spans, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("quantum_bus")
    return Spans(lambda: tracer), exporter


def begun(spans: Spans, attributes: dict[str, Any] | None = None) -> Begun:
    return spans.begin(
        "send s",
        Context(),
        INVALID_SPAN_CONTEXT,
        SpanKind.PRODUCER,
        {**ATTRIBUTES} if attributes is None else attributes,
    )


def test_with_the_sdk_that_is_installed_the_short_way_is_taken() -> None:
    spans, _ = spans_of()
    assert isinstance(begun(spans).span(), tracing._TakesUnchecked)


@pytest.fixture
def looked_again() -> Iterator[None]:
    tracing._comes_out_the_same.cache_clear()
    yield
    tracing._comes_out_the_same.cache_clear()


@pytest.mark.usefixtures("looked_again")
def test_with_an_sdk_whose_spans_differ_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tracing._facts

    def facts(span: Any) -> list[Any]:
        return [*whole(span), isinstance(span, tracing._TakesUnchecked)]

    monkeypatch.setattr(tracing, "_facts", facts)
    spans, exporter = spans_of()
    one = begun(spans)
    assert not isinstance(one.span(), tracing._TakesUnchecked)
    one.put("late", 1)
    one.span().end()
    assert exporter.get_finished_spans()[0].attributes == {**ATTRIBUTES, "late": 1}


@pytest.mark.usefixtures("looked_again")
def test_it_is_spans_that_record_which_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    whole, recording = tracing._facts, []

    def facts(span: Any) -> list[Any]:
        recording.append(hasattr(span, "attributes"))
        return whole(span)

    monkeypatch.setattr(tracing, "_facts", facts)
    assert tracing._comes_out_the_same()
    assert recording == [True, True, True, True, False, False, True, True]


@pytest.mark.usefixtures("looked_again")
def test_with_an_sdk_that_lacks_what_is_taken_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(tracer: Any) -> tracing.Begin:
        raise AttributeError("_span_limits")

    monkeypatch.setattr(tracing, "_short_way", lacking)
    spans, exporter = spans_of()
    begun(spans).span().end()
    assert exporter.get_finished_spans()[0].attributes == ATTRIBUTES


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (SpanLimits(max_span_attributes=8), {f"a{number}": "a long value" for number in range(1, 9)}),
        (SpanLimits(max_span_attribute_length=4), {f"a{number}": "a lo" for number in range(9)}),
    ],
)
def test_limits_that_the_bus_own_attributes_may_reach_hold(limits: SpanLimits, kept: dict[str, str]) -> None:
    spans, exporter = spans_of(span_limits=limits)
    span = begun(spans, {f"a{number}": "a long value" for number in range(9)}).span()
    assert not isinstance(span, tracing._TakesUnchecked)
    span.end()
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes == kept


def test_a_span_that_its_handler_filled_takes_no_more_than_the_limit() -> None:
    spans, exporter = spans_of()
    one = begun(spans)
    for number in range(200):
        one.span().set_attribute(f"own {number}", number)
    one.put("late", 1)
    one.span().end()
    (exported,) = exporter.get_finished_spans()
    assert len(exported.attributes or {}) == 128
    assert (exported.attributes or {})["late"] == 1


def test_a_span_that_its_handler_ended_stays_as_it_was() -> None:
    spans, exporter = spans_of()
    one = begun(spans)
    one.span().end()
    one.put("late", 1)
    one.span().end()
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes == ATTRIBUTES


def test_events_and_exceptions_of_a_handler_are_on_the_span() -> None:
    spans, exporter = spans_of()
    span = begun(spans).span()
    span.record_exception(ValueError("wrong"))
    span.update_name("other")
    span.end()
    (exported,) = exporter.get_finished_spans()
    assert [event.name for event in exported.events] == ["exception"]
    assert exported.name == "other"


def test_it_starts_when_it_is_begun_and_is_made_once() -> None:
    spans, _ = spans_of()
    before = time.time_ns()
    one = begun(spans)
    between = time.time_ns()
    span: Any = one.span()
    assert before <= span.start_time <= between
    assert one.span() is span


def test_a_processor_that_raises_costs_the_span_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            raise ValueError("broken")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    one = begun(Spans(lambda: provider.get_tracer("quantum_bus")))
    span = one.span()
    assert not span.is_recording()
    assert span.get_span_context() == one.context
    assert "A span could not be started" in caplog.text


def test_an_sdk_that_is_set_up_before_the_first_span_is_found() -> None:
    tracers = [ProxyTracerProvider().get_tracer("quantum_bus")]
    spans = Spans(lambda: tracers[-1])
    tracers.append(TracerProvider(shutdown_on_exit=False).get_tracer("quantum_bus"))
    assert isinstance(begun(spans).span(), tracing._TakesUnchecked)


def test_what_is_no_tracer_of_the_sdk_itself_is_used_through_the_api() -> None:
    assert short_way(ProxyTracerProvider().get_tracer("quantum_bus")) is None


def test_a_tracer_that_is_switched_off_makes_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.sdk.trace.Tracer._is_enabled", lambda _: False)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    begin = tracing._short_way(provider.get_tracer("quantum_bus"))
    parent = SpanContext(1, 2, True, TraceFlags(1))
    one = begin("send s", Context(), parent, SpanKind.PRODUCER, {}, ())
    assert isinstance(one.span(), NonRecordingSpan)
    assert one.context is parent
    one.span().end()
    assert not exporter.get_finished_spans()
