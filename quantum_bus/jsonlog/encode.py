"""Record → one JSON line of bounded length; and the timestamp, the one part of a line that is never the same."""

from __future__ import annotations

import time
from typing import Final

import orjson

from quantum_bus import names

from .escape import escaped
from .plain import JSON, Limits, plain_object, plain_text
from .record import Record

SHORTEST_LIMIT: Final = 4096
_LONGEST_ID: Final = 256


class Clock:
    """RFC 3339 in UTC with microseconds; the part down to the second is made once a second."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        self._second = (0, b"")  # replaced as a whole: right in every thread

    def stamp(self, micros: int) -> bytes:
        """``2026-01-03T10:15:23.456789Z`` for microseconds since the epoch."""
        start, text = self._second
        rest = micros - start
        if not 0 <= rest < 1_000_000:
            start, text = self._second = _second_of(micros)
            rest = micros - start
        return b"%b%06dZ" % (text, rest)


def _second_of(micros: int) -> tuple[int, bytes]:
    second = micros // 1_000_000
    try:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
    except (OverflowError, ValueError, OSError):  # a record of another age; the line is worth more than its time
        text = "1970-01-01T00:00:00."
    return second * 1_000_000, text.rjust(20, "0").encode()


def encode_record(record: Record, clock: Clock, limit: int) -> bytes:
    """The record as a JSON line of at most ``limit`` bytes, line end included.

    Fields and texts that are too long are shortened, each with a mark that says how much is missing.
    """
    limit = max(limit, SHORTEST_LIMIT)
    line = b""
    for limits in _ladder(limit):
        line = escaped(orjson.dumps(_members(record, clock, limits))) + b"\n"
        if len(line) <= limit:
            return line
    return line


def _ladder(limit: int) -> tuple[Limits, ...]:
    # A character takes at most six bytes of JSON. The last step fits by that count: names and values of eight fields,
    # message, exception and stack (three texts, twice the limit of one) and the fixed keys.
    return (
        Limits(text=limit, nodes=10_000),
        Limits(text=limit // 3, nodes=2_000),
        Limits(text=limit // 16, nodes=500),
        Limits(text=limit // 64, nodes=100, name=64),
        Limits(text=limit // 256, nodes=8, name=8, depth=1),
    )


def _members(record: Record, clock: Clock, limits: Limits) -> dict[str, JSON]:
    text = limits.text
    short = min(_LONGEST_ID, max(text, 16))
    members: dict[str, JSON] = {
        names.LOG_TS: clock.stamp(record.micros).decode(),
        names.LOG_LEVEL: plain_text(record.level, 64),
        names.LOG_SERVICE: plain_text(record.service, short),
        names.LOG_EVENT: plain_text(record.event, short),
        names.LOG_CORRELATION_ID: (None if record.correlation_id is None else plain_text(record.correlation_id, short)),
        names.LOG_MSG: plain_text(record.msg, text),
    }
    if record.trace is not None:
        members[names.LOG_TRACE_ID], members[names.LOG_SPAN_ID] = record.trace
    members.update(plain_object(record.fields, limits))
    if record.error is not None:
        members[names.LOG_EXC_TYPE] = plain_text(record.error.type, short)
        members[names.LOG_EXC_MESSAGE] = plain_text(record.error.message, text)
        members[names.LOG_STACK] = plain_text(record.error.stack, text)
    elif record.stack:
        members[names.LOG_STACK] = plain_text(record.stack, text)
    return members
