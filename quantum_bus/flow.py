"""The story of a flow, put together from what was seen of it: who published what, who ran it, what became of it. Pure.

::

    Hop ai_engine                      a service that began something
        Message → intents 17…-0        what it published
            Hop auto_executor          a group that was to handle it: its runs, its outcome
                LogLine                what the service logged meanwhile
                Message → executions … what it published in turn

Messages hang under the handling that caused them: by ``causation_id``, and by service and time where several could
have. Times are seconds since 1970; those of messages and runs are the services' own clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from . import names
from .envelope import Incoming
from .sightings import Given, Place, Run, Sighting, Standing, seconds_of

UNKNOWN_SERVICE: Final = "unknown service"
# An entry id below this many milliseconds since 1970 (January 2009: before Redis) is no time.
_EARLIEST_MS: Final = 1_230_768_000_000
_LATEST_MS: Final = 253_402_300_799_000  # what a calendar has: the year 9999


class Outcome(StrEnum):
    """What became of a message in a group; the worst last."""

    HANDLED = "handled"
    SKIPPED = "skipped"
    """Its id was handled before."""
    UNKNOWN = "unknown"
    """It was given to the group and is not pending; no record is left."""
    PENDING = "pending"
    """A consumer has it."""
    DELAYED = "delayed"
    """It waits for its time, and no group can read it."""
    WAITING = "waiting"
    """The group was not given it yet."""
    RETRYING = "retrying"
    """A run failed, and another is to come."""
    DEAD = "dead"


_RANKS: Final = {outcome: rank for rank, outcome in enumerate(Outcome)}


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a service logged in the flow."""

    at: float
    service: str
    level: str
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message, as an entry of a stream or on its way into one.

    Attributes:
        entry_id: in the stream; empty where it is delayed, and where its dead letter does not tell.
        at: when it was published; None where nothing tells.
        delayed: it waits for its time, and is in no stream yet.
        due: when that is.
        incoming: None where the entry is gone and only records tell of it.
        caused_by: the ``message_id`` of the message in whose handling it was published.
        cause_missing: that message was not seen.
        replayed: it was a dead letter, and was given back to its stream.
        matched: it is what was asked about.
        hops: what each group did with it.
    """

    stream: str
    entry_id: str
    message_id: str
    correlation_id: str
    at: float | None
    delayed: bool = False
    due: float | None = None
    incoming: Incoming | None = None
    caused_by: str | None = None
    cause_missing: bool = False
    replayed: bool = False
    matched: bool = False
    hops: list[Hop] = field(default_factory=list)

    @property
    def event(self) -> str | None:
        return self.incoming.event if self.incoming is not None else None

    @property
    def service(self) -> str:
        return (self.incoming.service if self.incoming is not None else None) or UNKNOWN_SERVICE


@dataclass(frozen=True, slots=True)
class Hop:
    """What one service did in the flow.

    Attributes:
        group: whose handling this is; None where the service began something by itself.
        outcome: None where nothing was to be handled, or who handled it is not known by any group.
        due: when the next run may begin, where one is to come and waits for its time.
        waited: seconds from publishing to the first run; None where one of both is unknown.
        consumer: who has it, where it is pending.
        idle: seconds since that one was seen with it.
        reason: why it is dead, one of ``names.REASON_*``.
        error: the last one, where it is dead.
        steps: what was logged and published, by time.
    """

    service: str
    group: str | None
    outcome: Outcome | None = None
    due: float | None = None
    waited: float | None = None
    consumer: str | None = None
    idle: float | None = None
    reason: str | None = None
    error: str | None = None
    runs: Sequence[Run] = ()
    steps: list[LogLine | Message] = field(default_factory=list)

    @property
    def took(self) -> float | None:
        """Seconds that its handler ran, over all runs; None where no record tells."""
        ran = [run.duration for run in self.runs if run.started is not None]
        return sum(ran) if ran else None


@dataclass(frozen=True, slots=True)
class Flow:
    """All of it.

    Attributes:
        correlation_ids: of its messages; one, but for what is found under another id.
        began, ended: of whatever is known of it; None where nothing has a time.
        roots: services that began something.
        messages: all of them, by time.
    """

    correlation_ids: Sequence[str]
    began: float | None
    ended: float | None
    roots: Sequence[Hop]
    messages: Sequence[Message]

    @property
    def services(self) -> Sequence[str]:
        """Every service that published, handled or logged something, in the order of the tree."""
        found = dict.fromkeys(hop.service for _, hop in walk(self.roots))
        found.pop(UNKNOWN_SERVICE, None)
        return list(found)

    @property
    def outcome(self) -> Outcome | None:
        """The worst of all messages; None where no group was to handle anything."""
        found = [hop.outcome for message in self.messages for hop in message.hops if hop.outcome is not None]
        found += [Outcome.DELAYED for message in self.messages if message.delayed]
        return max(found, key=_RANKS.__getitem__, default=None)


def walk(roots: Sequence[Hop]) -> Iterator[tuple[int, Hop]]:
    """Every hop with its depth, each before what follows from it. Not recursive: a flow may be long."""
    waiting = [(0, hop) for hop in reversed(roots)]
    while waiting:
        depth, hop = waiting.pop()
        yield depth, hop
        below = [following for step in hop.steps if isinstance(step, Message) for following in step.hops]
        waiting.extend((depth + 1, following) for following in reversed(below))


def log_line(line: Mapping[str, Any]) -> LogLine | None:
    """A JSON log line as a step; None for one without a time."""
    at = seconds_of(line.get(names.LOG_TS))
    if at is None:
        return None
    service, level, event, text = (
        str(line.get(name) or default)
        for name, default in (
            (names.LOG_SERVICE, UNKNOWN_SERVICE),
            (names.LOG_LEVEL, ""),
            (names.LOG_EVENT, names.DEFAULT_EVENT),
            (names.LOG_MSG, ""),
        )
    )
    if (error := line.get(names.LOG_EXC_TYPE)) is not None:
        text = f"{text}: {error}: {line.get(names.LOG_EXC_MESSAGE)}"
    return LogLine(at, service, level, event, text)


# --- building ------------------------------------------------------------------------------------

_Key = tuple[str, str]


def build(
    sightings: Iterable[Sighting],
    runs: Iterable[Run] = (),
    standings: Iterable[Standing] = (),
    lines: Iterable[LogLine] = (),
    *,
    matched: Iterable[str] = (),
) -> Flow:
    """Put a flow together, whatever is missing of it.

    Args:
        matched: ids of messages that were asked about.
    """
    seen = sorted(sightings, key=lambda sighting: _PLACES[sighting.place])
    noted = list(dict.fromkeys(runs))
    wanted = frozenset(matched)
    messages = {key: replace(message, matched=message.message_id in wanted) for key, message in _messages(seen, noted)}
    _handle(messages, seen, noted, standings)
    roots = _hang(messages)
    _log(lines, roots)
    for _, hop in walk(roots):
        hop.steps.sort(key=_at)
    roots.sort(key=_began)
    moments = [moment for _, hop in walk(roots) for moment in _moments(hop)]
    ordered = sorted(messages.values(), key=_at)
    return Flow(
        correlation_ids=list(dict.fromkeys(message.correlation_id for message in ordered)),
        began=min(moments, default=None),
        ended=max(moments, default=None),
        roots=roots,
        messages=ordered,
    )


_PLACES: Final = {place: rank for rank, place in enumerate(Place)}


def _messages(seen: Sequence[Sighting], noted: Sequence[Run]) -> Iterator[tuple[_Key, Message]]:
    known: set[_Key] = set()
    for sighting in seen:
        key = _key(sighting)
        if key not in known:
            known.add(key)
            yield key, _message(sighting)
    for run in noted:
        if (run.stream, run.entry_id) not in known:
            known.add((run.stream, run.entry_id))
            at = _time(int(run.entry_id.partition("-")[0]))
            yield (
                (run.stream, run.entry_id),
                Message(run.stream, run.entry_id, run.message_id, run.correlation_id, at),
            )


def _key(sighting: Sighting) -> _Key:
    return sighting.stream, sighting.entry_id or f"none yet: {sighting.message.message_id}"


def _message(sighting: Sighting) -> Message:
    incoming = sighting.message
    replayed = incoming.failed_span is not None
    stored = _time(int(sighting.entry_id.partition("-")[0])) if sighting.entry_id else None
    published = seconds_of(incoming.ts)
    return Message(
        stream=sighting.stream,
        entry_id=sighting.entry_id,
        message_id=incoming.message_id,
        correlation_id=incoming.correlation_id,
        at=stored if replayed or published is None else published,
        delayed=sighting.place is Place.DELAYED,
        due=_time(sighting.at_ms) if sighting.place is Place.DELAYED else None,
        incoming=incoming,
        caused_by=incoming.causation_id,
        replayed=replayed,
    )


def _time(milliseconds: int | None) -> float | None:
    """Seconds since 1970; None for what a producer made up."""
    if milliseconds is None or not _EARLIEST_MS <= milliseconds <= _LATEST_MS:
        return None
    return milliseconds / 1000


# --- what became of each -----------------------------------------------------------------------------


def _handle(
    messages: Mapping[_Key, Message], seen: Sequence[Sighting], noted: Sequence[Run], standings: Iterable[Standing]
) -> None:
    """Give each message its hops."""
    of_runs: dict[tuple[_Key, str], list[Run]] = {}
    for run in noted:
        of_runs.setdefault(((run.stream, run.entry_id), run.group), []).append(run)
    places: dict[tuple[_Key, str], Sighting] = {}
    for sighting in seen:  # a later place counts: a dead letter more than what is scheduled
        if sighting.group is not None:
            places[_key(sighting), sighting.group] = sighting
    given = {((standing.stream, standing.entry_id), standing.group): standing for standing in standings}
    for key, group in sorted({*of_runs, *places, *given}):
        if key in messages:
            of_group = sorted(of_runs.get((key, group), ()), key=lambda run: (run.noted_ms, run.attempt, run.ended))
            place, standing = places.get((key, group)), given.get((key, group))
            messages[key].hops.append(_hop(messages[key], group, of_group, place, standing))
    for message in messages.values():
        message.hops.sort(key=_began)


def _hop(message: Message, group: str, runs: Sequence[Run], place: Sighting | None, standing: Standing | None) -> Hop:
    first = next((run.started for run in runs if run.started is not None), None)
    hop = Hop(
        service=next((run.service for run in reversed(runs)), group),
        group=group,
        runs=runs,
        waited=None if first is None or message.at is None else first - message.at,
    )
    pending = standing is not None and standing.given is Given.PENDING
    if standing is not None and pending:
        hop = replace(hop, consumer=standing.consumer, idle=standing.idle)
    if place is not None and place.place is Place.DEAD:
        assert place.letter is not None
        letter = place.letter
        error = ": ".join(text for text in (letter.error_type, letter.error_message) if text)
        return replace(hop, outcome=Outcome.DEAD, reason=letter.reason, error=error or None)
    if place is not None:
        due = _time(place.at_ms) if place.place is Place.SCHEDULED else None
        return replace(hop, outcome=Outcome.RETRYING, due=due)
    if pending:
        return replace(hop, outcome=Outcome.RETRYING if runs else Outcome.PENDING)
    last = runs[-1].outcome if runs else None
    if last is not None:
        return replace(hop, outcome=_OF_RECORD[last])
    waiting = standing is not None and standing.given is Given.WAITING
    return replace(hop, outcome=Outcome.WAITING if waiting else Outcome.UNKNOWN)


_OF_RECORD: Final = {
    names.OUTCOME_ACK: Outcome.HANDLED,
    names.OUTCOME_SKIP: Outcome.SKIPPED,
    names.OUTCOME_RETRY: Outcome.RETRYING,
    names.OUTCOME_DEAD_LETTER: Outcome.DEAD,
}


# --- what hangs under what ---------------------------------------------------------------------------


def _hang(messages: dict[_Key, Message]) -> list[Hop]:
    """Put each message under the hop that published it; what no message caused under its service."""
    by_id: dict[str, list[_Key]] = {}
    for key, message in messages.items():
        by_id.setdefault(message.message_id, []).append(key)
    parents = _parents(messages, by_id)
    roots: dict[str, Hop] = {}
    for key, message in messages.items():
        parent = parents.get(key)
        if parent is not None:
            _publisher(messages[parent], message).steps.append(message)
            continue
        shown = message
        if message.caused_by is not None:
            shown = messages[key] = replace(message, cause_missing=True)
        roots.setdefault(message.service, Hop(message.service, None)).steps.append(shown)
    return list(roots.values())


def _parents(messages: Mapping[_Key, Message], by_id: Mapping[str, Sequence[_Key]]) -> dict[_Key, _Key]:
    """What caused each message; never in a circle, whatever the messages say."""
    parents: dict[_Key, _Key] = {}
    for key, message in sorted(messages.items(), key=lambda item: (_at(item[1]), item[0])):
        if message.caused_by is None:
            continue
        candidates = [found for found in by_id.get(message.caused_by, ()) if not _follows(found, key, parents)]
        if candidates:
            # of several entries under one id the last one that was there when this was published
            before = [found for found in candidates if _at(messages[found]) <= _at(message)]
            parents[key] = max(before or candidates, key=lambda found: (_at(messages[found]), found))
    return parents


def _follows(key: _Key, other: _Key, parents: Mapping[_Key, _Key]) -> bool:
    """Whether ``key`` is ``other``, or was caused by it in the end."""
    at: _Key | None = key
    while at is not None:
        if at == other:
            return True
        at = parents.get(at)
    return False


def _publisher(cause: Message, message: Message) -> Hop:
    """The hop of ``cause`` in which ``message`` was published."""
    own = [hop for hop in cause.hops if hop.service == message.service]
    if not own:
        made = Hop(message.service, None)
        cause.hops.append(made)
        return made
    return min(own, key=lambda hop: _distance(hop, message.at))


def _log(lines: Iterable[LogLine], roots: list[Hop]) -> None:
    """Put each line under the hop of its service that was at work then, or next to it."""
    by_service: dict[str, list[Hop]] = {}
    for _, hop in walk(roots):
        by_service.setdefault(hop.service, []).append(hop)
    for line in lines:
        own = by_service.get(line.service)
        if own is None:
            own = by_service[line.service] = [Hop(line.service, None)]
            roots.extend(own)
        min(own, key=lambda hop: _distance(hop, line.at)).steps.append(line)


def _distance(hop: Hop, at: float | None) -> float:
    """Seconds from a moment to when the hop was at work; 0 in the midst of it."""
    if at is None:
        return 0.0
    spans = [(run.started, run.started + run.duration) for run in hop.runs if run.started is not None]
    if not spans:
        moments = [step.at for step in hop.steps if step.at is not None]
        spans = [(min(moments), max(moments))] if moments else []
    return min((max(0.0, begin - at, at - end) for begin, end in spans), default=float("inf"))


def _at(step: Message | LogLine) -> float:
    return float("inf") if step.at is None else step.at


def _began(hop: Hop) -> tuple[float, str]:
    return min(_moments(hop), default=float("inf")), hop.service


def _moments(hop: Hop) -> list[float]:
    """Every time that is known of a hop itself."""
    found = [step.at for step in hop.steps if step.at is not None]
    for run in hop.runs:
        found += [run.ended] if run.started is None else [run.started, run.ended]
    return found
