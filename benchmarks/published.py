"""Figures in prose: sections between markers, written from the results that are committed. Pure.

A page holds ``<!-- benchmarks: NAME -->`` and ``<!-- end -->``; what stands between them is written by
``make bench ARGS=--commit``, and a test holds it to ``benchmarks/results/published.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .budgets import Budget, judge
from .catalogue import ALL_ON, FASTSTREAM_OFF, FASTSTREAM_ON, RAW, ROWS
from .places import place_table
from .report import Run, about_lines, budget_table, ladder_table, middle, number, row_table, table

_SECTION = re.compile(r"(<!-- benchmarks: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(text: str) -> Run:
    """A run that was kept as JSON."""
    kept = json.loads(text)
    return Run(kept["about"], kept["measured"])


def dump(run: Run) -> str:
    """A run, to be kept: one line a contestant."""
    rows = []
    for row, contestants in run.measured.items():
        lines = [f"   {json.dumps(name)}: {json.dumps(list(rounds))}" for name, rounds in contestants.items()]
        rows.append(f"  {json.dumps(row)}: {{\n" + ",\n".join(lines) + "\n  }")
    return f'{{\n "about": {json.dumps(dict(run.about))},\n "measured": {{\n' + ",\n".join(rows) + "\n }\n}\n"


def headline(run: Run) -> str:
    """What the README shows."""
    lines = []
    one, many = (FASTSTREAM_OFF, FASTSTREAM_ON), ("FastStream, batches, off", "FastStream, batches, on")
    for row, ours, peers, floor, title in (
        ("publish", ALL_ON, one, RAW, "publish, one at a time"),
        ("publish-in-flight", ALL_ON, one, RAW, "publish, 100 in flight"),
        ("publish-many", ALL_ON, one, "raw redis-py, pipeline", "`publish_many`, 100 at a time"),
        ("consume", ALL_ON, one, "raw redis-py, read 100, ack 100", "consume, one message at a time"),
        ("consume", "quantum-bus, batches, all on", many, "raw redis-py, read 100, ack 100", "consume, batches of 100"),
    ):
        rates = [middle(run.measured, row, contestant, "rate") for contestant in (ours, *peers, floor)]
        lines.append([title, *("—" if rate is None else number(rate) for rate in rates)])
    heads = [
        "messages/s",
        "quantum-bus, all on",
        "FastStream, telemetry off",
        "FastStream, telemetry on",
        "redis-py alone",
    ]
    logs = " · ".join(
        f"{name} {number(value)} µs"
        for name, row, contestant in (
            ("quantum-bus", "log", "quantum-bus"),
            ("structlog at its fastest", "log", "structlog, BytesLogger, orjson"),
            ("the standard library, plain text", "log-stdlib", "standard library, text"),
        )
        if (value := middle(run.measured, row, contestant, "micros")) is not None
    )
    return "\n\n".join(
        (table(heads, lines), f"A log record with bound context and three fields: {logs}.", about_lines(run.about))
    )


def sections(run: Run, budgets: Sequence[Budget], profile: Mapping[str, Any]) -> dict[str, str]:
    """What can stand between markers, by name."""
    found = {
        "headline": headline(run),
        "about": about_lines(run.about),
        "budgets": budget_table([judge(budget, run.measured) for budget in budgets]),
        "ladder": ladder_table(run.measured),
        "profile-about": f"Measured {profile['about']['date']}, {profile['about']['machine']}.",
        "profile-publish": place_table(profile["publish"]),
        "profile-consume": place_table(profile["consume"]),
    }
    for row in ROWS:
        found[row.name] = row_table(row, run.measured)
    return found


def filled(page: str, texts: Mapping[str, str]) -> str:
    """A page with its sections written anew.

    Raises:
        KeyError: it has a section that there is no text for.
    """
    return _SECTION.sub(lambda match: f"{match[1]}{texts[match[2]]}\n{match[3]}", page)
