#!/usr/bin/env python
"""Draws the pictures of docs/flow-in-pictures.md: `scripts/diagrams.py` writes them anew, a test holds them to this.

Plain SVG with the reader's own fonts, legible on light and on dark ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 900
ROW = 48
TOP = 86
INK, FAINT, FLOW, TRACE = "#5c6bc0", "#9e9e9e", "#00897b", "#e65100"
_STYLE = (
    "text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#607d8b}"
    ".name{font-weight:600}.id{font:12px ui-monospace,monospace}.flow{fill:#00897b}.trace{fill:#e65100}"
)


@dataclass(slots=True)
class Picture:
    """Lanes from left to right, time from top to bottom."""

    title: str
    lanes: tuple[str, ...]
    parts: list[str] = field(default_factory=list)
    row: int = 0

    def _x(self, lane: int) -> int:
        return int(WIDTH * (lane + 0.5) / len(self.lanes))

    def _next(self) -> int:
        self.row += 1
        return TOP + (self.row - 1) * ROW

    def _text(self, x: int, y: int, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>')

    def arrow(self, start: int, end: int, text: str, below: str = "", kind: str = "trace") -> None:
        """From one lane to another: what goes, and what it carries."""
        y, x1, x2 = self._next(), self._x(start), self._x(end)
        tip = -7 if x2 > x1 else 7
        self.parts.append(
            f'<path d="M{x1} {y}H{x2}M{x2 + tip} {y - 4}L{x2} {y}L{x2 + tip} {y + 4}" stroke="{INK}" fill="none"/>'
        )
        self._text((x1 + x2) // 2, y - 7, text)
        if below:
            self._text((x1 + x2) // 2, y + 16, below, f"id {kind}")

    def span(self, lane: int, text: str, below: str = "", *, failed: bool = False) -> None:
        """Something that runs in a lane, with a span of its own."""
        y, x = self._next(), self._x(lane)
        colour = TRACE if failed else INK
        self.parts.append(
            f'<rect x="{x - 100}" y="{y - 20}" width="200" height="38" rx="5" '
            f'fill="{colour}" fill-opacity=".13" stroke="{colour}"/>'
        )
        self._text(x, y - 4 if below else y + 4, text)
        if below:
            self._text(x, y + 12, below, "id trace")

    def link(self, lane: int, rows: int, text: str) -> None:
        """A span's link to one so many rows above it."""
        y, x = TOP + (self.row - 1) * ROW, self._x(lane) - 104
        above = y - rows * ROW
        self.parts.append(
            f'<path d="M{x} {y}h-22v{-rows * ROW}h22" stroke="{FLOW}" fill="none" stroke-dasharray="4 3"/>'
            f'<path d="M{x - 7} {above - 4}L{x} {above}L{x - 7} {above + 4}" stroke="{FLOW}" fill="none"/>'
        )
        self._text(x - 28, (y + above) // 2 + 4, text, "flow", "end")

    def svg(self) -> str:
        height = TOP + self.row * ROW
        lanes = "".join(
            f'<path d="M{self._x(i)} 46V{height - 14}" stroke="{FAINT}" stroke-dasharray="2 4"/>'
            f'<text x="{self._x(i)}" y="36" text-anchor="middle" class="name">{escape(name)}</text>'
            for i, name in enumerate(self.lanes)
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n{lanes}\n{body}\n</svg>\n"
        )


def one_flow() -> Picture:
    picture = Picture(
        "One correlation id and one trace through a request, two streams and three services",
        ("client", "api", "orders", "worker", "fills"),
    )
    picture.arrow(0, 1, "POST /orders", "X-Correlation-ID: my-order-1", "flow")
    picture.span(1, "POST", "trace t · span 1")
    picture.arrow(1, 2, "send orders", "t · span 2")
    picture.arrow(1, 0, "202", "X-Correlation-ID: my-order-1", "flow")
    picture.arrow(2, 3, "read", "my-order-1 · t · span 2", "flow")
    picture.span(3, "process orders", "t · span 3, child of 2")
    picture.arrow(3, 4, "send fills", "t · span 4")
    picture.arrow(4, 1, "read", "my-order-1 · t · span 4", "flow")
    picture.span(1, "process fills", "t · span 5, child of 4")
    return picture


def retries() -> Picture:
    picture = Picture(
        "Each run of a message is a span of the same trace, with a link to the run before",
        ("orders", "worker", "retry, dead letters"),
    )
    picture.arrow(0, 1, "attempt 1", "t · span 2")
    picture.span(1, "process orders", "span 3, error", failed=True)
    picture.arrow(1, 2, "wait for a second, in Redis", "t · span 2 · last run: span 3")
    picture.arrow(2, 1, "attempt 2")
    picture.span(1, "process orders", "span 4, error", failed=True)
    picture.link(1, 3, "link")
    picture.arrow(1, 2, "max_attempts: dead letter", "t · span 2 · dlq.span: span 4")
    picture.arrow(2, 1, "dlq replay, days later")
    picture.span(1, "process orders", "span 5")
    picture.link(1, 3, "link")
    return picture


PICTURES = {"one-flow.svg": one_flow, "retries.svg": retries}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw().svg(), encoding="utf-8")
