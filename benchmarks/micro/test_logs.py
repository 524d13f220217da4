"""A log record that is written, and one below the level."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contestants.log_trial import CORRELATION_ID, EVENT, FIELDS, MESSAGE, SERVICE
from quantum_bus import correlation_scope, setup_json_logging
from quantum_bus.jsonlog import Logger, close_logging


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "micro.jsonl"


@pytest.fixture
def log(file: Path) -> Iterator[Logger]:
    yield setup_json_logging(SERVICE, path=file, announce=False)
    close_logging()


def last(file: Path) -> dict:
    return json.loads(file.read_bytes().splitlines()[-1])


@pytest.mark.benchmark(group="log record")
def test_a_record(benchmark: BenchmarkFixture, log: Logger, file: Path) -> None:
    with correlation_scope(CORRELATION_ID):
        benchmark(lambda: log.info(MESSAGE, event=EVENT, **FIELDS))
    assert last(file) | FIELDS == last(file)
    assert last(file)["correlation_id"] == CORRELATION_ID


@pytest.mark.benchmark(group="log record")
def test_a_record_below_the_level(benchmark: BenchmarkFixture, log: Logger, file: Path) -> None:
    benchmark(lambda: log.debug(MESSAGE, event=EVENT, **FIELDS))
    assert file.read_bytes() == b""


@pytest.mark.benchmark(group="log record")
@pytest.mark.usefixtures("log")
def test_a_record_of_the_standard_library(benchmark: BenchmarkFixture, file: Path) -> None:
    logger = logging.getLogger("orders")
    benchmark(lambda: logger.info(MESSAGE, extra={"event": EVENT, **FIELDS}))
    assert last(file)["event"] == EVENT


@pytest.mark.benchmark(group="log record")
@pytest.mark.usefixtures("log")
def test_a_record_of_the_standard_library_below_the_level(benchmark: BenchmarkFixture, file: Path) -> None:
    logger = logging.getLogger("orders")
    benchmark(lambda: logger.debug(MESSAGE, extra={"event": EVENT, **FIELDS}))
    assert file.read_bytes() == b""
