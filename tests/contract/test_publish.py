"""Publishing: what is confirmed is stored, and each caller gets its own answer."""

import asyncio
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pydantic
import pytest
import redis.asyncio

from quantum_bus import (
    BackPressure,
    ConfigurationError,
    Event,
    PayloadTooLarge,
    PublishError,
    PublishTimeout,
    Receipt,
    SerializationError,
    correlation_scope,
)
from quantum_bus.busy_poll import BusyPoll
from quantum_bus.demo.redis_server import RedisProcess
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.entries import stored
from tests.contract.twins import ASYNCIO, Buses
from tests.faults.proxy import Proxy

Unique = Callable[[str], str]


# --- one ---------------------------------------------------------------------------------------------------------


async def test_a_receipt_says_what_redis_stored(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    receipt = await buses().publish(stream, {"symbol": "BTCUSDT"}, event="INTENT_CREATED", key="BTCUSDT")
    [entry] = await stored(redis_client, stream)
    assert receipt == Receipt(entry.id, entry["message_id"], entry["correlation_id"], stream)


async def test_a_publish_that_is_alone_looks_for_its_reply_as_long_as_the_bus_was_told(
    buses: Buses, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    monkeypatch.setattr(BusyPoll, "seconds", lambda poll: looked.append(poll._seconds) or 0.0)
    bus, with_none = buses(busy_poll=0.01), buses(busy_poll=0)
    for connecting in (bus, with_none):
        await connecting.publish(stream, 1)
    looked.clear()
    await bus.publish(stream, 1)
    assert looked == [0.01]
    looked.clear()
    await bus.publish_many(stream, range(100))
    assert not looked, "what takes longer anyway is not looked for"
    await with_none.publish(stream, 1)
    assert looked == [0]


async def test_an_entry_has_the_fields_of_the_wire_format_in_their_order(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await buses(service="ai_engine").publish(
        stream, {"n": 1}, event="E", key="K", correlation_id="c-1", message_id="m-1", headers={"tenant": "eu", "a": ""}
    )
    [entry] = await stored(redis_client, stream)
    assert entry.names == [
        "v", "data", "event", "key", "message_id", "correlation_id", "traceparent", "service", "ts", "h.tenant", "h.a",
    ]  # fmt: skip
    assert entry["v"] == "1"
    assert entry["data"] == '{"n":1}'
    assert (entry["event"], entry["key"], entry["h.tenant"], entry["h.a"]) == ("E", "K", "eu", "")
    assert (entry["message_id"], entry["correlation_id"], entry["service"]) == ("m-1", "c-1", "ai_engine")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", entry["traceparent"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry["ts"])


async def test_what_is_not_given_is_not_written(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    receipt = await buses().publish(stream, None)
    [entry] = await stored(redis_client, stream)
    assert entry.names == ["v", "data", "message_id", "correlation_id", "traceparent", "service", "ts"]
    assert entry["data"] == "null"
    assert receipt.correlation_id == entry["correlation_id"] == entry["traceparent"].split("-")[1]


async def test_message_ids_are_unique_and_sort_by_time(buses: Buses, stream: str) -> None:
    bus = buses()
    first = await bus.publish(stream, 1)
    await eventually(lambda: datetime.now(UTC).timestamp() * 1000 > int(first.message_id.replace("-", "")[:12], 16) + 1)
    second = await bus.publish(stream, 2)
    assert uuid.UUID(first.message_id).version == 7
    assert first.message_id < second.message_id


@pytest.mark.parametrize("given", ["a1b2c3d4-e5f6-7890-abcd-ef1234567890", uuid.UUID(int=7)])
async def test_a_callers_ids_stay_as_they_are(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, given: str | uuid.UUID
) -> None:
    receipt = await buses().publish(stream, {}, correlation_id=given, message_id=given)
    [entry] = await stored(redis_client, stream)
    assert receipt.correlation_id == entry["correlation_id"] == str(given)
    assert receipt.message_id == entry["message_id"] == str(given)


async def test_a_publish_joins_the_correlation_scope_it_is_in(buses: Buses, stream: str) -> None:
    bus = buses()
    with correlation_scope("flow-7"):
        assert (await bus.publish(stream, {})).correlation_id == "flow-7"
        assert (await bus.publish(stream, {}, correlation_id="mine")).correlation_id == "mine"
    assert (await bus.publish(stream, {})).correlation_id not in ("flow-7", "mine")


async def test_a_malformed_correlation_id_is_replaced_and_the_message_goes_out(buses: Buses, stream: str) -> None:
    receipt = await buses().publish(stream, {}, correlation_id="two words\nand a line")
    assert re.fullmatch("[0-9a-f]{32}", receipt.correlation_id)


async def test_the_prefix_stands_before_every_streams_name(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    prefix = unique("staging:")
    bus = buses(prefix=prefix)
    handled: list[int] = []

    @bus.subscriber("orders")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        receipt = await bus.publish("orders", 1)
        results = await bus.publish_many("orders", [2])
        await eventually(lambda: sorted(handled) == [1, 2])
    assert receipt.stream == f"{prefix}orders"
    assert [result.stream for result in results if isinstance(result, Receipt)] == [f"{prefix}orders"]
    assert len(await stored(redis_client, f"{prefix}orders")) == 2


async def test_dataclasses_models_structs_ids_and_times_are_payloads(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    @dataclass
    class Order:
        symbol: str
        at: datetime

    class Model(pydantic.BaseModel):
        quantity: int

    class Struct(msgspec.Struct):
        of: uuid.UUID

    payload = [Order("BTC", datetime(2026, 1, 3, tzinfo=UTC)), Model(quantity=2), uuid.UUID(int=1)]
    payload.append(Struct(payload[-1]))
    await buses().publish(stream, payload)
    [entry] = await stored(redis_client, stream)
    assert entry["data"] == (
        '[{"symbol":"BTC","at":"2026-01-03T00:00:00+00:00"},{"quantity":2},"00000000-0000-0000-0000-000000000001",'
        '{"of":"00000000-0000-0000-0000-000000000001"}]'
    )


# --- refused, with nothing sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "error", "text"),
    [
        ({1, 2}, SerializationError, "set"),
        ({"deep": object()}, SerializationError, "object"),
        ({"x": float("nan")}, SerializationError, "nan"),
        ({"x": float("inf")}, SerializationError, "inf"),
        (b"bytes", SerializationError, "bytes"),
        (2**70, SerializationError, "64 bits"),
        ("x" * 1_048_575, PayloadTooLarge, "1,048,577 bytes of JSON, over the limit of 1,048,576"),
    ],
)
async def test_a_payload_that_cannot_go_out_is_refused_and_nothing_is_stored(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, payload: object, error: type[Exception], text: str
) -> None:
    bus = buses()
    with pytest.raises(error, match=text):
        await bus.publish(stream, payload)
    with pytest.raises(error, match=text):
        await bus.publish_many(stream, [1, payload, 2])
    assert await redis_client.exists(stream) == 0


async def test_the_longest_payload_allowed_goes_out(buses: Buses, stream: str) -> None:
    bus = buses(max_payload_bytes=10)
    assert (await bus.publish(stream, "x" * 8)).id
    with pytest.raises(PayloadTooLarge):
        await bus.publish(stream, "x" * 9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"event": ""}, "event"),
        ({"event": 7}, "event"),
        ({"key": "k" * 1025}, "key"),
        ({"message_id": "line\nbreak"}, "message_id"),
        ({"headers": {"n": 1}}, "headers"),
        ({"headers": [("a", "b")]}, "headers"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"wait_replicas": 0}, "wait_replicas"),
        ({"wait_replicas": True}, "wait_replicas"),
        ({"wait_replicas": 1.5}, "wait_replicas"),
        ({"wait_replicas": "1"}, "wait_replicas"),
    ],
)
async def test_a_wrong_argument_is_named_and_nothing_is_stored(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, arguments: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        await buses().publish(stream, {}, **arguments)
    assert await redis_client.exists(stream) == 0


@pytest.mark.parametrize("name", ["", "or{ders", None, 7, "\ud800"])
async def test_a_name_that_no_stream_can_have_is_refused(buses: Buses, name: object) -> None:
    bus = buses()
    with pytest.raises(ConfigurationError, match="stream"):
        await bus.publish(name, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="stream"):
        await bus.publish_many(name, [{}])  # type: ignore[arg-type]


# --- refused by Redis --------------------------------------------------------------------------------------------


async def test_a_key_that_is_no_stream_refuses_the_publish_by_name(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await redis_client.set(stream, "text")
    with pytest.raises(PublishError, match="is not a stream") as refused:
        await buses().publish(stream, {})
    assert stream in str(refused.value)
    assert isinstance(refused.value.__cause__, redis.exceptions.ResponseError)
    assert not isinstance(refused.value, (PublishTimeout, BackPressure))


async def test_redis_out_of_memory_is_back_pressure_and_passes(
    twin: str, own_redis: RedisProcess, backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    buses = Buses(twin, backend)
    bus = buses()
    await bus.publish(stream, 1)
    await redis_client.config_set("maxmemory", "1")
    with pytest.raises(BackPressure, match="maxmemory"):
        await bus.publish(stream, 2)
    results = await bus.publish_many(stream, [3, 4])
    assert [type(result) for result in results] == [BackPressure, BackPressure]
    await redis_client.config_set("maxmemory", "0")
    await bus.publish(stream, 5)
    assert [entry["data"] for entry in await stored(redis_client, stream)] == ["1", "5"]
    await buses.stop()


# --- many --------------------------------------------------------------------------------------------------------


async def test_publish_many_answers_for_each_item_in_order(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    items = [Event(n, event=f"E{n}", key="k", message_id=f"m-{n}") if n % 2 else n for n in range(1_200)]
    results = await buses().publish_many(stream, items)
    entries = await stored(redis_client, stream)
    assert [entry["data"] for entry in entries] == [str(n) for n in range(1_200)]
    assert [result.id for result in results if isinstance(result, Receipt)] == [entry.id for entry in entries]
    assert [entry["event"] for entry in entries[1::2]] == [f"E{n}" for n in range(1, 1_200, 2)]
    assert [result.message_id for result in results[1::2] if isinstance(result, Receipt)] == [
        f"m-{n}" for n in range(1, 1_200, 2)
    ]


async def test_publish_many_of_nothing_answers_nothing(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    assert await buses().publish_many(stream, []) == []
    assert await redis_client.exists(stream) == 0


async def test_publish_many_gives_each_refused_item_its_error(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await redis_client.set(stream, "text")
    results = await buses().publish_many(stream, [1, 2])
    assert [type(result) for result in results] == [PublishError, PublishError]
    assert all("is not a stream" in str(result) for result in results)


async def test_publish_many_tells_apart_what_was_stored_and_what_was_not(
    twin: str, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, prefix: str
) -> None:
    """The key turns from a stream into text between the two halves of one call."""
    assert real_backend.url is not None
    buses = Buses(twin, real_backend)
    halfway = 500  # the publisher's own chunk
    with Proxy(real_backend.url) as proxy:
        bus = buses(url=proxy.url)
        held = proxy.hold("XADD", after=halfway)
        call = asyncio.ensure_future(bus.publish_many(stream, range(halfway + 10)))
        await eventually(held.is_set)
        await redis_client.rename(stream, prefix + "moved")
        await redis_client.set(stream, "text")
        proxy.release()
        results = await call
        await buses.stop()
    assert [type(result) for result in results[:halfway]] == [Receipt] * halfway
    assert [type(result) for result in results[halfway:]] == [PublishError] * 10
    assert len(await stored(redis_client, prefix + "moved")) == halfway


# --- together ----------------------------------------------------------------------------------------------------


async def test_concurrent_publishes_share_round_trips_and_each_gets_its_own_receipt(
    twin: str, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    assert real_backend.url is not None
    buses = Buses(twin, real_backend)
    with Proxy(real_backend.url) as proxy:
        bus = buses(url=proxy.url)
        await bus.publish(stream, "first, to connect")
        held = proxy.hold("XADD")  # while one is under way, the others gather
        calls = [asyncio.ensure_future(bus.publish(stream, 0, message_id="0"))]
        await eventually(held.is_set)
        calls += [asyncio.ensure_future(bus.publish(stream, n, message_id=str(n))) for n in range(1, 60)]
        if twin == ASYNCIO:
            await asyncio.sleep(0)  # each has its turn
        else:
            await eventually(lambda: waiting_publishes(bus.raw) >= 59)
        before = proxy.reads
        proxy.release()
        receipts = await asyncio.gather(*calls)
        round_trips = proxy.reads - before
        await buses.stop()
    by_message = {entry["message_id"]: entry for entry in await stored(redis_client, stream)}
    for n, receipt in enumerate(receipts):
        assert receipt.message_id == str(n)
        assert by_message[str(n)]["data"] == str(n)
        assert by_message[str(n)].id == receipt.id
    assert round_trips <= 3, "59 publishes that wait together are written together"


def waiting_publishes(raw: object) -> int:
    """How many requests wait in the threads' link."""
    return len(raw._link._waiting)  # type: ignore[attr-defined]


async def test_a_refused_publish_does_not_disturb_those_written_with_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    wrong = unique("text")
    await redis_client.set(wrong, "text")
    bus = buses()
    results = await asyncio.gather(
        *(bus.publish(wrong if n % 3 == 0 else stream, n) for n in range(30)), return_exceptions=True
    )
    assert [type(result) for result in results] == [PublishError if n % 3 == 0 else Receipt for n in range(30)]
    assert len(await stored(redis_client, stream)) == 20


@pytest.mark.parametrize("twin", [ASYNCIO])  # a thread's call cannot be cancelled
async def test_a_cancelled_publish_does_not_disturb_the_others(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    calls = [asyncio.ensure_future(bus.publish(stream, n)) for n in range(40)]
    for delay in range(3):  # before it is written, and on its way
        for call in calls[delay::4]:
            call.cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    entries = {entry["message_id"]: (entry.id, entry["data"]) for entry in await stored(redis_client, stream)}
    for n, result in enumerate(results):
        if isinstance(result, Receipt):
            assert entries[result.message_id] == (result.id, str(n))
        else:
            assert isinstance(result, asyncio.CancelledError)
    assert all(isinstance(result, Receipt) for result in results[3::4])
    assert (await bus.publish(stream, "after")).id


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_publish_cancelled_before_it_is_written_is_never_stored(
    twin: str, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    assert real_backend.url is not None
    buses = Buses(twin, real_backend)
    with Proxy(real_backend.url) as proxy:
        bus = buses(url=proxy.url)
        held = proxy.hold("XADD")
        calls = [asyncio.ensure_future(bus.publish(stream, 0))]
        await eventually(held.is_set)
        calls += [asyncio.ensure_future(bus.publish(stream, n)) for n in range(1, 4)]
        await asyncio.sleep(0)  # they wait behind the first one
        calls[2].cancel()
        proxy.release()
        await asyncio.gather(*calls, return_exceptions=True)
        await buses.stop()
    assert [entry["data"] for entry in await stored(redis_client, stream)] == ["0", "1", "3"]
