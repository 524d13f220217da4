"""Stream commands, the Lua scripts beside them, and what their replies mean. Pure: nothing here talks to Redis.

A command is a tuple, as redis-py packs it. Whatever checks something and then changes it is a script, because a
MULTI goes on past a failed command, and XACK and XCLAIM do not look at the owner.

The delivery count of a pending entry is 1 after a read and 1 + n once its handler has begun its n-th run: so that a
consumer which takes over knows how often the message was run, and one that was only prefetched is not blamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import msgspec
from hiredis import pack_command

from . import names
from .config import hash_tag
from .envelope import Entry

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

FIRST_ENTRY: Final = "0"
LAST_ENTRY: Final = "$"
NEXT_ENTRY: Final = ">"

# Entries of one page while recovering what a lost reply left with a consumer, or a dead consumer left behind.
RECOVERY_PAGE: Final = 100
# The idle time of what was given up: longer than any lease. A renewal leaves such an entry alone (keep.lua).
GIVEN_UP_MS: Final = 1_000_000_000_000
# Scheduled entries that one call makes readable.
DUE_PAGE: Final = 100
# A blocking read may take this much longer than it blocks before its connection counts as dead, seconds.
BLOCK_MARGIN: Final = 5.0
# A stopping consumer's read has so many seconds to return, also past the deadline: entries of one that is cut off would
# be stranded. It may still be on its way when it is told to, on a connection of its own: it is told again and again.
UNBLOCK_PATIENCE: Final = 1.0
UNBLOCK_AGAIN: Final = 0.02


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, called by its digest; a server that does not know it yet is sent the text."""

    text: str
    sha: str

    @classmethod
    def load(cls, *parts: str) -> Script:
        folder = files(__package__) / "lua"
        text = "".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in parts)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], *arguments: Argument) -> Command:
        """EVALSHA with these keys, all of one slot, and arguments."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


ACK: Final = Script.load("ack")
BEGIN: Final = Script.load("begin")
BEGIN_ONCE: Final = Script.load("begin_once")
DEAD_LETTER: Final = Script.load("netstrings", "move", "dead_letter")
DUE: Final = Script.load("netstrings", "due")
FETCH: Final = Script.load("fetch")
FORGET: Final = Script.load("forget")
GROUP: Final = Script.load("group")
INDEXED: Final = Script.load("netstrings", "indexed_head", "publish", "indexed")
INHERIT: Final = Script.load("inherit")
KEEP: Final = Script.load("keep")
LAG: Final = Script.load("lag")
LEAD: Final = Script.load("lead")
OWN: Final = Script.load("own")
PACE: Final = Script.load("pace")
PARK: Final = Script.load("park")
PUBLISH: Final = Script.load("netstrings", "publish")
RECOVER: Final = Script.load("recover")
RELEASE: Final = Script.load("release")
REPLAY: Final = Script.load("replay")
RESIGN: Final = Script.load("resign")
RETRY: Final = Script.load("netstrings", "move", "retry")
UNMARK: Final = Script.load("unmark")
UPKEEP: Final = Script.load("upkeep")
_SCRIPTS: Final = tuple(value for value in tuple(globals().values()) if isinstance(value, Script))
_BY_SHA: Final = {script.sha: script for script in _SCRIPTS}


def as_text(command: Command) -> Command | None:
    """The EVAL of an EVALSHA of ours, for a server that answered NOSCRIPT; None for any other command."""
    script = _BY_SHA.get(str(command[1])) if command[0] == "EVALSHA" else None
    return None if script is None else ("EVAL", script.text, *command[2:])


def pack(commands: Iterable[Command]) -> bytes:
    """Commands as they go onto the wire.

    hiredis packs one in a seventh of the time that redis-py's asyncio side takes.
    """
    return b"".join(map(pack_command, commands))  # type: ignore[arg-type]  # its stub means a tuple of any length


def pack_one(command: Command) -> bytes:
    """As :func:`pack`, for one command."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # as above
    return packed


def entry_ids(command: Command) -> list[str]:
    """The ids that a BEGIN, BEGIN_ONCE or KEEP is about."""
    first, step = {BEGIN.sha: (2, 2), BEGIN_ONCE.sha: (6, 4), KEEP.sha: (2, 1)}[str(command[1])]
    return [str(entry_id) for entry_id in command[3 + int(command[2]) + first :: step]]


def side_key(name: str, suffix: str) -> str:
    """A key in the same cluster slot as the stream ``name``: ``{name}:suffix``.

    A name that holds a hash tag already gets the suffix bare: its tag decides the slot of both.
    """
    return f"{_beside(name)}{suffix}"


def _beside(name: str) -> str:
    """What the keys beside a stream begin with."""
    return f"{name}:" if hash_tag(name) is not None else f"{{{name}}}:"


def _escaped(group: str) -> str:
    """A group's name in a key that goes on behind it, told apart from what follows."""
    return group.replace("%", "%25").replace(":", "%3A")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that a group's handling of one stream touches, all in one slot.

    Attributes:
        retry: stream of this group's own, with what is to be tried again.
        due: sorted set: when what is scheduled becomes readable.
        copies: hash: the entries that are scheduled.
        delayed_due: as ``due``, of what was published with a delay, for all groups.
        delayed_copies: as ``copies``, likewise.
        dead: dead-letter stream, of all groups.
        completed: completion records, of all groups.
        notes: hash: how far each group has come, of all groups.
        marks: sorted set: ids of entries by their rank, see upkeep.lua.
        seen: what the mark of a message that this group handles once begins with; its id follows.
        lease: which consumer leads, where they handle messages in order.
    """

    stream: str
    retry: str
    due: str
    copies: str
    delayed_due: str
    delayed_copies: str
    dead: str
    completed: str
    notes: str
    marks: str
    seen: str
    lease: str

    @classmethod
    def of(cls, stream: str, group: str) -> Keys:
        beside = _beside(stream)
        return cls(
            stream=stream,
            retry=f"{beside}{names.SUFFIX_RETRY}:{group}",
            due=f"{beside}{names.SUFFIX_DUE}:{group}",
            copies=f"{beside}{names.SUFFIX_COPIES}:{group}",
            delayed_due=f"{beside}{names.SUFFIX_DUE}",
            delayed_copies=f"{beside}{names.SUFFIX_COPIES}",
            dead=f"{beside}{names.SUFFIX_DLQ}",
            completed=f"{beside}{names.SUFFIX_COMPLETED}",
            notes=f"{beside}{names.SUFFIX_NOTES}",
            marks=f"{beside}{names.SUFFIX_MARKS}",
            seen=f"{beside}{names.SUFFIX_SEEN}:{_escaped(group)}:",
            lease=f"{beside}{names.SUFFIX_LEASE}:{group}",
        )


def add(stream: str, fields: Sequence[bytes | str]) -> Command:
    """XADD; the reply is the entry's id."""
    return ("XADD", stream, "*", *fields)


def add_with_care(
    stream: str,
    fields: Sequence[bytes | str],
    *,
    message_id: str,
    correlation_id: str,
    delay_ms: int,
    dedupe_ms: int,
) -> Command:
    """PUBLISH: add later, or only once in a window, or both; see :func:`parse_added` for its reply."""
    keys = [stream, side_key(stream, names.SUFFIX_DUE), side_key(stream, names.SUFFIX_COPIES)]
    if dedupe_ms:
        keys.append(side_key(stream, f"{names.SUFFIX_DEDUPE}:{message_id}"))
    return PUBLISH.call(keys, message_id, delay_ms, dedupe_ms, correlation_id, *fields)


def parse_added(reply: bytes) -> tuple[str, str]:
    """The entry's id, empty where it comes later, and the stored message's correlation id, empty for the caller's own.

    The reply is XADD's or PUBLISH's.
    """
    entry_id, _, correlation_id = reply.decode().partition(" ")
    return entry_id, correlation_id


def wait(replicas: int, seconds: float) -> Command:
    """WAIT; the reply is how many replicas have everything that was written on this connection before.

    It never waits without a limit, which 0 would mean.
    """
    return ("WAIT", replicas, max(1, int(seconds * 1000)))


def create_group(stream: str, group: str, start: str) -> Command:
    """XGROUP CREATE with MKSTREAM; ``start`` is an entry id, ``0`` or ``$``."""
    return ("XGROUP", "CREATE", stream, group, start, "MKSTREAM")


def started(reply: Any, start: str) -> str:
    """Where a group starts that was made: GROUP says so, and XGROUP CREATE starts where it was told to."""
    return start if reply == b"OK" else str(reply.decode())


def list_groups(stream: str) -> Command:
    """XINFO GROUPS."""
    return ("XINFO", "GROUPS", stream)


def parse_groups(reply: Any) -> Sequence[str]:
    """The groups' names in an XINFO GROUPS reply of RESP2 (lists) or RESP3 (maps); none in an error."""
    if not isinstance(reply, list):
        return ()
    maps = (item if isinstance(item, Mapping) else dict(zip(item[::2], item[1::2], strict=True)) for item in reply)
    return [item[b"name"].decode(errors="backslashreplace") for item in maps]


def read_new(group: str, consumer: str, sources: Sequence[str], *, count: int, block_ms: int) -> Command:
    """XREADGROUP for entries that no consumer has had; at most ``count`` of each stream, after ``block_ms`` nil.

    With 0 nil at once: a server that has nothing else to do looks only ten times a second whom it has blocked for long.
    """
    ids = (NEXT_ENTRY,) * len(sources)
    block = ("BLOCK", block_ms) if block_ms else ()
    return ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, *block, "STREAMS", *sources, *ids)


def wait_behind(last: Mapping[str, str], *, block_ms: int) -> Command:
    """XREAD: returns when one of the streams gets an entry behind its id in ``last``, after ``block_ms`` nil. It gives
    nothing to any consumer."""
    return ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *last, *last.values())


# --- what was read -------------------------------------------------------------------------------


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """An entry as it reached this consumer.

    Attributes:
        source: the key it is pending in: the stream itself, or the group's retry stream.
        source_id: its id there.
        entry: the message as published: the stream, its id and its fields there.
        attempts: handler runs begun before.
        noted: those of them that the entry itself tells of, and its delivery count does not.
        first_failed_at: RFC 3339 time of the first failure, empty before.
        last_span: ``traceparent`` of the last run, if one is known.
        cut: values at the entry's end that are a retry's own; ``NOT_A_RETRY`` for what others put among them.
    """

    source: str
    source_id: str
    entry: Entry
    attempts: int = 0
    noted: int = 0
    first_failed_at: str = ""
    last_span: str | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """What came: deliveries, and the pending ids that are deleted from their stream, as (source, id).

    ``cursor`` is where the next page begins; None where there is none.
    """

    deliveries: Sequence[Delivery]
    deleted: Sequence[tuple[str, str]]
    cursor: str | None = None


NOTHING_READ: Final = Read((), ())

_RETRY_NAMES: Final = (names.RETRY_ID, names.RETRY_ATTEMPTS, names.RETRY_FIRST_FAILED_AT, names.RETRY_SPAN)
RETRY_VALUES: Final = 2 * len(_RETRY_NAMES)
"""How many values a retry appends to an entry's own."""
NOT_A_RETRY: Final = -1
"""In their place: the entry is in a retry stream, and is none."""


def retry_fields(message_id: str, attempts: int, first_failed_at: str, span: str) -> list[str]:
    """What a retry appends to an entry's own fields."""
    values = (message_id, str(attempts), first_failed_at, span)
    return [part for pair in zip(_RETRY_NAMES, values, strict=True) for part in pair]


def parse_read(reply: Any, streams: Mapping[str, str]) -> Read:
    """An XREADGROUP reply of RESP2 (lists) or RESP3 (a map), nil included.

    Args:
        streams: the stream that each retry stream stands for.
    """
    if not reply:
        return NOTHING_READ
    pairs = reply.items() if isinstance(reply, Mapping) else reply
    deliveries: list[Delivery] = []
    deleted: list[tuple[str, str]] = []
    for key, items in pairs:
        source = key.decode()
        for entry_id, fields in items:
            if not fields:
                deleted.append((source, entry_id.decode()))
            else:
                deliveries.append(_delivery(source, entry_id.decode(), 1, fields, streams.get(source)))
    return Read(deliveries, deleted)


def parse_page(reply: Any, source: str, stream: str | None) -> Read:
    """A reply of RECOVER, OWN or INHERIT.

    Args:
        source: the key that was looked at.
        stream: the stream it stands for, where it is a retry stream.
    """
    cursor, rows, gone = reply[:3]
    deliveries = [_delivery(source, row[0].decode(), int(row[1]), row[2], stream) for row in rows]
    return Read(deliveries, [(source, entry_id.decode()) for entry_id in gone], cursor.decode() or None)


def _delivery(source: str, source_id: str, count: int, fields: Sequence[bytes], stream: str | None) -> Delivery:
    begun = max(0, count - 1)
    if stream is None:
        return Delivery(source, source_id, Entry(source, source_id, fields), begun)
    own, appended = fields[:-RETRY_VALUES], fields[-RETRY_VALUES:]
    try:
        message_id, attempts, first_failed_at, span = (value.decode() for value in appended[1::2])
        noted = int(attempts)
        if not own or tuple(name.decode() for name in appended[::2]) != _RETRY_NAMES:
            raise ValueError
    except ValueError:  # undecodable bytes are one, too
        return Delivery(source, source_id, Entry(stream, source_id, fields), begun, cut=NOT_A_RETRY)
    return Delivery(
        source,
        source_id,
        Entry(stream, message_id, own),
        attempts=noted + begun,
        noted=noted,
        first_failed_at=first_failed_at,
        last_span=span or None,
        cut=RETRY_VALUES,
    )
