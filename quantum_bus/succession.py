"""How an ordered consumer reads: stand by, inherit what is pending, then take what is new. Pure state for both twins.

In each term in which it leads a stream (:mod:`~quantum_bus.leadership`), it first takes over everything that is pending
in the group, in the order of the stream, and only then what is new. Both are read by scripts that look at the lease in
the same step: a blocking read could give messages to a consumer that has lost it meanwhile. Where there is nothing it
waits with XREAD, which gives nothing to anyone, and asks the script again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from . import streams
from .config import BusConfig, SubscriberConfig
from .inbox import Held
from .lanes import Lanes
from .leadership import LASTS, NOT_LEADING, Leadership
from .sources import LONGEST_ROUND, ROUNDS, Sources
from .streams import Command, Read

# While another stream may still fall to this consumer, it waits for what is new no longer than this part of `ack_wait`.
SHORT_WAITS: Final = 16
# Seconds within which a script has to be answered.
PATIENCE: Final = streams.BLOCK_MARGIN


@dataclass(frozen=True, slots=True)
class Step:
    """What to ask Redis next, over the connection for reading.

    Attributes:
        timeout: seconds after which the connection counts as dead.
        stream: what it is about; empty while waiting for something new in any.
        source: the key of which pending entries are inherited.
    """

    command: Command
    timeout: float
    stream: str = ""
    source: str = ""


class News(NamedTuple):
    """Who leads a stream now: this consumer, or ``holder``, or (empty) nobody that is known."""

    stream: str
    leading: bool
    holder: str = ""


@dataclass(slots=True)
class _Line:
    """Where the consumer is with one stream.

    Attributes:
        term: the one that was begun; 0 where it does not lead.
        heirless: keys whose pending entries are still to be looked through.
        after: the last entry looked at in the first of them.
        inherited: how many pending entries were another consumer's.
        last: by key, the last id that the group was given, where all is given.
        said: what was last told of who leads.
    """

    term: int = NOT_LEADING
    heirless: list[str] = field(default_factory=list)
    after: str | None = None
    inherited: int = 0
    last: dict[str, str] = field(default_factory=dict)
    said: News | None = None


class Succession:
    """The reading of one ordered consumer.

    Args:
        clock: monotonic seconds.

    Attributes:
        patience: seconds after which a consumer that stands by looks again, should nothing have told it to.
    """

    def __init__(
        self,
        config: SubscriberConfig,
        bus: BusConfig,
        *,
        consumer: str,
        sources: Sources,
        lanes: Lanes,
        leadership: Leadership,
        clock: Callable[[], float],
    ) -> None:
        self._group = config.group
        self._consumer = consumer
        self._sources = sources
        self._lanes = lanes
        self._leadership = leadership
        self._clock = clock
        self._round = min(LONGEST_ROUND, config.ack_wait / ROUNDS)
        self._block = min(bus.block, self._round)
        self._short_block = min(self._block, config.ack_wait / SHORT_WAITS)
        self.patience = LASTS * config.ack_wait
        self._lines = {stream: _Line() for stream in config.streams}
        self._next_tidying = clock()
        self._refused = False

    def step(self, room: int) -> Step | None:
        """What to do next, with room for so many messages; None while it stands by."""
        waiting: dict[str, str] = {}
        led = 0
        for stream, line in self._lines.items():
            self._follow(stream, line)
            if line.term == NOT_LEADING:
                continue
            led += 1
            if line.heirless:
                self._rotate(stream)
                return self._inherit(stream, line)
            if not line.last:
                self._rotate(stream)
                return self._fetch(stream, room)
            waiting |= line.last
        self._lanes.watch(watching=False)
        if not waiting:
            return None
        block = self._block if led == len(self._lines) else self._short_block
        command = streams.wait_behind(waiting, block_ms=max(1, int(block * 1000)))
        return Step(command, block + streams.BLOCK_MARGIN)

    def answered(self, step: Step, reply: Any) -> tuple[Read, int]:
        """What a step brought; and, with the last of what was inherited, how many of that another consumer had."""
        if not step.stream:
            for line in self._lines.values():
                line.last = {}
            return streams.NOTHING_READ, 0
        line = self._lines[step.stream]
        if reply is None:  # it has lost the lease, or never had it at this server
            self._leadership.end(step.stream)
            return streams.NOTHING_READ, 0
        if not step.source:
            read, last = reply
            names = list(self._keys(step.stream))
            line.last = {source: given.decode() for source, given in zip(names, last, strict=False)}
            return self._sources.new(read), 0
        page = self._sources.owned(reply, step.source)
        line.after = page.cursor
        line.inherited += int(reply[3])
        if page.cursor is not None:
            return page, 0
        line.heirless.remove(step.source)
        inherited = 0 if line.heirless else line.inherited
        line.inherited -= inherited
        return page, inherited

    def look_again(self) -> None:
        """A reply was lost, or refused: what it may have brought is inherited, before anything new is read."""
        for stream, line in self._lines.items():
            line.heirless, line.after, line.last = list(self._keys(stream)), None, {}

    def may_run(self, run: Sequence[Held]) -> bool:
        """Whether what was given out may still be begun; if not, the terms of all its streams end: what was not begun
        is inherited in the next."""
        names = {held.incoming.stream for held in run}
        if all(self._lanes.leads(name) for name in names):
            return True
        for name in names:
            self.lost(name)
        return False

    def lost(self, stream: str) -> None:
        """Something of this stream turned out to be another consumer's: that one leads, or has led meanwhile."""
        self._leadership.end(stream)
        self._lanes.drop_waiting(stream)

    def tidying(self) -> bool:
        """Whether it is time to look after groups and names; from time to time."""
        if self._clock() < self._next_tidying:
            return False
        self._next_tidying = self._clock() + self._round
        return True

    def news(self) -> Iterator[News]:
        """What has changed, to be told once."""
        for stream, line in self._lines.items():
            holder = self._leadership.holders.get(stream, "")
            now = News(stream, line.term != NOT_LEADING, "" if line.term else holder)
            if now != line.said and (now.leading or now.holder or (line.said is not None and line.said.leading)):
                line.said = now
                yield now

    def refusal(self) -> object:
        """What Redis says instead of giving a lease, to be told once; None where all is well."""
        refused, self._refused = self._refused, self._leadership.refusal is not None
        return None if refused else self._leadership.refusal

    # --- inside ----------------------------------------------------------------------------------

    def _keys(self, stream: str) -> Iterator[str]:
        """The keys to read for a stream: retries first, they are older; one whose group cannot be made is left out."""
        keys = self._sources.keys[stream]
        return (source for source in (keys.retry, keys.stream) if source in self._sources.names)

    def _follow(self, stream: str, line: _Line) -> None:
        """Begin a term, or end it."""
        term = self._leadership.term(stream)
        if term == line.term:
            return
        line.term = term
        line.heirless, line.after, line.last = list(self._keys(stream)), None, {}
        self._lanes.begin_term(stream, term)

    def _rotate(self, stream: str) -> None:
        """Next time another stream comes first."""
        self._lines[stream] = self._lines.pop(stream)

    def _inherit(self, stream: str, line: _Line) -> Step:
        source = line.heirless[0]
        start = streams.FIRST_ENTRY if line.after is None else f"({line.after}"
        self._lanes.watch(watching=True)
        count = min(self._lanes.space(), streams.RECOVERY_PAGE)
        keys = [self._sources.keys[stream].lease, source]
        return Step(streams.INHERIT.call(keys, self._group, self._consumer, start, count), PATIENCE, stream, source)

    def _fetch(self, stream: str, room: int) -> Step:
        self._lanes.watch(watching=False)
        keys = [self._sources.keys[stream].lease, *self._keys(stream)]
        return Step(streams.FETCH.call(keys, self._group, self._consumer, room), PATIENCE, stream)
