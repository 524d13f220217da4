"""The one drawing of a flow: services as branches, their steps with the time since it began. For the demo and trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.text import Text
from rich.tree import Tree

from quantum_bus.jsonlog.escape import visible

# Branches that stand within one another; what is deeper is drawn beside the deepest, so that lines stay readable.
DEEPEST: Final = 10
# Columns of an event's name.
EVENT_WIDTH: Final = 18
LONGEST_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Branch:
    """What one service did; ``note`` is what is to be said of it beside its name."""

    service: str
    note: Text = field(default_factory=Text)
    steps: Sequence[Step] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One line, and what followed from it.

    Attributes:
        offset: seconds since the flow began; None where the time is not known.
    """

    offset: float | None
    text: Text
    below: Sequence[Branch] = ()


def draw(title: Text, roots: Sequence[Branch]) -> Tree:
    """The tree; not recursive, since a flow may be long."""
    tree = Tree(title, guide_style="dim")
    waiting: list[tuple[Tree, Branch, int]] = [(tree, branch, 0) for branch in reversed(roots)]
    while waiting:
        parent, branch, depth = waiting.pop()
        node = parent.add(Text.assemble((shown(branch.service), "bold green"), branch.note))
        following: list[tuple[Tree, Branch, int]] = []
        for step in branch.steps:
            line = node.add(Text.assemble((offset(step.offset), "dim"), step.text))
            under = line if depth < DEEPEST else parent
            following += [(under, below, depth + (depth < DEEPEST)) for below in step.below]
        waiting += reversed(following)
    return tree


def logged(event: str, text: str, level: str = "") -> Text:
    """A log line, or an attempt."""
    style = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}.get(level, "")
    return Text.assemble((f"{shown(event):<{EVENT_WIDTH}}", f"bold {style}".strip()), (shown(text), style))


def sent(stream: str, entry_id: str, event: str = "") -> Text:
    """A message that was published."""
    text = Text.assemble((f"→ {shown(stream)}", "magenta"), f" {shown(entry_id)}".rstrip())
    if event:
        text.append(f"  {shown(event)}", "bold")
    return text


def shown(text: str) -> str:
    """Others' text: control characters, ANSI and bidi codes as escapes, and not endless."""
    seen = visible(text)
    return seen if len(seen) <= LONGEST_TEXT else f"{seen[: LONGEST_TEXT - 1]}…"


def offset(seconds: float | None) -> str:
    """A column with the time since the flow began."""
    if seconds is None:
        return f"{'?':>8}     "
    if abs(seconds) < 100:
        return f"{seconds * 1000:8.1f} ms  "
    if abs(seconds) < 36_000:
        return f"{seconds:8.1f} s   "
    return f"{seconds / 3600:8.1f} h   "
