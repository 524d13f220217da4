"""What a run has measured, as a picture: one panel a row, one bar a contestant, a whisker over the rounds. Pure.

SVG by hand, so that the picture needs no plotting library.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Final

from .catalogue import ROWS, Row
from .report import Run, number

SHOWN: Final = (
    "publish",
    "publish-in-flight",
    "publish-many",
    "consume",
    "threads",
    "latency",
    "log",
    "log-stdlib",
)
OURS, FLOOR, PEER = "#2563a8", "#8a8f98", "#d08a3c"
INK, FAINT = "#1c2128", "#6a717b"

WIDTH: Final = 960
LABEL: Final = 250  # where bars begin
VALUE: Final = 110  # what is kept free behind the longest bar
BAR: Final = 14
STEP: Final = 20
HEAD: Final = 44
STYLE: Final = "font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif"


def colour(contestant: str) -> str:
    """Ours, the floor, or a peer."""
    if contestant.startswith("quantum-bus"):
        return OURS
    return FLOOR if contestant.startswith(("raw", "orjson")) else PEER


def text(x: float, y: float, words: str, *, fill: str = INK, anchor: str = "start", weight: int = 400) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-weight="{weight}">{escape(words)}</text>'


def panel(row: Row, run: Run, top: float) -> tuple[list[str], float]:
    """A row's bars below ``top``; where they end."""
    figure, (unit, better) = next(iter(row.figures.items()))
    contestants = run.measured.get(row.name, {})
    bars = [(case.name, [each[figure] for each in contestants.get(case.name, ())]) for case in row.cases]
    bars = [(name, values) for name, values in bars if values]
    if not bars:
        return [], top
    longest = max(max(values) for _, values in bars)
    scale = (WIDTH - LABEL - VALUE) / longest
    named = f"{figure}, {unit}" if len(row.figures) > 1 else unit
    parts = [
        text(0, top + 18, row.title, weight=600),
        text(WIDTH, top + 18, f"{named}; {better} is better", fill=FAINT, anchor="end"),
    ]
    y = top + HEAD - 14
    for name, values in bars:
        middle = median(values)
        lowest, highest = LABEL + min(values) * scale, LABEL + max(values) * scale
        parts += [
            text(LABEL - 8, y + 11, name, anchor="end"),
            f'<rect x="{LABEL}" y="{y}" width="{max(1.0, middle * scale):.1f}" height="{BAR}" fill="{colour(name)}"/>',
            f'<path d="M{lowest:.1f} {y + BAR / 2}H{highest:.1f}" stroke="{INK}" stroke-width="1.5"/>',
            text(highest + 6, y + 11, number(middle), fill=FAINT),
        ]
        y += STEP
    return parts, y + 12


def svg(run: Run, rows: Sequence[Row] = ROWS) -> str:
    """The whole picture."""
    parts: list[str] = []
    y = 16.0
    for row in rows:
        if row.name in SHOWN:
            drawn, y = panel(row, run, y)
            parts += drawn
    about = run.about
    parts.append(text(0, y + 8, f"{about['date']}, {about['machine']}, {about['rounds']} rounds", fill=FAINT))
    height = y + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 0 {WIDTH + 32} {height:.0f}" style="{STYLE}">\n'
        f'<rect x="-16" width="{WIDTH + 32}" height="{height:.0f}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
