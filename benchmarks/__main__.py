"""``python -m benchmarks``: measures, writes the tables, and says which budgets are missed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime

from . import budgets, machine, report
from .catalogue import ROWS, chosen
from .runner import ROOT, ContestantFailed, Cores, pin, run_all, server

RESULTS = ROOT / "benchmarks" / "results"
QUICK_SHARE = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what the budgets are about, 3 short rounds")
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick")
    parser.add_argument("--only", default="", choices=[row.name for row in ROWS], help="one row")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 5)

    cores = Cores.shared_out()
    pin(os.getpid(), cores.client)
    started = time.monotonic()
    with server(cores) as redis:
        measured = run_all(
            list(chosen(quick=options.quick, only=options.only)),
            redis.url,
            rounds=rounds,
            share=QUICK_SHARE if options.quick else 1.0,
            told=_told,
        )
        about = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "rounds": rounds,
            "quick": options.quick,
            "machine": machine.described(),
            "versions": machine.versions(redis.server.version),
        }
    run = report.Run(about, measured)
    verdicts = [budgets.judge(budget, measured) for budget in budgets.read(_text("benchmarks/budgets.toml"))]
    if options.quick or options.only:
        print(report.markdown(run, [verdict for verdict in verdicts if verdict.value is not None]))
    else:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "latest.json").write_text(json.dumps({"about": about, "measured": measured}, indent=1) + "\n")
        (RESULTS / "latest.md").write_text(report.markdown(run, verdicts))
        print(report.markdown(run, verdicts))
    missed = [verdict for verdict in verdicts if verdict.missed]
    for verdict in missed:
        print(f"missed: {verdict.text}")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if missed and not options.quick else 0


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _told(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ContestantFailed as error:
        sys.exit(str(error))
