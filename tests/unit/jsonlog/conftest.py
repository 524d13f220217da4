"""Each test leaves logging as it found it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from quantum_bus import names
from quantum_bus.jsonlog import CaptureSink, Logger, capture_logs, close_logging, get_logger, setup_json_logging
from quantum_bus.propagation import clear_correlation_id


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(names.ENV_LOG_FORMAT, raising=False)
    clear_correlation_id()
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    close_logging()
    clear_correlation_id()
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level


@pytest.fixture
def logs() -> Iterator[CaptureSink]:
    with capture_logs("svc") as captured:
        yield captured


@pytest.fixture
def log(logs: CaptureSink) -> Logger:
    return get_logger()


class Output:
    """A stream in memory and a logger on it."""

    def __init__(self, **options: Any) -> None:
        self.stream = io.StringIO()
        options.setdefault("announce", False)
        self.log = setup_json_logging("svc", stream=self.stream, **options)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def output() -> Output:
    return Output()
