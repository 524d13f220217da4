"""What Redis holds of one group's messages: every place where one can be, by message id."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from quantum_bus import names
from quantum_bus.envelope import Entry, decode
from quantum_bus.streams import Keys

_PENDING = """
local found = {}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])) do
  found[#found + 1] = {row[1], row[2], redis.call('XRANGE', KEYS[1], row[1], row[1])}
end
return found
"""
_COPIES = "return {redis.call('ZRANGE', KEYS[1], 0, -1), redis.call('HGETALL', KEYS[2])}"
_TOLD = (names.DLQ_ID, names.DLQ_GROUP, names.DLQ_ATTEMPTS, names.DLQ_REASON)
_PAGE = 1_000_000
_MESSAGE_ID = names.FIELD_MESSAGE_ID.encode()


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter."""

    message_id: str
    entry_id: str
    group: str
    correlation_id: str
    trace_id: str
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """Message ids by place; one that stands there twice is named twice. An entry that is gone has its entry id."""

    undelivered: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    scheduled: tuple[str, ...] = ()
    """To be tried again, or published with a delay."""
    retrying: tuple[str, ...] = field(default=())
    """In the group's retry stream, and not delivered from there."""
    dead: tuple[Letter, ...] = ()
    settled: Mapping[str, int] = field(default_factory=dict)
    """How often an entry was acked or dead-lettered, by its message id and entry id; of the last ones."""

    @property
    def waiting(self) -> tuple[str, ...]:
        """Everything that is neither handled nor given up."""
        return (*self.undelivered, *self.pending, *self.scheduled, *self.retrying)


async def holdings_of(client: redis.asyncio.Redis, stream: str, group: str) -> Holdings:
    """One look; while others are at work a message may be seen in two places, or in none."""
    keys = Keys.of(stream, group)
    return Holdings(
        undelivered=await _undelivered(client, stream, group),
        pending=(*await _pending(client, stream, group), *await _pending(client, keys.retry, group)),
        scheduled=(
            *await _scheduled(client, keys.due, keys.copies),
            *await _scheduled(client, keys.delayed_due, keys.delayed_copies),
        ),
        retrying=await _undelivered(client, keys.retry, group),
        dead=tuple([letter for letter in await dead_letters(client, keys) if letter.group == group]),
        settled=await _settled(client, keys, group),
    )


async def _settled(client: redis.asyncio.Redis, keys: Keys, group: str) -> Counter[str]:
    settled: Counter[str] = Counter()
    for _, fields in await _entries(client, keys.completed, "-"):
        if fields[1] == group.encode():
            for entry_id, text in zip(fields[6::2], fields[7::2], strict=True):
                record = json.loads(text)
                settled[f"{record['message_id']} {entry_id.decode()}"] += record["outcome"] != names.OUTCOME_RETRY
    return settled


async def dead_letters(client: redis.asyncio.Redis, keys: Keys) -> list[Letter]:
    letters = []
    for _, fields in await _entries(client, keys.dead, "-"):
        told = dict(zip(fields[::2], fields[1::2], strict=True))  # of fields of one name the last, which is ours
        dlq = {name: told[name.encode()].decode() for name in _TOLD}
        if fields[0] == names.DLQ_PACKED.encode():
            fields = unpacked(fields[1])  # noqa: PLW2901 - too many to stand there one by one
        # decoded as any reader of the dead-letter stream would, under the id that it had
        incoming = decode(Entry(keys.stream, dlq[names.DLQ_ID], fields))
        letters.append(
            Letter(
                incoming.message_id,
                dlq[names.DLQ_ID],
                dlq[names.DLQ_GROUP],
                incoming.correlation_id,
                f"{incoming.context.trace_id:032x}",
                int(dlq[names.DLQ_ATTEMPTS]),
                dlq[names.DLQ_REASON],
            )
        )
    return letters


async def _scheduled(client: redis.asyncio.Redis, due: str, copies: str) -> list[str]:
    ids, packed = await client.eval(_COPIES, 2, due, copies)  # type: ignore[misc]
    by_id = dict(zip(packed[::2], packed[1::2], strict=True))
    return [_message_id(unpacked(by_id[entry_id]), entry_id) for entry_id in ids]


async def _undelivered(client: redis.asyncio.Redis, key: str, group: str) -> tuple[str, ...]:
    last = await last_delivered(client, key, group)
    start = "-" if last is None else f"({last}"
    return tuple([_message_id(fields, entry_id) for entry_id, fields in await _entries(client, key, start)])


async def last_delivered(client: redis.asyncio.Redis, key: str, group: str) -> str | None:
    """None where there is no such group."""
    try:
        groups = await client.xinfo_groups(key)
    except ResponseError:  # there is no such key
        return None
    return next((item["last-delivered-id"].decode() for item in groups if item["name"].decode() == group), None)


async def _pending(client: redis.asyncio.Redis, key: str, group: str) -> list[str]:
    if await last_delivered(client, key, group) is None:
        return []
    rows: Any = await client.eval(_PENDING, 1, key, group, _PAGE)  # type: ignore[misc]
    return [_message_id(found[0][1], entry_id) if found else entry_id.decode() for entry_id, _, found in rows]


async def _entries(client: redis.asyncio.Redis, key: str, start: str) -> list[tuple[bytes, list[bytes]]]:
    # a script, since redis-py's own xrange folds fields of one name
    rows: Any = await client.eval("return redis.call('XRANGE', KEYS[1], ARGV[1], '+')", 1, key, start)  # type: ignore[misc]
    return [(entry_id, fields) for entry_id, fields in rows]


def _message_id(fields: list[bytes], entry_id: bytes) -> str:
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == _MESSAGE_ID:
            return value.decode(errors="replace")
    return entry_id.decode()


def unpacked(packed: bytes) -> list[bytes]:
    """The netstrings that `retry.lua` writes."""
    values = []
    at = 0
    while at < len(packed):
        colon = packed.index(b":", at)
        end = colon + 1 + int(packed[at:colon])
        values.append(packed[colon + 1 : end])
        at = end
    return values
