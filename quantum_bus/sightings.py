"""What Redis shows of a message: where it is, who ran it with which outcome, and how it stands with a group. Pure.

Each is one fact, read from one entry, field or reply. :mod:`quantum_bus.flow` makes a story of many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from . import names
from .deadletters import DeadLetter, unpack
from .envelope import Entry, Incoming, decode, is_entry_id
from .streams import parse_read

OUTCOMES: Final = (names.OUTCOME_ACK, names.OUTCOME_RETRY, names.OUTCOME_DEAD_LETTER, names.OUTCOME_SKIP)
FINAL: Final = (names.OUTCOME_ACK, names.OUTCOME_DEAD_LETTER, names.OUTCOME_SKIP)
"""Outcomes behind which a group does nothing more with a message, unless it is replayed."""


class Place(StrEnum):
    """Where a message is."""

    STREAM = "stream"
    DELAYED = "delayed"
    """Published with a delay, and not due yet."""
    RETRY = "retry"
    """In a group's retry stream, to be read."""
    SCHEDULED = "scheduled"
    """Waits for a group's next attempt."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A message, seen in one place.

    Attributes:
        stream: whose message it is.
        entry_id: its id in that stream; empty where it was not added yet.
        at_ms: when it came to this place by Redis's clock, or is due there, milliseconds since 1970; None is unknown.
        group: whose retry or dead letter it is.
        attempts: runs before, where the place tells.
        letter: what its dead letter says.
    """

    place: Place
    stream: str
    entry_id: str
    at_ms: int | None
    message: Incoming
    group: str | None = None
    attempts: int | None = None
    letter: DeadLetter | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A completion record: one handler run, or what was skipped.

    Attributes:
        started: seconds since 1970; None where no handler ran.
        duration: seconds.
        noted_ms: when the record was written, by Redis's clock.
    """

    stream: str
    entry_id: str
    message_id: str
    correlation_id: str
    group: str
    service: str
    consumer: str
    started: float | None
    duration: float
    attempt: int
    outcome: str
    noted_ms: int

    @property
    def ended(self) -> float:
        """Seconds since 1970."""
        return self.noted_ms / 1000 if self.started is None else self.started + self.duration


class Given(StrEnum):
    """How an entry stands with a group that has settled it in no record."""

    WAITING = "waiting"
    """The group was not given it yet."""
    PENDING = "pending"
    """A consumer has it."""
    PAST = "past"
    """It was given and is not pending: handled, and no record of it is left."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry, and a group of its stream.

    Attributes:
        idle: seconds since the consumer was given it, or renewed its lease.
        runs: that have begun.
    """

    stream: str
    entry_id: str
    group: str
    given: Given
    consumer: str | None = None
    idle: float | None = None
    runs: int = 0


def seconds_of(timestamp: object) -> float | None:
    """An RFC 3339 time as seconds since 1970; None for what is none, or names no zone."""
    if not isinstance(timestamp, str):
        return None
    try:
        moment = datetime.fromisoformat(timestamp)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def milliseconds_of(entry_id: str) -> int:
    """The time in a full entry id; ids that producers made up are none, and look like it."""
    return int(entry_id.partition("-")[0])


def in_stream(stream: str, entry_id: str, fields: Sequence[bytes]) -> Sighting:
    """An entry of the stream itself."""
    return Sighting(Place.STREAM, stream, entry_id, milliseconds_of(entry_id), decode(Entry(stream, entry_id, fields)))


def in_retry_stream(stream: str, group: str, key: str, entry_id: str, fields: Sequence[bytes]) -> Sighting | None:
    """An entry of a group's retry stream; None for what is no retry."""
    read = parse_read([[key.encode(), [[entry_id.encode(), fields]]]], {key: stream})
    [delivery] = read.deliveries
    if delivery.cut <= 0:
        return None
    at = milliseconds_of(entry_id)
    own = delivery.entry
    return Sighting(Place.RETRY, stream, own.id, at, decode(own), group, delivery.noted)


def scheduled(stream: str, group: str | None, name: str, packed: bytes, due_ms: int | None) -> Sighting | None:
    """A copy that waits until it is due: of a delayed message, or of a group's retry; None for what is neither.

    Args:
        name: the copy's, in its hash: a message id, or an entry id.
    """
    values = unpack(packed)
    if not values:
        return None
    if group is None:
        return Sighting(Place.DELAYED, stream, "", due_ms, decode(Entry(stream, name, values)))
    if not is_entry_id(name):
        return None
    seen = in_retry_stream(stream, group, stream, name, values)
    if seen is None:
        return None
    return Sighting(Place.SCHEDULED, stream, name, due_ms, seen.message, group, seen.attempts)


def dead(stream: str, key: str, entry_id: str, fields: Sequence[bytes]) -> Sighting:
    """An entry of a dead-letter stream.

    Args:
        stream: whose dead letters these are, for one that does not say where it was.
    """
    letter = DeadLetter.of(key, entry_id, fields)
    return Sighting(
        Place.DEAD,
        letter.stream or stream,
        letter.entry_id or "",
        milliseconds_of(entry_id),
        letter.message,
        letter.group,
        letter.attempts,
        letter,
    )


_RECORD_HEAD: Final = (b"group", b"service", b"consumer")


def runs(stream: str, record_id: str, fields: Sequence[bytes], needles: Sequence[bytes] = ()) -> Iterator[Run]:
    """The runs that an entry of a completion stream tells of; what is no record is passed over.

    Args:
        needles: only records that hold one of these; none for all.
    """
    head: dict[bytes, str] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name in _RECORD_HEAD and name not in head:
            head[name] = value.decode(errors="backslashreplace")
        elif not needles or any(needle in value or needle == name for needle in needles):
            run = _run(stream, record_id, name, value, head)
            if run is not None:
                yield run


def _run(stream: str, record_id: str, name: bytes, value: bytes, head: dict[bytes, str]) -> Run | None:
    entry_id = name.decode(errors="backslashreplace")
    if not is_entry_id(entry_id) or len(head) < len(_RECORD_HEAD):
        return None
    try:
        record: Any = orjson.loads(value)
        attempt, duration = record[names.RECORD_ATTEMPT], record[names.RECORD_DURATION]
        texts = [record[key] for key in (names.RECORD_MESSAGE_ID, names.RECORD_CORRELATION_ID, names.RECORD_OUTCOME)]
        if not (isinstance(attempt, int) and isinstance(duration, (int, float)) and texts[2] in OUTCOMES):
            return None
        message_id, correlation_id, outcome = (str(text) for text in texts)
        started = seconds_of(record.get(names.RECORD_STARTED))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    group, service, consumer = (head[key] for key in _RECORD_HEAD)
    return Run(
        stream=stream,
        entry_id=entry_id,
        message_id=message_id,
        correlation_id=correlation_id,
        group=group,
        service=service,
        consumer=consumer,
        started=started,
        duration=max(0.0, float(duration)),
        attempt=attempt,
        outcome=outcome,
        noted_ms=milliseconds_of(record_id),
    )


def standing(
    stream: str, entry_id: str, group: str, last_delivered: tuple[int, int], own: tuple[int, int], pending: Any
) -> Standing:
    """How an entry stands with a group.

    Args:
        last_delivered: the last id that the group was given, as numbers.
        own: the entry's, likewise.
        pending: the reply of ``XPENDING stream group id id 1``; None where it was refused.
    """
    if pending:
        _, consumer, idle, count = pending[0]
        return Standing(
            stream,
            entry_id,
            group,
            Given.PENDING,
            consumer.decode(errors="backslashreplace"),
            max(0.0, idle / 1000),
            max(0, count - 1),
        )
    return Standing(stream, entry_id, group, Given.WAITING if own > last_delivered else Given.PAST)
