"""The short way to a span: the same one as through OpenTelemetry's API, whatever the SDK is set up for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
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

from quantum_bus import sdk_spans, tracing
from quantum_bus.sdk_spans import BusSpan
from quantum_bus.spans import Begin, Begun
from quantum_bus.tracing import Spans, short_way

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


def one_way(quick: bool, sampler: str, *, random: bool, watched: bool) -> tuple[Any, Any]:
    """A way to start spans, and where they are exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=SAMPLERS[sampler],
        resource=Resource({"service.name": "test"}),
        id_generator=Counting(random=random),
        shutdown_on_exit=False,
    )
    if watched:
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
            type(span), sorted(vars(span)), on_the_wire(span), on_the_console(span),
        ]
        for span in spans
    ]  # fmt: skip


def on_the_console(span: ReadableSpan) -> Any:
    """As the SDK writes it out, but when it was."""
    written = json.loads(span.to_json())
    for timed in (written, *written["events"]):
        for name in ("start_time", "end_time", "timestamp"):
            timed.pop(name, None)
    return written


def on_the_wire(span: ReadableSpan) -> Any:
    """As OTLP sends it, but when it was, and with its attributes in one order."""
    message = encode_spans([span])
    for of_resource in message.resource_spans:
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                assert 0 < one.start_time_unix_nano <= one.end_time_unix_nano
                one.ClearField("start_time_unix_nano")
                one.ClearField("end_time_unix_nano")
                one.attributes.sort(key=lambda attribute: attribute.key)
                for event in one.events:
                    event.ClearField("time_unix_nano")
    return message


contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.integers(0, 3).map(TraceFlags),
    st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])]),
)


values = st.text(max_size=20) | st.integers(0, 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()


@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    random=st.booleans(),
    parent=st.just(INVALID_SPAN_CONTEXT) | contexts,
    current=st.booleans(),
    linked=st.lists(contexts, max_size=3),
    attributes=st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=12),
    more=st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=4),
    watched=st.booleans(),
    added=st.sampled_from(["nothing", "attributes", "all"]),
    fails=st.booleans(),
)
def test_the_span_is_that_of_the_api(
    sampler: str,
    random: bool,
    parent: SpanContext,
    current: bool,
    linked: list[SpanContext],
    attributes: dict[str, Any],
    more: dict[str, Any],
    watched: bool,
    added: str,
    fails: bool,
) -> None:
    context = set_span_in_context(NonRecordingSpan(parent), Context()) if current else Context()
    seen = []
    for quick in (False, True):
        begin, exporter = one_way(quick, sampler, random=random, watched=watched)
        begun: Begun = begin("send s", context, parent, SpanKind.PRODUCER, attributes.copy(), linked)
        begun.put("early", 1)
        begun.started()
        span = begun.span()
        recording = span.is_recording()
        if added != "nothing":
            span.set_attribute("handler", "own")
            span.set_attributes({"early": 2, "half": 0.5, "is": True})
        if added == "all":
            span.set_attribute("list", [1, "a"])
            span.set_attribute(["no", "text"], 1)  # type: ignore[arg-type]
            span.set_attributes({"plain": 1, "not": [True], "": "no key"})
            span.add_event("seen", {"n": 1})
            span.add_link(SpanContext(5, 6, is_remote=True))
        if fails:
            span.set_status(Status(StatusCode.ERROR, "wrong"))
        for key, value in more.items():
            begun.put(key, value)
        begun.end()
        recording_still = span.is_recording()
        span.set_attribute("late", 1)
        begun.put("later", 1)
        span.end()
        exported = facts(exporter.get_finished_spans())
        seen.append([recording, recording_still, begun.context, span.get_span_context(), exported])
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


def test_what_a_provider_tells_its_processors_with_is_told_that_spans_start() -> None:
    # fails without: a look at its class; one of a program's own heard of spans only when they had ended
    started: list[str] = []

    class Together(SynchronousMultiSpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            started.append(span.name)

    spans, _ = spans_of(active_span_processor=Together())
    begun(spans).end()
    assert started == ["send s"]


def test_the_bus_has_room_for_its_own_attributes_where_a_handler_fills_a_span() -> None:
    # fails without: leaving room for them; a span had one attribute more than its limit
    spans, exporter = spans_of(span_limits=SpanLimits(max_span_attributes=128))
    one = begun(spans)
    assert isinstance(one.span(), BusSpan)
    for number in range(128 - len(ATTRIBUTES)):  # it is full, and nothing is dropped
        one.span().set_attribute(f"own.{number}", number)
    one.put("bus", 1)
    one.end()
    [span] = exporter.get_finished_spans()
    assert len(span.attributes or {}) == 128
    assert span.dropped_attributes == 1
    assert "bus" in (span.attributes or {})


def test_what_a_sampler_puts_among_the_attributes_it_is_shown_is_cleaned_by_the_sdk() -> None:
    # fails without: showing it a copy; what it put there was exported as it was
    odd = object()

    class Puts(Sampler):
        def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
            attributes = named.get("attributes") or arguments[4]
            attributes["put"] = odd
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

        def get_description(self) -> str:
            return "puts"

    provider, exporter = TracerProvider(sampler=Puts(), shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("quantum_bus")
    begun(Spans(lambda: tracer)).end()
    tracer.start_span("send s", attributes={**ATTRIBUTES}).end()
    ours, theirs = exporter.get_finished_spans()
    assert dict(ours.attributes or {}) == dict(theirs.attributes or {})


def test_with_the_sdk_that_is_installed_the_short_way_is_taken() -> None:
    spans, _ = spans_of()
    assert isinstance(begun(spans).span(), BusSpan)


@pytest.fixture
def looked_again() -> Iterator[None]:
    tracing._comes_out_the_same.cache_clear()
    yield
    tracing._comes_out_the_same.cache_clear()


@pytest.mark.usefixtures("looked_again")
def test_with_an_sdk_whose_spans_differ_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    state = tracing._state

    def differing(span: Any, *, added: bool) -> list[Any]:
        return [*state(span, added=added), isinstance(span, BusSpan)]

    monkeypatch.setattr(tracing, "_state", differing)
    spans, exporter = spans_of()
    one = begun(spans)
    assert not isinstance(one.span(), BusSpan)
    one.put("late", 1)
    one.span().end()
    assert exporter.get_finished_spans()[0].attributes == {**ATTRIBUTES, "late": 1}


@pytest.mark.usefixtures("looked_again")
def test_it_is_spans_that_record_which_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    state, recording = tracing._state, []

    def looked_at(span: Any, *, added: bool) -> list[Any]:
        recording.append(hasattr(span, "attributes"))
        return state(span, added=added)

    monkeypatch.setattr(tracing, "_state", looked_at)
    assert tracing._comes_out_the_same()
    assert recording == [True] * 8 + [False] * 4 + [True] * 4


@pytest.mark.usefixtures("looked_again")
def test_with_an_sdk_that_lacks_what_is_taken_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(tracer: Any) -> Begin:
        raise AttributeError("_span_limits")

    monkeypatch.setattr(sdk_spans, "begin_by", lacking)
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
    assert not isinstance(span, BusSpan)
    span.end()
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes == kept


def test_of_too_many_links_the_last_are_kept_and_the_others_counted() -> None:
    linked = [SpanContext(number, number, is_remote=True) for number in range(1, 6)]
    for added in (False, True):
        spans, exporter = spans_of(span_limits=SpanLimits(max_links=3))
        one = spans.begin("process s", Context(), INVALID_SPAN_CONTEXT, SpanKind.CONSUMER, {}, linked)
        if added:
            one.span().add_link(SpanContext(6, 6, is_remote=True))
        one.end()
        (exported,) = exporter.get_finished_spans()
        assert [link.context.span_id for link in exported.links] == ([4, 5, 6] if added else [3, 4, 5])
        assert exported.dropped_links == 2 + added


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


def test_a_span_that_gets_no_more_than_plain_attributes_never_gets_what_only_more_takes() -> None:
    spans, exporter = spans_of()
    one = begun(spans)
    one.started()
    span: Any = one.span()
    one.put("late", 1)
    span.set_attribute("own", "plain")
    expected = {**ATTRIBUTES, "late": 1, "own": "plain"}
    assert span.is_recording()
    assert (span.name, span.attributes, span.parent) == ("send s", expected, None)
    one.end()
    assert not span.is_recording()
    assert "_lock" not in vars(span)
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes == expected


class Gate:
    """Holds the first who comes, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        first = not self.reached.is_set()
        self.reached.set()
        if first:
            assert self.opened.wait(timeout=30)


def side_by_side(gate: Gate, first: Callable[[], object], second: Callable[[], object]) -> None:
    """Two threads: one comes as far as the gate, then the other as far as it can, and then both go on."""
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        assert gate.reached.wait(timeout=30)
        other = threads.submit(second)
        time.sleep(0.1)  # for the other one to come as far as it can
        gate.opened.set()
        one.result()
        other.result()


def test_two_threads_that_add_to_it_at_once_add_to_the_same() -> None:
    completing, begun_already = Gate(), threading.Event()

    class Limits(SpanLimits):
        @property
        def max_span_attributes(self) -> int:
            if begun_already.is_set():
                completing()
            return 128

        @max_span_attributes.setter
        def max_span_attributes(self, _: int) -> None:
            pass

    spans, exporter = spans_of(span_limits=Limits())
    one = begun(spans)
    span = one.span()
    begun_already.set()
    side_by_side(completing, partial(span.set_attribute, "first", [1]), partial(span.set_attribute, "second", [2]))
    one.end()
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes == {**ATTRIBUTES, "first": (1,), "second": (2,)}


@pytest.mark.parametrize("adds", ["add_event", "add_link"])
def test_two_threads_that_add_the_first_event_or_link_lose_none(monkeypatch: pytest.MonkeyPatch, adds: str) -> None:
    making = Gate()
    bounded = sdk_spans._bounded

    def held(items: Sequence[Any], most: int | None) -> Any:
        making()
        return bounded(items, most)

    spans, exporter = spans_of()
    one = begun(spans)
    add = getattr(one.span(), adds)
    arguments = ("first", "second") if adds == "add_event" else (SpanContext(1, 1, True), SpanContext(2, 2, True))
    monkeypatch.setattr(sdk_spans, "_bounded", held)
    side_by_side(making, partial(add, arguments[0]), partial(add, arguments[1]))
    one.end()
    (exported,) = exporter.get_finished_spans()
    assert len(exported.events) + len(exported.links) == 2


def test_two_threads_that_end_it_end_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Gate()

    def time_ns() -> int:
        ending()
        return time.time_ns()

    spans, exporter = spans_of()
    one = begun(spans)
    monkeypatch.setattr(sdk_spans, "time_ns", time_ns)
    side_by_side(ending, one.end, one.end)
    assert len(exporter.get_finished_spans()) == 1


FORKER = """
import os, threading
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind
from quantum_bus import sdk_spans
from quantum_bus.tracing import Spans
tracer = TracerProvider().get_tracer("t")
spans = Spans(lambda: tracer)
begin = lambda: spans.begin("s", Context(), INVALID_SPAN_CONTEXT, SpanKind.PRODUCER, {})
begin().end()
held, done = threading.Event(), threading.Event()
def hold():
    with sdk_spans._completing:
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    begin().end()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
done.set()
"""


def test_a_fork_while_another_thread_ends_a_span_does_not_hang_the_child() -> None:
    forker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", FORKER], stdout=subprocess.PIPE, process_group=0)
    try:
        said, _ = forker.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(forker.pid, signal.SIGKILL)
    assert said == b"7\n"


def test_a_span_asked_for_what_no_span_has_says_so() -> None:
    span: Any = begun(spans_of()[0]).span()
    with pytest.raises(AttributeError, match="'BusSpan' object has no attribute 'nothing'"):
        _ = span.nothing
    assert not hasattr(span, "nothing")


def test_a_processor_that_is_added_later_is_told() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(lambda: provider.get_tracer("quantum_bus"))
    begun(spans).end()
    provider.add_span_processor(Touching())
    one = begun(spans)
    one.started()
    one.end()
    untold, told = exporter.get_finished_spans()
    assert untold.attributes == ATTRIBUTES
    assert told.attributes == {**ATTRIBUTES, "touched": "send s in False"}


def test_a_processor_that_looks_at_spans_before_they_are_exported_is_shown_them() -> None:
    class Looking(SpanProcessor):
        def _on_ending(self, span: SdkSpan) -> None:
            seen.append(span.name)

    seen: list[str] = []
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Looking())
    begun(Spans(lambda: provider.get_tracer("quantum_bus"))).end()
    assert seen == ["send s"]


def test_a_root_of_the_sdk_own_ids_has_a_trace_state_as_any_span() -> None:
    spans, _ = spans_of()
    own = begun(spans).context
    theirs = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s").get_span_context()
    assert own.trace_state == theirs.trace_state == TraceState()
    assert type(own.trace_state) is type(theirs.trace_state)


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
    one.started()
    span = one.span()
    assert not span.is_recording()
    assert span.get_span_context() == one.context
    assert "A span could not be started" in caplog.text


def test_an_sdk_that_is_set_up_before_the_first_span_is_found() -> None:
    tracers = [ProxyTracerProvider().get_tracer("quantum_bus")]
    spans = Spans(lambda: tracers[-1])
    tracers.append(TracerProvider(shutdown_on_exit=False).get_tracer("quantum_bus"))
    assert isinstance(begun(spans).span(), BusSpan)


def test_what_is_no_tracer_of_the_sdk_itself_is_used_through_the_api() -> None:
    assert short_way(ProxyTracerProvider().get_tracer("quantum_bus")) is None


def test_a_tracer_that_is_switched_off_makes_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.sdk.trace.Tracer._is_enabled", lambda _: False)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    begin = sdk_spans.begin_by(provider.get_tracer("quantum_bus"))
    parent = SpanContext(1, 2, True, TraceFlags(1))
    one = begin("send s", Context(), parent, SpanKind.PRODUCER, {}, ())
    assert isinstance(one.span(), NonRecordingSpan)
    assert one.context is parent
    one.span().end()
    assert not exporter.get_finished_spans()
