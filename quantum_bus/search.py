"""Looking for a flow in Redis: what to read, in which order, and where to stop. Pure: an inquiry.

First where the id points by itself: an entry's id, the index, the moment that is in a UUID. Then what is small: what
was completed, dead-lettered, scheduled. Only then the streams, from their newest entry backwards, until it is found.
From then on only the times around what is known of the flow are read, until nothing new is found. Everything is read
in pages of bounded size, and what was not looked at is told.

What entries tell is kept in :mod:`quantum_bus.known`; here is what to ask for next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import flow_index
from .errors import ConfigurationError
from .found import Bounds, Found, Looked
from .inquiry import Inquiry, Refusals, as_map, asked
from .known import MARGIN_MS, MOST_MESSAGES, Known
from .propagation import valid_correlation_id
from .reading import LAST, Hash, Interval, Look, Source, common, read, scan, times, without
from .sightings import FINAL, Place, Sighting, Standing, scheduled, standing
from .state import EntryId, entry_id, id_text
from .streams import Command, Keys
from .wanted import Wanted

# Around the moment in an id itself: a publish may be tried again for a while under one id.
HINT_BEFORE_MS: Final = 1_000
# Rounds of reading around what is new.
MOST_ROUNDS: Final = 50
# Where an index has told of a flow, entries of a stream that are read besides, for what was published without one.
BESIDE_INDEX: Final = 20_000


@dataclass(slots=True)
class _Group:
    name: str
    last_delivered: EntryId


def _silent(_done: int, _total: int) -> None:
    """Nobody watches."""


class Search:
    """A search under way.

    Args:
        streams: to look in, full names.
        progress: told of entries read, and of how many there may be.
    """

    def __init__(
        self,
        wanted: Wanted,
        streams: Sequence[str],
        bounds: Bounds,
        *,
        progress: Callable[[int, int], None] = _silent,
    ) -> None:
        self.wanted = wanted
        self._known = Known(wanted)
        self._names = list(dict.fromkeys(streams))
        self._bounds = bounds
        self._progress = progress
        self._refusals = Refusals()
        self._now_ms = 0
        self._sources: dict[str, Source] = {}
        self._groups: dict[str, list[_Group]] = {}
        self._hashes: list[Hash] = []
        self._asked: set[tuple[str, str]] = set()
        self._indexed = False
        self._comes_later = False
        self._standings: list[Standing] = []

    # --- the search ------------------------------------------------------------------------------

    def run(self) -> Inquiry[Found]:
        """Look for the id and for all of its flow.

        Raises:
            ConfigurationError: Redis refuses even to tell its time.
        """
        yield from self._learn()
        yield from self._follow_hints()
        if not self._known.flows:
            small = [(source, self._bounds.interval) for source in self._of(None, Place.DEAD, Place.RETRY)]
            yield from self._read(small, self._known.locate)
            yield from self._scan(self._known.locate_seen)
        if not self._known.flows:
            all_of = [(source, self._bounds.interval) for source in self._of(Place.STREAM)]
            yield from self._read(all_of, self._known.locate, enough=lambda: bool(self._known.flows))
        if self._known.flows:
            yield from self._gather()
            yield from self._stand()
        return self.found()

    def _of(self, *kinds: Place | None) -> list[Source]:
        return [source for source in self._sources.values() if source.kind in kinds]

    def found(self) -> Found:
        """What is known now."""
        looked = [
            Looked(source.key, source.length, source.entries, source.first[0] if source.first else None, times(source))
            for source in self._of(Place.STREAM)
        ]
        seen = {sighting.message.correlation_id for sighting in self._known.sightings.values()}
        seen |= {run.correlation_id for run in self._known.runs}
        return Found(
            now=self._now_ms / 1000,
            correlation_ids=[flow for flow in self._known.flows if flow in seen],
            sightings=list(self._known.sightings.values()),
            runs=list(self._known.runs),
            standings=self._standings,
            matched=list(self._known.matched),
            flows_left_out=self._known.flows_left_out,
            messages_left_out=self._known.left_out,
            indexed=self._indexed,
            comes_later=self._indexed and self._comes_later,
            looked=looked,
            refused=self._refusals.found,
        )

    # --- following -------------------------------------------------------------------------------

    def next_read(self, *, count: int, block_ms: int) -> Command:
        """XREAD for what came since; :meth:`take` is told of it."""
        last = {source.key: id_text(source.last) for source in self._of(Place.STREAM, Place.DEAD, None)}
        return ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *last, *last.values())

    def take(self, reply: Any) -> bool:
        """A reply to :meth:`next_read`; whether the flow goes on in it."""
        before = self._known.extent
        for key, entries in reply or ():
            source = self._sources[key.decode()]
            for own_id, fields in entries:
                source.last = max(source.last, entry_id(own_id))
                if not self._known.flows:
                    self._known.locate(source, own_id.decode(), fields)
                if self._known.flows:
                    self._known.collect(source, own_id.decode(), fields)
        return self._known.extent != before

    def refresh(self) -> Inquiry[Found]:
        """How the known messages stand now, and what waits for its time."""
        self._known.forget(Place.DELAYED, Place.SCHEDULED, Place.RETRY)
        retries = self._of(Place.RETRY)
        for source in retries:
            source.read, source.length, source.last = [], 1, LAST
        [time, *_] = yield from asked([("TIME",)], self._refusals)
        if time:
            self._now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        yield from self._scan(self._known.collect_seen)
        yield from self._read([(source, ((0, 0), LAST)) for source in retries], self._known.collect)
        yield from self._fill()
        yield from self._stand()
        return self.found()

    # --- what is there ---------------------------------------------------------------------------

    def _learn(self) -> Inquiry[None]:
        [time] = yield from asked([("TIME",)], self._refusals)
        if not time:
            raise ConfigurationError(
                f"Redis does not tell its time ({self._refusals.found[0].text}); allow this user TIME"
            )
        self._now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        yield from self._learn_groups(self._names)
        for name in self._names:
            self._name_sources(name)
        keys = list(self._sources)
        told = yield from asked([("XINFO", "STREAM", key) for key in keys], self._refusals)
        for key, info in zip(keys, told, strict=True):
            if info is None:  # refused: it holds something else, or may not be read
                del self._sources[key]
            elif info:  # what is not there may come while it is followed
                source, about = self._sources[key], as_map(info)
                source.length = about[b"length"]
                source.last = entry_id(about[b"last-generated-id"])
                first = about.get(b"first-entry")
                source.first = entry_id(first[0]) if first else None

    def _learn_groups(self, streams: Iterable[str]) -> Inquiry[None]:
        asking = list(streams)
        replies = yield from asked([("XINFO", "GROUPS", name) for name in asking], self._refusals)
        for name, rows in zip(asking, replies, strict=True):
            self._groups[name] = [
                _Group(row[b"name"].decode(errors="backslashreplace"), entry_id(row[b"last-delivered-id"]))
                for row in map(as_map, rows or ())
            ]

    def _name_sources(self, name: str) -> None:
        keys = Keys.of(name, "")
        self._sources[name] = Source(Place.STREAM, name, name)
        self._sources[keys.completed] = Source(None, name, keys.completed)
        self._sources[keys.dead] = Source(Place.DEAD, name, keys.dead)
        self._hashes.append(Hash(name, None, keys.delayed_due, keys.delayed_copies))
        for group in self._groups[name]:
            own = Keys.of(name, group.name)
            self._sources[own.retry] = Source(Place.RETRY, name, own.retry, group.name)
            self._hashes.append(Hash(name, group.name, own.due, own.copies))

    def _follow_hints(self) -> Inquiry[None]:
        if self.wanted.entry_id:
            exact = entry_id(self.wanted.text)
            alone = [(source, (exact, exact)) for source in self._of(Place.STREAM, Place.DEAD)]
            yield from self._read(alone, self._known.locate)
        if valid_correlation_id(self.wanted.text):
            yield from self._ask_index([self.wanted.text])
        if self.wanted.made_ms is not None and not self._known.flows:
            made = self.wanted.made_ms
            around = ((made - HINT_BEFORE_MS, 0), (made + MARGIN_MS, LAST[1]))
            hinted = common(around, self._bounds.interval)
            if hinted is not None:
                yield from self._read([(source, hinted) for source in self._of(Place.STREAM)], self._known.locate)

    def _ask_index(self, correlation_ids: Iterable[str]) -> Inquiry[None]:
        left_out = False
        for correlation_id in correlation_ids:
            asking = [
                flow_index.lookup(name, correlation_id, self._now_ms, self._bounds.since_ms) for name in self._names
            ]
            values = yield from asked([command for commands in asking for command in commands], Refusals())
            at = 0
            for name, commands in zip(self._names, asking, strict=True):
                listed = flow_index.parse(values[at : at + len(commands)])
                at += len(commands)
                self._comes_later = self._comes_later or listed.delayed
                left_out = left_out or listed.left_out
                if listed.entry_ids:
                    self._indexed = True
                    self._known.is_of(correlation_id)
                    yield from self._fetch((name, own_id) for own_id in listed.entry_ids[:MOST_MESSAGES])
        self._indexed = self._indexed and not left_out

    # --- gathering -------------------------------------------------------------------------------

    def _gather(self) -> Inquiry[None]:
        """Everything of the flows that were found."""
        self._known.settle()
        yield from self._ask_index(list(self._known.flows))
        for source in self._sources.values():
            source.read.clear()
            source.entries = 0
        self._known.keep_located()
        small, completed, of_streams = self._of(Place.DEAD, Place.RETRY), self._of(None), self._of(Place.STREAM)
        yield from self._read([(source, self._bounds.interval) for source in small], self._known.collect)
        yield from self._scan(self._known.collect_seen)
        if not self._indexed:
            yield from self._read([(source, self._bounds.interval) for source in completed], self._known.collect)
        for _ in range(MOST_ROUNDS):
            yield from self._fill()
            wide = [self._bounds.interval] if self._bounds.everything else self._windows()
            ranges = [
                (source, part)
                for source in (*of_streams, *(completed if self._indexed else ()))
                for window in wide
                for part in without(window, source.read)
                if self._bounds.everything or not self._indexed or source.entries < BESIDE_INDEX
            ]
            before = self._windows()
            yield from self._read(ranges, self._known.collect, most=BESIDE_INDEX if self._indexed else None)
            if self._windows() == before and not self._known.unseen(self._asked):
                break
        if self._indexed and self._unsettled():
            rest = [
                (source, part)
                for source in completed
                for part in without((min(window[0] for window in self._windows()), LAST), source.read)
            ]
            yield from self._read(rest, self._known.collect)

    def _fill(self) -> Inquiry[None]:
        yield from self._fetch(self._known.unseen(self._asked))

    def _fetch(self, entries: Iterable[tuple[str, str]]) -> Inquiry[None]:
        """Read entries by their ids."""
        wanted = [entry for entry in entries if entry not in self._asked and entry[0] in self._sources]
        self._asked.update(wanted)
        replies = yield from asked([("XRANGE", stream, own_id, own_id) for stream, own_id in wanted], self._refusals)
        for (stream, _), rows in zip(wanted, replies, strict=True):
            for own_id, fields in rows or ():
                self._known.collect(self._sources[stream], own_id.decode(), fields)

    def _windows(self) -> list[Interval]:
        return self._known.windows(self._bounds.interval, self._now_ms)

    # --- how it stands ---------------------------------------------------------------------------

    def _unsettled(self) -> list[tuple[Sighting, _Group]]:
        """Entries of streams, and groups that have not come to an end with them as far as is known."""
        settled = {(run.stream, run.entry_id, run.group) for run in self._known.runs if run.outcome in FINAL}
        elsewhere = {
            (seen.stream, seen.entry_id, seen.group)
            for seen in self._known.sightings.values()
            if seen.group is not None
        }
        return [
            (seen, group)
            for seen in self._known.sightings.values()
            if seen.place is Place.STREAM
            for group in self._groups.get(seen.stream, ())
            if (seen.stream, seen.entry_id, group.name) not in settled | elsewhere
        ]

    def _stand(self) -> Inquiry[None]:
        yield from self._learn_groups(dict.fromkeys(seen.stream for seen in self._known.sightings.values()))
        pairs = self._unsettled()
        pending = yield from asked(
            [("XPENDING", seen.stream, group.name, seen.entry_id, seen.entry_id, 1) for seen, group in pairs],
            self._refusals,
        )
        self._standings = [
            standing(seen.stream, seen.entry_id, group.name, group.last_delivered, entry_id(seen.entry_id), rows)
            for (seen, group), rows in zip(pairs, pending, strict=True)
        ]

    # --- reading ---------------------------------------------------------------------------------

    def _read(
        self,
        ranges: Sequence[tuple[Source, Interval]],
        look: Look,
        *,
        enough: Callable[[], bool] | None = None,
        most: int | None = None,
    ) -> Inquiry[None]:
        yield from read(ranges, look, self._refusals, progress=self._progress, enough=enough, most=most)

    def _scan(self, look: Callable[[Sighting], None]) -> Inquiry[None]:
        def seen(about: Hash, name: str, packed: bytes, due_ms: int | None) -> None:
            found = scheduled(about.stream, about.group, name, packed, due_ms)
            if found is not None:
                look(found)

        yield from scan(self._hashes, self._known.worth, seen, self._refusals)
