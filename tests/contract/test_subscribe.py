"""Subscribing: which handler gets which messages, as what."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import pydantic
import pytest
import redis.asyncio

from quantum_bus import Message, Retry
from tests.contract.conditions import Gate, eventually, pause
from tests.contract.entries import all_acked, pending, stored
from tests.contract.twins import ASYNCIO, Bus, Buses, settled

Unique = Callable[[str], str]


@dataclass
class Order:
    symbol: str
    quantity: float = 1.0


class OrderDict(TypedDict):
    symbol: str
    quantity: float


class OrderModel(pydantic.BaseModel):
    symbol: str
    quantity: float = 1.0


@pydantic.dataclasses.dataclass
class OrderPydantic:
    symbol: str
    quantity: float = 1.0


# --- what a handler gets -----------------------------------------------------------------------------------------


async def test_a_handler_is_given_what_was_published_and_it_is_acked(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[Any] = []

    @bus.subscriber(stream)
    async def handle(payload: dict[str, Any]) -> None:
        handled.append(payload)

    async with bus:
        await bus.publish(stream, {"n": 1})
        await eventually(lambda: handled == [{"n": 1}])
        await eventually(lambda: all_acked(redis_client, stream))


async def test_a_message_tells_what_it_carries(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses(service="executor")
    got: list[Message] = []

    @bus.subscriber(stream, group="g")
    async def handle(message: Message) -> None:
        got.append(message)

    receipt = await buses(service="engine").publish(
        stream, {"n": 1}, event="E", key="K", correlation_id="c-1", message_id="m-1", headers={"tenant": "eu"}
    )
    async with bus:
        await eventually(lambda: got)
    [entry] = await stored(redis_client, stream)
    [message] = got
    assert (message.id, message.message_id, message.correlation_id) == (receipt.id, "m-1", "c-1")
    assert (message.stream, message.group, message.event, message.key) == (stream, "g", "E", "K")
    assert (message.data, message.raw) == ({"n": 1}, b'{"n":1}')
    assert (message.service, message.ts, message.traceparent) == ("engine", entry["ts"], entry["traceparent"])
    assert (message.headers, message.causation_id, message.attempt) == ({"tenant": "eu"}, None, 1)


@pytest.mark.parametrize("given", [{"a": [1, None]}, [1, "x"], "text", 7, 1.5, True, None])
async def test_any_json_value_is_a_payload(buses: Buses, stream: str, given: object) -> None:
    bus = buses()
    handled: list[object] = []

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None:
        handled.append(payload)

    async with bus:
        await bus.publish(stream, given)
        await eventually(lambda: handled)
    assert handled == [given]


@pytest.mark.parametrize("kind", [Order, OrderDict, OrderModel, OrderPydantic, dict, dict[str, Any]])
async def test_a_payload_becomes_what_the_annotation_says(buses: Buses, stream: str, kind: Any) -> None:
    bus = buses()
    handled: list[Any] = []

    async def handle(order: Any) -> None:
        handled.append(order)

    handle.__annotations__["order"] = kind
    bus.subscriber(stream)(handle)
    async with bus:
        await bus.publish(stream, {"symbol": "BTC", "quantity": 2.0})
        await eventually(lambda: handled)
    assert handled == [kind(symbol="BTC", quantity=2.0)]
    assert isinstance(handled[0], dict if kind in (OrderDict, dict[str, Any]) else kind)


async def test_message_and_payload_may_come_in_any_order_alone_or_together(buses: Buses, unique: Unique) -> None:
    bus = buses()
    handled: dict[str, Any] = {}

    @bus.subscriber(unique("payload first"))
    async def payload_first(order: Order, message: Message) -> None:
        handled["payload first"] = order, message.data

    @bus.subscriber(unique("message first"))
    async def message_first(msg: Message, order: Order) -> None:
        handled["message first"] = order, msg.data

    @bus.subscriber(unique("message"))
    async def only_message(message: Message) -> None:
        handled["message"] = message.data

    @bus.subscriber(unique("bare"))
    async def unannotated(whatever) -> None:  # type: ignore[no-untyped-def]
        handled["bare"] = whatever

    @bus.subscriber(unique("default"))
    async def with_a_default(order: Order, dry_run: bool = True) -> None:
        handled["default"] = order, dry_run

    payload = {"symbol": "BTC", "quantity": 1.0}
    async with bus:
        for name in ("payload first", "message first", "message", "bare", "default"):
            await bus.publish(unique(name), payload)
        await eventually(lambda: len(handled) == 5)
    assert handled == {
        "payload first": (Order("BTC"), payload),
        "message first": (Order("BTC"), payload),
        "message": payload,
        "bare": payload,
        "default": (Order("BTC"), True),
    }


async def test_a_method_of_an_object_and_a_callable_object_are_handlers(buses: Buses, unique: Unique) -> None:
    bus = buses()
    handled: list[str] = []

    class Service:
        async def on_order(self, order: Order) -> None:
            handled.append(f"method {order.symbol}")

    bus.subscriber(unique("method"))(Service().on_order)
    async with bus:
        await bus.publish(unique("method"), {"symbol": "A"})
        await eventually(lambda: handled == ["method A"])


async def test_the_decorator_returns_the_function_unchanged(buses: Buses, stream: str) -> None:
    async def handle(payload: Any) -> None: ...

    assert buses().subscriber(stream)(handle) is handle


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_def_handler_runs_in_a_worker_thread_and_publishes_from_there(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses()
    ran_in: list[str] = []

    @bus.subscriber(stream)
    def handle(number: int, message: Message) -> None:
        ran_in.append(threading.current_thread().name)
        bus.raw.from_thread.publish(unique("next"), number + 1, event="NEXT")
        bus.raw.from_thread.publish_many(unique("next"), [number + 2])
        message.in_progress()
        message.ack()

    async with bus:
        receipt = await bus.publish(stream, 1)
        await eventually(lambda: all_acked(redis_client, stream))
    assert ran_in
    assert ran_in != [threading.main_thread().name]
    following = await stored(redis_client, unique("next"))
    assert [entry["data"] for entry in following] == ["2", "3"]
    assert {entry["correlation_id"] for entry in following} == {receipt.correlation_id}
    assert {entry["causation_id"] for entry in following} == {receipt.message_id}


@pytest.mark.parametrize("options", [{}, {"timeout": 20.0}, {"batch": 2}])
async def test_a_handler_that_takes_the_payload_alone_is_spared_the_messages(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    made: list[str] = []

    class Made(Message):
        def __init__(self, incoming: Any, **others: Any) -> None:
            made.append(incoming.id)
            super().__init__(incoming, **others)

    monkeypatch.setattr("quantum_bus.run.Message", Made)
    bus = buses()
    handled: list[Any] = []

    @bus.subscriber(stream, **options)
    async def handle(payload: Any) -> None:
        handled.append(payload)

    await bus.publish_many(stream, [1, 2])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled
    assert not made


# --- batches -----------------------------------------------------------------------------------------------------


async def test_a_batch_handler_gets_up_to_so_many_at_once_in_order(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    batches: list[list[int]] = []

    @bus.subscriber(stream, batch=10, concurrency=1)
    async def handle(numbers: list[int], messages: list[Message]) -> None:
        assert numbers == [message.data for message in messages]
        batches.append(numbers)

    await bus.publish_many(stream, range(25))
    async with bus:
        await eventually(lambda: [n for batch in batches for n in batch] == list(range(25)))
        await eventually(lambda: all_acked(redis_client, stream))
    assert [len(batch) for batch in batches] == [10, 10, 5]


async def test_a_raising_batch_handler_retries_each_message_it_has_not_settled(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    runs: list[list[tuple[int, int]]] = []

    @bus.subscriber(stream, batch=4, concurrency=1, retry=Retry(initial=0, max_attempts=3))
    async def handle(numbers: list[int], messages: list[Message]) -> None:
        runs.append([(message.data, message.attempt) for message in messages])
        if len(runs) == 1:
            await settled(messages[0].ack())
            await settled(messages[1].term("no"))
            raise ValueError("half done")

    await bus.publish_many(stream, range(4))
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs[0] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert sorted(item for run in runs[1:] for item in run) == [(2, 2), (3, 2)]
    assert [entry["data"] for entry in await stored(redis_client, dlq)] == ["1"]


# --- which stream, which group -----------------------------------------------------------------------------------


async def test_one_subscriber_may_handle_several_streams(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    bus = buses()
    handled: list[tuple[str, int]] = []
    names = [unique("a"), unique("b"), unique("c")]

    @bus.subscriber(*names, concurrency=4)
    async def handle(number: int, message: Message) -> None:
        handled.append((message.stream, number))

    async with bus:
        for number in range(30):
            await bus.publish(names[number % 3], number)
        await eventually(lambda: len(handled) == 30)
        for name in names:
            await eventually(lambda name=name: all_acked(redis_client, name))
    assert sorted(handled) == sorted((names[number % 3], number) for number in range(30))


async def test_the_group_is_the_service_by_default(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(service="auto_executor")

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    async with bus:
        assert [group["name"] for group in await redis_client.xinfo_groups(stream)] == [b"auto_executor"]


async def test_each_group_gets_every_message(buses: Buses, stream: str) -> None:
    first, second = buses(service="one"), buses(service="two")
    handled: dict[str, list[int]] = {"one": [], "two": [], "two more": []}

    @first.subscriber(stream)
    async def one(number: int) -> None:
        handled["one"].append(number)

    @second.subscriber(stream)
    async def two(number: int) -> None:
        handled["two"].append(number)

    @second.subscriber(stream, group="other")
    async def two_more(number: int) -> None:
        handled["two more"].append(number)

    async with first, second:
        await first.publish_many(stream, range(50))
        await eventually(lambda: all(len(numbers) == 50 for numbers in handled.values()))
    assert all(sorted(numbers) == list(range(50)) for numbers in handled.values())


async def test_consumers_of_one_group_share_its_messages(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    handled: list[tuple[int, int]] = []
    gate = Gate()
    team = [buses(), buses()]
    for index, bus in enumerate(team):

        @bus.subscriber(stream, concurrency=5)
        async def handle(number: int, index: int = index) -> None:
            handled.append((number, index))
            await gate.passed()

    async with team[0], team[1]:
        await team[0].publish_many(stream, range(20))
        # each is full now: neither could take what the other one has
        await eventually(lambda: len(handled) == 10)
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(number for number, _ in handled) == list(range(20)), "each message is handled by one of them"
    assert {index for _, index in handled} == {0, 1}


async def test_a_new_group_starts_at_the_beginning_of_the_stream(buses: Buses, stream: str) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    await bus.publish(stream, 1)
    async with bus:
        await eventually(lambda: handled == [1])


async def test_a_new_group_may_start_with_new_messages(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, start="new")
    async def handle(number: int) -> None:
        handled.append(number)

    await bus.publish(stream, 1)
    async with bus:
        await bus.publish(stream, 2)
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [2]


async def test_a_group_goes_on_where_it_was_whatever_start_says(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    handled: list[int] = []

    def listening() -> Bus:
        bus = buses()

        @bus.subscriber(stream, start="new")
        async def handle(number: int) -> None:
            handled.append(number)

        return bus

    async with listening() as bus:
        await bus.publish(stream, 1)
        await eventually(lambda: all_acked(redis_client, stream))
    await buses().publish(stream, 2)  # while nobody listens
    async with listening():
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [1, 2]


async def test_a_subscriber_waits_for_a_stream_that_nobody_has_written_yet(buses: Buses, stream: str) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, start="new")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await buses().publish(stream, 1)
        await eventually(lambda: handled == [1])


# --- how much at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("streams", "batch", "concurrency"), [(1, 1, 1), (1, 1, 5), (1, 3, 2), (3, 1, 4)])
async def test_no_more_run_and_no_more_is_read_than_the_subscriber_may_hold(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique, streams: int, batch: int, concurrency: int
) -> None:
    bus = buses()
    gate = Gate()
    running: set[object] = set()
    most = 0
    handled = 0
    names = [unique(f"s{index}") for index in range(streams)]

    @bus.subscriber(*names, batch=batch, concurrency=concurrency)
    async def handle(messages: Any) -> None:
        nonlocal most, handled
        token = object()
        running.add(token)
        most = max(most, len(running))
        await gate.passed()
        await pause(0.001)
        running.discard(token)
        handled += len(messages) if batch > 1 else 1

    handle.__annotations__["messages"] = list[Message] if batch > 1 else Message
    may_hold = concurrency * batch + streams - 1
    for name in names:
        await bus.publish_many(name, range(40))

    async def held() -> int:
        return sum([len(await pending(redis_client, name)) for name in names])

    async with bus:
        await eventually(lambda: len(running) == concurrency)
        before = await held()
        for _ in range(5):  # further reads would come within these round trips
            assert await held() == before
        assert before <= may_hold
        gate.open()
        while handled < 40 * streams:
            assert await held() <= 2 * may_hold, "as many again may be on their way to being acked"
            await asyncio.sleep(0)
        for name in names:
            await eventually(lambda name=name: all_acked(redis_client, name))
    assert most <= concurrency


async def test_a_slow_handler_does_not_hold_up_the_others(buses: Buses, stream: str) -> None:
    bus = buses()
    gate = Gate()
    handled: list[int] = []

    @bus.subscriber(stream, concurrency=2)
    async def handle(number: int) -> None:
        if number == 0:
            await gate.passed()
        handled.append(number)

    async with bus:
        await bus.publish_many(stream, range(20))
        await eventually(lambda: handled == list(range(1, 20)))
        gate.open()
    assert handled[-1] == 0


# --- foreign producers -------------------------------------------------------------------------------------------


async def test_a_plain_xadd_is_a_message(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses()
    got: list[tuple[Any, Message]] = []

    @bus.subscriber(stream)
    async def handle(payload: dict[str, Any], message: Message) -> None:
        got.append((payload, message))

    entry_id = (await redis_client.xadd(stream, {"symbol": "BTC", "price": "42.5"})).decode()
    async with bus:
        await eventually(lambda: got)
        await eventually(lambda: all_acked(redis_client, stream))
    payload, message = got[0]
    assert payload == {"symbol": "BTC", "price": "42.5"}
    assert message.id == message.message_id == entry_id
    assert message.correlation_id == message.traceparent.split("-")[1]


async def test_the_first_users_older_format_is_a_message(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    got: list[tuple[Order, Message]] = []

    @bus.subscriber(stream)
    async def handle(order: Order, message: Message) -> None:
        got.append((order, message))

    await redis_client.xadd(
        stream,
        {
            "event_type": "INTENT",
            "payload": '{"symbol":"BTC","quantity":3}',
            "correlation_id": "a1b2c3d4-e5f6-7890-abcd-ef1234567890",
            "source": "ai_engine",
            "timestamp": "2026-01-03T10:15:23Z",
            "note": "kept",
        },
    )
    async with bus:
        await eventually(lambda: got)
    order, message = got[0]
    assert order == Order("BTC", 3.0)
    assert (message.event, message.service, message.ts) == ("INTENT", "ai_engine", "2026-01-03T10:15:23Z")
    assert message.correlation_id == "a1b2c3d4-e5f6-7890-abcd-ef1234567890"
    assert message.extra["note"] == "kept"


async def test_every_group_and_every_retry_sees_the_same_ids_on_a_foreign_entry(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    seen: list[tuple[str, str, str]] = []
    teams = [buses(service="one"), buses(service="two")]
    for bus in teams:

        @bus.subscriber(stream, retry=Retry(initial=0))
        async def handle(message: Message) -> None:
            seen.append((message.correlation_id, message.traceparent, message.message_id))
            if message.attempt == 1:
                raise ValueError("once more")

    await redis_client.xadd(stream, {"a": "1"})
    async with teams[0], teams[1]:
        await eventually(lambda: len(seen) == 4)
    assert len(set(seen)) == 1
