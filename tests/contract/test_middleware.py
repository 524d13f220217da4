"""Middleware: an ordered chain around publish and around process."""

from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import ConfigurationError, Event, Message, PublishError, Receipt, Reject, Retry, get_correlation_id
from tests.contract.conditions import eventually, in_event_loop, pause
from tests.contract.entries import all_acked, stored
from tests.contract.recording import Recorder, attributes_of, traceparent
from tests.contract.twins import ASYNCIO, Buses


def noting(name: str, notes: list[str]) -> Any:
    async def middleware(item: Any, call_next: Any) -> Any:
        kind = "publish" if isinstance(item, Event) else "process"
        notes.append(f"{name} before {kind}")
        try:
            return await call_next(item)
        finally:
            notes.append(f"{name} after {kind}")

    return middleware


async def test_the_first_middleware_is_the_outermost_around_publish_and_process(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    notes: list[str] = []
    bus = buses(middleware=[noting("a", notes), noting("b", notes)])
    bus.add_middleware(noting("c", notes))

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None:
        notes.append("handler")

    await bus.publish(stream, {})
    assert notes == [
        "a before publish", "b before publish", "c before publish",
        "c after publish", "b after publish", "a after publish",
    ]  # fmt: skip
    notes.clear()
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert notes == [
        "a before process", "b before process", "c before process", "handler",
        "c after process", "b after process", "a after process",
    ]  # fmt: skip


async def test_middleware_sees_the_event_and_may_change_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    seen: list[Event] = []

    async def middleware(event: Any, call_next: Any) -> Any:
        seen.append(event)
        return await call_next(replace(event, payload={"wrapped": event.payload}, headers={"tenant": "eu"}))

    bus = buses(middleware=[middleware])
    receipt = await bus.publish(stream, 1, event="E", key="K", message_id="m-1")
    results = await bus.publish_many(stream, [2, Event(3, key="other")])
    assert seen[0] == Event(1, event="E", key="K", message_id="m-1", stream=stream)
    entries = await stored(redis_client, stream)
    assert [entry["data"] for entry in entries] == ['{"wrapped":1}', '{"wrapped":2}', '{"wrapped":3}']
    assert [entry["h.tenant"] for entry in entries] == ["eu"] * 3
    assert [receipt.id, *[result.id for result in results if isinstance(result, Receipt)]] == [e.id for e in entries]


async def test_publish_many_keeps_its_order_behind_middleware_that_takes_its_time(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    async def middleware(event: Any, call_next: Any) -> Any:
        await pause(0.02 if event.payload == 0 else 0)
        return await call_next(event)

    results = await buses(middleware=[middleware]).publish_many(stream, range(5))
    entries = await stored(redis_client, stream)
    assert [entry["data"] for entry in entries] == ["0", "1", "2", "3", "4"]
    assert [result.id for result in results if isinstance(result, Receipt)] == [entry.id for entry in entries]


async def test_publish_many_is_one_span_behind_middleware_too(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, recorder: Recorder
) -> None:
    # fails without: one scope around all of them; each had a span, a trace and a flow of its own
    async def middleware(event: Any, call_next: Any) -> Any:
        if event.payload == 2:
            raise PublishError("not this one")
        return await call_next(replace(event, headers={"h": "1"}))

    bus = buses(middleware=[middleware], **recorder.options)
    results = await bus.publish_many(stream, [1, 2, Event(3, event="E")])
    entries = await stored(redis_client, stream)
    [span] = recorder.spans
    assert {entry["traceparent"].rpartition("-")[0] for entry in entries} == {traceparent(span)}
    assert attributes_of(span)["messaging.batch.message_count"] == 3
    assert span.status.description == "1 of 3 messages were not confirmed"
    flow = f"{span.context.trace_id:032x}"
    assert [entry["correlation_id"] for entry in entries] == [flow] * 2
    assert attributes_of(span)["messaging.message.conversation_id"] == flow
    assert [getattr(result, "correlation_id", None) for result in results] == [flow, None, flow]
    assert recorder.value("messaging.client.sent.messages") == 3
    assert await bus.publish_many(stream, []) == []
    assert len(recorder.spans) == 1


async def test_middleware_may_stop_a_publish(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    async def middleware(event: Any, call_next: Any) -> Any:
        raise PermissionError("not today")

    with pytest.raises(PermissionError, match="not today"):
        await buses(middleware=[middleware]).publish(stream, 1)
    assert await redis_client.exists(stream) == 0


async def test_middleware_that_swallows_the_receipt_is_told_so(buses: Buses, stream: str) -> None:
    async def middleware(event: Any, call_next: Any) -> Any:
        await call_next(event)

    with pytest.raises(ConfigurationError, match=r"return .*call_next"):
        await buses(middleware=[middleware]).publish(stream, 1)


async def test_middleware_may_stop_a_handler(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    handled: list[int] = []

    async def middleware(item: Any, call_next: Any) -> Any:
        if isinstance(item, Message) and item.data == 1:
            return None  # the message counts as handled
        return await call_next(item)

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    await bus.publish_many(stream, [1, 2])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [2]


async def test_an_error_in_middleware_is_a_failed_run(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    runs: list[int] = []

    async def middleware(item: Any, call_next: Any) -> Any:
        if isinstance(item, Message):
            runs.append(item.attempt)
            if item.attempt == 2:
                raise Reject("by middleware")
            raise ValueError
        return await call_next(item)

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream, retry=Retry(initial=0))
    async def handle(number: int) -> None:
        raise AssertionError("never reached")

    await bus.publish(stream, 1)
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
    assert runs == [1, 2]
    assert dead["dlq.error_message"] == "by middleware"


async def test_middleware_may_turn_an_error_into_success(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    async def middleware(item: Any, call_next: Any) -> Any:
        try:
            return await call_next(item)
        except KeyError:
            return None

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        raise KeyError

    await bus.publish(stream, 1)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert not await stored(redis_client, dlq)


async def test_middleware_runs_in_the_flow_of_the_message(buses: Buses, stream: str) -> None:
    found: list[str | None] = []

    async def middleware(item: Any, call_next: Any) -> Any:
        if isinstance(item, Message):
            found.append(get_correlation_id())
        return await call_next(item)

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream)
    async def handle(number: int) -> None: ...

    await bus.publish(stream, 1, correlation_id="flow-1")
    async with bus:
        await eventually(lambda: found == ["flow-1"])


async def test_around_a_batch_middleware_sees_the_list(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    seen: list[Any] = []

    async def middleware(item: Any, call_next: Any) -> Any:
        if not isinstance(item, Event):
            seen.append(item)
        return await call_next(item)

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream, batch=3, concurrency=1)
    async def handle(numbers: list[int]) -> None: ...

    await bus.publish_many(stream, [1, 2, 3])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert [[message.data for message in messages] for messages in seen] == [[1, 2, 3]]


async def test_middleware_may_time_a_handler(buses: Buses, stream: str, twin: str) -> None:
    """It runs where the handler runs: in the event loop, or in the handler's thread."""
    where: list[bool] = []

    async def middleware(item: Any, call_next: Any) -> Any:
        if isinstance(item, Message):
            where.append(in_event_loop())
        return await call_next(item)

    bus = buses(middleware=[middleware])

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        where.append(in_event_loop())

    async with bus:
        await bus.publish(stream, 1)
        await eventually(lambda: len(where) == 2)
    assert where == [twin == ASYNCIO] * 2
