"""A trial under pyinstrument: which files the time was spent in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from pyinstrument import Profiler

from benchmarks.places import shares

T = TypeVar("T")

INTERVAL: Final = 0.0002  # seconds; samples are taken where a call begins or ends


def profiled(run: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What ``run`` returns, and each place's share of its time, of its thread."""
    profiler = Profiler(interval=INTERVAL, async_mode="disabled")
    with profiler:
        result = run()
    session = profiler.last_session
    assert session is not None
    stacks = (
        ([frame.split("\x00")[1] for frame in frames if frame.count("\x00") > 1], time)
        for frames, time in session.frame_records
    )
    return result, shares(stacks)
