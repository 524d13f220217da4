"""Where a consumer's messages come from, and what it must do there besides reading. Pure state, shared by both twins.

A consumer reads its streams and its group's retry streams. From time to time it takes over what dead consumers left
(XAUTOCLAIM with a cursor that is kept until it has been around), and it makes readable what is scheduled and due.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from . import driver, names, streams
from .config import BusConfig, SubscriberConfig
from .delivery import Again, Wait
from .inbox import Held
from .outbox import DONE, Letter, completion_record
from .streams import Command, Keys, Read

# Rounds of recovery in one lease, so that a dead consumer's message waits little longer than its lease.
ROUNDS: Final = 4
# Entries that one read brings of each stream, or two batches. With more they are out of the processor's caches by the
# time they are handled, and Redis is not at work meanwhile: 200 for 1,600 are a quarter less time a message in batches.
PAGE: Final = 200
# Runs that one command notes.
BEGUN_TOGETHER: Final = 500
LONGEST_ROUND: Final = 5.0
# Seconds between looks at what is scheduled, where nothing is known to be due sooner.
LONGEST_NAP: Final = 1.0
# Consumers' names are forgotten when they have nothing pending and were not seen for this long, seconds.
FORGET_AFTER: Final = 3600.0
FORGET_EVERY: Final = 600.0

FROM_START: Final = "0-0"


Key = tuple[str, str]
"""The key that an entry is pending in, and its id there."""


class NotOwned(NamedTuple):
    """What another consumer has taken over, and what was deleted from its stream."""

    lost: Sequence[Key]
    gone: Sequence[Key]


class Aside(NamedTuple):
    """What was about to be run and is not: its message was handled before, or is being handled under another entry."""

    skipped: Sequence[Key]
    busy: Sequence[Key]


class Sources:
    """The keys one consumer reads, and its plan of what to do there.

    Args:
        clock: monotonic seconds.

    Attributes:
        keys: of each stream, by its name.
        names: what is read: the streams, then their retry streams.
        read_timeout: seconds after which a read's connection counts as dead.
    """

    def __init__(self, config: SubscriberConfig, consumer: str, bus: BusConfig, *, clock: Callable[[], float]) -> None:
        self.keys = {stream: Keys.of(stream, config.group) for stream in config.streams}
        self._stands_for = {keys.retry: stream for stream, keys in self.keys.items()}
        self.names = (*config.streams, *self._stands_for)
        self._config = config
        self._group = config.group
        self._bus = bus
        self._consumer = consumer
        self._clock = clock
        self._round = min(LONGEST_ROUND, config.ack_wait / ROUNDS)
        self._block = min(bus.block, self._round)
        self.read_timeout = self._block + streams.BLOCK_MARGIN
        self._looking: list[str] = []
        self._cursor = FROM_START
        self._may_recover = True
        self._next_round = clock()
        self._next_due = clock()
        self._move_refused = False
        self._next_forget = clock() + FORGET_EVERY

    def stream_of(self, source: str) -> str:
        """The stream that a key stands for."""
        return self._stands_for.get(source, source)

    # --- groups ----------------------------------------------------------------------------------

    def make_groups(self, *, again: bool) -> Iterator[tuple[str, str, Sequence[Command]]]:
        """Each key with where its group starts, and two commands: make it, and list what groups there are.

        A group that was there before starts where it had come to, as far as that is known. One that has to be made
        again starts at the beginning else, never at the end: what came meanwhile is not handled yet. Every retry
        stream's starts at the beginning.
        """
        self.names = (*self._config.streams, *self._stands_for)
        for source in self.names:
            new = self._config.start == "new" and not again and source in self.keys
            start = streams.LAST_ENTRY if new else streams.FIRST_ENTRY
            make = streams.create_group(source, self._group, start)
            if source in self.keys:
                make = streams.GROUP.call([source, self.keys[source].notes], self._group, start)
            yield source, start, (make, streams.list_groups(source))

    def do_without(self, source: str) -> bool:
        """A key's group cannot be made now; whether the others may be read without it, as a retry stream's may."""
        if source not in self._stands_for:
            return False
        self.names = tuple(name for name in self.names if name != source)
        return True

    @property
    def incomplete(self) -> bool:
        """Whether a group is still to be made."""
        return len(self.names) < 2 * len(self._config.streams)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, room: int) -> Command:
        """A blocking read of everything; between two pages of a recovery it does not block."""
        self._may_recover = True
        block_ms = 0 if self._looking else max(1, int(self._block * 1000))
        count = min(room, max(PAGE, 2 * self._config.batch))
        return streams.read_new(self._group, self._consumer, self.names, count=count, block_ms=block_ms)

    def new(self, reply: Any) -> Read:
        """What a blocking read brought."""
        return streams.parse_read(reply, self._stands_for)

    def own(self, source: str, after: str | None) -> Command:
        """A page of what this consumer was given from ``source`` and may not have seen, behind entry id ``after``."""
        start = streams.FIRST_ENTRY if after is None else f"({after}"
        return streams.OWN.call([source], self._group, self._consumer, start, streams.RECOVERY_PAGE)

    def owned(self, reply: Any, source: str) -> Read:
        """What such a page brought; its cursor is where the next one begins."""
        return streams.parse_page(reply, source, self._stands_for.get(source))

    def recover(self, room: int) -> Command | None:
        """The next page of what dead consumers left; None while it is not time.

        Between two pages there is a read: what is new does not wait for a long pending list to be looked through.
        """
        if not self._may_recover:
            return None
        if not self._looking:
            if self._clock() < self._next_round:
                return None
            self._next_round = self._clock() + self._round * random.uniform(0.75, 1.25)  # noqa: S311 - spreads the load
            self._looking = list(self.names)
            self._cursor = FROM_START
        self._may_recover = False
        lease_ms = int(self._config.ack_wait * 1000)
        count = min(room, streams.RECOVERY_PAGE)
        return streams.RECOVER.call([self._looking[0]], self._group, self._consumer, lease_ms, self._cursor, count)

    def recovered(self, reply: Any) -> Read:
        """What such a page brought. The cursor is kept until it has been around: what is further on is reached too."""
        source = self._looking[0]
        read = streams.parse_page(reply, source, self._stands_for.get(source))
        self._cursor = read.cursor or FROM_START
        if self._cursor == FROM_START:
            self._looking.pop(0)
        return read

    def not_recovered(self) -> None:
        """A page was refused: leave it for the next round."""
        self._looking = []

    # --- holding ---------------------------------------------------------------------------------

    def begin(self, held: Sequence[Held]) -> list[Command]:
        """Note that handlers begin: one command for each key."""
        by_source: dict[str, list[Held]] = {}
        for item in held:
            by_source.setdefault(item.source, []).append(item)
        begin = self._begin if self._config.idempotent is None else self._begin_once
        return [
            begin(source, items[start : start + BEGUN_TOGETHER])
            for source, items in by_source.items()
            for start in range(0, len(items), BEGUN_TOGETHER)
        ]

    def _begin(self, source: str, held: Sequence[Held]) -> Command:
        arguments = [part for item in held for part in (item.source_id, 1 + item.attempt - item.noted)]
        return streams.BEGIN.call([source], self._group, self._consumer, *arguments)

    def _begin_once(self, source: str, held: Sequence[Held]) -> Command:
        assert self._config.idempotent is not None
        keys = self.keys[self.stream_of(source)]
        arguments: list[str | int | bytes] = []
        for item in held:
            skipped = completion_record(item, names.OUTCOME_SKIP)
            arguments += (item.source_id, 1 + item.attempt - item.noted, item.incoming.id, skipped)
        return streams.BEGIN_ONCE.call(
            [source, keys.completed, *(keys.seen + item.incoming.message_id for item in held)],
            self._group,
            self._consumer,
            self._bus.service,
            self._bus.completed,
            1 if source in self._stands_for else 0,
            int(self._config.idempotent * 1000),
            *arguments,
        )

    @staticmethod
    def not_owned(commands: Sequence[Command], replies: Sequence[Any]) -> NotOwned:
        """What the replies to :meth:`begin`, or to renewals, tell of what is not this consumer's any more."""
        lost: list[Key] = []
        gone: list[Key] = []
        for command, reply in zip(commands, replies, strict=True):
            source = str(command[3])
            if isinstance(reply, list):
                lost += [(source, entry_id.decode()) for entry_id in reply[0]]
                gone += [(source, entry_id.decode()) for entry_id in reply[1]]
            elif driver.is_no_group(reply):  # with the group, its pending list is gone: nobody owns anything
                lost += [(source, entry_id) for entry_id in streams.entry_ids(command)]
        return NotOwned(lost, gone)

    @staticmethod
    def refused(commands: Sequence[Command], replies: Sequence[Any]) -> list[tuple[Command, Exception]]:
        """Those of :meth:`begin` that Redis did not take, and that are to be sent again."""
        return [
            (command, reply)
            for command, reply in zip(commands, replies, strict=True)
            if isinstance(reply, Exception) and not driver.is_no_group(reply)
        ]

    @staticmethod
    def aside(commands: Sequence[Command], replies: Sequence[Any]) -> Aside:
        """What the replies to :meth:`begin` tell of messages that are to be handled once."""
        skipped: list[Key] = []
        busy: list[Key] = []
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, list) and len(reply) > 2:
                source = str(command[3])
                skipped += [(source, entry_id.decode()) for entry_id in reply[2]]
                busy += [(source, entry_id.decode()) for entry_id in reply[3]]
        return Aside(skipped, busy)

    def unmark(self, held: Held) -> list[Command]:
        """The entry is deleted: where messages are handled once, another one under its id may be handled."""
        if self._config.idempotent is None:
            return []
        return [
            streams.UNMARK.call([self.keys[held.incoming.stream].seen + held.incoming.message_id], held.incoming.id)
        ]

    def release(self, held: Sequence[tuple[str, str]]) -> list[Command]:
        """Give up what is held, as (key, entry id), so that others may take it at once."""
        by_source: dict[str, list[str]] = {}
        for source, entry_id in held:
            by_source.setdefault(source, []).append(entry_id)
        return [
            streams.RELEASE.call([source], self._group, self._consumer, streams.GIVEN_UP_MS, *ids)
            for source, ids in by_source.items()
        ]

    def forget(self, *, leaving: bool = False) -> list[Command]:
        """Remove the names of consumers that are gone and left nothing: from time to time, and one's own at the end."""
        if not leaving and self._clock() < self._next_forget:
            return []
        self._next_forget = self._clock() + FORGET_EVERY
        idle_ms = int(FORGET_AFTER * 1000)
        return [
            streams.FORGET.call([source], self._group, idle_ms, self._consumer, 1 if leaving else 0)
            for source in self.names
        ]

    # --- scheduled -------------------------------------------------------------------------------

    def scheduled(self, letter: Letter) -> bool:
        """An outcome was written; whether that brings the next due time nearer."""
        if self._config.ordered or not isinstance(letter.outcome, (Again, Wait)) or letter.result != DONE:
            return False
        due = self._clock() + letter.outcome.delay
        if due >= self._next_due:
            return False
        self._next_due = due
        return True

    def pause(self) -> float:
        """Seconds until scheduled messages may be due."""
        return max(0.0, self._next_due - self._clock())

    def due(self) -> list[Command]:
        """Make readable what is due, of every stream: this group's retries, and what was published with a delay.

        The latter is for all groups, and whichever consumer comes first adds it to the stream.
        """
        self._next_due = self._clock() + LONGEST_NAP  # a nearer time that comes up while Redis answers stands
        return [
            streams.DUE.call(list(scheduled), streams.DUE_PAGE)
            for keys in self.keys.values()
            for scheduled in (
                (keys.due, keys.copies, keys.retry),
                (keys.delayed_due, keys.delayed_copies, keys.stream),
            )
        ]

    def moved(self, replies: Sequence[Any]) -> Exception | None:
        """The replies to :meth:`due`, or none where Redis did not answer.

        Returns:
            A refusal that is worth saying: the first of several in a row.
        """
        refusal = next((reply for reply in replies if isinstance(reply, driver.REFUSALS)), None)
        said, self._move_refused = self._move_refused, refusal is not None or (self._move_refused and not replies)
        nap = LONGEST_NAP
        if refusal is not None:
            nap *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads the load
        for reply in replies:
            if isinstance(reply, list):
                moved, next_ms = reply
                if moved == streams.DUE_PAGE:
                    nap = 0.0
                elif next_ms >= 0:
                    nap = min(nap, next_ms / 1000)
        self._next_due = min(self._next_due, self._clock() + max(nap, 0.001))
        return None if said else refusal
