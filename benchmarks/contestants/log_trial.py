"""How a logger is measured: one record with bound context and three fields, so many times, unbuffered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

from .trial import WARM_UP, Outcome, Trial

MESSAGE: Final = "Order submitted: BTCUSDT"
EVENT: Final = "ORDER_SUBMIT"
CORRELATION_ID: Final = "0086323e46d03f60cbb9ee759f833437"
SERVICE: Final = "auto_executor"
FIELDS: Final[dict[str, Any]] = {"symbol": "BTCUSDT", "qty": 0.5, "order_id": "ord-7f3c2f0e"}


def target(trial: Trial) -> Path:
    """What a contestant logs into."""
    return trial.folder / "bench.jsonl" if trial.to_file else Path(os.devnull)


def microseconds(trial: Trial, log: Callable[[], object]) -> float:
    """What one call takes."""
    for _ in range(int(trial.count * WARM_UP)):
        log()
    measured = trial.count - int(trial.count * WARM_UP)
    numbers = range(measured)
    started = time.perf_counter()
    for _ in numbers:
        log()
    return (time.perf_counter() - started) / measured * 1e6


def outcome(trial: Trial, micros: float) -> Outcome:
    """The figure, and what stands in the file if there is one: how many records, and the last of them."""
    if not trial.to_file:
        return Outcome({"micros": micros})
    lines = target(trial).read_bytes().splitlines()
    records = [line for line in lines if MESSAGE.encode() in line]
    try:
        last: Any = orjson.loads(records[-1])
    except orjson.JSONDecodeError:
        last = records[-1].decode()
    return Outcome({"micros": micros}, {"lines": len(records), "last": last})
