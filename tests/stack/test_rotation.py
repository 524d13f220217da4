"""A service's own rotating files: what arrives, and what becomes of lines that are deleted before they are read."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from quantum_bus import names
from scripts.stack import Program, Stack, collector, wait_until
from tests.stack.alerting import LOKI_RULES, Watch, quick_loki, quick_prometheus, rules_of
from tests.stack.loki_reader import HOUR_NS, LokiReader
from tests.stack.running import Running
from tests.stack.service_writer import ServiceWriter

SERVICE = "auto_executor"
LINES = f'{{service_name="{SERVICE}", event="ORDER_SUBMIT"}}'
CLOSED = f'{{service_name="{SERVICE}", event="{names.EVENT_LOG_FILE_CLOSED}"}}'
ALERT = "LogLinesLostToRotation"
LOST = rules_of(LOKI_RULES)[ALERT]["expr"].rpartition(" > ")[0]


def found(stack: Stack) -> Counter[int]:
    """How often Loki has each line."""
    now = time.time_ns()
    reader = LokiReader(stack.loki_url)
    return Counter(json.loads(e.line)["seq"] for e in reader.read_all(LINES, start_ns=now - HOUR_NS, end_ns=now))


def closed(stack: Stack) -> list[int]:
    """How many lines each of the closed files holds."""
    now = time.time_ns()
    reader = LokiReader(stack.loki_url)
    return [json.loads(e.line)["lines"] for e in reader.query(CLOSED, start_ns=now - HOUR_NS, end_ns=now)]


def lost(stack: Stack) -> float:
    """How many lines are lost, as the rule says."""
    answer = httpx.get(f"{stack.loki_url}/loki/api/v1/query", params={"query": LOST}, timeout=60).raise_for_status()
    [sample] = answer.json()["data"]["result"]
    assert sample["metric"] == {"service": SERVICE}
    return float(sample["value"][1])


def wait_for(stack: Stack, seq: int) -> None:
    """Waits for the line of this number, and then until no more come."""
    reader = LokiReader(stack.loki_url)
    query = f'{LINES} |= "\\"seq\\":{seq},"'
    wait_until(lambda: reader.count(query) > 0, timeout=90, what=f"line {seq} in Loki", interval=0.5)
    seen = -1

    def still() -> bool:
        nonlocal seen
        before, seen = seen, reader.count(LINES)
        return seen == before

    wait_until(still, timeout=90, what="no more lines coming", interval=1.5)


def recorded(stack: Stack) -> list[float]:
    """What Prometheus has of it."""
    answer = httpx.get(f"{stack.prometheus_url}/api/v1/query", params={"query": names.RECORDED_LOST_LINES})
    return [float(sample["value"][1]) for sample in answer.raise_for_status().json()["data"]["result"]]


def test_a_file_that_is_rotated_every_second_is_read_whole_and_once_and_what_is_deleted_unread_is_told(
    stack: Stack, start: Callable[[Program], Running], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(quick_loki(stack))
    start(quick_prometheus(stack))
    reading = start(collector(stack))
    service = ServiceWriter(stack.logs, SERVICE, max_bytes=13_000_000)  # ten files of a second each
    service.write(0, 50_000, per_second=5_000)
    wait_for(stack, 49_999)
    assert found(stack) == Counter(range(50_000))
    assert len(closed(stack)) >= 8
    assert lost(stack) == 0
    wait_until(lambda: recorded(stack) == [0], timeout=30, what="a metric that says that nothing is lost")

    reading.kill()
    service.write(50_000, 100_000)
    reading.start()
    wait_for(stack, 149_999)
    missing = 150_000 - len(found(stack))
    stated = lost(stack)
    with capsys.disabled():
        print(f"\nunread files deleted: {missing} lines missing, {stated:.0f} stated")  # noqa: T201  what one runs it for
    # Of the file that was being read when the collector was killed, all lines are stated.
    assert 0 < missing <= stated <= missing + max(closed(stack))
    told = watch.wait_posted(ALERT, "firing")
    assert told["labels"] == {"alertname": ALERT, "service": SERVICE, "severity": "critical"}
    assert told["annotations"]["description"].startswith(f"{stated:.0f} lines of {SERVICE}")
    wait_until(lambda: recorded(stack) == [stated], timeout=30, what="a metric that says how many")


def test_a_full_queue_does_not_slow_the_service_and_what_rotation_deletes_meanwhile_is_told(
    stack: Stack, start: Callable[[Program], Running], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = ServiceWriter(stack.logs, SERVICE, max_bytes=4_000_000, backups=3)
    alone = replace(service, folder=stack.folder / "unread").write(0, 30_000)
    program = collector(stack)
    start(replace(program, env={**program.env, "QUANTUM_QUEUE_BYTES": "2000000"}))  # and no Loki
    start(quick_prometheus(stack))
    service.write(0, 30_000, per_second=10_000)
    watch.wait_posted("LogQueueNearlyFull", "firing")
    slowed = service.write(30_000, 70_000)
    assert slowed.dropped == 0
    kept = list(stack.logs.iterdir())
    assert len(kept) == 4
    assert sum(path.stat().st_size for path in kept) <= 4_000_000
    last = json.loads((stack.logs / f"{SERVICE}.jsonl").read_text().splitlines()[-1])
    assert last["seq"] == 99_999

    start(quick_loki(stack))
    watch.wait_posted("LogQueueNearlyFull", "resolved")
    wait_for(stack, 99_999)
    seen = found(stack)
    assert set(seen.values()) == {1}
    missing = 100_000 - len(seen)
    stated = lost(stack)
    with capsys.disabled():
        print(  # noqa: T201  the figures are what one runs this for
            f"\nqueue full: {missing} lines missing, {stated:.0f} stated; a line took "
            f"{slowed.seconds / 70_000 * 1e6:.1f} µs, alone {alone.seconds / 30_000 * 1e6:.1f} µs"
        )
    assert 0 < missing <= stated <= missing + max(closed(stack))
    told = watch.wait_posted(ALERT, "firing")
    assert told["labels"]["service"] == SERVICE
