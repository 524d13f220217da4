"""Putting a flow together from what was seen of it. Pure.

Messages hang under the handling that caused them: by ``causation_id``, and by service and time where several could
have. Nothing that entries say may break it: their ids and times are others'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from . import names
from .flow import Flow, Hop, LogLine, Message, Outcome, walk
from .sightings import Given, Place, Run, Sighting, Standing, seconds_of

# An entry id below this many milliseconds since 1970 (January 2009: before Redis) is no time, nor is one past the year
# 9999.
_EARLIEST_MS: Final = 1_230_768_000_000
_LATEST_MS: Final = 253_402_300_799_000

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
