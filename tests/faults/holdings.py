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

_LOOK = """
local function last_delivered(key)
  for _, row in ipairs(redis.pcall('XINFO', 'GROUPS', key)) do  -- none where there is no such key
    local told = {}
    for at = 1, #row, 2 do
      told[row[at]] = row[at + 1]
    end
    if told['name'] == ARGV[1] then
      return told['last-delivered-id']
    end
  end
end

local function undelivered(key)
  local last = last_delivered(key)
  return redis.call('XRANGE', key, last and '(' .. last or '-', '+')
end

local function pending(key)
  local found = {}
  if last_delivered(key) then
    for _, row in ipairs(redis.call('XPENDING', key, ARGV[1], '-', '+', ARGV[2])) do
      found[#found + 1] = {row[1], redis.call('XRANGE', key, row[1], row[1])}
    end
  end
  return found
end

local function scheduled(due, copies)
  return {redis.call('ZRANGE', due, 0, -1), redis.call('HGETALL', copies)}
end

return {
  undelivered(KEYS[1]), pending(KEYS[1]), pending(KEYS[2]),
  scheduled(KEYS[3], KEYS[4]), scheduled(KEYS[5], KEYS[6]), undelivered(KEYS[2])
}
"""
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
    """One look at everything that waits, and then at what is over: while others are at work, too, none is missed."""
    keys = Keys.of(stream, group)
    places = (keys.stream, keys.retry, keys.due, keys.copies, keys.delayed_due, keys.delayed_copies)
    look: Any = await client.eval(_LOOK, len(places), *places, group, _PAGE)  # type: ignore[misc]
    undelivered, pending, retried, due, delayed, retrying = look
    return Holdings(
        undelivered=_ids(undelivered),
        pending=_ids_of_pending([*pending, *retried]),
        scheduled=(*_ids_of_scheduled(*due), *_ids_of_scheduled(*delayed)),
        retrying=_ids(retrying),
        dead=tuple([letter for letter in await dead_letters(client, keys) if letter.group == group]),
        settled=await _settled(client, keys, group),
    )


def _ids(entries: list[tuple[bytes, list[bytes]]]) -> tuple[str, ...]:
    return tuple([_message_id(fields, entry_id) for entry_id, fields in entries])


def _ids_of_pending(rows: list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]) -> tuple[str, ...]:
    return tuple([_message_id(found[0][1], entry_id) if found else entry_id.decode() for entry_id, found in rows])


def _ids_of_scheduled(ids: list[bytes], packed: list[bytes]) -> list[str]:
    by_id = dict(zip(packed[::2], packed[1::2], strict=True))
    return [_message_id(unpacked(by_id[entry_id]), entry_id) for entry_id in ids]


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


async def last_delivered(client: redis.asyncio.Redis, key: str, group: str) -> str | None:
    """None where there is no such group."""
    try:
        groups = await client.xinfo_groups(key)
    except ResponseError:  # there is no such key
        return None
    return next((item["last-delivered-id"].decode() for item in groups if item["name"].decode() == group), None)


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
