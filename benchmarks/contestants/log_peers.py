"""Other loggers, each as fast as its documentation makes it, and the floor: orjson and a write."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from loguru import logger as loguru_logger
from pythonjsonlogger.orjson import OrjsonFormatter

from .log_trial import CORRELATION_ID, EVENT, FIELDS, MESSAGE, SERVICE, microseconds, outcome, target
from .trial import Outcome, Trial, main

CONTEXT: dict[str, Any] = {"service": SERVICE, "correlation_id": CORRELATION_ID}


def floor(trial: Trial) -> Outcome:
    """No logger at all: a dict, orjson, and one unbuffered write."""
    with target(trial).open("wb", buffering=0) as file:

        def log() -> None:
            line = {"ts": datetime.now(UTC), "level": "INFO", **CONTEXT, "event": EVENT, "msg": MESSAGE, **FIELDS}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

        micros = microseconds(trial, log)
    return outcome(trial, micros)


def structlog_bytes(trial: Trial) -> Outcome:
    """The configuration of structlog's own page on performance, less what this record does not need."""
    with target(trial).open("wb") as file:
        structlog.configure(
            cache_logger_on_first_use=True,
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=orjson.dumps),
            ],
            logger_factory=structlog.BytesLoggerFactory(file),
        )
        log = structlog.get_logger().bind(**CONTEXT)
        micros = microseconds(trial, lambda: log.info(EVENT, msg=MESSAGE, **FIELDS))
    return outcome(trial, micros)


def python_json_logger(trial: Trial) -> Outcome:
    formatter = OrjsonFormatter(
        ["asctime", "levelname", "message"], rename_fields={"levelname": "level"}, static_fields=CONTEXT
    )
    return _standard_library(trial, formatter, {"event": EVENT, **FIELDS})


def stdlib_text(trial: Trial) -> Outcome:
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(correlation_id)s %(message)s %(symbol)s")
    return _standard_library(trial, formatter, {"event": EVENT, **CONTEXT, **FIELDS})


def _standard_library(trial: Trial, formatter: logging.Formatter, extra: dict[str, Any]) -> Outcome:
    handler = logging.FileHandler(target(trial))
    handler.setFormatter(formatter)
    logger = logging.getLogger("orders")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    micros = microseconds(trial, lambda: logger.info(MESSAGE, extra=extra))
    handler.close()
    return outcome(trial, micros)


def loguru(trial: Trial) -> Outcome:
    loguru_logger.remove()
    loguru_logger.add(str(target(trial)), serialize=True, level="INFO", backtrace=False, diagnose=False)
    log = loguru_logger.bind(**CONTEXT)
    micros = microseconds(trial, lambda: log.info(MESSAGE, event=EVENT, **FIELDS))
    loguru_logger.remove()
    return outcome(trial, micros)


if __name__ == "__main__":
    main(
        {
            "floor": floor,
            "structlog": structlog_bytes,
            "python-json-logger": python_json_logger,
            "loguru": loguru,
            "stdlib-text": stdlib_text,
        }
    )
