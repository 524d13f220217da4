"""Whether a subscriber may go on: paused by hand, or by its circuit breaker while what its handlers need is down.

Closed, all runs; open, none, for a pause that doubles each time; half-open, one run at a time, as a probe: where it
works the circuit closes, where it fails it opens again (Nygard, *Release It!*, "Circuit Breaker"). Pure state, shared
by both twins; the caller guards a circuit that threads share.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Final

from .config import Breaker
from .errors import Reject

# The window moves in so many steps.
SLOTS: Final = 10
GROWTH: Final = 2.0
# Probes of one message that cost it no attempt, while the circuit is not closed: what is bad in itself has an end.
MOST_SPARED: Final = 20
# At a probe's time, what was parked gives way to what can be read, for so long: another message may work.
FRESH_FIRST: Final = 0.2


class CircuitState(enum.Enum):
    """The values are those of the metric ``quantum_bus.breaker.state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


_CLOSED: Final = CircuitState.CLOSED


class Circuit:
    """What one subscriber may do now.

    Args:
        breaker: when it opens; None: never.
        clock: monotonic seconds.

    Attributes:
        state: of the breaker.
        paused: by hand.
    """

    def __init__(self, breaker: Breaker | None, *, clock: Callable[[], float]) -> None:
        self._breaker = breaker
        self._clock = clock
        self.state = CircuitState.CLOSED
        self.paused = False
        self._slots: deque[list[float]] = deque(maxlen=SLOTS)  # when it began, runs, failures
        self._pause = breaker.pause if breaker is not None else 0.0
        self._probe_at = 0.0
        self._probing = False
        self._spared: Counter[object] = Counter()

    # --- asked before a run ----------------------------------------------------------------------

    def room(self, room: int) -> int:
        """Of so many messages that could be read, how many may: none while nothing may run, one to probe with."""
        if self.rests:
            return 0
        if self.state is CircuitState.CLOSED:
            return room
        return 0 if self._probing else min(room, 1)

    @property
    def rests(self) -> bool:
        """Whether nothing may run for now, not even a probe: others may have what waits here."""
        return self.paused or (self.state is CircuitState.OPEN and self._clock() < self._probe_at)

    @property
    def is_closed(self) -> bool:
        """Whether everything may run."""
        return self.state is _CLOSED and not self.paused

    def lets_run(self) -> bool:
        """Whether a handler run may begin."""
        return self.room(1) > 0

    def wait(self) -> float | None:
        """Seconds until it may let something run again; None where that takes an event: a run's end, or a hand."""
        if self.paused or self._probing or self.state is not CircuitState.OPEN:
            return None
        return max(0.0, self._probe_at - self._clock())

    def lets_parked_run(self) -> bool:
        """Whether a run may begin of what was tried before."""
        return self.state is CircuitState.CLOSED or self._clock() >= self._probe_at + FRESH_FIRST

    def patience(self) -> float | None:
        """Seconds that a reader without room is to wait for the breaker: none where it is not what holds it up."""
        return None if self.lets_run() else self.wait()

    # --- told of runs ----------------------------------------------------------------------------

    def began(self) -> bool:
        """A run that was let begins; whether it is a probe."""
        if self.state is CircuitState.CLOSED:
            return False
        self.state = CircuitState.HALF_OPEN
        self._probing = True
        return True

    def ended(self, failed: bool, *, probe: bool) -> bool:
        """A run is over; whether the state has changed.

        Runs that were under way when the circuit opened change nothing any more.
        """
        if self._breaker is None:
            return False
        if probe:
            self._probing = False
            if failed:
                self._pause = min(self._breaker.maximum, self._pause * GROWTH)
                self._open()
            else:
                self.state = CircuitState.CLOSED
                self._pause = self._breaker.pause
                self._slots.clear()
                self._spared.clear()
            return True
        if self.state is not CircuitState.CLOSED:
            return False
        self._count(failed)
        runs = sum(slot[1] for slot in self._slots)
        if runs < self._breaker.minimum or sum(slot[2] for slot in self._slots) < self._breaker.failure_rate * runs:
            return False
        self._open()
        return True

    def spares(self, messages: Collection[object]) -> bool:
        """Whether a probe of these that failed costs them no attempt."""
        self._spared.update(messages)
        return all(self._spared[message] <= MOST_SPARED for message in messages)

    def void(self) -> None:
        """A probe did not run after all; the next one may."""
        self._probing = False

    def counts(self, error: BaseException | None) -> bool:
        """Whether a run that raised this speaks against what handlers need; a message that was rejected does not."""
        breaker = self._breaker
        return (
            breaker is not None
            and isinstance(error, breaker.trip_on)
            and not isinstance(error, breaker.ignore)
            and not isinstance(error, Reject)
        )

    @property
    def pause_seconds(self) -> float:
        """How long it stays open before a probe."""
        return self._pause

    def _open(self) -> None:
        self.state = CircuitState.OPEN
        self._probe_at = self._clock() + self._pause
        self._slots.clear()

    def _count(self, failed: bool) -> None:
        assert self._breaker is not None
        now = self._clock()
        width = self._breaker.window / SLOTS
        while self._slots and self._slots[0][0] <= now - self._breaker.window:
            self._slots.popleft()
        if not self._slots or now - self._slots[-1][0] >= width:
            self._slots.append([now, 0, 0])
        self._slots[-1][1] += 1
        self._slots[-1][2] += failed
