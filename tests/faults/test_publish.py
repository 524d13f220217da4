"""Publishes whose outcome nobody knows: what is in the stream then, and that the bus goes on."""

import asyncio
import random
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import BackPressure, Event, PublishTimeout, Receipt
from quantum_bus.streams import PUBLISH, Keys
from tests.contract.conditions import eventually
from tests.contract.entries import stored
from tests.contract.twins import ASYNCIO, THREADS, Bus, Buses
from tests.faults.forms import Form
from tests.faults.proxy import Proxy

HOUR = 3600.0
MANY = 10_000
FEWER = 2_000
"""In the short form."""
SCRIPT = f"EVALSHA {PUBLISH.sha}"


async def test_three_lost_replies_leave_up_to_four_entries_that_are_the_same_message(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    proxy.lose_reply("XADD", count=3)
    receipt = await bus.publish("s", {"n": 1}, event="E", headers={"a": "b"})
    assert proxy.lost["XADD"] == 3
    assert proxy.commands["XADD"] == 4, "nobody but the publisher sends it again"
    entries = await stored(redis_client, "s")
    assert [entry["message_id"] for entry in entries] == [receipt.message_id] * 4
    assert len({entry.pairs for entry in entries}) == 1
    assert receipt.id == entries[-1].id


async def test_what_is_refused_after_a_lost_reply_may_be_stored_and_is_said_to_be(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    """Where the refusal of the second try stood alone, it was BackPressure: not stored. And it was."""
    bus = buses(url=proxy.url)
    proxy.lose_reply("XADD")
    held = proxy.hold("XADD", after=1)
    publishing = asyncio.ensure_future(bus.publish("s", 1))
    await eventually(held.is_set)
    await redis_client.config_set("maxmemory", "1")
    proxy.release()
    with pytest.raises(PublishTimeout, match="may be stored") as unknown:
        await publishing
    assert "maxmemory" in str(unknown.value)
    assert len(await stored(redis_client, "s")) == 1
    with pytest.raises(BackPressure):
        await bus.publish("s", 2)


async def test_three_lost_replies_with_a_window_leave_one_entry_and_its_receipt(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    """Without the marker there were four."""
    bus = buses(url=proxy.url)
    await bus.publish("other", 0, dedupe=HOUR)  # the server knows the script
    proxy.lose_reply(SCRIPT, count=3)
    receipt = await bus.publish("s", 1, dedupe=HOUR)
    assert proxy.lost[SCRIPT] == 3
    [entry] = await stored(redis_client, "s")
    assert receipt == Receipt(entry.id, entry["message_id"], entry["correlation_id"], "s")


async def test_of_many_with_a_window_none_is_there_twice(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    proxy.lose_reply(SCRIPT, after=10)
    results = await bus.publish_many("s", [Event(n, dedupe=HOUR) for n in range(40)])
    assert proxy.lost[SCRIPT] == 1
    entries = await stored(redis_client, "s")
    assert [entry["data"] for entry in entries] == [str(n) for n in range(40)]
    assert [result.id for result in results if isinstance(result, Receipt)] == [entry.id for entry in entries]


async def test_a_caller_that_tries_again_after_a_timeout_gets_the_first_receipt(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    await bus.publish("other", 0, dedupe=HOUR)
    proxy.lose_reply(SCRIPT, count=1_000)
    with pytest.raises(PublishTimeout):
        await bus.publish("s", 1, message_id="m", dedupe=HOUR, timeout=0.5)
    await eventually(lambda: proxy.lost[SCRIPT] >= 1)
    proxy.lose_reply(SCRIPT, count=0)
    receipt = await buses(service="another").publish("s", 1, message_id="m", dedupe=HOUR)
    assert [entry.id for entry in await stored(redis_client, "s")] == [receipt.id]


@pytest.mark.parametrize("window", [None, HOUR])
async def test_lost_replies_to_a_delayed_publish_leave_one_message(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis, window: float | None
) -> None:
    bus = buses(url=proxy.url)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    await bus.publish("other", 0, dedupe=HOUR)
    proxy.lose_reply(SCRIPT, count=3)
    receipt = await bus.publish("s", 1, delay=HOUR, dedupe=window, message_id="m")
    assert proxy.lost[SCRIPT] == 3
    assert receipt.id == ""
    due = Keys.of("s", "any").delayed_due
    assert await redis_client.zrange(due, 0, -1) == [b"m"]
    async with bus:
        await redis_client.zadd(due, {"m": 1})
        await eventually(lambda: handled == [1])
        await bus.publish("s", 2)
        await eventually(lambda: handled == [1, 2])
    assert len(await stored(redis_client, "s")) == 2


# --- given up on ---------------------------------------------------------------------------------------------------


def some_options(chance: random.Random) -> dict[str, Any]:
    return chance.choice(({}, {}, {"dedupe": HOUR}, {"delay": HOUR}))


async def check(bus: Bus, proxy: Proxy, redis_client: redis.asyncio.Redis, results: list[Any]) -> None:
    """Who got a receipt finds the message; nobody broke the connection, and it works."""
    receipts = [result for result in results if isinstance(result, Receipt)]
    there = {entry.id: entry["message_id"] for entry in await stored(redis_client, "s")}
    later = {name.decode() for name in await redis_client.zrange(Keys.of("s", "any").delayed_due, 0, -1)}
    assert receipts
    assert len(receipts) < len(results)
    for receipt in receipts:
        assert there[receipt.id] == receipt.message_id if receipt.id else receipt.message_id in later
    assert len(set(there.values())) == len(there), "nothing was sent twice"
    assert (await bus.publish("s", "last")).id == (await stored(redis_client, "s"))[-1].id
    assert proxy.connections == 1


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_ten_thousand_cancelled_publishes_leave_a_bus_that_works(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis, form: Form
) -> None:
    bus = buses(url=proxy.url)
    chance = random.Random(7)
    results: list[Any] = []
    cancelled = 0
    while cancelled < form.of(FEWER, MANY):
        calls = [asyncio.ensure_future(bus.publish("s", n, **some_options(chance))) for n in range(200)]
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(chance.choice((0, 0, 0.001)))
        for call in calls:
            if chance.random() < 0.9 and call.cancel():
                cancelled += 1
            if chance.random() < 0.02:
                await asyncio.sleep(0)
        results += await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {Receipt, asyncio.CancelledError}
    await check(bus, proxy, redis_client, results)


@pytest.mark.parametrize("twin", [THREADS])  # a thread's call cannot be cancelled, it gives up
async def test_ten_thousand_publishes_with_hardly_any_time_leave_a_bus_that_works(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis, form: Form
) -> None:
    bus = buses(url=proxy.url)
    chance = random.Random(7)
    results: list[Any] = []

    many = form.of(FEWER, MANY)

    def burst(seed: int) -> list[Any]:
        mine = random.Random(seed)
        outcomes: list[Any] = []
        for n in range(many // 20):
            limit = mine.choice((0.00001, 0.0003, 0.001, 30.0))
            try:
                outcomes.append(bus.raw.publish("s", n, timeout=limit, **some_options(mine)))
            except PublishTimeout as error:
                outcomes.append(error)
        return outcomes

    await bus.publish("other", 0, dedupe=HOUR)
    for outcomes in await asyncio.gather(*(asyncio.to_thread(burst, chance.random()) for _ in range(20))):
        results += outcomes
    assert len(results) == many
    await check(bus, proxy, redis_client, results)
