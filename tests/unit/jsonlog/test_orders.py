"""The order events: names, messages, fields and their order, by both kinds of loggers."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from quantum_bus.jsonlog import (
    CaptureSink,
    get_logger,
    log_event,
    log_intent_received,
    log_order_error,
    log_order_response,
    log_order_submit,
)
from quantum_bus.propagation import correlation_scope

LOGGERS = {
    "ours": get_logger(),
    "stdlib": logging.getLogger("trading"),
    "adapter": logging.LoggerAdapter(logging.getLogger("trading"), {"desk": "d"}),
}


@pytest.fixture(params=LOGGERS)
def logger(request: pytest.FixtureRequest) -> Any:
    return LOGGERS[request.param]


def fields(record: dict[str, Any]) -> list[str]:
    return [name for name in list(record)[6:] if name not in ("logger", "desk")]


def test_intent_received(logger: Any, logs: CaptureSink) -> None:
    log_intent_received(logger, "i-1", "BTCUSDT", 0.82, model="m")
    [record] = logs.records
    assert (record["event"], record["level"], record["msg"]) == ("INTENT_RECEIVED", "INFO", "Intent received: BTCUSDT")
    assert fields(record) == ["symbol", "intent_id", "confidence", "model"]


def test_order_submit(logger: Any, logs: CaptureSink) -> None:
    log_order_submit(logger, "BTCUSDT", "BUY", 0.5, "LIMIT", order_id="o-1")
    [record] = logs.records
    assert record["event"] == "ORDER_SUBMIT"
    assert fields(record) == ["symbol", "side", "qty", "order_type", "order_id"]


def test_order_response(logger: Any, logs: CaptureSink) -> None:
    log_order_response(logger, "o-1", "BTCUSDT", "FILLED", latency_ms=12.5)
    [record] = logs.records
    assert record["event"] == "ORDER_RESPONSE"
    assert fields(record) == ["order_id", "symbol", "status", "latency_ms"]
    assert record["latency_ms"] == 12.5


def test_order_error_with_a_text_and_with_an_exception(logger: Any, logs: CaptureSink) -> None:
    log_order_error(logger, "BTCUSDT", "rejected: password=hunter2")
    log_order_error(logger, "BTCUSDT", TimeoutError("redis://u:hunter2@h/0"), order_id="o-1")
    text, error = logs.records
    assert (text["event"], text["level"], text["error"]) == ("ORDER_ERROR", "ERROR", "rejected: password=***")
    assert fields(text) == ["symbol", "error"]
    assert fields(error) == ["symbol", "error", "order_id", "exc_type", "exc_message", "stack"]
    assert (error["exc_type"], error["error"]) == ("TimeoutError", "redis://u:***@h/0")


@pytest.mark.parametrize("level", ["WARNING", logging.WARNING])
def test_log_event(level: int | str, logger: Any, logs: CaptureSink) -> None:
    log_event(logger, level, "POSITION_UPDATED", "Position updated", symbol="BTCUSDT")
    [record] = logs.records
    assert (record["event"], record["level"], record["msg"]) == ("POSITION_UPDATED", "WARNING", "Position updated")
    assert fields(record) == ["symbol"]


def test_log_event_takes_its_arguments_by_name_too(logger: Any, logs: CaptureSink) -> None:
    log_event(logger=logger, level="INFO", event="E", msg="m", k=1)
    [record] = logs.records
    assert (record["event"], record["level"], record["msg"], record["k"]) == ("E", "INFO", "m", 1)


def test_the_given_correlation_id_wins_over_the_flows(logger: Any, logs: CaptureSink) -> None:
    with correlation_scope("flow-1"):
        for _ in range(2):
            log_order_submit(logger, "BTCUSDT", "BUY", 1, "MARKET")
            log_order_submit(logger, "BTCUSDT", "BUY", 1, "MARKET", "mine")
            log_order_submit(logger, "BTCUSDT", "BUY", 1, "MARKET", correlation_id="mine")
    assert [record["correlation_id"] for record in logs.records] == ["flow-1", "mine", "mine"] * 2


def test_a_field_that_a_record_has_already_is_renamed_not_refused(logger: Any, logs: CaptureSink) -> None:
    log_event(logger, "INFO", "E", "m", name="n", args=1, message="t", module="x")
    [record] = logs.records
    assert {record.get("name"), record.get("name_")} == {"n", None}
    assert len(fields(record)) == 4


def test_an_adapters_own_fields_are_kept(logs: CaptureSink) -> None:
    log_event(LOGGERS["adapter"], "INFO", "E", "m", k=1)
    assert (logs.records[0]["desk"], logs.records[0]["k"]) == ("d", 1)


@pytest.mark.parametrize("value", [None, float("nan"), object(), [1]])
def test_odd_arguments_never_raise(value: Any, logger: Any, logs: CaptureSink) -> None:
    log_intent_received(logger, value, value, value, value)
    log_order_submit(logger, value, value, value, value)
    log_order_response(logger, value, value, value)
    log_order_error(logger, value, value)
    assert len(logs.records) == 4


def test_a_stdlib_record_names_the_line_that_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_order_submit(logging.getLogger("trading"), "BTCUSDT", "BUY", 1, "MARKET")
    log_event(logging.getLogger("trading"), "INFO", "E", "m")
    assert {record.funcName for record in caplog.records} == {"test_a_stdlib_record_names_the_line_that_logged"}
