"""Records of the standard library's loggers: everybody's, in our format, once."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings

import pytest

from quantum_bus import names
from quantum_bus.jsonlog import CaptureSink, capture_logs, close_logging, get_logger, setup_json_logging
from quantum_bus.jsonlog.stdlib import StdlibHandler
from quantum_bus.propagation import correlation_scope

from .conftest import Output


def our_handler() -> logging.Handler:
    [handler] = [handler for handler in logging.getLogger().handlers if isinstance(handler, StdlibHandler)]
    return handler


def test_a_third_partys_record_is_a_line_with_its_logger_and_fields(logs: CaptureSink) -> None:
    other = logging.getLogger("third.party")
    with correlation_scope("flow-1"):
        for _ in range(2):
            other.warning("hello %s", "you", extra={"event": "GREETING", "order_id": 5, "password": "p"})
    for record in logs.records:
        assert list(record)[6:] == ["logger", "order_id", "password"]
        assert (record["event"], record["level"], record["msg"]) == ("GREETING", "WARNING", "hello you")
        assert (record["logger"], record["order_id"], record["password"]) == ("third.party", 5, "***")
        assert record["correlation_id"] == "flow-1"


def test_the_time_is_when_the_record_was_made(logs: CaptureSink) -> None:
    record = logging.makeLogRecord({"name": "x", "levelno": 20, "msg": "late", "created": 1_767_435_323.456789})
    logging.getLogger().handle(record)
    assert logs.records[0]["ts"] == "2026-01-03T10:15:23.456789Z"


def test_exceptions_and_stacks_of_records_are_written(logs: CaptureSink) -> None:
    other = logging.getLogger("x")
    try:
        raise ValueError("redis://u:hunter2@h/0")
    except ValueError:
        other.exception("failed")
    other.warning("here", stack_info=True)
    failed, here = logs.records
    assert (failed["exc_type"], failed["exc_message"]) == ("ValueError", "redis://u:***@h/0")
    assert "hunter2" not in failed["stack"]
    assert here["stack"].startswith("Stack (most recent call last)")


def test_arguments_that_do_not_match_lose_nothing(logs: CaptureSink) -> None:
    handler = our_handler()  # by itself: pytest's own would raise
    handler.handle(logging.makeLogRecord({"levelno": 20, "msg": "%d", "args": ("no number",)}))
    handler.handle(logging.makeLogRecord({"levelno": 20, "msg": "%(a)s", "args": {"b": 1}}))
    assert [(record["msg"], record["args"]) for record in logs.records] == [
        ("%d", ["'no number'"]),
        ("%(a)s", ["{'b': 1}"]),
    ]


def test_what_other_formatters_leave_on_a_record_is_no_field(logs: CaptureSink) -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelno": 20, "msg": "m", "otelTraceID": "0", "color_message": "c", "mine": 1}
    )
    logging.Formatter("%(asctime)s %(message)s").format(record)
    logging.getLogger().handle(record)
    assert list(logs.records[0])[6:] == ["logger", "mine"]


def test_records_below_the_level_are_not_written() -> None:
    with capture_logs(level="ERROR") as logs:
        logging.getLogger("x").warning("no")
        logging.getLogger("x").error("yes")
    assert [record["msg"] for record in logs.records] == ["yes"]


def test_a_second_setup_replaces_the_first() -> None:
    first, second = Output(), Output()
    logging.getLogger("x").warning("once")
    first.log.warning("once too")
    assert first.lines == []
    assert [record["msg"] for record in second.records] == ["once", "once too"]


def test_a_services_logger_keeps_its_name_under_another_services_setup() -> None:
    stream = io.StringIO()
    one = setup_json_logging("one", stream=stream, announce=False)
    two = setup_json_logging("two", stream=stream, announce=False)
    for _ in range(2):
        for log in (one, two, get_logger(), one.bind(a=1)):
            log.info("x")
    services = [json.loads(line)["service"] for line in stream.getvalue().splitlines()]
    assert services == ["one", "two", "two", "one"] * 2


def test_console_handlers_are_taken_off_and_given_back() -> None:
    root, own = logging.getLogger(), logging.getLogger("uvicorn.test")
    on_root, on_own = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    kept = logging.NullHandler()
    root.addHandler(on_root)
    own.addHandler(on_own)
    own.addHandler(kept)
    own.propagate = False
    try:
        output = Output()
        own.warning("once")
        assert [record["msg"] for record in output.records] == ["once"]
        assert on_root not in root.handlers
        assert own.handlers == [kept]
        close_logging()
        assert on_root in root.handlers
        assert set(own.handlers) == {kept, on_own}
        assert own.propagate is False
    finally:
        root.removeHandler(on_root)
        own.handlers.clear()
        own.propagate = True


def test_warnings_are_records_of_one_line() -> None:
    output = Output()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
    [record] = output.records
    assert (record["level"], record["logger"]) == ("WARNING", "py.warnings")
    assert record["msg"].endswith("UserWarning: careful")


def test_before_setup_records_follow_the_applications_own_rules(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with correlation_scope("flow-1"):
        get_logger("mine").info("Order %s", "late", event="ORDER_ERROR", order_id=5, password="p", name="n")
    get_logger().debug("not wanted")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("mine", "INFO")
    assert record.getMessage() == "Order late logger='mine' order_id=5 password='***' name='n'"
    assert (record.event, record.correlation_id, record.order_id) == ("ORDER_ERROR", "flow-1", 5)  # type: ignore[attr-defined]
    assert record.funcName == "test_before_setup_records_follow_the_applications_own_rules"


def test_a_logger_made_before_setup_writes_lines_after_it() -> None:
    early = get_logger("early")
    output = Output()
    early.info("x")
    assert output.records[0]["logger"] == "early"


def test_filters_of_the_handler_are_respected(logs: CaptureSink) -> None:
    our_handler().addFilter(lambda record: record.name != "noisy")
    logging.getLogger("noisy").warning("no")
    logging.getLogger("x").warning("yes")
    assert [record["msg"] for record in logs.records] == ["yes"]


def test_capture_puts_the_former_setup_back() -> None:
    output = Output()
    with capture_logs() as logs:
        get_logger().info("inside")
        logging.getLogger("x").info("inside")
    get_logger().info("outside")
    logging.getLogger("x").info("outside")
    assert [record["msg"] for record in logs.records] == ["inside", "inside"]
    assert [record["msg"] for record in output.records] == ["outside", "outside"]
    assert logs.of(names.DEFAULT_EVENT)
