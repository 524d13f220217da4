"""Pauses between attempts to reach Redis again: exponential, with full jitter, and without an end."""

from __future__ import annotations

import random


class Backoff:
    """The next pause in seconds, each drawn from 0 to twice the bound of the last.

    Args:
        initial: bound of the first pause, seconds.
        maximum: bound of every pause, seconds.
    """

    __slots__ = ("_bound", "_initial", "_maximum", "failures")

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial = initial
        self._maximum = maximum
        self.reset()

    def reset(self) -> None:
        """It worked: begin anew with the next failure."""
        self._bound = self._initial
        self.failures = 0

    def next(self) -> float:
        """Note a failure and return how long to pause; half the bound at least, so that it is never a hot loop."""
        bound, self._bound = self._bound, min(self._maximum, self._bound * 2)
        self.failures += 1
        return random.uniform(bound / 2, bound)  # noqa: S311 - spreads the load, guards no secret
