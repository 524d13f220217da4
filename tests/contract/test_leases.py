"""Leases, as the scripts keep and give them up."""

from typing import Any

import redis.asyncio

from quantum_bus import streams
from quantum_bus.streams import Script


async def call(client: redis.asyncio.Redis, script: Script, stream: str, *arguments: Any) -> Any:
    return await client.eval(script.text, 1, stream, "g", "c", *arguments)


async def idle(client: redis.asyncio.Redis, stream: str) -> int:
    [entry] = await client.xpending_range(stream, "g", "-", "+", 2)
    return int(entry["time_since_delivered"])


async def given(client: redis.asyncio.Redis, stream: str) -> str:
    await client.xgroup_create(stream, "g", "0", mkstream=True)
    entry_id: bytes = await client.xadd(stream, {"n": 1})
    await client.xreadgroup("g", "c", {stream: ">"})
    return entry_id.decode()


async def test_a_renewal_that_was_on_its_way_leaves_what_was_given_up(
    redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without the look at the idle time it was renewed, and others waited for another lease.
    entry_id = await given(redis_client, stream)
    assert await call(redis_client, streams.RELEASE, stream, streams.GIVEN_UP_MS, entry_id) == 1
    assert await call(redis_client, streams.KEEP, stream, entry_id) == [[], []]
    assert await idle(redis_client, stream) >= streams.GIVEN_UP_MS


async def test_a_late_renewal_of_what_is_held_counts(redis_client: redis.asyncio.Redis, stream: str) -> None:
    entry_id = await given(redis_client, stream)
    await redis_client.xclaim(stream, "g", "c", 0, [entry_id], idle=3_600_000, justid=True)
    assert await call(redis_client, streams.KEEP, stream, entry_id) == [[], []]
    assert await idle(redis_client, stream) < 60_000
