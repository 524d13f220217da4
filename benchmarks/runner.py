"""Runs contestants, each in a process of its own, in turn: A B C, A B C, …"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from quantum_bus.demo.redis_server import RedisProcess, start_redis

from .catalogue import Case, Row

ROOT: Final = Path(__file__).parents[1]
TIMEOUT: Final = 600


class ContestantFailed(RuntimeError):
    """A contestant ended with an error, or printed something else than its outcome."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which processor cores the server has and which the contestants; None where they cannot be told."""

    server: frozenset[int] | None
    client: frozenset[int] | None

    @classmethod
    def shared_out(cls) -> Cores:
        """The last one for the server, all others for contestants."""
        if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
            return cls(None, None)
        cores = sorted(os.sched_getaffinity(0))
        return cls(frozenset(cores[-1:]), frozenset(cores[:-1]))


def pin(pid: int, cores: frozenset[int] | None) -> None:
    """Keep all threads of a process on these cores; what it starts inherits them."""
    if cores is None:
        return
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def server(cores: Cores) -> Iterator[RedisProcess]:
    """A Redis of the benchmarks' own, which keeps nothing on disk."""
    with start_redis() as process:
        assert process.pid is not None
        pin(process.pid, cores.server)
        yield process


def run_once(
    case: Case,
    url: str,
    *,
    count: int | None = None,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    python: str | os.PathLike[str] = sys.executable,
) -> dict[str, Any]:
    """Run a contestant on an emptied Redis; its outcome.

    Args:
        count: instead of the case's own.
        options: further ones for the contestant.
        python: of the environment it runs in.

    Raises:
        ContestantFailed: with the end of what it printed.
    """
    with redis.Redis.from_url(url) as client:
        client.flushall()
    module, *given = case.command
    command = [str(python), "-m", f"benchmarks.contestants.{module}", *given, *options]
    command += ["--url", url, "--count", str(count or case.count)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "QUANTUM_BUS_"))}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**kept, **(env or {})}, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise ContestantFailed(f"{case.name}: no end after {TIMEOUT} s: {' '.join(command[1:])}") from error
    try:
        outcome = json.loads(done.stdout)
        if done.returncode == 0:
            return dict(outcome)
    except ValueError:
        pass
    raise ContestantFailed(f"{case.name}: {' '.join(command[1:])}\n{(done.stderr or done.stdout)[-2000:]}")


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """To five digits: more say nothing, and tables made of what is kept are those made of what was measured."""
    return {figure: float(f"{value:.5g}") for figure, value in figures.items()}


def run_all(
    chosen: Sequence[tuple[Row, Case]],
    url: str,
    *,
    rounds: int,
    share: float = 1.0,
    env: Mapping[str, str] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every contestant once a round, in turn.

    Args:
        share: of each one's count.
        told: is told what runs.

    Returns:
        Figures by row, contestant and round.
    """
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number in range(rounds):
        for row, case in chosen:
            if case.once and number:
                continue
            told(f"round {number + 1} of {rounds}: {row.title}: {case.name}")
            outcome = run_once(case, url, count=max(1, int(case.count * (1 if case.once else share))), env=env)
            measured.setdefault(row.name, {}).setdefault(case.name, []).append(_rounded(outcome["figures"]))
    return measured
