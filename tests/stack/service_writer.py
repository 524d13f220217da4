"""A service that logs numbered lines through the SDK into a rotating file, and then says how that went.

`python -m tests.stack.service_writer PATH --count 1000 …`, or `ServiceWriter` for a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from quantum_bus.jsonlog import setup_json_logging
from scripts.stack import ROOT

TICK = 50  # lines between two looks at the clock


@dataclass(frozen=True, slots=True)
class Said:
    """What the service says at its end."""

    dropped: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ServiceWriter:
    """`service`'s process: `max_bytes` and `backups` as of `setup_json_logging`."""

    folder: Path
    service: str
    max_bytes: int
    backups: int = 9

    def write(self, first: int, count: int, *, per_second: float = 0.0) -> Said:
        """Has `count` lines from `first` on written, as fast as it can unless `per_second` is given; waits for it."""
        command = [sys.executable, "-m", "tests.stack.service_writer", str(self.folder / f"{self.service}.jsonl")]
        options = {"service": self.service, "first": first, "count": count, "per-second": per_second,
                   "max-bytes": self.max_bytes, "backups": self.backups}  # fmt: skip
        command += [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
        return Said(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--service")
    parser.add_argument("--per-second", type=float)
    for name in ("first", "count", "max-bytes", "backups"):
        parser.add_argument(f"--{name}", type=int)
    chosen = parser.parse_args()
    log = setup_json_logging(
        chosen.service, path=chosen.path, max_bytes=chosen.max_bytes, backups=chosen.backups, announce=False
    )
    started = time.monotonic()
    for number in range(chosen.count):
        log.info("Order submitted", event="ORDER_SUBMIT", seq=chosen.first + number, symbol="BTCUSDT", text="x" * 100)
        if chosen.per_second and number % TICK == 0:
            time.sleep(max(0.0, started + number / chosen.per_second - time.monotonic()))
    print(json.dumps({"dropped": log.dropped, "seconds": time.monotonic() - started}))  # noqa: T201  its answer


if __name__ == "__main__":
    main()
