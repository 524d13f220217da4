"""Stream commands, the Lua scripts beside them, and what their replies mean. Pure: nothing here talks to Redis.

A command is a tuple, as redis-py packs it. Whatever checks something and then changes it is a script, because a
MULTI goes on past a failed command, and XACK and XCLAIM do not look at the owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from .config import hash_tag
from .envelope import Entry

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

FIRST_ENTRY: Final = "0"
LAST_ENTRY: Final = "$"
NEXT_ENTRY: Final = ">"

# Entries of one page while recovering what a lost reply left with a consumer.
RECOVERY_PAGE: Final = 100
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
    def load(cls, name: str) -> Script:
        text = (files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], *arguments: Argument) -> Command:
        """EVALSHA with these keys, all of one slot, and arguments."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


ACK: Final = Script.load("ack")
DEAD_LETTER: Final = Script.load("dead_letter")
KEEP: Final = Script.load("keep")
_BY_SHA: Final = {script.sha: script for script in (ACK, DEAD_LETTER, KEEP)}


def as_text(command: Command) -> Command | None:
    """The EVAL of an EVALSHA of ours, for a server that answered NOSCRIPT; None for any other command."""
    script = _BY_SHA.get(str(command[1])) if command[0] == "EVALSHA" else None
    return None if script is None else ("EVAL", script.text, *command[2:])


def side_key(name: str, suffix: str) -> str:
    """A key in the same cluster slot as the stream ``name``: ``{name}:suffix``.

    A name that holds a hash tag already gets the suffix bare: its tag decides the slot of both.
    """
    return f"{name}:{suffix}" if hash_tag(name) is not None else f"{{{name}}}:{suffix}"


def add(stream: str, fields: Sequence[bytes | str]) -> Command:
    """XADD; the reply is the entry's id."""
    return ("XADD", stream, "*", *fields)


def create_group(stream: str, group: str, start: str) -> Command:
    """XGROUP CREATE with MKSTREAM; ``start`` is an entry id, ``0`` or ``$``."""
    return ("XGROUP", "CREATE", stream, group, start, "MKSTREAM")


def list_groups(stream: str) -> Command:
    """XINFO GROUPS."""
    return ("XINFO", "GROUPS", stream)


def parse_groups(reply: Any) -> Sequence[str]:
    """The groups' names in an XINFO GROUPS reply of RESP2 (lists) or RESP3 (maps); none in an error."""
    if not isinstance(reply, list):
        return ()
    maps = (item if isinstance(item, Mapping) else dict(zip(item[::2], item[1::2], strict=True)) for item in reply)
    return [item[b"name"].decode() for item in maps]


def read_new(group: str, consumer: str, streams: Sequence[str], *, count: int, block_ms: int) -> Command:
    """XREADGROUP for entries that no consumer has had; at most ``count`` of each stream, after ``block_ms`` nil."""
    ids = (NEXT_ENTRY,) * len(streams)
    return ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "BLOCK", block_ms, "STREAMS", *streams, *ids)


def read_own(group: str, consumer: str, stream: str, *, after: str) -> Command:
    """XREADGROUP for what this consumer was given before and has not acked: a lost reply's entries are there."""
    return ("XREADGROUP", "GROUP", group, consumer, "COUNT", RECOVERY_PAGE, "STREAMS", stream, after)


@dataclass(frozen=True, slots=True)
class Read:
    """An XREADGROUP reply: the entries, and the ids that are pending but deleted from the stream, as (stream, id)."""

    entries: Sequence[Entry]
    deleted: Sequence[tuple[str, str]]

    @property
    def last(self) -> str | None:
        """The highest entry id of a read of one stream, to go on from; None where there was nothing."""
        ids = [entry.id for entry in self.entries] + [entry_id for _, entry_id in self.deleted]
        return max(ids, key=lambda entry_id: tuple(map(int, entry_id.split("-"))), default=None)


NOTHING_READ: Final = Read((), ())


def parse_read(reply: Any) -> Read:
    """An XREADGROUP reply of RESP2 (lists) or RESP3 (a map), nil included."""
    if not reply:
        return NOTHING_READ
    pairs = reply.items() if isinstance(reply, Mapping) else reply
    entries: list[Entry] = []
    deleted: list[tuple[str, str]] = []
    for key, items in pairs:
        stream = key.decode()
        for entry_id, fields in items:
            if fields is None or not len(fields):
                deleted.append((stream, entry_id.decode()))
            else:
                entries.append(Entry(stream, entry_id.decode(), fields))
    return Read(entries, deleted)
