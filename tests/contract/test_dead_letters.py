"""Dead letters: what no handler could take stands in `{name}:dlq`, as it was, with the reason behind it."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
import redis.asyncio

from quantum_bus import Event, Message, Reject, Retry
from tests.contract.backends import Backend
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import Stored, all_acked, pending, stored
from tests.contract.twins import Buses, settled

Unique = Callable[[str], str]

DLQ_FIELDS = [
    "dlq.stream", "dlq.id", "dlq.group", "dlq.consumer", "dlq.attempts", "dlq.reason", "dlq.error_type",
    "dlq.error_message", "dlq.stack", "dlq.first_failed_at", "dlq.last_failed_at", "dlq.span",
]  # fmt: skip


@dataclass
class Order:
    symbol: str
    quantity: float


class OrderModel(pydantic.BaseModel):
    symbol: str
    quantity: float


async def test_a_dead_letter_is_the_entry_as_it_was_with_the_reason_behind_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream, group="g", retry=Retry(max_attempts=2, initial=0))
    async def handle(message: Message) -> None:
        raise ValueError("the exchange says no")

    await bus.publish(stream, {"n": 1}, event="E", key="K", headers={"tenant": "eu"})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream, "g"))
    [original] = await stored(redis_client, stream)
    assert dead.pairs[: len(original.pairs)] == original.pairs
    assert dead.names[len(original.pairs) :] == DLQ_FIELDS
    assert (dead["dlq.stream"], dead["dlq.id"], dead["dlq.group"]) == (stream, original.id, "g")
    assert dead["dlq.consumer"].startswith("svc@")
    assert (dead["dlq.attempts"], dead["dlq.reason"]) == ("2", "max_attempts")
    assert (dead["dlq.error_type"], dead["dlq.error_message"]) == ("ValueError", "the exchange says no")
    assert "raise ValueError" in dead["dlq.stack"]
    assert dead["dlq.first_failed_at"] <= dead["dlq.last_failed_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", dead["dlq.first_failed_at"])


async def test_fields_of_one_name_and_bytes_that_are_no_text_are_kept(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(payload: dict[str, Any]) -> None:
        raise Reject

    fields = ["v", "1", "data", "{}", "x", "1", "x", "2", "b", b"\xff\x00\r\n"]
    await redis_client.execute_command("XADD", stream, "*", *fields)
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
    [original] = await stored(redis_client, stream)
    assert dead.pairs[:5] == original.pairs
    assert [name for name in original.names if name == "x"] == ["x", "x"]


@pytest.mark.parametrize(
    ("fields", "reason", "text"),
    [
        ({"v": "1", "data": '{"half'}, "undecodable", "not JSON"),
        ({"v": "1", "data": b"\xff\xfe"}, "undecodable", "not JSON"),
        ({"v": "1", "event": "E"}, "undecodable", "no field 'data'"),
        ({"v": "2", "data": "{}"}, "unsupported_version", "version '2'"),
        ({"v": "99", "payload": "{}"}, "unsupported_version", "version '99'"),
    ],
)
async def test_what_cannot_be_decoded_is_dead_lettered_and_the_next_message_is_handled(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    dlq: str,
    fields: dict[str, Any],
    reason: str,
    text: str,
) -> None:
    bus = buses()
    handled: list[Any] = []

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None:
        handled.append(payload)

    await redis_client.xadd(stream, fields)
    await bus.publish(stream, "next")
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
        assert handled == ["next"]
    [dead] = await stored(redis_client, dlq)
    assert (dead["dlq.reason"], dead["dlq.attempts"]) == (reason, "0")
    assert text in dead["dlq.error_message"]


@pytest.mark.parametrize("kind", [Order, OrderModel, list[int]])
async def test_a_payload_that_does_not_fit_is_dead_lettered_without_a_run(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, kind: Any
) -> None:
    bus = buses()
    handled: list[Any] = []

    async def handle(order: Any) -> None:
        handled.append(order)

    handle.__annotations__["order"] = kind
    bus.subscriber(stream)(handle)
    await bus.publish(stream, {"symbol": "BTC", "quantity": "many"})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert not handled
    assert (dead["dlq.reason"], dead["dlq.attempts"]) == ("invalid_payload", "0")
    assert "ValidationError" in dead["dlq.error_type"]


async def test_a_misfit_in_a_batch_does_not_hold_up_the_others(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, batch=10)
    async def handle(numbers: list[int]) -> None:
        handled.extend(numbers)

    await bus.publish_many(stream, [1, "two", 3])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == [1, 3]
    assert [dead["data"] for dead in await stored(redis_client, dlq)] == ['"two"']


async def test_reject_dead_letters_at_once(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    runs = 0

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        nonlocal runs
        runs += 1
        raise Reject("unknown symbol")

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs == 1
    assert (dead["dlq.reason"], dead["dlq.error_message"]) == ("rejected", "unknown symbol")
    assert dead["dlq.attempts"] == "1"


async def test_each_group_dead_letters_for_itself(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, group="bad")
    async def bad(number: int) -> None:
        raise Reject

    @bus.subscriber(stream, group="good")
    async def good(number: int) -> None:
        handled.append(number)

    await bus.publish(stream, 1)
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: handled == [1])
    assert dead["dlq.group"] == "bad"


async def test_the_dead_letter_stream_lies_in_the_streams_own_slot(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    bus = buses()
    tagged = unique("orders{eu}")

    @bus.subscriber(tagged)
    async def handle(payload: Any) -> None:
        raise Reject

    await bus.publish(tagged, 1)
    async with bus:
        assert await eventually(lambda: stored(redis_client, f"{tagged}:dlq"))


async def test_a_dead_letter_shows_no_secret(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(payload: Any) -> None:
        raise ValueError("cannot reach redis://user:hunter2@db:6379/0")

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
    assert "hunter2" not in repr(dead)
    assert "cannot reach" in dead["dlq.error_message"]


async def test_an_error_that_cannot_be_shown_is_still_an_outcome(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    bus = buses()

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(payload: Any) -> None:
        raise Broken

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
    assert dead["dlq.error_type"].endswith("Broken")


async def test_where_the_dead_letter_key_is_no_stream_the_message_stays_pending_until_it_is_repaired(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses(backoff_maximum=0.1)
    gate = Gate()
    handled: list[int] = []

    @bus.subscriber(stream, concurrency=2)
    async def handle(number: int) -> None:
        if number == 0:
            raise Reject("never")
        handled.append(number)
        if number == 9:
            gate.open()

    await redis_client.set(dlq, "text")
    receipt = await bus.publish(stream, 0)
    await bus.publish_many(stream, range(1, 10))
    async with bus:
        await gate.passed()  # the others are handled meanwhile
        await eventually(lambda: _only_pending(redis_client, stream, receipt.id))
        await redis_client.delete(dlq)
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == list(range(1, 10))
    assert dead["dlq.id"] == receipt.id


async def test_dead_letters_that_redis_does_not_take_hold_up_reading_before_they_pile_up(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses(backoff_maximum=0.1)
    rejected: list[int] = []

    @bus.subscriber(stream, concurrency=5)
    async def handle(number: int) -> None:
        rejected.append(number)
        raise Reject

    await redis_client.set(dlq, "text")
    await bus.publish_many(stream, range(200))
    async with bus:
        await eventually(lambda: len(rejected) >= 5)
        for _ in range(20):  # further reads would come within these round trips
            assert len(await pending(redis_client, stream)) <= 10, "5 in hand, and as many on their way out"
            await asyncio.sleep(0.005)
        await redis_client.delete(dlq)
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(rejected) == list(range(200))
    assert len(await stored(redis_client, dlq)) == 200


async def _only_pending(client: redis.asyncio.Redis, stream: str, entry_id: str) -> bool:
    return await pending(client, stream) == [entry_id]


async def test_a_very_wide_entry_is_kept_whole(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(payload: dict[str, str]) -> None:
        raise Reject(str(len(payload)))

    await redis_client.xadd(stream, {f"f{n}": "x" for n in range(4_000)})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert dead["dlq.error_message"] == "4000"
    assert dead.names[0] == "dlq.packed"
    assert dead.names[1:] == DLQ_FIELDS


async def test_an_entry_too_wide_to_be_scheduled_is_dead_lettered_and_holds_up_no_retry(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=2, initial=0))
    async def handle(payload: dict[str, str], message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError(str(len(payload)))

    await redis_client.xadd(stream, {f"f{n}": "x" for n in range(4_000)})
    await bus.publish(stream, {"narrow": "1"})
    async with bus:
        dead = await eventually(lambda: _several(redis_client, dlq, 2))
        await eventually(lambda: all_acked(redis_client, stream))
    assert {entry["dlq.error_message"] for entry in dead} == {"4000", "1"}
    assert sorted(attempts) == [1, 1, 2]


async def _several(client: redis.asyncio.Redis, dlq: str, count: int) -> list[Stored]:
    found = await stored(client, dlq)
    return found if len(found) == count else []


async def test_a_dead_letter_put_back_is_handled_in_its_flow(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    """Copying the entry back, fields and all, is a replay: the flow is that of the original."""
    bus = buses()
    seen: list[tuple[str, str, str]] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        seen.append((message.correlation_id, message.traceparent, message.message_id))
        if len(seen) == 1:
            raise Reject

    await bus.publish_many(stream, [Event({}, correlation_id="flow-1")])
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await redis_client.xadd(stream, dict(dead.pairs))
        await eventually(lambda: len(seen) == 2)
    assert seen[0] == seen[1]


async def test_a_message_deleted_while_it_was_handled_is_lost_and_said_to_be(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses()
    deleted = Gate()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        await deleted.passed()
        raise Reject

    receipt = await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: pending(redis_client, stream))
        await redis_client.xdel(stream, receipt.id)
        deleted.open()
        await eventually(lambda: _none_pending(redis_client, stream))
        await eventually(lambda: "BUS_MESSAGE_LOST" in [getattr(record, "event", "") for record in caplog.records])
    assert not await stored(redis_client, dlq)


async def _none_pending(client: redis.asyncio.Redis, stream: str) -> bool:
    return not await pending(client, stream)


async def test_settling_by_hand_and_raising_afterwards_changes_nothing(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    runs = 0

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        nonlocal runs
        runs += 1
        await settled(message.ack())
        raise Reject("too late")

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs == 1
    assert not await stored(redis_client, dlq)
