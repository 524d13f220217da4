"""The form of a line: keys, order, reserved names, ids."""

from __future__ import annotations

import io
import json
import re
import threading
from datetime import UTC, datetime

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from quantum_bus.jsonlog import (
    CaptureSink,
    Logger,
    capture_logs,
    fastpath,
    get_logger,
    log_intent_received,
    setup_json_logging,
)
from quantum_bus.jsonlog.encode import Clock
from quantum_bus.propagation import correlation_scope

CID = "a1b2c3d4-e5f6-7890-abcd-ef1234567890"


def in_span(trace_id: int, span_id: int) -> object:
    return trace.use_span(NonRecordingSpan(SpanContext(trace_id, span_id, False, TraceFlags(1))))


@pytest.mark.parametrize("times", [1, 3])
def test_the_promised_line_is_written_to_the_letter(times: int) -> None:
    stream = io.StringIO()
    log = setup_json_logging("auto_executor", stream=stream, announce=False)
    for _ in range(times):  # the slow path teaches the fast one: both must agree
        log_intent_received(log, "intent_123", "BTCUSDT", 0.82, CID)
    for line in stream.getvalue().splitlines(keepends=True):
        assert re.sub(r'"ts":"[^"]*"', '"ts":"2026-01-03T10:15:23.456789Z"', line) == (
            '{"ts":"2026-01-03T10:15:23.456789Z","level":"INFO","service":"auto_executor","event":"INTENT_RECEIVED",'
            f'"correlation_id":"{CID}","msg":"Intent received: BTCUSDT",'
            '"symbol":"BTCUSDT","intent_id":"intent_123","confidence":0.82}\n'
        )


def test_event_is_log_and_correlation_id_null_where_nobody_names_them(log: Logger, logs: CaptureSink) -> None:
    log.info("hello")
    log.info("hello")
    for record in logs.records:
        assert list(record) == ["ts", "level", "service", "event", "correlation_id", "msg"]
        assert (record["event"], record["correlation_id"]) == ("LOG", None)


def test_the_flows_correlation_id_is_on_its_lines_and_an_explicit_one_wins(log: Logger, logs: CaptureSink) -> None:
    for _ in range(2):
        with correlation_scope("flow-1"):
            log.info("a")
            log.info("b", correlation_id="mine")
            log.info("c", correlation_id="not a valid id")
            log.info("d", correlation_id=None)
        log.info("e")
    ids = [record["correlation_id"] for record in logs.records]
    assert ids == ["flow-1", "mine", "not a valid id", "flow-1", None] * 2


def test_trace_and_span_id_stand_behind_msg_inside_a_span_only(log: Logger, logs: CaptureSink) -> None:
    log.info("x", n=1)
    with in_span(0xABC, 0xDEF):
        for _ in range(2):
            log.info("x", n=1)
        log.info("x", password="p")
    with in_span(1, 2):
        log.info("x", n=1)
    log.info("x", n=1)
    outside, *inside, other, after = logs.records
    for record in inside:
        assert list(record)[5:8] == ["msg", "trace_id", "span_id"]
        assert (record["trace_id"], record["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert other["trace_id"] == f"{1:032x}"
    assert "trace_id" not in outside
    assert "trace_id" not in after


def test_a_reserved_name_gets_an_underscore_and_another_where_that_is_taken(log: Logger, logs: CaptureSink) -> None:
    log.info("x", ts=1, level=2, service=3, msg=4, trace_id=5, span_id=6, exc_type=7, exc_message=8, stack=9, ts_=10)
    [record] = logs.records
    assert list(record)[6:] == [
        "ts__", "level_", "service_", "msg_", "trace_id_", "span_id_", "exc_type_", "exc_message_", "stack_", "ts_",
    ]  # fmt: skip
    assert record["ts__"] == 1
    assert record["ts_"] == 10


def test_no_key_is_ever_written_twice(log: Logger, logs: CaptureSink) -> None:
    bound = log.bind(a=1, b=2)
    for _ in range(2):
        bound.info("x", b=4, event="F", c=5)
        bound.info("x", extra={"a": 3, "event": "E"}, b=4, event="F", c=5)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    for number, line in enumerate(logs.lines):
        record = json.loads(line, object_pairs_hook=unique)
        assert {name: record[name] for name in "abc"} == {"a": 3 if number % 2 else 1, "b": 4, "c": 5}
        assert record["event"] == "F"


def test_fields_keep_the_order_they_were_given_in_bound_ones_first(log: Logger, logs: CaptureSink) -> None:
    bound = log.bind(z=1).bind(y=2)
    for _ in range(2):
        bound.info("x", b=1, a=2)
    for record in logs.records:
        assert list(record)[6:] == ["z", "y", "b", "a"]


def test_bind_changes_no_other_logger_and_sets_defaults_for_event_and_correlation_id(
    log: Logger, logs: CaptureSink
) -> None:
    bound = log.bind(event="E", correlation_id="c-1", k="v")
    for _ in range(2):
        bound.info("x")
        bound.info("x", event="F", correlation_id="c-2")
        log.info("x")
    shown = [(record["event"], record["correlation_id"], record.get("k")) for record in logs.records]
    assert shown == [("E", "c-1", "v"), ("F", "c-2", "v"), ("LOG", None, None)] * 2


def test_bound_values_are_those_of_the_moment(log: Logger, logs: CaptureSink) -> None:
    items = [1]
    bound = log.bind(items=items)
    items.append(2)
    bound.info("x")
    assert logs.records[0]["items"] == [1]


def test_percent_arguments_are_merged_and_a_single_mapping_is_for_names(log: Logger, logs: CaptureSink) -> None:
    log.info("%s of %d", "a", 2)
    log.info("%(n)s left", {"n": 3})
    log.info("100%")
    log.info("%d%%", 5)
    assert [record["msg"] for record in logs.records] == ["a of 2", "3 left", "100%", "5%"]


def test_arguments_that_do_not_match_are_kept_beside_the_message(log: Logger, logs: CaptureSink) -> None:
    log.info("%d %s", 1)  # noqa: PLE1206
    log.info("no place", "lost?")  # noqa: PLE1205
    assert [(record["msg"], record["args"]) for record in logs.records] == [("%d %s", ["1"]), ("no place", ["'lost?'"])]


def test_extra_and_keywords_are_fields(log: Logger, logs: CaptureSink) -> None:
    extra = {"event": "ORDER_SUBMIT", "order_id": "o-1", "correlation_id": "c-1"}
    with correlation_scope("flow-1"):
        log.info("x", extra=extra, qty=2, stacklevel=2)
        log.info("x", extra=extra, qty=2, event="OTHER", correlation_id="c-2")
    first, second = logs.records
    assert list(first)[6:] == ["order_id", "qty"]
    assert (first["event"], first["correlation_id"]) == ("ORDER_SUBMIT", "c-1")
    assert (second["event"], second["correlation_id"]) == ("OTHER", "c-2")


def test_an_exception_is_written_with_type_message_and_stack(log: Logger, logs: CaptureSink) -> None:
    class Broken(RuntimeError):
        pass

    try:
        raise Broken("no\nway")
    except Broken as error:
        log.exception("failed", n=1)
        log.error("failed", exc_info=True)  # noqa: G201
        caught = error
    log.error("failed", exc_info=caught)
    log.error("failed", exc_info=(type(caught), caught, caught.__traceback__))
    log.exception("nothing to show")  # noqa: LOG004
    *with_error, without = logs.records
    for record in with_error:
        assert list(record)[-3:] == ["exc_type", "exc_message", "stack"]
        assert record["exc_type"].endswith("Broken")
        assert record["exc_message"] == "no\nway"
        assert record["stack"].startswith("Traceback")
    assert "stack" not in without


def test_each_level_has_its_method_and_lower_ones_are_not_written() -> None:
    with capture_logs(level="WARNING") as logs:
        log = get_logger()
        for method in ("debug", "info", "warning", "error", "critical"):
            getattr(log, method)("x")
        log.log(30, "x")
        log.log("error", "x")
        log.log("no such level", "x")
        assert [record["level"] for record in logs.records] == ["WARNING", "ERROR", "CRITICAL", "WARNING", "ERROR"]
        assert [log.isEnabledFor(level) for level in (20, "WARNING")] == [False, True]


def test_a_level_without_a_name_is_written_all_the_same(log: Logger, logs: CaptureSink) -> None:
    for _ in range(2):
        log.log(25, "x")
    assert [record["level"] for record in logs.records] == ["Level 25"] * 2


def test_time_is_rfc_3339_in_utc_with_microseconds(log: Logger, logs: CaptureSink) -> None:
    before = datetime.now(UTC)
    for _ in range(3):
        log.info("x")
    for record in logs.records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["ts"])
        assert abs((datetime.fromisoformat(record["ts"]) - before).total_seconds()) < 60


def test_lines_follow_the_clock_over_seconds_and_back(
    log: Logger, logs: CaptureSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.info("x")
    for micros, text in [
        (1_767_435_323_999_999, "2026-01-03T10:15:23.999999Z"),
        (1_767_435_324_000_000, "2026-01-03T10:15:24.000000Z"),
        (1_767_435_323_000_042, "2026-01-03T10:15:23.000042Z"),
        (1_767_521_724_000_001, "2026-01-04T10:15:24.000001Z"),
    ]:
        monkeypatch.setattr(fastpath, "time_ns", lambda micros=micros: micros * 1000 + 999)
        log.info("x")
        assert logs.records[-1]["ts"] == text


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (1_767_435_323_456_789, "2026-01-03T10:15:23.456789Z"),
        (1_767_435_323_000_000, "2026-01-03T10:15:23.000000Z"),
        (1_767_435_322_999_999, "2026-01-03T10:15:22.999999Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_the_clock_is_right_forwards_and_backwards(micros: int, text: str) -> None:
    clock = Clock()
    clock.stamp(1_767_435_323_500_000)
    assert clock.stamp(micros).decode() == text


def test_get_logger_writes_its_name(logs: CaptureSink) -> None:
    get_logger("orders").info("x")
    assert logs.records[0]["logger"] == "orders"


def test_threads_never_mix_their_lines_or_their_flows(logs: CaptureSink) -> None:
    log = get_logger()

    def work(number: int) -> None:
        with correlation_scope(f"flow-{number}"):
            for step in range(300):
                log.info("step", number=number, step=step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = logs.records
    assert {(record["number"], record["step"]) for record in records} == {(n, s) for n in range(8) for s in range(300)}
    assert all(record["correlation_id"] == f"flow-{record['number']}" for record in records)


def test_text_format_writes_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTUM_BUS_LOG_FORMAT", "text")
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, announce=False)
    with correlation_scope("flow-1"):
        log.warning("Order %s", "late\nfake", event="ORDER_ERROR", order_id="o 1", password="hunter2")
    [line] = stream.getvalue().splitlines()
    assert re.fullmatch(
        r'\S+Z WARNING  svc \[flow-1\] ORDER_ERROR Order late\\nfake order_id="o 1" password=\*\*\*', line
    )


def test_text_format_puts_a_stack_on_indented_lines() -> None:
    stream = io.StringIO()
    log = setup_json_logging("svc", stream=stream, announce=False, format="text")
    log.error("failed", exc_info=ValueError("no"))
    first, *stack = stream.getvalue().splitlines()
    assert first.endswith("(ValueError: no)")
    assert stack == ["    ValueError: no"]
