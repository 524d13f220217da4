"""The scopes both twins enter, without a bus; the spans themselves are in the contract's tests."""

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from quantum_bus import correlation_scope, get_correlation_id, names
from quantum_bus.delivery import Failure
from quantum_bus.envelope import Event, Incoming, prepare
from quantum_bus.handling import Handling, Handlings
from quantum_bus.propagation import get_causation_id
from quantum_bus.telemetry import CACHED_STREAMS, Telemetry
from tests.unit.incoming import incoming

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def outgoing(**fields: Any) -> Any:
    return prepare(Event({}, stream="s", **fields), max_payload_bytes=1_000)


def handling(telemetry: Telemetry, *items: Incoming, **options: Any) -> Handling:
    given = {"attempt": options.pop("attempt", 1), "previous": options.pop("previous", ())}
    scopes = Handlings(telemetry, **{"group": "g", "consumer": "c", "batch": False, "mode": "continue", **options})
    return scopes.of(items, **given)


@pytest.fixture
def recorded() -> tuple[Telemetry, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Telemetry(tracer_provider=provider), exporter


def spans(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    return exporter.get_finished_spans()


# --- sending -----------------------------------------------------------------------------------------------------


def test_without_an_sdk_and_a_trace_a_context_is_made() -> None:
    with Telemetry().sending(outgoing()) as sending:
        assert sending.context.is_valid
        assert sending.context.trace_flags.sampled
        assert sending.correlation_id(outgoing()) == f"{sending.context.trace_id:032x}"


def test_without_an_sdk_a_flow_that_is_a_trace_id_is_the_trace() -> None:
    with Telemetry().sending(outgoing(correlation_id="0af7651916cd43dd8448eb211c80319c")) as sending:
        assert f"{sending.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


def test_without_an_sdk_the_trace_in_force_is_continued_with_a_span_id_of_its_own() -> None:
    telemetry = Telemetry()
    with handling(telemetry, incoming(traceparent=TRACEPARENT)), telemetry.sending(outgoing()) as sending:
        current = trace.get_current_span().get_span_context()
        assert sending.context.trace_id == current.trace_id
        assert sending.context.span_id != current.span_id


def test_the_correlation_id_in_force_goes_before_the_traces() -> None:
    with correlation_scope("flow-1"):
        item = outgoing()
        with Telemetry().sending(item) as sending:
            assert sending.correlation_id(item) == "flow-1"


@pytest.mark.parametrize("send", [True, False])
def test_baggage_goes_along_unless_told_otherwise(send: bool) -> None:
    token = context.attach(baggage.set_baggage("tenant", "eu"))
    try:
        with Telemetry(send_baggage=send).sending(outgoing()) as sending:
            assert sending.carried[2:] == (("baggage", "tenant=eu") if send else ())
    finally:
        context.detach(token)


def test_attributes_of_made_up_streams_do_not_fill_the_memory() -> None:
    telemetry = Telemetry()
    for number in range(CACHED_STREAMS + 10):
        telemetry.sends.destination(f"s{number}")
    assert telemetry.sends.destination.cache_info().currsize == CACHED_STREAMS


def test_what_is_shared_between_spans_is_not_changed_by_one(
    recorded: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    telemetry, exporter = recorded
    before = dict(telemetry.sends.destination("s").attributes)
    with pytest.raises(ValueError, match="no"), telemetry.sending(outgoing(event="E")):
        raise ValueError("no")
    assert telemetry.sends.destination("s").attributes == before
    assert [span.status.is_ok for span in spans(exporter)] == [False]


# --- handling ----------------------------------------------------------------------------------------------------


def test_inside_it_flow_cause_and_span_are_the_messages_and_behind_it_the_former_ones() -> None:
    telemetry = Telemetry()
    with correlation_scope("outer"):
        before = (get_correlation_id(), get_causation_id(), trace.get_current_span())
        with handling(telemetry, incoming(7, traceparent=TRACEPARENT, baggage="tenant=eu")):
            assert (get_correlation_id(), get_causation_id()) == ("flow-7", "m-7")
            assert f"{trace.get_current_span().get_span_context().trace_id:032x}" == TRACEPARENT.split("-")[1]
            assert baggage.get_all() == {"tenant": "eu"}
        assert (get_correlation_id(), get_causation_id(), trace.get_current_span()) == before
        assert not baggage.get_all()


def test_it_is_left_clean_when_the_handler_is_cancelled(recorded: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = recorded

    class Cancelled(BaseException):
        pass

    with pytest.raises(Cancelled), handling(telemetry, incoming()):
        raise Cancelled
    assert get_correlation_id() is None
    assert not trace.get_current_span().get_span_context().is_valid
    [span] = spans(exporter)
    assert (span.attributes or {})[names.ATTR_OUTCOME] == names.OUTCOME_ABANDONED


def test_without_an_sdk_and_in_link_mode_the_run_has_a_trace_of_its_own() -> None:
    with handling(Telemetry(), incoming(traceparent=TRACEPARENT), mode="link") as run:
        assert run.span_context.is_valid
        assert f"{run.span_context.trace_id:032x}" != TRACEPARENT.split("-")[1]
        assert get_correlation_id() == "flow-1"


def test_a_batch_of_several_flows_is_a_flow_of_its_own_and_has_no_single_cause() -> None:
    with handling(Telemetry(), incoming(1), incoming(2), batch=True) as run:
        assert get_correlation_id() == f"{run.span_context.trace_id:032x}"
        assert get_causation_id() is None


def test_a_batch_takes_over_nobodys_baggage() -> None:
    with handling(Telemetry(), incoming(1, baggage="tenant=eu"), incoming(2), batch=True):
        assert not baggage.get_all()


def test_links_lead_to_the_messages_and_to_the_attempts_before(
    recorded: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    telemetry, exporter = recorded
    previous = SpanContext(1, 2, is_remote=False)
    with handling(telemetry, incoming(traceparent=TRACEPARENT), attempt=2, previous=[previous]):
        pass
    [span] = spans(exporter)
    assert [f"{link.context.span_id:016x}" for link in span.links] == ["b7ad6b7169203331", f"{2:016x}"]


def test_an_outcome_with_a_failure_is_an_error_on_the_span(recorded: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = recorded
    with handling(telemetry, incoming()) as run:
        run.finish(names.OUTCOME_RETRY, Failure("ValueError", "no", "stack"))
    [span] = spans(exporter)
    attributes = span.attributes or {}
    assert (attributes[names.ATTR_OUTCOME], attributes[names.ATTR_ERROR_TYPE]) == ("retry", "ValueError")
    assert (span.status.description, span.events[0].name) == ("no", "exception")


def test_metrics_carry_no_ids() -> None:
    """A label of its own for each message would be the end of any metrics store."""
    telemetry = Telemetry(server=("db", 6379))
    attributes = {**telemetry.sends.destination("s").attributes, **telemetry.process_attributes("s", "g")}
    assert set(attributes) == {
        names.ATTR_SYSTEM, names.ATTR_OPERATION_NAME, names.ATTR_OPERATION_TYPE, names.ATTR_DESTINATION,
        names.ATTR_GROUP, names.ATTR_SERVER_ADDRESS, names.ATTR_SERVER_PORT,
    }  # fmt: skip
