"""Publishing with a delay: nothing is in the stream before its time, and all groups get it once when it has come."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
import redis.asyncio

from quantum_bus import BackPressure, ConfigurationError, Event, PublishError, Receipt
from quantum_bus.demo.redis_server import RedisProcess
from quantum_bus.streams import Keys
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.entries import all_acked, stored
from tests.contract.twins import Buses

HOUR = 3600.0


async def waiting(client: redis.asyncio.Redis, stream: str) -> dict[str, float]:
    """Message ids that wait, each with its due time in seconds; each has its copy."""
    keys = Keys.of(stream, "any")
    found = await client.zrange(keys.delayed_due, 0, -1, withscores=True)
    assert {name for name, _ in found} == set(await client.hkeys(keys.delayed_copies))
    return {name.decode(): score / 1000 for name, score in found}


async def make_due(client: redis.asyncio.Redis, stream: str, message_id: str) -> None:
    """Its time has come."""
    await client.zadd(Keys.of(stream, "any").delayed_due, {message_id: 1}, xx=True)


async def test_a_delayed_message_is_in_the_stream_only_when_it_is_due(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        seconds, micros = await redis_client.time()
        receipt = await bus.publish(stream, 7, message_id="later", delay=HOUR, event="E")
        assert receipt == Receipt("", "later", receipt.correlation_id, stream)
        due = (await waiting(redis_client, stream))["later"]
        assert HOUR - 1 < due - (seconds + micros / 1e6) < HOUR + 60
        await bus.publish(stream, 1)
        await eventually(lambda: handled == [1])
        assert [entry["data"] for entry in await stored(redis_client, stream)] == ["1"]
        await make_due(redis_client, stream, "later")
        await eventually(lambda: handled == [1, 7])
        await eventually(lambda: all_acked(redis_client, stream))
    assert await waiting(redis_client, stream) == {}
    entry = (await stored(redis_client, stream))[1]
    assert (entry["message_id"], entry["event"], entry["correlation_id"]) == ("later", "E", receipt.correlation_id)


async def test_a_short_delay_ends_by_itself(buses: Buses, stream: str) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        assert not (await bus.publish(stream, 7, delay=0.05)).id
        await eventually(lambda: handled == [7])


@pytest.mark.parametrize("delay", [None, 0, 0.0])
async def test_no_delay_is_at_once(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, delay: float | None
) -> None:
    receipt = await buses().publish(stream, 7, delay=delay)
    [entry] = await stored(redis_client, stream)
    assert receipt.id == entry.id


async def test_every_group_gets_a_delayed_message_once_whoever_adds_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """Four consumers of two groups look for it at the same time."""
    runs: Counter[tuple[str, int]] = Counter()
    made = []
    for service in ("one", "two", "one", "two"):
        bus = buses(service=service)

        @bus.subscriber(stream)
        async def handle(number: int, service: str = service) -> None:
            runs[service, number] += 1

        made.append(bus)
    for bus in made:
        await bus.start()
    await made[0].publish_many(stream, [Event(n, delay=0.02, message_id=f"m-{n}") for n in range(50)])
    await eventually(lambda: all_acked(redis_client, stream, "one"))
    await eventually(lambda: len(runs) == 100)
    await eventually(lambda: all_acked(redis_client, stream, "two"))
    assert runs == Counter((service, n) for service in ("one", "two") for n in range(50))
    assert len(await stored(redis_client, stream)) == 50
    assert await waiting(redis_client, stream) == {}


async def test_a_delayed_message_outlives_its_publisher_and_waits_for_a_consumer(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    publisher = buses()
    await publisher.publish(stream, 7, delay=0.001)
    await publisher.stop()
    assert len(await waiting(redis_client, stream)) == 1, "nobody is there to add it"
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await eventually(lambda: handled == [7])


async def test_scheduling_a_message_twice_leaves_the_first(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """Without looking for it first, the second took its place and its time."""
    bus = buses()
    first = await bus.publish(stream, "first", message_id="m", delay=HOUR)
    before = await waiting(redis_client, stream)
    receipt = await bus.publish(stream, "second", message_id="m", delay=2 * HOUR, correlation_id="another")
    assert receipt == first, "the receipt is of what waits: its flow, too"
    assert receipt.id == ""
    assert await waiting(redis_client, stream) == before
    assert b'"first"' in (await redis_client.hget(Keys.of(stream, "any").delayed_copies, "m") or b"")


async def test_many_may_each_have_their_own_delay_and_the_others_keep_their_order(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    items = [
        Event(n, message_id=str(n), delay=HOUR if n == 3 else None, dedupe=60 if n % 2 else None) for n in range(9)
    ]
    results = await buses().publish_many(stream, items)
    entries = await stored(redis_client, stream)
    assert [entry["data"] for entry in entries] == [str(n) for n in range(9) if n != 3]
    assert [result.id for result in results if isinstance(result, Receipt) and result.id] == [e.id for e in entries]
    assert list(await waiting(redis_client, stream)) == ["3"]


async def test_a_server_that_does_not_know_the_script_is_taught_it_in_order(
    twin: str, own_redis: RedisProcess, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """Without the text of the first one, what needs the script came behind what does not."""
    buses = Buses(twin, Backend(own_redis.server.series, own_redis.url))
    await buses().publish_many(stream, [Event(n, dedupe=None if n % 2 else 60) for n in range(6)])
    assert [entry["data"] for entry in await stored(redis_client, stream)] == [str(n) for n in range(6)]
    await buses.stop()


@pytest.mark.parametrize(
    "arguments",
    [
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": 1e300},
        {"delay": True},
        {"delay": "5"},
        {"dedupe": 0},
        {"dedupe": -1},
        {"dedupe": float("inf")},
        {"dedupe": "5"},
    ],
    ids=str,
)
async def test_what_is_no_delay_or_window_is_named_and_nothing_is_stored(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, arguments: dict[str, float]
) -> None:
    bus = buses()
    with pytest.raises(ConfigurationError, match=f"{next(iter(arguments))}=.*give seconds"):
        await bus.publish(stream, 1, **arguments)
    with pytest.raises(ConfigurationError, match=f"{next(iter(arguments))}=.*give seconds"):
        await bus.publish_many(stream, [0, Event(1, **arguments)])
    assert await redis_client.exists(stream, Keys.of(stream, "any").delayed_due) == 0


@pytest.mark.parametrize("suffix", ["", ":due", ":scheduled", ":dedupe:m"])
async def test_a_key_of_another_type_refuses_the_publish_and_leaves_nothing_behind(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, suffix: str
) -> None:
    """Without the look at the stream's type a delayed message was accepted that could never be added."""
    wrong = f"{{{stream}}}{suffix}" if suffix else stream
    await redis_client.rpush(wrong, "text")
    bus = buses()
    with pytest.raises(PublishError, match="of another type") as refused:
        await bus.publish(stream, 1, message_id="m", delay=HOUR, dedupe=60)
    assert "WRONGTYPE" in str(refused.value)
    assert await redis_client.keys(f"*{stream}*") == [wrong.encode()]


async def test_a_full_redis_refuses_a_delayed_or_deduplicated_publish_whole_and_it_passes(
    twin: str, own_redis: RedisProcess, backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    buses = Buses(twin, backend)
    bus = buses()
    first = await bus.publish(stream, 0, dedupe=HOUR, message_id="there")
    await bus.publish(stream, 0, delay=HOUR, message_id="waits")
    keys = set(await redis_client.keys("*"))
    await redis_client.config_set("maxmemory", "1")
    for options in ({"delay": HOUR}, {"dedupe": HOUR}, {"delay": HOUR, "dedupe": HOUR}):
        with pytest.raises(BackPressure, match="maxmemory"):
            await bus.publish(stream, 1, message_id="new", **options)
    assert await bus.publish(stream, 0, dedupe=HOUR, message_id="there") == first, "what is there is not refused"
    assert (await bus.publish(stream, 0, delay=HOUR, message_id="waits")).id == ""
    assert set(await redis_client.keys("*")) == keys
    assert list(await waiting(redis_client, stream)) == ["waits"]
    await redis_client.config_set("maxmemory", "0")
    await bus.publish(stream, 1, dedupe=HOUR, message_id="new")
    assert [entry["message_id"] for entry in await stored(redis_client, stream)] == ["there", "new"]
    await buses.stop()


async def test_what_is_due_waits_while_redis_is_full(
    twin: str, own_redis: RedisProcess, backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    buses = Buses(twin, backend)
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await bus.publish(stream, 7, delay=HOUR, message_id="m")
        async with redis_client.pipeline(transaction=True) as together:
            together.zadd(Keys.of(stream, "any").delayed_due, {"m": 1})
            together.config_set("maxmemory", "1")
            await together.execute()
        looks = await looks_for_due(redis_client)
        await eventually(lambda: looked_again(redis_client, looks + 4))  # each time the retries and the delayed
        assert await redis_client.xlen(stream) == 0
        await redis_client.config_set("maxmemory", "0")
        await eventually(lambda: handled == [7])
    await buses.stop()


async def looks_for_due(client: redis.asyncio.Redis) -> int:
    return int((await client.info("commandstats")).get("cmdstat_zrangebyscore", {"calls": 0})["calls"])


async def looked_again(client: redis.asyncio.Redis, looks: int) -> bool:
    return await looks_for_due(client) >= looks


async def test_concurrent_publishes_of_one_delayed_message_are_one(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Callable[[str], str]
) -> None:
    bus = buses()
    name = unique("m")
    await asyncio.gather(*(bus.publish(stream, n, message_id=name, delay=HOUR) for n in range(20)))
    assert list(await waiting(redis_client, stream)) == [name]
