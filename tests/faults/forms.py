"""How much of the fault suite is run: `--faults=short`, `whole` or `long`.

| form | for | takes | servers | twins |
| --- | --- | --- | --- | --- |
| `short` | every change | 2 minutes | the newest at hand | both in each scenario: one consumer of each |
| `whole` | `make faults`, the build server | 10 minutes | the newest with each twin, the oldest with both | each |
| `long` | before a release | as long as it takes | all | each, and both |

What is sampled, and how large things are, each scenario says itself: `form.of(short, whole, long)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.contract.twins import ASYNCIO, THREADS

T = TypeVar("T")

SHORT = "short"
WHOLE = "whole"
LONG = "long"
FORMS = (SHORT, WHOLE, LONG)

BOTH = "both"


@dataclass(frozen=True, slots=True)
class Form:
    """One of `FORMS`, and the seed of everything that is drawn at random."""

    name: str
    seed: int

    def of(self, short: T, whole: T, long: T | None = None) -> T:
        """What this form takes; the long one as the whole one where nothing else is said."""
        return {SHORT: short, WHOLE: whole, LONG: whole if long is None else long}[self.name]


def settings(form: str, series: Sequence[str]) -> list[tuple[str, str]]:
    """Twin and server series of every run of a scenario.

    Args:
        series: those at hand, oldest first.
    """
    newest, oldest = series[-1], series[0]
    if form == SHORT:
        return [(BOTH, newest)]
    if form == WHOLE:
        return [(ASYNCIO, newest), (THREADS, newest), *([(BOTH, oldest)] if oldest != newest else [])]
    return [(twin, name) for name in series for twin in (ASYNCIO, THREADS, BOTH)]
