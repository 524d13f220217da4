"""200,000 lines through collector and Loki while one, the other or both are killed: which arrive, and how often."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from scripts.stack import Program, Stack, collector, loki, wait_until
from tests.stack.asking import get_good
from tests.stack.log_writer import LogWriter
from tests.stack.loki_reader import DAY_NS, LokiReader
from tests.stack.running import Running

LINES = 200_000
SERVICES = ("writer_a", "writer_b", "writer_c")
STEADY = 5_000  # lines a second, all writers together
WRITERS = '{service_name=~"writer_.+"}'


@dataclass(frozen=True, slots=True)
class Found:
    """What Loki holds of the lines written."""

    missing: int
    duplicates: int
    seconds: float
    first_missing: tuple[tuple[str, int], ...]


@pytest.fixture
def writers(stack: Stack) -> Callable[..., list[LogWriter]]:
    def make(per_second: float | None = None, seconds_told: float | None = None) -> list[LogWriter]:
        counts = [LINES // 3, LINES // 3, LINES - 2 * (LINES // 3)]
        rate = per_second / 3 if per_second else None
        return [
            LogWriter(stack.logs, service, count, rate, seconds_told)
            for service, count in zip(SERVICES, counts, strict=True)
        ]

    return make


def wait_written(writers: list[LogWriter], lines: int) -> None:
    wait_until(
        lambda: sum(writer.written for writer in writers) >= lines,
        timeout=120,
        what=f"{lines} lines written",
        interval=0.01,
    )


def wait_arrived(stack: Stack, lines: int, *, timeout: float = 90) -> None:
    reader = LokiReader(stack.loki_url)
    wait_until(
        lambda: reader.count(WRITERS, over="6h") >= lines, timeout=timeout, what=f"{lines} lines in Loki", interval=0.25
    )


def settle(stack: Stack) -> None:
    """Waits until Loki's count stands still: what is sent twice may come after what was missing."""
    reader, seen = LokiReader(stack.loki_url), -1

    def still() -> bool:
        nonlocal seen
        before, seen = seen, reader.count(WRITERS, over="6h")
        return seen == before

    wait_until(still, timeout=60, what="no more lines coming", interval=1.5)


def find(stack: Stack, writers: list[LogWriter], started: float) -> Found:
    """Waits until all is there, or nothing more comes, and counts every line by producer and number."""
    for writer in writers:
        writer.join()
    reader = LokiReader(stack.loki_url)
    complete = False
    deadline = time.monotonic() + 90
    while not complete and time.monotonic() < deadline:
        complete = reader.count(WRITERS, over="6h") >= LINES
        time.sleep(0.25)
    seconds = time.monotonic() - started
    settle(stack)
    seen: Counter[tuple[str, int]] = Counter()
    now = time.time_ns()
    for service in SERVICES:
        # With all of the metadata: where a query drops it ("| keep …"), Loki merges lines that differ in it alone.
        lines = f'{{service_name="{service}"}}'
        for entry in reader.read_all(lines, start_ns=now - DAY_NS, end_ns=now):
            fields = json.loads(entry.line)
            seen[fields["producer"], fields["seq"]] += 1
    expected = {(writer.service, sequence) for writer in writers for sequence in range(writer.count)}
    assert set(seen) <= expected
    missing = sorted(expected - set(seen))
    return Found(len(missing), sum(seen.values()) - len(seen), seconds, tuple(missing[:3]))


def report(capsys: pytest.CaptureFixture[str], what: str, found: Found, running: Running) -> None:
    with capsys.disabled():
        print(  # noqa: T201  the figures are what one runs this for
            f"\n{what}: {LINES} lines, {found.missing} missing, {found.duplicates} found twice, "
            f"all there after {found.seconds:.1f} s ({LINES / found.seconds:.0f} lines/s), "
            f"collector {running.resident_mib():.0f} MiB at most"
        )


def test_waiting_lines_all_arrive_once(
    stack: Stack,
    writers: Callable[..., list[LogWriter]],
    start: Callable[[Program], Running],
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = [writer.start() for writer in writers()]
    for writer in written:
        writer.join()
    start(loki(stack))
    started = time.monotonic()
    running = start(collector(stack))
    found = find(stack, written, started)
    report(capsys, "backlog, nobody killed", found, running)
    assert (found.missing, found.duplicates) == (0, 0), found.first_missing


def test_every_line_arrives_once_when_loki_is_killed(
    stack: Stack,
    writers: Callable[..., list[LogWriter]],
    start: Callable[[Program], Running],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, running = start(loki(stack)), start(collector(stack))
    started = time.monotonic()
    written = [writer.start() for writer in writers(2 * STEADY)]
    wait_arrived(stack, LINES // 4)
    store.kill()
    wait_written(written, LINES // 2)
    store.start()
    found = find(stack, written, started)
    report(capsys, "Loki killed", found, running)
    assert (found.missing, found.duplicates) == (0, 0), found.first_missing


def test_every_line_arrives_once_when_the_collector_is_stopped(
    stack: Stack,
    writers: Callable[..., list[LogWriter]],
    start: Callable[[Program], Running],
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(loki(stack))
    running = start(collector(stack))
    started = time.monotonic()
    written = [writer.start() for writer in writers(2 * STEADY)]
    wait_arrived(stack, LINES // 4)
    assert running.stop() == 0
    wait_written(written, LINES // 2)
    running.start()
    found = find(stack, written, started)
    report(capsys, "collector stopped", found, running)
    assert (found.missing, found.duplicates) == (0, 0), found.first_missing


def test_a_killed_collector_repeats_at_most_a_second_of_lines_and_loses_none(
    stack: Stack,
    writers: Callable[..., list[LogWriter]],
    start: Callable[[Program], Running],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, running = start(loki(stack)), start(collector(stack))
    started = time.monotonic()
    written = [writer.start() for writer in writers(STEADY)]
    wait_arrived(stack, LINES // 4)
    running.kill()
    wait_written(written, LINES // 2)
    running.start()
    # And once more with nobody there to take what is in the queue.
    wait_arrived(stack, 5 * LINES // 8)
    store.kill()
    wait_written(written, 3 * LINES // 4)
    running.kill()
    running.start()
    store.start()
    found = find(stack, written, started)
    report(capsys, f"collector killed twice at {STEADY} lines/s, once with Loki killed", found, running)
    assert found.missing == 0, found.first_missing
    assert found.duplicates <= STEADY


def discarded(stack: Stack) -> float:
    """How many lines Loki has refused."""
    text = get_good(f"{stack.loki_url}/metrics").text
    rows = [row for row in text.splitlines() if row.startswith("loki_discarded_samples_total")]
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def test_after_an_outage_of_five_hours_every_line_is_there_and_no_late_one_is_refused(
    stack: Stack,
    writers: Callable[..., list[LogWriter]],
    start: Callable[[Program], Running],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The lines say that they were written in five hours; rotated files are read side by side with the current ones."""
    running = start(collector(stack))
    started = time.monotonic()
    written = [writer.start() for writer in writers(2 * STEADY, 5 * 3600.0)]
    wait_written(written, LINES // 3)
    running.kill()
    wait_written(written, 2 * LINES // 3)
    running.start()
    for writer in written:
        writer.join()
    start(loki(stack))
    found = find(stack, written, started)
    report(capsys, "Loki away for five hours of lines, collector killed", found, running)
    assert found.missing == 0, found.first_missing
    assert found.duplicates <= STEADY
    assert discarded(stack) == 0
