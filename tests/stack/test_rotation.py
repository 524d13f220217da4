"""A service's own rotating files: what arrives, and what becomes of lines that are deleted before they are read."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from quantum_bus import names
from scripts.stack import Program, Stack, StackError, collector
from tests.stack.alerting import LOKI_RULES, Watch, quick_loki, quick_prometheus, rules_of
from tests.stack.asking import get_good, wait_until
from tests.stack.loki_reader import HOUR_NS, LokiReader
from tests.stack.running import Running
from tests.stack.service_writer import ServiceWriter

SERVICE = "auto_executor"
EVERY_LINE = f'{{service_name="{SERVICE}"}}'
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
    answer = get_good(f"{stack.loki_url}/loki/api/v1/query", query=LOST)
    [sample] = answer.json()["data"]["result"]
    assert sample["metric"] == {"service": SERVICE}
    return float(sample["value"][1])


def wait_read(stack: Stack, reading: Running) -> None:
    """Waits until the collector is done with deleted files that it has open, and Loki has every line of the others."""

    def deleted_are_closed() -> bool:
        return not [name for name in reading.open_files() if name.startswith(str(stack.logs)) and "(deleted)" in name]

    wait_until(deleted_are_closed, timeout=90, what="deleted files read", interval=0.5)
    written = {line for file in stack.logs.iterdir() for line in file.read_text().splitlines()}
    reader = LokiReader(stack.loki_url)

    def all_arrived() -> bool:
        now = time.time_ns()
        return written <= {e.line for e in reader.read_all(EVERY_LINE, start_ns=now - HOUR_NS, end_ns=now)}

    wait_until(all_arrived, timeout=90, what="every line of the files in Loki", interval=1)


def wait_stated(stack: Stack, count: int) -> tuple[int, float]:
    """How many of `count` lines are missing and how many are said to be: the last batches may arrive in any order."""
    missing, stated = 0, 0.0

    def fits() -> bool:
        nonlocal missing, stated
        missing, stated = count - len(found(stack)), lost(stack)
        # Of a file that was being read when the collector was killed or kept waiting, all lines are stated.
        return 0 < missing <= stated <= missing + max(closed(stack))

    try:
        wait_until(fits, timeout=30, what="as many lines stated as are missing", interval=1)
    except StackError:
        pytest.fail(f"{missing} lines missing, {stated:.0f} stated, in files of {closed(stack)}")
    return missing, stated


def recorded(stack: Stack) -> list[float]:
    """What Prometheus has of it."""
    answer = get_good(f"{stack.prometheus_url}/api/v1/query", query=names.RECORDED_LOST_LINES)
    return [float(sample["value"][1]) for sample in answer.json()["data"]["result"]]


def described(stack: Stack) -> list[str]:
    """What Loki's ruler says in its alert now; of an alert that goes on firing Alertmanager sends no newer words."""
    alerts = get_good(f"{stack.loki_url}/prometheus/api/v1/alerts").json()["data"]["alerts"]
    return [alert["annotations"]["description"] for alert in alerts if alert["labels"]["alertname"] == ALERT]


def test_a_file_that_is_rotated_every_second_is_read_whole_and_once_and_what_is_deleted_unread_is_told(
    stack: Stack, start: Callable[[Program], Running], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(quick_loki(stack))
    start(quick_prometheus(stack))
    reading = start(collector(stack))
    service = ServiceWriter(stack.logs, SERVICE, max_bytes=13_000_000)  # ten files of a second each
    service.write(0, 50_000, per_second=5_000)
    wait_read(stack, reading)
    wait_until(lambda: found(stack) == Counter(range(50_000)), timeout=30, what="each line in Loki once", interval=1)
    assert len(closed(stack)) >= 8
    wait_until(lambda: lost(stack) == 0, timeout=30, what="a rule that says that nothing is lost")
    wait_until(lambda: recorded(stack) == [0], timeout=30, what="a metric that says that nothing is lost")

    reading.kill()
    service.write(50_000, 100_000)
    reading.start()
    wait_read(stack, reading)
    missing, stated = wait_stated(stack, 150_000)
    with capsys.disabled():
        print(f"\nunread files deleted: {missing} lines missing, {stated:.0f} stated")  # noqa: T201  what one runs it for
    told = watch.wait_posted(ALERT, "firing")
    assert told["labels"] == {"alertname": ALERT, "service": SERVICE, "severity": "critical"}
    assert re.match(rf"\d+ lines of {SERVICE} ", told["annotations"]["description"])
    watch.wait(
        lambda: [words for words in described(stack) if words.startswith(f"{stated:.0f} lines of {SERVICE} ")],
        f"an alert that says {stated:.0f} lines",
    )
    wait_until(lambda: recorded(stack) == [stated], timeout=30, what="a metric that says how many")


def test_a_full_queue_does_not_slow_the_service_and_what_rotation_deletes_meanwhile_is_told(
    stack: Stack, start: Callable[[Program], Running], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = ServiceWriter(stack.logs, SERVICE, max_bytes=4_000_000, backups=3)
    alone = replace(service, folder=stack.folder / "unread").write(0, 30_000)
    program = collector(stack)
    reading = start(replace(program, env={**program.env, "QUANTUM_QUEUE_BYTES": "2000000"}))  # and no Loki
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
    wait_read(stack, reading)
    missing, stated = wait_stated(stack, 100_000)
    assert set(found(stack).values()) == {1}
    with capsys.disabled():
        print(  # noqa: T201  the figures are what one runs this for
            f"\nqueue full: {missing} lines missing, {stated:.0f} stated; a line took "
            f"{slowed.seconds / 70_000 * 1e6:.1f} µs, alone {alone.seconds / 30_000 * 1e6:.1f} µs"
        )
    told = watch.wait_posted(ALERT, "firing")
    assert told["labels"]["service"] == SERVICE
