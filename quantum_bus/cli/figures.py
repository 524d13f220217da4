"""Figures as people read them. A dash stands for what is not known."""

from __future__ import annotations


def number(value: int | None, *, blank: bool = False) -> str:
    """A count; ``blank`` shows nothing for none."""
    if value is None:
        return "-"
    return "" if blank and not value else f"{value:,}"


def rate(value: float | None) -> str:
    """Things a second."""
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def age(value: float | None) -> str:
    """How long something has waited; nothing where nothing waits."""
    if value is None:
        return "-"
    return duration(value) if value else ""


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    for limit, unit, factor in ((1.0, "ms", 1000.0), (180.0, "s", 1.0), (10_800.0, "min", 1 / 60)):
        if seconds < limit:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"
