"""What a run has measured, as tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .budgets import Measured, Verdict, ratios
from .catalogue import ROWS, Row


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        about: when, on what, with which versions; no name or path of the machine.
        measured: figures by row, contestant and round.
    """

    about: Mapping[str, Any]
    measured: Measured


def number(value: float) -> str:
    """Three digits that matter, as a reader says them: 10.7 k, 237 k, 4.81."""
    if value >= 99_950:
        return f"{value / 1000:.0f} k"
    if value >= 999.5:
        return f"{value / 1000:.1f} k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def middle(measured: Measured, row: str, contestant: str, figure: str) -> float | None:
    """The median over the rounds."""
    rounds = measured.get(row, {}).get(contestant, ())
    return median(each[figure] for each in rounds) if rounds else None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def row_table(row: Row, measured: Measured) -> str:
    """A row's contestants: medians, and the ratio to the first of them with its spread over the rounds."""
    present = [case for case in row.cases if measured.get(row.name, {}).get(case.name)]
    if not present:
        return ""
    first = present[0].name
    heads = ["contestant"]
    for figure, (unit, _) in row.figures.items():
        heads.append(f"{figure}, {unit}" if len(row.figures) > 1 else unit)
        heads += [f"× {first}", "over the rounds"] if row.compared else []
    lines = []
    for case in present:
        cells = [case.name]
        for figure in row.figures:
            value = middle(measured, row.name, case.name, figure)
            assert value is not None
            cells.append(number(value))
            if row.compared:
                shares = ratios(measured, row.name, case.name, first, figure)
                spread = f"{min(shares):.2f}–{max(shares):.2f}" if case.name != first else ""
                cells += [f"{median(shares):.2f}", spread]
        lines.append(cells)
    return table(heads, lines)


def ladder_table(measured: Measured) -> str:
    """The overhead ladder: what each step adds to a publish."""
    row = next(row for row in ROWS if row.name == "publish")
    rungs = sorted((case for case in row.cases if case.ladder), key=lambda case: case.ladder)
    lines = []
    before: float | None = None
    for case in rungs:
        rate = middle(measured, row.name, case.name, "rate")
        if rate is None:
            continue
        micros = 1e6 / rate
        lines.append([case.name, number(rate), f"{micros:.1f}", "" if before is None else f"{micros - before:+.1f}"])
        before = micros
    return table(["one more each", "messages/s", "µs a message", "added"], lines) if len(lines) > 1 else ""


def budget_table(verdicts: Sequence[Verdict]) -> str:
    """Every budget, kept or missed."""
    lines = []
    for verdict in verdicts:
        budget = verdict.budget
        measured = "not measured" if verdict.value is None else _shown(verdict.value)
        spread = "" if verdict.value is None else f"{_shown(verdict.lowest)}–{_shown(verdict.highest)}"
        held = budget.at_least is not None or budget.at_most is not None
        kept = "**missed**" if verdict.missed else "kept" if held else ""
        towards = "" if budget.towards is None else f"{budget.towards:g}"
        title = next((row.title for row in ROWS if row.name == budget.row), budget.row)
        what = f"{title}{'' if budget.figure in {'rate', 'micros'} else f', {budget.figure}'}"
        target = budget.text if held else f"× {budget.against}"
        best = "" if verdict.value is None else _shown(verdict.best)
        lines.append([what, budget.contestant, target, measured, spread, best, kept, towards, budget.held_back_by])
    return table(
        [
            "what",
            "contestant",
            "target",
            "measured",
            "over the rounds",
            "best rounds",
            "",
            "then towards",
            "held back by",
        ],
        lines,
    )


def _shown(value: float) -> str:
    return number(value) if value >= 100 else f"{value:.2f}"


def about_lines(about: Mapping[str, Any]) -> str:
    """When, on what, with what."""
    busy = f", load average {about['load']} before it began" if "load" in about else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Measured {about['date']}, {about['rounds']} rounds, interleaved; medians, and of ratios the median of each "
        f"round's own. {about['machine']}{busy}. {versions}."
    ) + (
        f" Of {otlp['sampled']:,} spans that were to go out over OTLP the collector received {otlp['received']:,}: the "
        "SDK's queue drops what the exporter cannot keep up with."
        if (otlp := about.get("otlp"))
        else ""
    )


def markdown(run: Run, verdicts: Sequence[Verdict]) -> str:
    """The whole report."""
    parts = ["# Results", about_lines(run.about), "## Budgets", budget_table(verdicts)]
    if ladder := ladder_table(run.measured):
        parts += ["## The overhead ladder: publish, one at a time", ladder]
    for row in ROWS:
        if text := row_table(row, run.measured):
            parts += [f"## {row.title}", *([row.note] if row.note else []), text]
    return "\n\n".join(parts) + "\n"
