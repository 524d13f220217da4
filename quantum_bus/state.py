"""How streams and groups stand in Redis, whether or not anybody consumes: what to ask, and what the replies mean. Pure.

What this costs does not grow with what is pending or waiting. It asks for counts that Redis keeps and for the first of
what is sorted, and counts no further than :data:`COUNT_LIMIT`. A figure that cannot be had so is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import names, streams
from .errors import ConfigurationError
from .inquiry import Inquiry, Refusal, Refusals, as_map, asked, asked_each
from .streams import Command, Keys, side_key

# Entries that are counted one by one where Redis does not know a lag: on 6.2, and where entries were deleted.
COUNT_LIMIT: Final = 1_000
# An entry id below this many milliseconds since 1970 (January 2009: before Redis) is no time; its age is unknown.
EARLIEST_MS: Final = 1_230_768_000_000

EntryId = tuple[int, int]

NEVER: Final[EntryId] = (0, 0)


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """One consumer of a group, over the stream and the group's retry stream.

    Attributes:
        idle: seconds since it was last seen; a consumer that only waits may not be seen for some seconds.
        pending: messages it was given and has not settled.
    """

    name: str
    idle: float
    pending: int


@dataclass(frozen=True, slots=True)
class GroupState:
    """A consumer group on one stream. None where Redis does not tell, or not within bounds.

    Attributes:
        last_delivered: the id of the last entry of the stream that the group was given.
        lag: messages that a consumer could read and none has: of the stream, and of the group's retry stream.
        lag_age: seconds that the oldest of them has been readable; 0 where there is none.
        pending: messages given to consumers and not settled, in both.
        oldest_pending: the id of the first of those of the stream itself; None where there is none.
        pending_age: seconds that the oldest of both has been there, by its entry id; 0 where there is none.
        pending_idle: seconds since that one was last given to a consumer, or its lease renewed; 0 where there is none.
        scheduled: messages that wait for their next attempt.
        due: those of them whose time has come, and which no consumer has made readable yet.
        overdue: seconds that the first of those is late; 0 where there is none.
        retries: entries of the retry stream, pending or not.
        retry_group: whether the group is on its retry stream; None where there is no such stream.
        consumers: by name; None where Redis does not tell.
    """

    name: str
    last_delivered: EntryId
    lag: int | None
    lag_age: float | None
    pending: int | None
    oldest_pending: EntryId | None
    pending_age: float | None
    pending_idle: float | None
    scheduled: int | None
    due: int | None
    overdue: float | None
    retries: int | None
    retry_group: bool | None
    consumers: Sequence[ConsumerState] | None


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream, and what belongs to all of its groups. None where Redis does not tell.

    Attributes:
        exists: whether the key is a stream; None where Redis does not tell. Its side keys may be there without it.
        first_id: of its first entry; None where there is none.
        last_id: of its last entry; None where there is none.
        dead_letters: entries of its dead-letter stream.
        scheduled: messages published with a delay that nobody can read yet.
        due: those of them whose time has come, and which no consumer has made readable yet.
        overdue: seconds that the first of those is late; 0 where there is none.
        groups: by name.
    """

    name: str
    exists: bool | None
    length: int | None
    first_id: EntryId | None
    last_id: EntryId | None
    dead_letters: int | None
    scheduled: int | None
    due: int | None
    overdue: float | None
    groups: Sequence[GroupState]


@dataclass(frozen=True, slots=True)
class BusState:
    """Everything that was asked about.

    Attributes:
        now: the server's time, seconds since 1970.
        refused: questions that Redis did not answer.
        groups_left_out: groups past the limit, which nothing was asked about.
    """

    now: float
    streams: Sequence[StreamState]
    refused: Sequence[Refusal] = ()
    groups_left_out: int = 0


def entry_id(text: bytes | str) -> EntryId:
    """An entry id as two numbers that sort as Redis sorts."""
    milliseconds, _, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(milliseconds), int(sequence or 0)


def id_text(value: EntryId) -> str:
    """The other way."""
    return f"{value[0]}-{value[1]}"


def observe(wanted: Iterable[str], *, max_groups: int | None = None) -> Inquiry[BusState]:
    """How streams and their groups stand: three rounds of questions, whatever their number.

    Args:
        wanted: the streams' names.
        max_groups: how many groups of all streams together are looked at; the first by stream and name.

    Raises:
        ConfigurationError: Redis refuses even to tell its time.
    """
    refusals = Refusals()
    ordered = sorted(set(wanted))
    [time] = yield from asked([("TIME",)], refusals)
    if not time:
        raise ConfigurationError(f"Redis does not tell its time ({refusals.found[0].text}); allow this user TIME")
    now_ms = int(time[0]) * 1000 + int(time[1]) // 1000

    asking = [_about_stream(stream, now_ms) for stream in ordered]
    told = [_Stream.of(*replies) for replies in (yield from asked_each(asking, refusals))]
    named = [(at, group) for at, stream in enumerate(told) for group in stream.groups]
    kept = named if max_groups is None else named[:max_groups]

    asking = [_about_group(ordered[at], group, told[at], now_ms) for at, group in kept]
    about = [_Group(*replies) for replies in (yield from asked_each(asking, refusals))]
    both = list(zip(kept, about, strict=True))
    asking = [_about_retry(ordered[at], row, reply) for (at, row), reply in both]
    waiting = [reply for [reply] in (yield from asked_each(asking, refusals))]

    groups: dict[int, list[GroupState]] = {}
    for ((at, row), reply), oldest in zip(both, waiting, strict=True):
        groups.setdefault(at, []).append(_group_state(row, told[at], reply, oldest, now_ms))
    states = [_stream_state(name, told[at], groups.get(at, ()), now_ms) for at, name in enumerate(ordered)]
    return BusState(now_ms / 1000, states, refusals.found, len(named) - len(kept))


# --- streams -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of XINFO GROUPS; ``lag`` is None on 6.2, and where Redis has lost count."""

    name: str
    last_delivered: EntryId
    pending: int
    lag: int | None


def _rows(reply: Any) -> list[_Row]:
    rows = sorted((as_map(row) for row in reply or ()), key=lambda row: row[b"name"])
    return [
        _Row(_text(row[b"name"]), entry_id(row[b"last-delivered-id"]), row[b"pending"], row.get(b"lag")) for row in rows
    ]


@dataclass(frozen=True, slots=True)
class _Stream:
    """What was told about a stream; ``length`` is None where XINFO STREAM was refused, or the key is not there."""

    exists: bool | None
    length: int | None
    first: EntryId | None
    last: EntryId | None
    groups: Sequence[_Row]
    dead: int | None
    scheduled: int | None
    due: int | None
    first_due: Any

    @classmethod
    def of(cls, kind: Any, info: Any, groups: Any, dead: Any, scheduled: Any, due: Any, first_due: Any) -> _Stream:
        found = as_map(info or ())
        exists = bool(info) or None if kind is None else kind == b"stream"
        ends = [found.get(end) for end in (b"first-entry", b"last-entry")]
        first, last = (entry_id(end[0]) if end else None for end in ends)
        return cls(exists, found.get(b"length"), first, last, _rows(groups), dead, scheduled, due, first_due)


def _about_stream(stream: str, now_ms: int) -> list[Command | None]:
    return [
        ("TYPE", stream),
        ("XINFO", "STREAM", stream),
        ("XINFO", "GROUPS", stream),
        ("XLEN", side_key(stream, names.SUFFIX_DLQ)),
        *_about_due(side_key(stream, names.SUFFIX_DUE), now_ms),
    ]


def _about_due(due: str, now_ms: int) -> list[Command]:
    return [("ZCARD", due), ("ZCOUNT", due, "-inf", now_ms), ("ZRANGE", due, 0, 0, "WITHSCORES")]


def _stream_state(name: str, told: _Stream, groups: Sequence[GroupState], now_ms: int) -> StreamState:
    return StreamState(
        name=name,
        exists=told.exists,
        length=told.length,
        first_id=told.first,
        last_id=told.last,
        dead_letters=told.dead,
        scheduled=told.scheduled,
        due=told.due,
        overdue=_overdue(told.first_due, now_ms),
        groups=groups,
    )


def _overdue(first: Any, now_ms: int) -> float | None:
    if first is None:
        return None
    return max(0.0, (now_ms - float(first[1])) / 1000) if first else 0.0


# --- groups --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """What was told about a group: None is a refusal, empty what is not there."""

    consumers: Any
    oldest_pending: Any
    oldest_waiting: Any
    counted: Any
    scheduled: Any
    due: Any
    first_due: Any
    retries: Any
    retry_groups: Any
    retry_consumers: Any
    retry_oldest_pending: Any

    def on_retry(self, group: str) -> _Row | None:
        """The group's row on its retry stream."""
        return next((row for row in _rows(self.retry_groups) if row.name == group), None)


def _about_group(stream: str, row: _Row, told: _Stream, now_ms: int) -> list[Command | None]:
    keys = Keys.of(stream, row.name)
    behind = told.last is not None and row.last_delivered < told.last
    uncounted = behind and row.lag is None and told.first is not None and row.last_delivered >= told.first
    return [
        ("XINFO", "CONSUMERS", stream, row.name),
        ("XPENDING", stream, row.name, "-", "+", 1),
        _first_behind(stream, row.last_delivered) if behind else None,
        streams.LAG.call([stream], id_text(row.last_delivered), COUNT_LIMIT) if uncounted else None,
        *_about_due(keys.due, now_ms),
        ("XLEN", keys.retry),
        ("XINFO", "GROUPS", keys.retry),
        ("XINFO", "CONSUMERS", keys.retry, row.name),
        ("XPENDING", keys.retry, row.name, "-", "+", 1),
    ]


def _about_retry(stream: str, row: _Row, told: _Group) -> list[Command | None]:
    on_retry = told.on_retry(row.name)
    return [_first_behind(Keys.of(stream, row.name).retry, on_retry.last_delivered if on_retry else NEVER)]


def _first_behind(stream: str, delivered: EntryId) -> Command:
    return ("XRANGE", stream, f"({id_text(delivered)}", "+", "COUNT", 1)


def _group_state(row: _Row, stream: _Stream, told: _Group, retry_waiting: Any, now_ms: int) -> GroupState:
    on_retry = told.on_retry(row.name)
    pending = _sum(row.pending, None if told.retry_groups is None else on_retry.pending if on_retry else 0)
    oldest = [told.oldest_pending, told.retry_oldest_pending]
    waiting = [None if stream.length is None else told.oldest_waiting, retry_waiting]
    return GroupState(
        name=row.name,
        last_delivered=row.last_delivered,
        lag=_sum(_stream_lag(row, stream, told), _retry_lag(on_retry, told, retry_waiting)),
        lag_age=_greatest(_age(rows, now_ms) for rows in waiting),
        pending=pending,
        oldest_pending=_id_of(told.oldest_pending[0]) if told.oldest_pending else None,
        pending_age=_greatest(_age(rows, now_ms) for rows in oldest),
        pending_idle=None
        if None in oldest
        else _idle(min((rows[0] for rows in oldest if rows), key=_id_of, default=None)),
        scheduled=told.scheduled,
        due=told.due,
        overdue=_overdue(told.first_due, now_ms),
        retries=told.retries,
        retry_group=on_retry is not None if told.retries or on_retry else None,
        consumers=_consumers(told),
    )


def _stream_lag(row: _Row, stream: _Stream, told: _Group) -> int | None:
    """Messages of the stream that no consumer was given.

    What Redis 7.0 says may include entries that were trimmed since, so it is asked last.
    """
    if stream.length is None:
        return None
    if stream.first is None or stream.last is None or row.last_delivered >= stream.last:
        return 0
    if row.last_delivered < stream.first:
        return stream.length
    if row.lag is not None:
        return row.lag
    return None if told.counted is None else int(told.counted)


def _retry_lag(on_retry: _Row | None, told: _Group, waiting: Any) -> int | None:
    """Retries that no consumer was given: those that are not pending, because an acked one is deleted."""
    if told.retries is None or told.retry_groups is None or waiting is None:
        return None
    if not waiting:
        return 0
    left: int = told.retries - (on_retry.pending if on_retry else 0)
    return max(1, left)


def _consumers(told: _Group) -> Sequence[ConsumerState] | None:
    if told.consumers is None or told.retry_consumers is None:
        return None
    found: dict[str, ConsumerState] = {}
    for row in map(as_map, (*told.consumers, *told.retry_consumers)):
        name = _text(row[b"name"])
        own = found.get(name)
        idle, pending = row[b"idle"] / 1000, row[b"pending"]
        found[name] = (
            ConsumerState(name, min(own.idle, idle), own.pending + pending)
            if own
            else ConsumerState(name, idle, pending)
        )
    return [found[name] for name in sorted(found)]


# --- figures -------------------------------------------------------------------------------------


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _id_of(row: Any) -> EntryId:
    return entry_id(row[0])


def _age(rows: Any, now_ms: int) -> float | None:
    """Seconds since the first of the rows came; 0 where there are none. Ids that producers made up are no times."""
    if rows is None:
        return None
    return age(_id_of(rows[0]), now_ms / 1000) if rows else 0.0


def age(of: EntryId, now: float) -> float | None:
    """Seconds from an entry id to ``now``, the server's time; None where that id is no time."""
    return max(0, round(now * 1000) - of[0]) / 1000 if of[0] >= EARLIEST_MS else None


def _idle(row: Any) -> float:
    return 0.0 if row is None else row[2] / 1000


def _sum(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _greatest(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None
