"""What a contestant is asked to do, and what it answers: options in, one JSON object out."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from quantum_bus.cli import collect_as_a_service

from .observed import Level

STREAM: Final = "bench:intent"
SCRATCH: Final = "bench:scratch"
GROUP: Final = "bench"
EVENT: Final = "INTENT_CREATED"
SERVICE: Final = "bench"
# What a message says: everyone serializes it anew for each.
PAYLOAD: Final[dict[str, Any]] = {
    "intent_id": "7f3c2f0e-6b1d-4a55-9f0e-3a1f6b1c9d42",
    "symbol": "BTCUSDT",
    "side": "BUY",
    "qty": 0.5,
    "price": 64250.25,
    "confidence": 0.87,
    "strategy": "momentum",
}
IN_FLIGHT: Final = 100
BATCH: Final = 100
CONCURRENCY: Final = 16  # the bus's default
# This share of a run comes before the clock starts.
WARM_UP: Final = 0.1


@dataclass(frozen=True, slots=True)
class Trial:
    """What is asked of a contestant.

    Attributes:
        count: messages, or log records.
        level: which telemetry is on.
        folder: for files; gone afterwards.
        spread: over how many streams, processes, or whatever the workload says.
        to_file: whether log lines go to a file; else to the null device, so that a record's own cost is seen.
    """

    url: str
    count: int
    level: Level
    folder: Path
    spread: int = 1
    to_file: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contestant answers."""

    figures: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


Workload = Callable[[Trial], Outcome] | Callable[[Trial], Awaitable[Outcome]]


def main(workloads: Mapping[str, Workload]) -> None:
    """Run what the command line asks for, coroutines on uvloop, and print the outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("--url", default="")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--level", type=Level, choices=list(Level), default=Level.OFF)
    parser.add_argument("--spread", type=int, default=1)
    parser.add_argument("--to-file", action="store_true")
    parser.add_argument(
        "--profile", action="store_true", help="tell where the time went, too; figures are then of no use"
    )
    options = parser.parse_args()
    workload = workloads[options.workload]
    with tempfile.TemporaryDirectory(prefix="quantum-bus-bench-") as folder:
        trial = Trial(
            options.url, options.count, options.level, Path(folder), spread=options.spread, to_file=options.to_file
        )

        def run() -> Outcome:
            return uvloop.run(workload(trial)) if inspect.iscoroutinefunction(workload) else workload(trial)

        collect_as_a_service()  # for everyone
        if options.profile:
            from .profiled import profiled

            outcome, places = profiled(run)
            facts = {**outcome.facts, "places": places}
        else:
            outcome = run()
            facts = dict(outcome.facts)
    print(json.dumps({"figures": dict(outcome.figures), "facts": facts}))


class Tally:
    """Counts messages, and clocks those behind the warm-up.

    Args:
        total: how many there will be.
    """

    def __init__(self, total: int) -> None:
        self.seen = 0
        self._total = total
        self._warm = int(total * WARM_UP)
        self._from = (time.perf_counter(), 0)
        self._until = 0.0
        self.all_seen = asyncio.Event()

    def add(self, number: int = 1) -> None:
        before = self.seen
        self.seen = before + number
        if before <= self._warm < self.seen:
            self._from = (time.perf_counter(), self.seen)
        if before < self._total <= self.seen:
            self._until = time.perf_counter()
            self.all_seen.set()

    @property
    def per_second(self) -> float:
        started, seen = self._from
        return (self.seen - seen) / max(self._until - started, 1e-9)


async def one_at_a_time(count: int, publish: Callable[[int], Awaitable[Any]]) -> float:
    """Publish so often, each behind the one before; messages a second."""
    for number in range(int(count * WARM_UP)):
        await publish(number)
    measured = count - int(count * WARM_UP)
    started = time.perf_counter()
    for number in range(measured):
        await publish(number)
    return measured / (time.perf_counter() - started)


async def in_flight(count: int, publish: Callable[[int], Awaitable[Any]], width: int = IN_FLIGHT) -> float:
    """Publish so often, more than ``width`` in all, ``width`` at any time under way; messages a second."""

    async def run(number: int) -> float:
        numbers = iter(range(number))

        async def work() -> None:
            for each in numbers:
                await publish(each)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(width)))
        return number / (time.perf_counter() - started)

    warm = max(width, int(count * WARM_UP))
    await run(warm)
    return await run(count - warm)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The middle and the 99th percentile, in microseconds."""
    ordered = sorted(seconds)
    return {
        "p50": ordered[len(ordered) // 2] * 1e6,
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6,
    }
