"""quantum-bus's JSON logging: its own logger, and a logger of the standard library under its set-up."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final

from quantum_bus import correlation_scope, setup_json_logging
from quantum_bus.jsonlog import Logger, close_logging

from .log_trial import CORRELATION_ID, EVENT, FIELDS, MESSAGE, SERVICE, microseconds, outcome, target
from .trial import Outcome, Trial, main

KEPT: Final = 1_000_000_000  # bytes: no record is rotated away, so that all can be counted


def _measured(trial: Trial, make: Callable[[Logger], Callable[[], object]]) -> Outcome:
    with contextlib.ExitStack() as stack:
        if trial.to_file:
            log = setup_json_logging(SERVICE, path=target(trial), max_bytes=KEPT, announce=False)
        else:  # a file is rotated by renaming it, which the null device is spared
            null = stack.enter_context(target(trial).open("wb"))
            log = setup_json_logging(SERVICE, stream=null, announce=False)
        stack.callback(close_logging)
        with correlation_scope(CORRELATION_ID):
            micros = microseconds(trial, make(log))
    return outcome(trial, micros)


def own(trial: Trial) -> Outcome:
    return _measured(trial, lambda log: lambda: log.info(MESSAGE, event=EVENT, **FIELDS))


def stdlib(trial: Trial) -> Outcome:
    logger = logging.getLogger("orders")
    extra = {"event": EVENT, **FIELDS}
    return _measured(trial, lambda _: lambda: logger.info(MESSAGE, extra=extra))


if __name__ == "__main__":
    main({"log": own, "log-stdlib": stdlib})
