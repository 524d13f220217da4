"""The flow: whatever a handler does belongs to the flow of its message, and to no other."""

import asyncio
import contextvars
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis.asyncio
from opentelemetry import baggage, context, trace

from quantum_bus import Event, Message, Retry, carry_context, correlation_scope, get_correlation_id
from quantum_bus.propagation import get_causation_id
from tests.contract.conditions import eventually, pause
from tests.contract.entries import all_acked, stored
from tests.contract.twins import ASYNCIO, Buses

Unique = Callable[[str], str]


async def test_what_a_handler_publishes_belongs_to_the_flow_and_names_its_cause(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    bus = buses()
    a, b, c = unique("a"), unique("b"), unique("c")

    @bus.subscriber(a)
    async def on_a(n: int) -> None:
        await bus.publish(b, n + 1)

    @bus.subscriber(b)
    async def on_b(n: int) -> None:
        await bus.publish_many(c, [n + 1, Event(n + 2)])

    async with bus:
        first = await bus.publish(a, 1, correlation_id="flow-1")
        await eventually(lambda: all_acked(redis_client, b))
    [second] = await stored(redis_client, b)
    third = await stored(redis_client, c)
    assert [entry["correlation_id"] for entry in (second, *third)] == ["flow-1"] * 3
    assert second["causation_id"] == first.message_id
    assert [entry["causation_id"] for entry in third] == [second["message_id"]] * 2
    [origin] = await stored(redis_client, a)
    assert "causation_id" not in origin.names
    traces = {entry["traceparent"].split("-")[1] for entry in (origin, second, *third)}
    assert len(traces) == 1, "without an SDK the flow is one trace too"
    spans = {entry["traceparent"].split("-")[2] for entry in (origin, second, third[0])}
    assert len(spans) == 3


async def test_a_handler_finds_its_flow_in_the_context_variables(buses: Buses, stream: str) -> None:
    bus = buses()
    found: list[tuple[str | None, str | None, str]] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        span = trace.get_current_span().get_span_context()
        found.append((get_correlation_id(), get_causation_id(), f"{span.trace_id:032x}"))

    async with bus:
        with correlation_scope("the publisher's"):
            receipt = await bus.publish(stream, {}, correlation_id="flow-1")
        await eventually(lambda: found)
        assert get_correlation_id() is None
    [(correlation_id, causation_id, _)] = found
    assert (correlation_id, causation_id) == ("flow-1", receipt.message_id)


async def test_a_handler_does_not_inherit_the_context_the_bus_was_started_in(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses()
    found: list[object] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        found.append((get_correlation_id(), baggage.get_all()))

    token = context.attach(baggage.set_baggage("tenant", "of the starter"))
    try:
        with correlation_scope("of-the-starter"):
            await bus.start()
    finally:
        context.detach(token)
    await redis_client.xadd(stream, {"correlation_id": "flow-1", "data": "{}"})
    await eventually(lambda: found)
    await bus.stop()
    assert found == [("flow-1", {})]


async def test_what_a_handler_leaves_set_does_not_reach_the_next(buses: Buses, stream: str) -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="clean")
    bus = buses()
    found: list[str] = []

    @bus.subscriber(stream, concurrency=1)
    async def handle(number: int) -> None:
        found.append(mine.get())
        mine.set(f"left by {number}")
        context.attach(baggage.set_baggage("left", "behind"))  # and never detached
        found.append(str(len(baggage.get_all())))

    async with bus:
        await bus.publish_many(stream, range(3))
        await eventually(lambda: len(found) == 6)
    assert found == ["clean", "1"] * 3


async def test_every_retry_is_in_the_same_flow(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses()

    @bus.subscriber(stream, retry=Retry(initial=0, max_attempts=3))
    async def handle(message: Message) -> None:
        await bus.publish(unique("next"), message.attempt)
        if message.attempt < 3:
            raise ValueError

    async with bus:
        receipt = await bus.publish(stream, {})
        await eventually(lambda: all_acked(redis_client, stream))
    following = await stored(redis_client, unique("next"))
    assert [entry["data"] for entry in following] == ["1", "2", "3"]
    assert {entry["correlation_id"] for entry in following} == {receipt.correlation_id}
    assert {entry["causation_id"] for entry in following} == {receipt.message_id}


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_tasks_threads_and_executors_of_a_handler_are_in_its_flow(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    found: list[str | None] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(remember())
        await asyncio.to_thread(note)
        thread = threading.Thread(target=carry_context(note))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as executor:
            executor.submit(carry_context(note)).result()

    def note() -> None:
        found.append(get_correlation_id())

    async def remember() -> None:
        note()

    async with bus:
        await bus.publish(stream, {}, correlation_id="flow-1")
        await eventually(lambda: all_acked(redis_client, stream))
    assert found == ["flow-1"] * 4


async def test_baggage_is_continued_within_a_flow(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        await bus.publish(unique("next"), {})

    token = context.attach(baggage.set_baggage("tenant", "eu 1"))
    try:
        await bus.publish(stream, {})
    finally:
        context.detach(token)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    for name in (stream, unique("next")):
        [entry] = await stored(redis_client, name)
        assert entry["baggage"] == "tenant=eu%201"


@pytest.mark.parametrize(
    ("flows", "tenants", "carried"),
    [
        (["f", "f"], ["eu", "eu"], "tenant=eu"),
        (["f", "f"], ["eu", "us"], None),
        (["f", "g"], ["eu", "eu"], None),
    ],
    ids=["one flow", "one flow of two minds", "two flows"],
)
async def test_a_batch_of_one_flow_continues_its_baggage(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    unique: Unique,
    flows: list[str],
    tenants: list[str],
    carried: str | None,
) -> None:
    bus = buses()

    @bus.subscriber(stream, batch=2)
    async def handle(messages: list[Message]) -> None:
        assert len(messages) == 2
        await bus.publish(unique("next"), {})

    for flow, tenant in zip(flows, tenants, strict=True):
        await redis_client.xadd(stream, {"data": "{}", "correlation_id": flow, "baggage": f"tenant={tenant}"})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    [entry] = await stored(redis_client, unique("next"))
    assert dict(entry.pairs).get("baggage") == carried


async def test_a_publisher_can_be_told_to_drop_baggage(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    token = context.attach(baggage.set_baggage("tenant", "eu"))
    try:
        await buses(send_baggage=False).publish(stream, {})
    finally:
        context.detach(token)
    [entry] = await stored(redis_client, stream)
    assert "baggage" not in entry.names


async def test_a_batch_of_one_flow_is_in_it_and_one_of_several_is_in_a_flow_of_its_own(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    bus = buses()
    one, several = unique("one"), unique("several")
    found: dict[str, str | None] = {}

    @bus.subscriber(one, several, batch=3, concurrency=1)
    async def handle(messages: list[Message]) -> None:
        found[messages[0].data] = get_correlation_id()

    await bus.publish_many(one, [Event("one", correlation_id="flow-1")] * 3)
    async with bus:
        await eventually(lambda: "one" in found)
    other = buses()

    @other.subscriber(several, batch=3, concurrency=1)
    async def handle_several(messages: list[Message]) -> None:
        found["several"] = get_correlation_id()
        await other.publish(unique("next"), {})

    await other.publish_many(several, [Event("several", correlation_id=f"flow-{n}") for n in range(3)])
    async with other:
        await eventually(lambda: all_acked(redis_client, several))
    assert found["one"] == "flow-1"
    [following] = await stored(redis_client, unique("next"))
    assert found["several"] not in {"flow-0", "flow-1", "flow-2", None}
    assert following["correlation_id"] == found["several"]
    assert "causation_id" not in following.names


async def test_a_thousand_concurrent_flows_never_leak_into_one_another(
    buses: Buses, backend: Any, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    """1,000 concurrent publishes, 3 consumers of 16 handlers each, and a pause wherever there can be one."""
    count = 1_000
    teams = [buses() for _ in range(3)]
    wrong: list[object] = []
    handled: list[str] = []
    rng = random.Random(7)

    def here() -> tuple[object, ...]:
        span = trace.get_current_span().get_span_context()
        return (get_correlation_id(), get_causation_id(), span.trace_id, span.span_id, baggage.get_baggage("flow"))

    for bus in teams:

        @bus.subscriber(stream, concurrency=16)
        async def handle(number: int, message: Message, bus: Any = bus) -> None:
            at_first = here()
            if at_first[:2] != (f"flow-{number}", message.message_id) or at_first[4] != str(number):
                wrong.append((number, at_first))
            for _ in range(3):
                await pause(rng.random() * 0.002)
                if here() != at_first:
                    wrong.append((number, at_first, here()))
            await bus.publish(unique("next"), number, timeout=60.0)
            await pause(rng.random() * 0.002)
            if here() != at_first:
                wrong.append((number, at_first, here()))
            handled.append(message.message_id)

    async def publish(number: int) -> Any:
        token = context.attach(baggage.set_baggage("flow", str(number)))
        try:
            if number % 2:
                with correlation_scope(f"flow-{number}"):
                    await asyncio.sleep(rng.random() * 0.01)
                    return await teams[0].publish(stream, number, timeout=60.0)
            return await teams[0].publish(stream, number, correlation_id=f"flow-{number}", timeout=60.0)
        finally:
            context.detach(token)

    async with teams[0], teams[1], teams[2]:
        receipts = await asyncio.gather(*(publish(number) for number in range(count)))
        await eventually(lambda: len(handled) >= count)
        await eventually(lambda: all_acked(redis_client, stream))
    assert not wrong
    assert sorted(handled) == sorted(receipt.message_id for receipt in receipts)
    following = await stored(redis_client, unique("next"))
    assert len(following) == count
    for entry in following:
        number = int(entry["data"])
        assert entry["correlation_id"] == f"flow-{number}"
        assert entry["causation_id"] == receipts[number].message_id
        assert entry["baggage"] == f"flow={number}"
    first = {
        entry["correlation_id"]: entry["traceparent"].split("-")[1] for entry in await stored(redis_client, stream)
    }
    for entry in following:
        assert entry["traceparent"].split("-")[1] == first[entry["correlation_id"]]
