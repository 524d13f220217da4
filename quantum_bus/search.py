"""Looking for a flow in Redis: what to read, in which order, and where to stop. Pure: an inquiry.

First where the id points by itself: an entry's id, the index, the moment that is in a UUID. Then what is small: what
was completed, dead-lettered, scheduled. Only then the streams, from their newest entry backwards, until it is found.
From then on only the times around what is known of the flow are read, until nothing new is found. Everything is read
in pages of bounded size, and what was not looked at is told.

It is longer than a room should be: finding, gathering and following share all that is known of the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import flow_index, names
from .errors import ConfigurationError
from .found import Bounds, Found, Looked
from .inquiry import Inquiry, Refusals, as_map, asked
from .propagation import valid_correlation_id
from .reading import LAST, Hash, Interval, Look, Source, common, read, scan, times, without
from .sightings import (
    FINAL,
    Place,
    Run,
    Sighting,
    Standing,
    dead,
    in_retry_stream,
    in_stream,
    runs,
    scheduled,
    seconds_of,
    standing,
)
from .state import EARLIEST_MS, EntryId, entry_id, id_text
from .streams import Command, Keys
from .wanted import Match, Wanted, made_ms, needles_of

# What is read before and after each moment that is known of a flow, milliseconds.
MARGIN_MS: Final = 60_000
# Around the moment in an id itself: a publish may be tried again for a while under one id.
HINT_BEFORE_MS: Final = 1_000
# Flows that one id may name, messages that are kept of them, and rounds of reading around what is new.
MOST_FLOWS: Final = 10
MOST_MESSAGES: Final = 1_000
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
        self._names = list(dict.fromkeys(streams))
        self._bounds = bounds
        self._progress = progress
        self._refusals = Refusals()
        self._now_ms = 0
        self._sources: dict[str, Source] = {}
        self._groups: dict[str, list[_Group]] = {}
        self._hashes: list[Hash] = []
        self._flows: dict[str, tuple[bytes, ...]] = {}
        self._strength = Match.NONE
        self._flows_left_out = False
        self._sightings: dict[tuple[Place, str, str, str | None, str], Sighting] = {}
        self._runs: dict[Run, None] = {}
        self._matched: dict[str, None] = {}
        self._located: list[Sighting] = []
        self._left_out = 0
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
        if not self._flows:
            small = [(source, self._bounds.interval) for source in self._of(None, Place.DEAD, Place.RETRY)]
            yield from self._read(small, self._locate)
            yield from self._scan(self._locate_seen)
        if not self._flows:
            all_of = [(source, self._bounds.interval) for source in self._of(Place.STREAM)]
            yield from self._read(all_of, self._locate, enough=lambda: bool(self._flows))
        if self._flows:
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
        seen = {sighting.message.correlation_id for sighting in self._sightings.values()}
        seen |= {run.correlation_id for run in self._runs}
        return Found(
            now=self._now_ms / 1000,
            correlation_ids=[flow for flow in self._flows if flow in seen],
            sightings=list(self._sightings.values()),
            runs=list(self._runs),
            standings=self._standings,
            matched=list(self._matched),
            flows_left_out=self._flows_left_out,
            messages_left_out=self._left_out,
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
        before = (len(self._sightings), len(self._runs))
        for key, entries in reply or ():
            source = self._sources[key.decode()]
            for own_id, fields in entries:
                source.last = max(source.last, entry_id(own_id))
                if not self._flows:
                    self._locate(source, own_id.decode(), fields)
                if self._flows:
                    self._collect(source, own_id.decode(), fields)
        return (len(self._sightings), len(self._runs)) != before

    def refresh(self) -> Inquiry[Found]:
        """How the known messages stand now, and what waits for its time."""
        for seen in [key for key in self._sightings if key[0] in (Place.DELAYED, Place.SCHEDULED, Place.RETRY)]:
            del self._sightings[seen]
        retries = self._of(Place.RETRY)
        for source in retries:
            source.read, source.length, source.last = [], 1, LAST
        [time, *_] = yield from asked([("TIME",)], self._refusals)
        if time:
            self._now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        yield from self._scan(self._collect_seen)
        yield from self._read([(source, ((0, 0), LAST)) for source in retries], self._collect)
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
            yield from self._read(alone, self._locate)
        if valid_correlation_id(self.wanted.text):
            yield from self._ask_index([self.wanted.text])
        if self.wanted.made_ms is not None and not self._flows:
            made = self.wanted.made_ms
            around = ((made - HINT_BEFORE_MS, 0), (made + MARGIN_MS, LAST[1]))
            hinted = common(around, self._bounds.interval)
            if hinted is not None:
                yield from self._read([(source, hinted) for source in self._of(Place.STREAM)], self._locate)

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
                    self._flows.setdefault(correlation_id, needles_of(correlation_id))
                    self._strength = Match.ID
                    yield from self._fetch((name, own_id) for own_id in listed.entry_ids[:MOST_MESSAGES])
        self._indexed = self._indexed and not left_out

    # --- finding ---------------------------------------------------------------------------------

    def _locate(self, source: Source, own_id: str, fields: Sequence[bytes]) -> None:
        """Whether an entry is named by the id: then its flow is what is looked for."""
        if source.kind is None:
            if any(needle in value for needle in self.wanted.needles for value in fields):
                for run in runs(source.stream, own_id, fields, self.wanted.needles):
                    itself = self.wanted.text in (run.message_id, run.entry_id)
                    if (itself or self.wanted.text == run.correlation_id) and valid_correlation_id(run.correlation_id):
                        self._name_flow(run.correlation_id, Match.ID, run.message_id if itself else "")
            return
        if self.wanted.text == own_id or self.wanted.may_be_in(fields):
            seen = self._seen(source, own_id, fields)
            if seen is not None:
                self._locate_seen(seen)

    def _locate_seen(self, seen: Sighting) -> None:
        match = self.wanted.match(seen.message, seen.entry_id)
        if match is not Match.NONE:
            own = seen.message.message_id if self._names_itself(seen) else ""
            self._name_flow(seen.message.correlation_id, match, own)
            if len(self._located) < MOST_MESSAGES:
                self._located.append(seen)

    def _names_itself(self, seen: Sighting) -> bool:
        return self.wanted.text not in (
            seen.message.correlation_id,
            f"{seen.message.context.trace_id:032x}",
            seen.message.causation_id,
        )

    def _name_flow(self, correlation_id: str, match: Match, message_id: str) -> None:
        if match < self._strength:
            return
        if match > self._strength:  # what an id names outweighs what merely has it among its values
            self._flows.clear()
            self._matched.clear()
            self._flows_left_out = False
            self._strength = match
        if correlation_id not in self._flows:
            if len(self._flows) >= MOST_FLOWS:
                self._flows_left_out = True
                return
            self._flows[correlation_id] = needles_of(correlation_id)
        if message_id:
            self._matched.setdefault(message_id)

    # --- gathering -------------------------------------------------------------------------------

    def _gather(self) -> Inquiry[None]:
        """Everything of the flows that were found."""
        if self._strength is Match.VALUE and valid_correlation_id(self.wanted.text):
            # what has it among its values was met first; there may be a flow of that very id around it
            self._flows.setdefault(self.wanted.text, self.wanted.needles)
        yield from self._ask_index(list(self._flows))
        for source in self._sources.values():
            source.read.clear()
            source.entries = 0
        for seen in self._located:
            self._collect_seen(seen)
        small, completed, of_streams = self._of(Place.DEAD, Place.RETRY), self._of(None), self._of(Place.STREAM)
        yield from self._read([(source, self._bounds.interval) for source in small], self._collect)
        yield from self._scan(self._collect_seen)
        if not self._indexed:
            yield from self._read([(source, self._bounds.interval) for source in completed], self._collect)
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
            yield from self._read(ranges, self._collect, most=BESIDE_INDEX if self._indexed else None)
            if self._windows() == before and not self._unseen():
                break
        if self._indexed and self._unsettled():
            rest = [
                (source, part)
                for source in completed
                for part in without((min(window[0] for window in self._windows()), LAST), source.read)
            ]
            yield from self._read(rest, self._collect)

    def _collect(self, source: Source, own_id: str, fields: Sequence[bytes]) -> None:
        needles = [needle for own in self._flows.values() for needle in own]
        if source.kind is None:
            text = b"\n".join(fields)
            if any(needle in text for needle in needles):
                for run in runs(source.stream, own_id, fields, needles):
                    if run.correlation_id in self._flows:
                        self._runs.setdefault(run)
            return
        text = b"\n".join(fields)
        if any(needle in text for needle in needles) or names.FIELD_CORRELATION_ID.encode() not in text:
            seen = self._seen(source, own_id, fields)
            if seen is not None:
                self._collect_seen(seen)

    def _collect_seen(self, seen: Sighting) -> None:
        if seen.message.correlation_id not in self._flows:
            return
        which = seen.letter.id if seen.letter is not None else seen.message.message_id
        key = (seen.place, seen.stream, seen.entry_id, seen.group, which)
        if key not in self._sightings and len(self._sightings) >= MOST_MESSAGES:
            self._left_out += 1
            return
        if self.wanted.match(seen.message, seen.entry_id) is Match.ID and self._names_itself(seen):
            self._matched.setdefault(seen.message.message_id)
        self._sightings[key] = seen

    def _seen(self, source: Source, own_id: str, fields: Sequence[bytes]) -> Sighting | None:
        if source.kind is Place.STREAM:
            return in_stream(source.stream, own_id, fields)
        if source.kind is Place.DEAD:
            return dead(source.stream, source.key, own_id, fields)
        return in_retry_stream(source.stream, source.group or "", source.key, own_id, fields)

    def _unseen(self) -> list[tuple[str, str]]:
        """Entries that records tell of and that were not read."""
        known = {(seen.stream, seen.entry_id) for seen in self._sightings.values() if seen.place is Place.STREAM}
        told = dict.fromkeys((run.stream, run.entry_id) for run in self._runs)
        return [entry for entry in told if entry not in known and entry not in self._asked]

    def _fill(self) -> Inquiry[None]:
        yield from self._fetch(self._unseen())

    def _fetch(self, entries: Iterable[tuple[str, str]]) -> Inquiry[None]:
        """Read entries by their ids."""
        wanted = [entry for entry in entries if entry not in self._asked and entry[0] in self._sources]
        self._asked.update(wanted)
        replies = yield from asked([("XRANGE", stream, own_id, own_id) for stream, own_id in wanted], self._refusals)
        for (stream, _), rows in zip(wanted, replies, strict=True):
            for own_id, fields in rows or ():
                self._collect(self._sources[stream], own_id.decode(), fields)

    def _windows(self) -> list[Interval]:
        """The times around what is known, within the bounds."""
        spans: list[tuple[float, float]] = []
        for seen in self._sightings.values():
            moments = [seconds_of(seen.message.ts)]
            if seen.place in (Place.STREAM, Place.DEAD, Place.RETRY) and seen.at_ms is not None:
                moments.append(seen.at_ms / 1000)
            if seen.message.causation_id is not None:
                made = made_ms(seen.message.causation_id)
                moments.append(None if made is None else made / 1000)
            spans += [(moment, moment) for moment in moments if moment is not None]
        spans += [(run.ended - run.duration, run.ended) for run in self._runs]
        known = [
            (int(begin * 1000), int(end * 1000))
            for begin, end in spans
            if EARLIEST_MS <= begin * 1000 <= self._now_ms + MARGIN_MS
        ]
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(known):
            if merged and begin - MARGIN_MS <= merged[-1][1] + MARGIN_MS:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        around = [((begin - MARGIN_MS, 0), (end + MARGIN_MS, LAST[1])) for begin, end in merged]
        return [part for window in around if (part := common(window, self._bounds.interval)) is not None]

    # --- how it stands ---------------------------------------------------------------------------

    def _unsettled(self) -> list[tuple[Sighting, _Group]]:
        """Entries of streams, and groups that have not come to an end with them as far as is known."""
        settled = {(run.stream, run.entry_id, run.group) for run in self._runs if run.outcome in FINAL}
        elsewhere = {
            (seen.stream, seen.entry_id, seen.group) for seen in self._sightings.values() if seen.group is not None
        }
        return [
            (seen, group)
            for seen in self._sightings.values()
            if seen.place is Place.STREAM
            for group in self._groups.get(seen.stream, ())
            if (seen.stream, seen.entry_id, group.name) not in settled | elsewhere
        ]

    def _stand(self) -> Inquiry[None]:
        yield from self._learn_groups(dict.fromkeys(seen.stream for seen in self._sightings.values()))
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

        yield from scan(self._hashes, self._worth, seen, self._refusals)

    def _worth(self, name: bytes, packed: bytes) -> bool:
        needles = [*self.wanted.needles, *(needle for own in self._flows.values() for needle in own)]
        return any(needle in packed or needle == name for needle in needles) or (
            names.FIELD_CORRELATION_ID.encode() not in packed
        )
