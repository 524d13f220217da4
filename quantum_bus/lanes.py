"""What an ordered consumer holds: one lane for each key, and of each lane one message at a time. Pure state.

A lane's message is *running*, *settling* or *parked* (to be run again when its delay is over). Those behind it wait
until Redis has its outcome: so nothing is ever run again behind what came after it. Messages without a key have a lane
each. A lane is in the order of the stream, by the entries' ids there.

It has the methods of :class:`~quantum_bus.inbox.Inbox`, and its rule for suspects: they run alone, one after the other,
though beside others. The caller guards lanes that threads share.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from .inbox import Held
from .streams import Delivery

# Messages that may wait behind parked and running ones, so that other keys go on; beyond them nothing is read.
WAITING_BEHIND: Final = 1_000

LaneKey = tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Lane:
    """The messages of one key.

    Attributes:
        waiting: in the order of the stream.
        busy: what was given out last, until Redis has its outcome.
        running: a handler has it.
        due: when it is to run again, where it is parked.
    """

    key: LaneKey
    stream: str
    waiting: list[Held] = field(default_factory=list)
    busy: Held | None = None
    running: bool = False
    due: float | None = None


class Lanes:
    """The messages of one ordered consumer.

    Args:
        concurrency: handlers that may run at once.
        batch: messages that one handler may take, each of another key.
        term: the term in which a stream is led now, 0 where it is not; see :mod:`~quantum_bus.leadership`.
        clock: monotonic seconds.
        behind: messages that may wait behind others.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        batch: int,
        term: Callable[[str], int],
        clock: Callable[[], float],
        behind: int = WAITING_BEHIND,
    ) -> None:
        self._concurrency = concurrency
        self._batch = batch
        self._term = term
        self._clock = clock
        self._terms: dict[str, int] = {}
        self.capacity = concurrency * batch
        self.bound = self.capacity + behind
        self._held: dict[tuple[str, str], Held] = {}
        self._lanes: dict[LaneKey, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._suspects: deque[_Lane] = deque()
        self._suspect: Held | None = None
        self._parked: list[tuple[float, int, _Lane, Held]] = []
        self._number = count()
        self._given_out = 0
        self._settled: set[tuple[str, str]] | None = None
        self.running = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._held or (self._settled is not None and key in self._settled)

    def not_held(self, deliveries: Iterable[Delivery]) -> int:
        """How many of them are not held yet."""
        return sum((delivery.source, delivery.source_id) not in self for delivery in deliveries)

    def room(self) -> int:
        """Entries that may be read now; 0 where none may: there is enough to run, or too much that waits."""
        active = self._given_out + len(self._ready) + len(self._suspects)
        return max(0, min(self.capacity - active, self.bound - len(self._held)))

    def space(self) -> int:
        """Pending entries that may be taken over now, to be run or to wait."""
        return max(0, self.bound - len(self._held))

    def take(self, held: Held) -> None:
        """A message was read, and may be handled when it is its turn."""
        self._held[held.key] = held
        key = _lane_key(held)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, held.incoming.stream)
        queued = lane.busy is None and bool(lane.waiting)
        first = lane.waiting[0] if queued else None
        insort(lane.waiting, held, key=_place)
        if lane.busy is None and lane.waiting[0] is not first:
            self._queue(lane, again=queued)

    def hold(self, held: Held) -> None:
        """A message was read that no handler will see: it is settled right away."""
        self._held[held.key] = held

    def next_run(self, *, parked: bool = True) -> Sequence[Held] | None:
        """The messages of the next handler run, now running; None where it is nobody's turn or no handler is free.

        Args:
            parked: whether what was parked, and is due, gets its turn.
        """
        if parked:
            self._wake()
        if self.running >= self._concurrency:
            return None
        run: list[Held] = []
        if self._suspect is None and (lane := self._pop(self._suspects)) is not None:
            run.append(self._give_out(lane))
            self._suspect = run[0]
        else:
            while len(run) < self._batch and (lane := self._pop(self._ready)) is not None:
                run.append(self._give_out(lane))
        if not run:
            return None
        self.running += 1
        return run

    def ran(self, run: Sequence[Held]) -> None:
        """A handler run has ended."""
        self.running -= 1
        if self._suspect is run[0]:
            self._suspect = None
        for held in run:
            lane = self._lanes[_lane_key(held)]
            lane.running = False
            self._given_out -= 1
            if self._held.get(held.key) is not held:
                self._go_on(lane)
            elif lane.due is not None:
                self._park(lane, held)

    def set_aside(self, key: tuple[str, str]) -> Held | None:
        """A message that was about to be run is not: it is another consumer's, or was skipped. Held no longer."""
        held = self._held.pop(key, None)
        if held is not None:
            held.put_back()
            if self._settled is not None:  # a page of what is pending may be under way
                self._settled.add(key)
        return held

    def postpone(self, key: tuple[str, str]) -> Held | None:
        """A message that was about to be run is not, for now: its outcome is on its way."""
        held = self._held.get(key)
        if held is not None:
            held.put_back()
        return held

    def settling(self, number: int = 1) -> None:
        """So many messages' outcomes are decided and on their way: their lanes wait for them."""

    def release(self, held: Held, again: float | None = None) -> None:
        """A message's outcome has reached Redis; where ``again`` is given, it is to run again after so many seconds."""
        if self._held.get(held.key) is not held:
            return
        lane = self._lanes.get(_lane_key(held))
        if again is not None and lane is not None and lane.busy is held and self.leads(lane.stream):
            held.unsettled = False
            lane.due = self._clock() + again
            if not lane.running:
                self._park(lane, held)
            return
        if again is None and self._settled is not None:
            self._settled.add(held.key)
        self.drop(held)

    def drop(self, held: Held) -> None:
        """A message is another consumer's, or done with: it is not held any longer."""
        if self._held.get(held.key) is held:
            del self._held[held.key]
            lane = self._lanes.get(_lane_key(held))
            if lane is not None and lane.busy is held and not lane.running:
                self._go_on(lane)

    def lose(self, key: tuple[str, str], *, gone: bool = False) -> Held | None:
        """Another consumer owns it by now, or it is deleted: what has not been begun is not held any longer."""
        held = self._held.get(key)
        if held is not None:
            held.lost = True
            held.gone = held.gone or gone
            lane = self._lanes.get(_lane_key(held))
            if lane is not None and held in lane.waiting:
                del self._held[key]
                self._remove(lane, held)
            elif lane is not None and lane.busy is held and lane.due is not None:
                self.drop(held)
        return held

    def surplus(self) -> Sequence[Held]:
        """What was read ahead, and handlers do not come to: nothing is."""
        return ()

    def keys(self) -> Sequence[tuple[str, str]]:
        """Everything held, for its leases to be renewed; may be called from another thread."""
        return tuple(self._held)

    def pause(self) -> float | None:
        """Seconds until a parked message is due; None where there is none."""
        return max(0.0, self._parked[0][0] - self._clock()) if self._parked else None

    def drop_waiting(self, stream: str | None = None) -> Sequence[Held]:
        """Hand back what waits or is parked, of one stream or of all; it is held no longer."""
        dropped: list[Held] = []
        for lane in [lane for lane in self._lanes.values() if stream in (None, lane.stream)]:
            dropped += self._empty(lane)
        return dropped

    def begin_term(self, stream: str, term: int) -> None:
        """What is taken from now on is of this term. What waits from one before is not held any longer: others may have
        led meanwhile."""
        self.drop_waiting(stream)
        self._terms[stream] = term

    def watch(self, *, watching: bool) -> None:
        """While a page of what is pending is under way, what is settled counts as held: it is not taken again."""
        self._settled = set() if watching else None

    def leads(self, stream: str) -> bool:
        """Whether the term that what is held of a stream was taken in goes on."""
        return 0 != self._term(stream) == self._terms.get(stream)

    # --- inside ----------------------------------------------------------------------------------

    def _queue(self, lane: _Lane, *, again: bool = False) -> None:
        """A lane's first message may run when it is its turn."""
        if again:
            self._unqueue(lane)
        (self._suspects if lane.waiting[0].is_suspect else self._ready).append(lane)

    def _unqueue(self, lane: _Lane) -> None:
        for queue in (self._ready, self._suspects):
            if lane in queue:
                queue.remove(lane)

    def _pop(self, queue: deque[_Lane]) -> _Lane | None:
        """The next lane whose stream is led; the others are emptied: what they hold is read again in the next term."""
        while queue:
            lane = queue[0]
            if self.leads(lane.stream):
                return queue.popleft()
            self._empty(lane)
        return None

    def _give_out(self, lane: _Lane) -> Held:
        held = lane.busy = lane.waiting.pop(0)
        lane.running = True
        self._given_out += 1
        return held

    def _go_on(self, lane: _Lane) -> None:
        """What a lane had given out is done with."""
        lane.busy = lane.due = None
        if lane.waiting:
            self._queue(lane)
        else:
            del self._lanes[lane.key]

    def _park(self, lane: _Lane, held: Held) -> None:
        assert lane.due is not None
        heapq.heappush(self._parked, (lane.due, next(self._number), lane, held))

    def _wake(self) -> None:
        """What was parked and is due waits at the head of its lane."""
        now = self._clock()
        while self._parked and self._parked[0][0] <= now:
            _, _, lane, held = heapq.heappop(self._parked)
            if lane.busy is held and lane.due is not None and self._held.get(held.key) is held:
                lane.waiting.insert(0, held)
                self._go_on(lane)

    def _remove(self, lane: _Lane, held: Held) -> None:
        was_first = lane.waiting[0] is held
        lane.waiting.remove(held)
        if lane.busy is None and was_first:
            self._unqueue(lane)
            self._go_on(lane)

    def _empty(self, lane: _Lane) -> Sequence[Held]:
        dropped = list(lane.waiting)
        lane.waiting.clear()
        if lane.busy is not None and lane.due is not None and not lane.running:
            dropped.insert(0, lane.busy)
        for held in dropped:
            del self._held[held.key]
        if lane.busy is None or lane.busy in dropped:
            self._unqueue(lane)
            self._go_on(lane)
        return dropped


def _lane_key(held: Held) -> LaneKey:
    incoming = held.incoming
    if incoming.key is not None:
        return (incoming.stream, incoming.key)
    return (incoming.stream, *held.key, "")  # longer than any with a key


def _place(held: Held) -> tuple[int, int]:
    """Where it stands in its stream."""
    first, _, second = held.incoming.id.partition("-")
    return int(first), int(second)
