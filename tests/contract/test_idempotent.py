"""A subscriber that handles each message's id once in a window.

A comment in each test names the protection that it was seen to fail without.
"""

import asyncio
from typing import Any

import orjson
import pytest
import redis.asyncio

from quantum_bus import ConfigurationError, Event, Message, Reject, Retry, names
from quantum_bus.streams import Keys
from tests.contract.conditions import Gate, eventually, pause
from tests.contract.entries import all_acked, pending, scheduled, stored
from tests.contract.recording import Recorder
from tests.contract.twins import Buses

WINDOW = 60.0


@pytest.mark.parametrize("window", [0, -1, float("inf"), float("nan"), "60", True])
async def test_the_window_is_a_number_of_seconds(buses: Buses, window: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"idempotent=.*give a finite number above 0"):
        buses().subscriber("orders", idempotent=window)


async def test_an_id_that_was_handled_is_acked_and_counted_and_not_handled_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without the mark in ack.lua it was handled twice.
    recorder = Recorder()
    bus = buses(**recorder.options)
    handled: list[str] = []

    @bus.subscriber(stream, idempotent=WINDOW)
    async def handle(message: Message) -> None:
        handled.append(message.message_id)

    async with bus:
        await bus.publish(stream, {}, message_id="order-1")
        await eventually(lambda: all_acked(redis_client, stream))
        again = await bus.publish(stream, {}, message_id="order-1")
        await bus.publish(stream, {}, message_id="order-2")
        await eventually(lambda: len(handled) == 2)
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == ["order-1", "order-2"]
    assert recorder.value(names.METRIC_SKIPPED, messaging__destination__name=stream) == 1
    assert recorder.value(names.METRIC_CONSUMED) == 2
    records = [
        orjson.loads(value)
        for entry in await stored(redis_client, Keys.of(stream, "svc").completed)
        for name, value in entry.pairs
        if name == again.id
    ]
    assert [record[names.RECORD_OUTCOME] for record in records] == [names.OUTCOME_SKIP]
    recorder.close()


async def test_copies_that_are_read_together_are_handled_once(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # A publish whose reply was lost leaves its copies side by side. Without the 'run:' mark of begin_once.lua they were
    # handled at once.
    bus = buses()
    handled: list[str] = []

    @bus.subscriber(stream, idempotent=WINDOW, concurrency=8)
    async def handle(message: Message) -> None:
        handled.append(message.message_id)
        await pause(0.02)

    copies = [Event({}, message_id=f"order-{number}") for number in range(10) for _ in range(4)]
    await bus.publish_many(stream, copies)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == sorted(f"order-{number}" for number in range(10))


async def test_a_copy_waits_while_the_other_is_tried_again_and_is_skipped_then(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    attempts: list[tuple[str, int]] = []

    @bus.subscriber(stream, idempotent=WINDOW, retry=Retry(initial=0.05, jitter="none"))
    async def handle(message: Message) -> None:
        attempts.append((message.id, message.attempt))
        if message.attempt < 3:
            raise ValueError

    await bus.publish_many(stream, [Event({}, message_id="order-1")] * 2)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    tried = attempts[0][0]  # whichever of the two a worker began first
    assert attempts == [(tried, 1), (tried, 2), (tried, 3)]


async def test_waiting_for_the_other_is_no_attempt(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    # Counting it made the copy's first run its second attempt, and with max_attempts=1 it was dead-lettered unhandled.
    bus = buses()
    handled: list[tuple[str, int]] = []
    gate = Gate()

    @bus.subscriber(stream, idempotent=WINDOW, retry=Retry(max_attempts=1))
    async def handle(message: Message) -> None:
        handled.append((message.id, message.attempt))
        if len(handled) == 1:
            await gate.passed()
            raise Reject("this copy is spoilt")

    first, second = await bus.publish_many(stream, [Event({}, message_id="order-1")] * 2)
    async with bus:
        await eventually(lambda: scheduled(redis_client, stream))
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
    # Without the DEL in dead_letter.lua the copy waited for the window's end.
    assert sorted(handled) == [(first.id, 1), (second.id, 1)]  # type: ignore[union-attr]
    assert len(await stored(redis_client, dlq)) == 1


async def test_a_mark_is_its_groups_own(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses()
    handled: list[str] = []

    @bus.subscriber(stream, group="a", idempotent=WINDOW)
    async def first(message: Message) -> None:
        handled.append(message.group)

    @bus.subscriber(stream, group="b", idempotent=WINDOW)
    async def second(message: Message) -> None:
        handled.append(message.group)

    await bus.publish(stream, {}, message_id="order-1")
    async with bus:
        for group in "ab":
            await eventually(lambda group=group: all_acked(redis_client, stream, group))
    assert sorted(handled) == ["a", "b"]


async def test_past_the_window_an_id_is_handled_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[str] = []

    @bus.subscriber(stream, idempotent=0.05)
    async def handle(message: Message) -> None:
        handled.append(message.id)

    async def forgotten() -> bool:
        return not await redis_client.exists(Keys.of(stream, "svc").seen + "order-1")

    async with bus:
        for count in (1, 2):
            await eventually(forgotten)
            await bus.publish(stream, {}, message_id="order-1")
            await eventually(lambda count=count: len(handled) == count)


async def test_in_a_batch_only_the_new_ones_reach_the_handler(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    batches: list[list[str]] = []

    @bus.subscriber(stream, idempotent=WINDOW, batch=10, concurrency=1)
    async def handle(messages: list[Message]) -> None:
        batches.append([message.message_id for message in messages])

    await bus.publish(stream, {}, message_id="m-1")
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
        await bus.publish_many(stream, [Event({}, message_id=f"m-{number}") for number in (0, 1, 2)])
        await eventually(lambda: all_acked(redis_client, stream))
    handled = [message_id for batch in batches for message_id in batch]
    assert handled[0] == "m-1"
    assert sorted(handled[1:]) == ["m-0", "m-2"]


async def test_two_consumers_of_a_group_handle_an_id_once(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    handled: list[str] = []
    consumers = [buses() for _ in range(2)]
    for bus in consumers:

        @bus.subscriber(stream, idempotent=WINDOW, concurrency=2)
        async def handle(message: Message) -> None:
            handled.append(message.message_id)
            await pause(0.01)

    await asyncio.gather(*(bus.start() for bus in consumers))
    for number in range(20):
        await consumers[number % 2].publish_many(stream, [Event({}, message_id=f"m-{number}")] * 3)
    await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == sorted(f"m-{number}" for number in range(20))
    assert await pending(redis_client, stream) == []
