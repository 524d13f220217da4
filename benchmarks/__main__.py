"""``python -m benchmarks``: measures, writes table and picture, and says which budgets are missed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime

from . import budgets, machine, plot, published, report
from .catalogue import ROWS, Case, Row, chosen
from .collector import collector
from .runner import ROOT, ContestantFailed, Cores, pin, run_all, server

RESULTS = ROOT / "benchmarks" / "results"
BUDGETS = ROOT / "benchmarks" / "budgets.toml"
LATEST = "latest"
PUBLISHED = "published"
PROFILE = "profile"
PAGES = ("README.md", "docs/performance.md")
QUICK_SHARE = 0.4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="what most budgets are about, 3 short rounds; misses are shown"
    )
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick")
    parser.add_argument(
        "--only", default="", metavar="ROW", help=f"rows that begin so: {', '.join(row.name for row in ROWS)}"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="ROW", help="leave a row out; its budgets count as missed"
    )
    parser.add_argument(
        "--commit", action="store_true", help="make it the run that README.md and docs/performance.md show"
    )
    parser.add_argument("--pages", action="store_true", help="measure nothing; write those pages anew from that run")
    options = parser.parse_args()
    kept = budgets.read(BUDGETS.read_text(encoding="utf-8"))
    if options.pages:
        write_pages()
        return 0
    partial = options.quick or bool(options.only)
    if options.commit and partial:
        parser.error("--commit is for a whole run: leave out --quick and --only")
    cases = [
        (row, case) for row, case in chosen(quick=options.quick, only=options.only) if row.name not in options.without
    ]
    if not cases:
        parser.error(f"--only {options.only}: no row begins so; there are {', '.join(row.name for row in ROWS)}")

    started = time.monotonic()
    run = measure(cases, rounds=options.rounds or (3 if options.quick else 5), quick=options.quick)
    verdicts = [budgets.judge(budget, run.measured) for budget in kept]
    if partial:
        verdicts = [verdict for verdict in verdicts if verdict.value is not None]
    else:
        _keep(run, verdicts, LATEST)
    if options.commit:
        _keep(run, verdicts, PUBLISHED)
        write_pages()
    print(report.markdown(run, verdicts))
    missed = [verdict for verdict in verdicts if verdict.missed]
    for verdict in missed:
        print(f"missed: {verdict.text}")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if missed and not options.quick else 0


def measure(cases: list[tuple[Row, Case]], *, rounds: int, quick: bool) -> report.Run:
    """Run them all, on a Redis and where needed a collector of their own."""
    cores = Cores.shared_out()
    pin(os.getpid(), cores.client)
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "rounds": rounds, "quick": quick, "machine": machine.described()}
    about["load"] = round(os.getloadavg()[0], 1)
    with ExitStack() as stack:
        redis = stack.enter_context(server(cores))
        about["versions"] = machine.versions(redis.server.version)
        over_otlp = [case for _, case in cases if "otlp" in case.command]
        sink = stack.enter_context(collector(cores)) if over_otlp else None
        measured = run_all(
            cases,
            redis.url,
            rounds=rounds,
            share=QUICK_SHARE if quick else 1.0,
            env=sink.env if sink else None,
            told=_told,
        )
        if sink:
            about["otlp"] = {"sampled": rounds * sum(case.count for case in over_otlp), "received": sink.spans()}
    return report.Run(about, measured)


def _keep(run: report.Run, verdicts: list[budgets.Verdict], name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(published.dump(run), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(report.markdown(run, verdicts), encoding="utf-8")
    (RESULTS / f"{name}.svg").write_text(plot.svg(run), encoding="utf-8")


def write_pages() -> None:
    """Write table, picture and pages anew from the figures that are committed: a run and a profile, both."""
    for name, command in ((PUBLISHED, "make bench"), (PROFILE, "make profile")):
        if not (RESULTS / f"{name}.json").exists():
            print(f"{' and '.join(PAGES)} wait for {command} ARGS=--commit")
            return
    run = published.load((RESULTS / f"{PUBLISHED}.json").read_text(encoding="utf-8"))
    kept = budgets.read(BUDGETS.read_text(encoding="utf-8"))
    _keep(run, [budgets.judge(budget, run.measured) for budget in kept], PUBLISHED)
    profile = json.loads((RESULTS / f"{PROFILE}.json").read_text(encoding="utf-8"))
    texts = published.sections(run, kept, profile)
    for page in PAGES:
        path = ROOT / page
        path.write_text(published.filled(path.read_text(encoding="utf-8"), texts), encoding="utf-8")


def _told(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ContestantFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
