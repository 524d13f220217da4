"""Whether the bus stays within its budget: ratios of figures of the same round. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

MORE_IS_BETTER: Final = frozenset({"rate", "lines_per_second"})

Rounds = Sequence[Mapping[str, float]]
"""A contestant's figures by name, one mapping a round."""
Measured = Mapping[str, Mapping[str, Rounds]]
"""By row and contestant."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A ratio that is held, or, with ``towards`` alone, only wished for.

    Attributes:
        against: the contestant whose figure is divided by; None where ``contestant``'s own figure is what is bounded.
    """

    row: str
    contestant: str
    against: str | None = None
    figure: str = "rate"
    at_least: float | None = None
    at_most: float | None = None
    towards: float | None = None
    held_back_by: str = ""

    def __post_init__(self) -> None:
        if self.at_least is not None and self.at_most is not None:
            raise ValueError(f"{self.row}, {self.contestant}: give at_least or at_most, not both")
        if self.at_least is None and self.at_most is None and self.towards is None:
            raise ValueError(f"{self.row}, {self.contestant}: give at_least, at_most or towards")

    def allows(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    @property
    def text(self) -> str:
        """The target, as the tables say it."""
        unit = f" × {self.against}" if self.against else ""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{unit}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}{unit}"
        return f"towards {self.towards:g}{unit}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a budget came to.

    Attributes:
        value: the median over the rounds; None: not measured.
        lowest, highest: of the rounds.
        best: ratio of each one's own best round. What disturbs a run only slows it, so on a busy machine this is the
            better guess; the median is what counts.
    """

    budget: Budget
    value: float | None = None
    lowest: float = 0.0
    highest: float = 0.0
    best: float = 0.0

    @property
    def missed(self) -> bool:
        """Whether the budget is not kept, or cannot be told to be."""
        held = self.budget.at_least is not None or self.budget.at_most is not None
        return held and (self.value is None or not self.budget.allows(self.value))

    @property
    def text(self) -> str:
        """The budget and what was measured, in a line."""
        measured = "not measured" if self.value is None else f"{self.value:.2f} ({self.lowest:.2f}–{self.highest:.2f})"
        return f"{self.budget.row}: {self.budget.contestant}, {self.budget.text}: {measured}"


def read(text: str) -> list[Budget]:
    """The budgets of a TOML file.

    Raises:
        ValueError, TypeError: it is not what this module understands.
    """
    return [Budget(**table) for table in tomllib.loads(text)["budget"]]


def ratios(measured: Measured, row: str, contestant: str, against: str | None, figure: str) -> list[float]:
    """One for each round that has both; empty where they were not measured."""
    contestants = measured.get(row, {})
    ours = contestants.get(contestant, ())
    if against is None:
        return [each[figure] for each in ours]
    return [mine[figure] / theirs[figure] for mine, theirs in zip(ours, contestants.get(against, ()), strict=False)]


def judge(budget: Budget, measured: Measured) -> Verdict:
    """Hold a budget against what was measured."""
    values = ratios(measured, budget.row, budget.contestant, budget.against, budget.figure)
    if not values:
        return Verdict(budget)
    contestants = measured[budget.row]
    best = max if budget.figure in MORE_IS_BETTER else min
    ours, theirs = (
        best(each[budget.figure] for each in contestants[name]) if name else 1.0
        for name in (budget.contestant, budget.against)
    )
    return Verdict(budget, median(values), min(values), max(values), ours / theirs)
