import pytest

from quantum_bus.demo.flow import StreamEntry, build_flow, counts, flows_with, parse_lines

FLOW = "a-1"
INTENT = "quantum:stream:intent"
EXECUTION = "quantum:stream:execution"


def line(micros: int, service: str, event: str, correlation_id: str | None = FLOW) -> dict[str, object]:
    ts = f"2026-01-03T10:15:23.{micros:06d}Z"
    return {"ts": ts, "service": service, "event": event, "correlation_id": correlation_id, "msg": event.lower()}


def entry(micros: int, stream: str, service: str, correlation_id: str = FLOW) -> StreamEntry:
    fields = {
        "correlation_id": correlation_id,
        "service": service,
        "ts": f"2026-01-03T10:15:23.{micros:06d}Z",
        "event": "SENT",
    }
    return StreamEntry(stream, f"1-{micros}", fields)


LINES = {
    "ai_engine": [line(0, "ai_engine", "SERVICE_STARTED", None), line(1000, "ai_engine", "INTENT_CREATED")],
    "auto_executor": [
        line(3000, "auto_executor", "INTENT_RECEIVED"),
        line(3500, "auto_executor", "INTENT_RECEIVED", "other"),
        line(9000, "auto_executor", "ORDER_RESPONSE"),
    ],
    "portfolio": [line(12500, "portfolio", "POSITION_UPDATED")],
}
ENTRIES = [
    entry(1500, INTENT, "ai_engine"),
    entry(1600, INTENT, "ai_engine", "other"),
    entry(10000, EXECUTION, "auto_executor"),
]


def test_a_flow_goes_from_service_to_service_through_the_streams() -> None:
    flow = build_flow(FLOW, LINES, ENTRIES)
    first = flow.first
    assert [(step.offset_ms, step.event, step.stream) for step in first.steps] == [
        (0.0, "INTENT_CREATED", None),
        (0.5, "SENT", INTENT),
    ]
    (second,) = first.next
    assert (first.service, first.waited_ms) == ("ai_engine", None)
    assert (second.service, second.waited_ms) == ("auto_executor", 1.5)
    assert [step.event for step in second.steps] == ["INTENT_RECEIVED", "ORDER_RESPONSE", "SENT"]
    (third,) = second.next
    assert (third.service, third.waited_ms, third.next) == ("portfolio", 2.5, [])
    assert flow.duration_ms == 11.5


def test_a_service_that_has_not_answered_has_an_empty_hop() -> None:
    flow = build_flow(FLOW, {**LINES, "portfolio": []}, ENTRIES)
    (second,) = flow.first.next
    (third,) = second.next
    assert (third.service, third.waited_ms, list(third.steps)) == ("portfolio", None, [])


def test_a_flow_nobody_began_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody-knows"):
        build_flow("nobody-knows", LINES, ENTRIES)


def test_events_are_counted_in_the_order_they_came() -> None:
    assert list(counts(LINES["auto_executor"]).items()) == [("INTENT_RECEIVED", 2), ("ORDER_RESPONSE", 1)]


def test_flows_are_named_once_each_and_in_order() -> None:
    assert flows_with([*LINES["auto_executor"], *LINES["auto_executor"]], "INTENT_RECEIVED") == [FLOW, "other"]


def test_what_is_no_whole_json_line_is_left_out() -> None:
    assert parse_lines(b'{"a":1}\nTraceback\n[1]\n\xff\n{"b":2}\n{"half":') == [{"a": 1}, {"b": 2}]
