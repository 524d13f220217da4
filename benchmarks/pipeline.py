"""From the file through the collector into Loki: how fast, at what cost, and whether every line is there, once.

    python -m benchmarks.pipeline [--lines 200000] [--runs 3] [--json]

The lines are written first; then Loki and the collector start, both as configured for use (`scripts/stack.py`), queue
and checkpoints fsynced. The clock runs from the start of the collector until a query in Loki counts all lines.
Then every line is read back and counted by its number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import httpx

from scripts.stack import Ports, Stack, StackError, collector, loki, wait_until
from tests.stack.log_writer import LogWriter
from tests.stack.loki_reader import DAY_NS, LokiReader
from tests.stack.running import Running

WRITERS = 3
LONGEST = 300.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. CPU in seconds for 1,000 lines, of the whole run, start included."""

    lines: int
    bytes: int
    seconds: float
    lines_per_second: float
    missing: int
    duplicates: int
    collector_cpu: float
    loki_cpu: float
    collector_mib: float
    loki_mib: float


def cpu_seconds(pid: int) -> float:
    """What the process has used so far, all of its threads together."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def taken(stack: Stack) -> float:
    """How many lines Loki says to have taken."""
    text = httpx.get(f"{stack.loki_url}/metrics", headers={"Accept-Encoding": "identity"}).raise_for_status().text
    rows = [row for row in text.splitlines() if row.startswith("loki_distributor_lines_received_total{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def measure(lines: int, folder: Path) -> Measured:
    stack = Stack(folder, Ports.free(), "redis://127.0.0.1:1/0")
    stack.make_folders()
    share = lines // WRITERS
    writers = [
        LogWriter(stack.logs, f"writer_{number}", share + (lines % WRITERS if number == 0 else 0))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.write_all()
    size = sum(path.stat().st_size for path in stack.logs.iterdir())
    reader = LokiReader(stack.loki_url)
    selector = '{service_name=~"writer_.+"}'
    with Running(loki(stack), folder / "loki.log") as store:
        before = cpu_seconds(store.pid)
        started = time.monotonic()
        with Running(collector(stack), folder / "collector.log") as reading:
            # Counting them again and again would be much of Loki's work: it is asked once it has taken enough.
            wait_until(lambda: taken(stack) >= lines, timeout=LONGEST, what="all lines taken by Loki", interval=0.25)
            wait_until(lambda: reader.count(selector) >= lines, timeout=LONGEST, what="all lines in Loki", interval=0.5)
            seconds = time.monotonic() - started
            cost = cpu_seconds(reading.pid), cpu_seconds(store.pid) - before
            memory = reading.resident_mib(), store.resident_mib()
            time.sleep(2)  # what is sent twice may come after what was missing
            seen: Counter[tuple[str, int]] = Counter()
            now = time.time_ns()
            for writer in writers:
                for entry in reader.read_all(f'{{service_name="{writer.service}"}}', start_ns=now - DAY_NS, end_ns=now):
                    line = json.loads(entry.line)
                    seen[line["producer"], line["seq"]] += 1
    return Measured(
        lines,
        size,
        seconds,
        lines / seconds,
        lines - len(seen),
        sum(seen.values()) - len(seen),
        cost[0] / lines * 1000,
        cost[1] / lines * 1000,
        *memory,
    )


def table(runs: Sequence[Measured]) -> str:
    heads = [field.name for field in fields(Measured)]
    rows = [[f"{value:.4f}" if name.endswith("cpu") else f"{value:.0f}" for name, value in asdict(run).items()]
            for run in runs]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in (heads, *rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object a run, in a list")
    chosen = parser.parse_args(arguments)
    runs = []
    try:
        for _ in range(chosen.runs):
            with tempfile.TemporaryDirectory(prefix="quantum-pipeline-") as folder:
                runs.append(measure(chosen.lines, Path(folder)))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps([asdict(run) for run in runs], indent=2) if chosen.json else table(runs))
    return 1 if any(run.missing or run.duplicates for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
