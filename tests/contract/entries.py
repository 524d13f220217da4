"""What stands in Redis, field by field and in order."""

from dataclasses import dataclass
from typing import Any

import redis.asyncio

from quantum_bus.streams import Keys

_XRANGE = "return redis.call('XRANGE', KEYS[1], '-', '+')"  # redis-py's own xrange folds fields of one name


@dataclass(frozen=True)
class Stored:
    """A stream entry. `pairs` holds names and values in order, fields of the same name included."""

    id: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.pairs]

    def __getitem__(self, name: str) -> str:
        return dict(self.pairs)[name]


async def stored(client: redis.asyncio.Redis, stream: str) -> list[Stored]:
    reply: Any = await client.eval(_XRANGE, 1, stream)
    return [
        Stored(entry_id.decode(), tuple(zip(texts[::2], texts[1::2], strict=True)))
        for entry_id, values in reply
        for texts in [[value.decode(errors="surrogateescape") for value in values]]
    ]


async def pending(client: redis.asyncio.Redis, stream: str, group: str = "svc") -> list[str]:
    """Ids of the group's entries that were given to a consumer and not acked."""
    found = await client.xpending_range(stream, group, "-", "+", 10_000)
    return [item["message_id"].decode() for item in found]


async def delivered(client: redis.asyncio.Redis, stream: str, group: str = "svc") -> str:
    """The id of the last entry that the group was given."""
    groups = {item["name"].decode(): item for item in await client.xinfo_groups(stream)}
    return str(groups[group]["last-delivered-id"].decode())


async def all_acked(client: redis.asyncio.Redis, stream: str, group: str = "svc") -> bool:
    """Whether there are entries, the group has been given every one, has acked each, and has no retry ahead."""
    keys = Keys.of(stream, group)
    last = await client.xrevrange(stream, count=1)
    if not last or await delivered(client, stream, group) != last[0][0].decode():
        return False
    if (await client.xpending(stream, group))["pending"]:
        return False
    async with client.pipeline(transaction=True) as together:  # a retry is in one of them at any instant
        ahead = await together.zcard(keys.due).xlen(keys.retry).execute()
    return not any(ahead)


async def scheduled(client: redis.asyncio.Redis, stream: str, group: str = "svc") -> list[str]:
    """Ids of the group's messages that wait for their next attempt."""
    return [message_id.decode() for message_id in await client.zrange(Keys.of(stream, group).due, 0, -1)]
