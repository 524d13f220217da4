"""``python -m benchmarks.profiling``: where each microsecond of a publish and of a handling goes, beside the floor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

from . import machine, places
from .__main__ import PROFILE, RESULTS, write_pages
from .catalogue import ALL_ON, OFF, RAW, ROWS
from .runner import ContestantFailed, Cores, pin, run_once, server

ROUNDS: Final = 5
LATEST: Final = "latest-profile"
PROFILED: Final = {
    "publish": (ALL_ON, OFF, RAW),
    "consume": (ALL_ON, OFF, "raw redis-py, read 100, ack 100"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("--commit", action="store_true", help="make it the one that docs/performance.md shows")
    options = parser.parse_args()
    cores = Cores.shared_out()
    pin(os.getpid(), cores.client)
    with server(cores) as redis:
        profile: dict[str, Any] = {
            "about": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine.described()},
            **{row: _row(row, redis.url) for row in PROFILED},
        }
    RESULTS.mkdir(exist_ok=True)
    for name in (LATEST, PROFILE) if options.commit else (LATEST,):
        (RESULTS / f"{name}.json").write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
    if options.commit:
        write_pages()
    for row in PROFILED:
        print(f"{row}\n\n{places.place_table(profile[row])}\n")
    return 0


def _row(name: str, url: str) -> dict[str, Any]:
    """By contestant: microseconds a message, the median of rounds without the profiler, and shares by place."""
    row = next(row for row in ROWS if row.name == name)
    cases = [next(case for case in row.cases if case.name == contestant) for contestant in PROFILED[name]]
    micros: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(ROUNDS):
        for case in cases:
            micros[case.name].append(1e6 / run_once(case, url)["figures"]["rate"])
    return {
        case.name: {
            "micros": round(median(micros[case.name]), 2),
            "shares": {
                where: round(share, 4)
                for where, share in run_once(case, url, options=("--profile",))["facts"]["places"].items()
            },
        }
        for case in cases
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ContestantFailed as error:
        sys.exit(str(error))
