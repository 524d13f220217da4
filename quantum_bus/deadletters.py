"""Dead letters as they are read: what each was, why it is dead, which are wanted, and how one is given back. Pure.

A dead letter is the message's own fields, then the ``dlq.*`` fields of whoever gave up on it. Anybody may have added
entries to that stream, and a message's own fields may look like anything: the last block that begins with
``dlq.stream`` is the dead-lettering's, all before it the message's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from . import names, streams
from .envelope import Entry, Incoming, decode, is_entry_id
from .errors import ConfigurationError
from .streams import Command, Keys

# An entry of more values stands in one field (dead_letter.lua), and no script could add it again.
MAX_VALUES: Final = 7000
REPLAY_VALUES: Final = 2 * len(names.REPLAY_FIELDS)

_ADDED: Final = frozenset(name.encode() for name in names.DLQ_FIELDS - {names.DLQ_PACKED})
_FIRST: Final = names.DLQ_STREAM.encode()
_PACKED: Final = names.DLQ_PACKED.encode()
_REPLAY_NAMES: Final = [names.REPLAY_ID.encode(), names.REPLAY_SPAN.encode()]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of a dead-letter stream. What whoever wrote it did not say is None.

    Attributes:
        id: in the dead-letter stream.
        fields: the message's own, names and values in turn, byte for byte.
        packed: they stood in one field, being too many for a script.
        message: decoded as in its stream.
        stream: the one it was read from.
        entry_id: its id there.
        attempts: handler runs.
        reason: one of ``names.REASON_*``.
        first_failed_at: RFC 3339, UTC.
        last_failed_at: the same.
        span: ``traceparent`` of the failing run.
    """

    id: str
    fields: Sequence[bytes]
    packed: bool
    message: Incoming
    stream: str | None = None
    entry_id: str | None = None
    group: str | None = None
    consumer: str | None = None
    attempts: int | None = None
    reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    stack: str | None = None
    first_failed_at: str | None = None
    last_failed_at: str | None = None
    span: str | None = None

    @classmethod
    def of(cls, key: str, entry_id: str, values: Sequence[bytes]) -> DeadLetter:
        """Read an entry; never raises.

        Args:
            key: the dead-letter stream.
            values: names and values in turn.
        """
        own, said = _split(values)
        packed = unpack(own[1]) if said and len(own) == 2 and own[0] == _PACKED else None
        if packed is not None and len(packed) <= MAX_VALUES:
            packed = None  # a field of that name of the message's own
        fields = own if packed is None else packed
        stream, first_id, attempts = said.get(names.DLQ_STREAM), said.get(names.DLQ_ID), said.get(names.DLQ_ATTEMPTS)
        if not stream or not first_id or not is_entry_id(first_id):
            first_id = None
        origin = Entry(key, entry_id, fields) if first_id is None else Entry(stream or key, first_id, fields)
        return cls(
            id=entry_id,
            fields=fields,
            packed=packed is not None,
            message=decode(origin),
            stream=stream,
            entry_id=first_id,
            group=said.get(names.DLQ_GROUP),
            consumer=said.get(names.DLQ_CONSUMER),
            attempts=int(attempts) if attempts and re.fullmatch(r"[0-9]{1,9}", attempts, re.ASCII) else None,
            reason=said.get(names.DLQ_REASON),
            error_type=said.get(names.DLQ_ERROR_TYPE),
            error_message=said.get(names.DLQ_ERROR_MESSAGE),
            stack=said.get(names.DLQ_STACK),
            first_failed_at=said.get(names.DLQ_FIRST_FAILED_AT),
            last_failed_at=said.get(names.DLQ_LAST_FAILED_AT),
            span=said.get(names.DLQ_SPAN),
        )

    @property
    def time_ms(self) -> int:
        """When it was dead-lettered, by Redis's clock, in milliseconds since the epoch."""
        return int(self.id.partition("-")[0])


def _split(values: Sequence[bytes]) -> tuple[Sequence[bytes], dict[str, str]]:
    """The message's own values, and what the dead-lettering said behind them."""
    said: dict[str, str] = {}
    at = len(values) - len(values) % 2
    while at >= 2 and (name := values[at - 2]) in _ADDED and name.decode() not in said:
        at -= 2
        said[name.decode()] = values[at + 1].decode(errors="backslashreplace")
        if name == _FIRST:
            break
    return values[:at], {name: text for name, text in said.items() if text}


def unpack(packed: bytes) -> Sequence[bytes] | None:
    """The values that were packed as netstrings (length in decimal, ``:``, bytes); None where these are none."""
    values: list[bytes] = []
    at = 0
    while at < len(packed):
        colon = packed.find(b":", at, at + 11)
        if colon < 0 or not packed[at:colon].isdigit():
            return None
        end = colon + 1 + int(packed[at:colon])
        if end > len(packed):
            return None
        values.append(packed[colon + 1 : end])
        at = end
    return values if len(values) % 2 == 0 else None


# --- which ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which dead letters are meant: those that everything given is true of; without anything, all.

    Attributes:
        error: part of the error's type or text, in any case.
        since_ms: dead-lettered then or later, milliseconds since the epoch.
        until_ms: dead-lettered then or before.
    """

    event: str | None = None
    correlation_id: str | None = None
    group: str | None = None
    reason: str | None = None
    error: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def bounds(self) -> tuple[str, str]:
        """First and last id of the range that holds them."""
        return (
            "-" if self.since_ms is None else str(max(0, self.since_ms)),
            "+" if self.until_ms is None else str(max(0, self.until_ms)),
        )

    def matches(self, letter: DeadLetter) -> bool:
        wanted = (
            (self.event, letter.message.event),
            (self.correlation_id, letter.message.correlation_id),
            (self.group, letter.group),
            (self.reason, letter.reason),
        )
        if any(value is not None and value != found for value, found in wanted):
            return False
        if self.since_ms is not None and letter.time_ms < self.since_ms:
            return False
        if self.until_ms is not None and letter.time_ms > self.until_ms:
            return False
        if self.error is None:
            return True
        part = self.error.casefold()
        return any(part in (text or "").casefold() for text in (letter.error_type, letter.error_message))


_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw])", re.ASCII)
_LONGEST: Final = 36_500 * _UNITS["d"]


def seconds(duration: str) -> float:
    """``90s``, ``15m``, ``2h``, ``1.5d`` or ``2w`` in seconds; parts may follow one another, as ``1h30m``.

    Raises:
        ConfigurationError: it is none of these, or longer than a hundred years.
    """
    text = duration.strip().lower()
    parts = _DURATION.findall(text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or total > _LONGEST:
        raise ConfigurationError(f"{duration[:40]!a} is no duration; write 90s, 15m, 2h, 7d or 1h30m")
    return total


# --- back ----------------------------------------------------------------------------------------


class Target(StrEnum):
    """Where a message is given back: only to the group that gave up on it, or to the stream, and so to every group."""

    GROUP = "group"
    STREAM = "stream"


class Replay(NamedTuple):
    """How a dead letter is given back: the key it is added to, and the command."""

    key: str
    command: Command


def replay(
    letter: DeadLetter, stream: str, target: Target, *, groups: Collection[str], force: bool = False
) -> Replay | str:
    """The command that gives a dead letter back in one step; or, in words, why it cannot be.

    Its run counts from 1 again and links to the failing run's span; ids and trace context are the message's own.

    Args:
        groups: that the stream has.
        force: give it also to a group that is not there, for when it comes.
    """
    if letter.packed or len(letter.fields) > MAX_VALUES:
        count = len(letter.fields) // 2
        return f"its {count:,} fields are more than a script can add; publish it anew in another shape, then purge it"
    if letter.stream is not None and letter.stream != stream:
        return f"it comes from the stream {letter.stream!r}, not from {stream!r}"
    keys = Keys.of(stream, letter.group or "")
    if target is Target.STREAM:
        own = _without_replay(letter.fields)
        if not own:
            return "it has no fields of a message"
        first_id = _first_id(letter)
        added = [names.REPLAY_ID, first_id, names.REPLAY_SPAN, letter.span or ""] if first_id is not None else []
        return Replay(stream, streams.REPLAY.call([keys.dead, stream, stream], letter.id, len(own), "", *added))
    if letter.group is None or letter.entry_id is None or letter.stream is None:
        return "it does not say which group gave up on it; replay it to the stream"
    if letter.group not in groups and not force:
        return missing_group(letter.group, stream)
    added = streams.retry_fields(letter.entry_id, 0, "", letter.span or "")
    required = "" if force else letter.group
    return Replay(
        keys.retry,
        streams.REPLAY.call([keys.dead, keys.retry, stream], letter.id, len(letter.fields), required, *added),
    )


def missing_group(group: str, stream: str) -> str:
    """Why a message is not given to a group that its stream has not."""
    return (
        f"the group {group!r} is not on {stream!r} (any more); replay it to the stream, for the groups that are, or "
        "force it, for when the group comes back"
    )


def _without_replay(fields: Sequence[bytes]) -> Sequence[bytes]:
    """The fields as they were published: an earlier replay's are at their end."""
    return fields[:-REPLAY_VALUES] if list(fields[-REPLAY_VALUES::2]) == _REPLAY_NAMES else fields


def _first_id(letter: DeadLetter) -> str | None:
    """The id that the message had first, which ids that it lacks derive from."""
    tail = letter.fields[-REPLAY_VALUES:]
    if list(tail[::2]) == _REPLAY_NAMES and is_entry_id(first := tail[1].decode(errors="replace")):
        return first
    return letter.entry_id


class Pace:
    """At most so many a second, evenly: what was late is not caught up with in a burst.

    Args:
        rate: a second; None for no limit.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float | None, *, clock: Callable[[], float]) -> None:
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._clock = clock
        self._next: float | None = None

    def pause(self) -> float:
        """Seconds to wait before the next one, which is counted as begun then."""
        now = self._clock()
        begin = now if self._next is None else max(now, self._next)
        self._next = begin + self._interval
        return begin - now
