"""The benchmarks measure what they say: each contestant does the work it is given, and the same bytes reach Redis.

With a handful of messages; what they take is not looked at.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.catalogue import ROWS, Case
from benchmarks.runner import ContestantFailed, run_once
from quantum_bus.demo.redis_server import RedisProcess, start_redis
from tests.otlp import Collector
from tests.servers import series_to_test, server_of

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-bench" / "bin" / "python"
COUNT = 230
FIGURES = {(row.name, case.name): set(row.figures) for row in ROWS for case in row.cases}
ALL = [
    (row.name, case)
    for row in ROWS
    for case in row.cases
    if case.command[0] not in ("log_bus", "log_peers", "pipeline")
]
LOGS = [(row.name, case) for row in ROWS for case in row.cases if case.command[0] in ("log_bus", "log_peers")]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    """One that is emptied before each contestant, so none that others use."""
    with start_redis(server_of(series_to_test()[-1])) as process:
        yield process


@pytest.fixture(autouse=True)
def environment() -> None:
    if not ENVIRONMENT.exists():
        pytest.fail(f"{ENVIRONMENT} is not there: make bench-install")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def facts(case: Case, redis: RedisProcess, collector: Collector, row: str) -> dict[str, Any]:
    shrunk = Case(case.name, tuple("1000" if word == "1000000" else word for word in case.command), COUNT)
    outcome = run_once(shrunk, redis.url, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, python=ENVIRONMENT)
    assert set(outcome["figures"]) == FIGURES[row, case.name]
    assert all(value > 0 for figure, value in outcome["figures"].items() if figure != "megabytes")
    return outcome["facts"]


def level(case: Case) -> str:
    return case.command[case.command.index("--level") + 1] if "--level" in case.command else "off"


def spread(case: Case) -> int:
    return int(case.command[case.command.index("--spread") + 1]) if "--spread" in case.command else 1


@pytest.mark.parametrize(("row", "case"), ALL, ids=[f"{row}: {case.name}" for row, case in ALL])
def test_a_contestant_does_its_work(row: str, case: Case, redis: RedisProcess, collector: Collector) -> None:
    before = len(collector.spans)
    told = facts(case, redis, collector, row)
    whole = -(-COUNT // 100) * 100 if row == "publish-many" else COUNT // spread(case) * spread(case)
    if "handled" in told:
        handled = COUNT if "processes" in case.command or "consume-behind" in case.command else whole
        assert told["handled"] == handled
        assert told.get("pending", 0) == 0
    else:
        there = 1000 if "publish-into" in case.command else 0
        assert told["stored"] == (COUNT if there else whole) + there
    if row == "processes":
        return
    messages = told.get("handled") or told["stored"] - (1000 if "publish-into" in case.command else 0)
    if case.command[0].startswith("bus"):
        if level(case) in ("logs", "otlp"):
            assert told["lines"] == messages
        many = row == "publish-many" or "consume-batches" in case.command
        if level(case) in ("sampled", "metrics", "logs"):
            assert messages // 100 <= told["spans"] < messages if many else told["spans"] >= messages
        if level(case) in ("off", "unsampled"):
            assert told["spans"] == 0
        if level(case) == "some":
            assert told["spans"] < messages / 2
        if level(case) == "otlp":
            assert len(collector.spans) - before == messages
        if level(case) in ("metrics", "logs"):
            assert any(name.startswith("messaging.") for name in told["metrics"])
    elif case.command[0] == "by_hand":
        assert (told["lines"], told["spans"]) == (messages, messages)
        assert any(name.startswith("messaging.") for name in told["metrics"])
    elif level(case) != "off":
        assert told["spans"] > 0


@pytest.mark.parametrize("row", ["publish", "publish-in-flight", "publish-many", "threads"])
def test_raw_writes_the_fields_and_bytes_of_the_bus(row: str, redis: RedisProcess, collector: Collector) -> None:
    cases = next(each for each in ROWS if each.name == row).cases
    written = [
        facts(case, redis, collector, row)["entry"]
        for case in cases
        if case.command[0] in ("raw", "by_hand", "bus", "bus_threads")
    ]
    assert len(written) > 1
    assert "traceparent" in written[0]
    assert all(entry == written[0] for entry in written)


@pytest.mark.parametrize(("row", "case"), LOGS, ids=[f"{row}: {case.name}" for row, case in LOGS])
def test_a_logger_writes_the_record(row: str, case: Case, redis: RedisProcess) -> None:
    outcome = run_once(case, redis.url, count=COUNT, options=["--to-file"], python=ENVIRONMENT)
    assert set(outcome["figures"]) == FIGURES[row, case.name]
    assert outcome["facts"]["lines"] == COUNT
    last = outcome["facts"]["last"]
    for part in ("Order submitted: BTCUSDT", "0086323e46d03f60cbb9ee759f833437"):
        assert part in str(last)
    if not isinstance(last, str):
        for field in ("'qty': 0.5", "'order_id': 'ord-7f3c2f0e'", "'event': 'ORDER_SUBMIT'"):
            assert field in str(last)


def test_a_contestant_that_fails_is_told_with_its_error(redis: RedisProcess) -> None:
    with pytest.raises(ContestantFailed, match=r"(?s)nobody.*invalid choice: 'nothing'"):
        run_once(Case("nobody", ("raw", "nothing"), 1), redis.url, python=ENVIRONMENT)


def test_a_missed_budget_ends_the_command_with_1_and_is_named(tmp_path: Path) -> None:
    program = (
        "import sys, benchmarks.__main__ as m; from benchmarks.report import Run\n"
        "m.RESULTS = __import__('pathlib').Path(sys.argv.pop(1))\n"
        "m.measure = lambda *_, **__: Run({'date': 'd', 'rounds': 1, 'quick': False, 'machine': 'm', 'versions': {}},\n"
        "    {'log-stdlib': {'quantum-bus': [{'micros': 3.0}], 'standard library, text': [{'micros': 2.0}]}})\n"
        "sys.exit(m.main())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [ENVIRONMENT, "-c", program, tmp_path], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "missed: log-stdlib: quantum-bus, ≤ 0.9 × standard library, text: 1.50" in done.stdout
    assert "missed: publish: quantum-bus, all on, ≥ 1.05 × FastStream, off: not measured" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"latest.json", "latest.md", "latest.svg"}
