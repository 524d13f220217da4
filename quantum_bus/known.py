"""What is known of a flow while it is looked for: which flows the id names, and what was seen of them.

It is told of entries and says what they mean for the search; :mod:`quantum_bus.search` asks for them. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from . import names
from .propagation import valid_correlation_id
from .reading import LAST, Interval, Source, common
from .sightings import Place, Run, Sighting, dead, in_retry_stream, in_stream, runs, seconds_of
from .state import EARLIEST_MS
from .wanted import Match, Wanted, made_ms, needles_of

# What is read before and after each moment that is known of a flow, milliseconds.
MARGIN_MS: Final = 60_000
# Flows that one id may name, and messages that are kept of them.
MOST_FLOWS: Final = 10
MOST_MESSAGES: Final = 1_000


class Known:
    """What entries have told so far.

    Attributes:
        flows: correlation ids that the id names, and what to look for in an entry of each.
        strength: how well it names them; what an id names outweighs what merely has it among its values.
        flows_left_out: whether it names more than are kept.
        sightings: of the flows' messages, each where it was seen.
        runs: of their handlers.
        matched: ids of messages that it names itself.
        left_out: messages that were seen and not kept.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.flows: dict[str, tuple[bytes, ...]] = {}
        self.strength = Match.NONE
        self.flows_left_out = False
        self.sightings: dict[tuple[Place, str, str, str | None, str], Sighting] = {}
        self.runs: dict[Run, None] = {}
        self.matched: dict[str, None] = {}
        self.left_out = 0
        self._located: list[Sighting] = []

    @property
    def extent(self) -> tuple[int, int]:
        """How much that is; it grows where something new was seen."""
        return len(self.sightings), len(self.runs)

    def _needles(self) -> list[bytes]:
        """What to look for in entries of the flows."""
        return [needle for own in self.flows.values() for needle in own]

    def worth(self, name: bytes, packed: bytes) -> bool:
        """Whether a copy that waits for its time may be of the flow."""
        needles = [*self.wanted.needles, *self._needles()]
        return any(needle in packed or needle == name for needle in needles) or (
            names.FIELD_CORRELATION_ID.encode() not in packed
        )

    def forget(self, *places: Place) -> None:
        """What was seen there, where it may have left meanwhile."""
        for key in [key for key in self.sightings if key[0] in places]:
            del self.sightings[key]

    # --- which flows -----------------------------------------------------------------------------

    def is_of(self, correlation_id: str) -> None:
        """An index has told that there is a flow of that id."""
        self.flows.setdefault(correlation_id, needles_of(correlation_id))
        self.strength = Match.ID

    def settle(self) -> None:
        """Nothing more is looked through for the id: what was found names the flows."""
        if self.strength is Match.VALUE and valid_correlation_id(self.wanted.text):
            # what has it among its values was met first; there may be a flow of that very id around it
            self.flows.setdefault(self.wanted.text, self.wanted.needles)

    def locate(self, source: Source, own_id: str, fields: Sequence[bytes]) -> None:
        """Whether an entry is named by the id: then its flow is what is looked for."""
        if source.kind is None:
            if any(needle in value for needle in self.wanted.needles for value in fields):
                for run in runs(source.stream, own_id, fields, self.wanted.needles):
                    itself = self.wanted.text in (run.message_id, run.entry_id)
                    if (itself or self.wanted.text == run.correlation_id) and valid_correlation_id(run.correlation_id):
                        self._name_flow(run.correlation_id, Match.ID, run.message_id if itself else "")
            return
        if self.wanted.text == own_id or self.wanted.may_be_in(fields):
            seen = _seen(source, own_id, fields)
            if seen is not None:
                self.locate_seen(seen)

    def locate_seen(self, seen: Sighting) -> None:
        """As :meth:`locate`, of a message."""
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
        if match < self.strength:
            return
        if match > self.strength:  # what an id names outweighs what merely has it among its values
            self.flows.clear()
            self.matched.clear()
            self.flows_left_out = False
            self.strength = match
        if correlation_id not in self.flows:
            if len(self.flows) >= MOST_FLOWS:
                self.flows_left_out = True
                return
            self.flows[correlation_id] = needles_of(correlation_id)
        if message_id:
            self.matched.setdefault(message_id)

    # --- what is of them -------------------------------------------------------------------------

    def keep_located(self) -> None:
        """Collect what was seen while nobody knew yet which flows are meant."""
        for seen in self._located:
            self.collect_seen(seen)

    def collect(self, source: Source, own_id: str, fields: Sequence[bytes]) -> None:
        """Keep what an entry tells of the flows: a message, or records of runs."""
        needles, text = self._needles(), b"\n".join(fields)
        named = any(needle in text for needle in needles)
        if source.kind is None:
            if named:
                for run in runs(source.stream, own_id, fields, needles):
                    if run.correlation_id in self.flows:
                        self.runs.setdefault(run)
            return
        if named or names.FIELD_CORRELATION_ID.encode() not in text:
            seen = _seen(source, own_id, fields)
            if seen is not None:
                self.collect_seen(seen)

    def collect_seen(self, seen: Sighting) -> None:
        """As :meth:`collect`, of a message."""
        if seen.message.correlation_id not in self.flows:
            return
        which = seen.letter.id if seen.letter is not None else seen.message.message_id
        key = (seen.place, seen.stream, seen.entry_id, seen.group, which)
        if key not in self.sightings and len(self.sightings) >= MOST_MESSAGES:
            self.left_out += 1
            return
        if self.wanted.match(seen.message, seen.entry_id) is Match.ID and self._names_itself(seen):
            self.matched.setdefault(seen.message.message_id)
        self.sightings[key] = seen

    def unseen(self, asked: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Entries that records tell of and that were neither read nor asked for."""
        known = {(seen.stream, seen.entry_id) for seen in self.sightings.values() if seen.place is Place.STREAM}
        told = dict.fromkeys((run.stream, run.entry_id) for run in self.runs)
        return [entry for entry in told if entry not in known and entry not in asked]

    def windows(self, within: Interval, now_ms: int) -> list[Interval]:
        """The times around what is known, within bounds."""
        spans: list[tuple[float, float]] = []
        for seen in self.sightings.values():
            moments = [seconds_of(seen.message.ts)]
            if seen.place in (Place.STREAM, Place.DEAD, Place.RETRY) and seen.at_ms is not None:
                moments.append(seen.at_ms / 1000)
            if seen.message.causation_id is not None:
                made = made_ms(seen.message.causation_id)
                moments.append(None if made is None else made / 1000)
            spans += [(moment, moment) for moment in moments if moment is not None]
        spans += [(run.ended - run.duration, run.ended) for run in self.runs]
        known = [
            (int(begin * 1000), int(end * 1000))
            for begin, end in spans
            if EARLIEST_MS <= begin * 1000 <= now_ms + MARGIN_MS
        ]
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(known):
            if merged and begin - MARGIN_MS <= merged[-1][1] + MARGIN_MS:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        around = [((begin - MARGIN_MS, 0), (end + MARGIN_MS, LAST[1])) for begin, end in merged]
        return [part for window in around if (part := common(window, within)) is not None]


def _seen(source: Source, own_id: str, fields: Sequence[bytes]) -> Sighting | None:
    if source.kind is Place.STREAM:
        return in_stream(source.stream, own_id, fields)
    if source.kind is Place.DEAD:
        return dead(source.stream, source.key, own_id, fields)
    return in_retry_stream(source.stream, source.group or "", source.key, own_id, fields)
