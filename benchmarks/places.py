"""Where the time of a run went: stacks that a sampler saw, told by place. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .report import table

CALLER: Final = "the caller: the benchmark's own loop or handler"
LOOP: Final = "event loop and socket, and waiting for Redis"
STARTING: Final = "elsewhere"

# The innermost frame that is one of these says where the time went; what the standard library does for it counts there.
_PLACES: Final = (
    (re.compile(r"/benchmarks/contestants/"), CALLER),
    (re.compile(r"/opentelemetry/sdk/metrics/"), "OpenTelemetry SDK: metrics"),
    (re.compile(r"/opentelemetry/sdk/"), "OpenTelemetry SDK: spans"),
    (re.compile(r"/opentelemetry/"), "OpenTelemetry API"),
    (re.compile(r"/redis/"), "redis-py"),  # its asyncio side, too
    (re.compile(r"/hiredis/"), "hiredis"),
    (re.compile(r"/(?:uvloop|asyncio)/"), LOOP),
)
_OURS: Final = re.compile(r"/quantum_bus/([a-z_/]+?)(?:/__init__)?\.py$")

Stack = Sequence[str]
"""Files of the frames, the outermost first."""


def place(stack: Stack) -> str:
    """Where the time of a stack is counted."""
    for file in reversed(stack):
        if ours := _OURS.search(file):
            room = ours[1].split("/")
            return f"quantum_bus: {'jsonlog' if room[0] == 'jsonlog' else '.'.join(room)}"
        for pattern, name in _PLACES:
            if pattern.search(file):
                return name
    return STARTING


def shares(seen: Iterable[tuple[Stack, float]]) -> dict[str, float]:
    """Each place's share of all time, the largest first."""
    sums: dict[str, float] = {}
    for stack, seconds in seen:
        name = place(stack)
        sums[name] = sums.get(name, 0.0) + seconds
    whole = sum(sums.values()) or 1.0
    return {name: seconds / whole for name, seconds in sorted(sums.items(), key=lambda item: -item[1])}


def place_table(profile: Mapping[str, Any], *, least: float = 0.5) -> str:
    """Microseconds a message by place, the contestants side by side.

    Args:
        profile: by contestant: ``micros`` a message, unprofiled, and ``shares`` by place.
        least: places with fewer microseconds everywhere are told together.
    """
    contestants = list(profile)
    micros = {
        name: {where: share * profile[name]["micros"] for where, share in profile[name]["shares"].items()}
        for name in contestants
    }
    names = sorted(
        {where for each in micros.values() for where in each},
        key=lambda where: (-max(each.get(where, 0.0) for each in micros.values()), where),
    )
    shown = [where for where in names if max(each.get(where, 0.0) for each in micros.values()) >= least]
    lines = [[where, *(_micros(micros[name].get(where)) for name in contestants)] for where in shown]
    rest = [sum(time for where, time in micros[name].items() if where not in shown) for name in contestants]
    lines.append(["all else", *(_micros(time) for time in rest)])
    lines.append(["**together**", *(f"**{profile[name]['micros']:.1f}**" for name in contestants)])
    return table(["µs a message", *contestants], lines)


def _micros(value: float | None) -> str:
    return "" if not value else f"{value:.1f}"
