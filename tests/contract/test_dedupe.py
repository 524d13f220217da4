"""Publishing with a window: of one message id one message, and every caller gets the first one's receipt."""

import asyncio

import redis.asyncio

from quantum_bus import Event, Receipt
from quantum_bus.streams import Keys
from tests.contract.conditions import eventually
from tests.contract.entries import stored
from tests.contract.twins import Buses

MINUTE = 60.0


async def test_a_second_publish_within_the_window_adds_nothing_and_returns_the_first_receipt(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    first = await buses().publish(stream, "first", message_id="m", dedupe=MINUTE)
    second = await buses(service="another").publish(stream, "second", message_id="m", dedupe=MINUTE)
    [entry] = await stored(redis_client, stream)
    assert first == second == Receipt(entry.id, "m", entry["correlation_id"], stream)
    assert entry["data"] == '"first"'


async def test_the_window_is_the_first_publishes_and_no_later_one_extends_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    marker = f"{{{stream}}}:dedupe:m"
    await bus.publish(stream, 1, message_id="m", dedupe=MINUTE)
    left = await redis_client.pttl(marker)
    assert 0 < left <= 60_000
    await bus.publish(stream, 1, message_id="m", dedupe=1_000 * MINUTE)
    assert 0 < await redis_client.pttl(marker) <= left


async def test_after_the_window_the_same_id_is_added_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    marker = f"{{{stream}}}:dedupe:m"
    first = await bus.publish(stream, 1, message_id="m", dedupe=0.001)

    async def over() -> bool:
        return not await redis_client.exists(marker)

    await eventually(over)
    second = await bus.publish(stream, 1, message_id="m", dedupe=MINUTE)
    assert [entry.id for entry in await stored(redis_client, stream)] == [first.id, second.id]


async def test_other_ids_other_streams_and_publishes_without_a_window_are_added(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    for name, arguments in (
        (stream, {"message_id": "m", "dedupe": MINUTE}),
        (stream, {"message_id": "n", "dedupe": MINUTE}),
        (stream, {"message_id": "m"}),
        (stream + "2", {"message_id": "m", "dedupe": MINUTE}),
        (stream, {"dedupe": MINUTE}),
        (stream, {"dedupe": MINUTE}),
    ):
        assert (await bus.publish(name, 1, **arguments)).id
    assert len(await stored(redis_client, stream)) == 5
    assert len(await stored(redis_client, stream + "2")) == 1


async def test_of_many_publishes_at_once_one_is_added(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    made = [buses(), buses()]
    receipts = await asyncio.gather(
        *(bus.publish(stream, n, message_id="m", dedupe=MINUTE) for n in range(20) for bus in made)
    )
    [entry] = await stored(redis_client, stream)
    assert {receipt.id for receipt in receipts} == {entry.id}


async def test_publish_many_repeated_returns_the_same_receipts(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    items = [Event(n, message_id=f"m-{n % 7}", dedupe=MINUTE) for n in range(10)]
    first = await bus.publish_many(stream, items)
    assert first[7:] == first[:3], "within one call, too"
    assert await bus.publish_many(stream, items) == first
    assert [entry["data"] for entry in await stored(redis_client, stream)] == [str(n) for n in range(7)]


async def test_a_window_holds_for_a_delayed_message_before_and_after_it_is_due(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        first = await bus.publish(stream, 1, message_id="m", delay=0.05, dedupe=MINUTE)
        assert await bus.publish(stream, 2, message_id="m", delay=0.05, dedupe=MINUTE) == first
        assert await bus.publish(stream, 3, message_id="m", dedupe=MINUTE) == first, "nor at once"
        assert first.id == ""
        await eventually(lambda: handled == [1])
        assert await bus.publish(stream, 4, message_id="m", delay=0.001, dedupe=MINUTE) == first
    assert await redis_client.exists(Keys.of(stream, "any").delayed_due) == 0
    assert len(await stored(redis_client, stream)) == 1


async def test_a_refused_publish_leaves_no_marker(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses()
    await redis_client.set(stream, "text")
    [refused] = await bus.publish_many(stream, [Event(1, message_id="m", dedupe=MINUTE)])
    assert not isinstance(refused, Receipt)
    await redis_client.delete(stream)
    receipt = await bus.publish(stream, 1, message_id="m", dedupe=MINUTE)
    assert [entry.id for entry in await stored(redis_client, stream)] == [receipt.id]
