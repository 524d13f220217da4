"""What nobody reckons with: handlers that end in odd ways, keys that others write to, groups that go.

A subscriber goes on. Before, a message was held for ever in these cases, or the subscriber stood still.
"""

import asyncio
from typing import Any

import pytest
import redis.asyncio
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from quantum_bus import Event, EventBus, Message, Retry, names
from quantum_bus.streams import Keys
from tests.contract.conditions import Gate, eventually, pause
from tests.contract.entries import all_acked, stored
from tests.contract.recording import Recorder
from tests.contract.twins import ASYNCIO, Buses

ONCE = Retry(max_attempts=1)


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(getattr(record, "event", "") == event for record in caplog.records)


# --- handlers --------------------------------------------------------------------------------------------------------


class Odd(BaseException):
    """As pytest's own failures: no Exception."""


@pytest.mark.parametrize("raised", [SystemExit, Odd, StopIteration])
@pytest.mark.parametrize("is_async", [True, False], ids=["async def", "def"])
@pytest.mark.parametrize("timeout", [None, 20.0])
async def test_a_handler_that_raises_what_no_handler_should_ends_its_message_and_no_worker(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    dlq: str,
    raised: type[BaseException],
    timeout: float | None,
    *,
    is_async: bool,
) -> None:
    # fails without: an outcome of each; its message was kept for ever, and one fewer handled at once, or the loop ended
    bus = buses()
    handled: list[int] = []

    def handle(message: Message) -> None:
        if message.data < 3:
            raise raised("no")
        handled.append(message.data)

    async def handle_async(message: Message) -> None:
        handle(message)

    bus.subscriber(stream, concurrency=2, retry=ONCE, timeout=timeout)(handle_async if is_async else handle)
    await bus.publish_many(stream, list(range(6)))
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == [3, 4, 5]
    errors = [entry["dlq.error_type"].rpartition(".")[2] for entry in await stored(redis_client, dlq)]
    of_a_coroutine = "RuntimeError" if raised is StopIteration else raised.__name__  # Python makes it of one
    assert errors in ([raised.__name__] * 3, [of_a_coroutine] * 3)


async def test_a_handler_that_is_cancelled_from_within_is_tried_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, concurrency=1, retry=Retry(initial=0.01))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise asyncio.CancelledError

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert attempts == [1, 2]


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_handler_whose_task_is_cancelled_by_others_is_tried_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, concurrency=1, retry=Retry(initial=0.01))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(30)

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert attempts == [1, 2]


class Raises(SpanProcessor):
    """A span processor of somebody's."""

    def __init__(self) -> None:
        self.at: str = ""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.at == "start" and span.name.startswith("process"):
            raise RuntimeError("at the start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.at == "end" and span.name.startswith("process"):
            raise RuntimeError("at the end")


@pytest.mark.parametrize(("at", "runs"), [("start", 1), ("end", 2)])
async def test_telemetry_that_raises_changes_no_outcome(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    caplog: pytest.LogCaptureFixture,
    at: str,
    runs: int,
) -> None:
    recorder, processor = Recorder(), Raises()
    recorder.tracers.add_span_processor(processor)
    bus = buses(**recorder.options)
    handled: list[Any] = []

    @bus.subscriber(stream, concurrency=1, retry=Retry(initial=0.01))
    async def handle(message: Message) -> None:
        handled.append(message.data)

    async with bus:
        processor.at = at
        await bus.publish(stream, 1)
        await eventually(lambda: said(caplog, names.EVENT_BUS_INTERNAL_ERROR))
        if at == "start":  # nothing ran: it is tried again
            processor.at = ""
        await bus.publish(stream, 2)
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == [1, 2]
    recorder.close()


async def test_a_span_that_cannot_be_ended_changes_nothing_of_a_publish(
    buses: Buses, stream: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    # fails without: catching it; publish() raised, though the message was stored
    class RaisesAtTheEnd(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("at the end")

    recorder.tracers.add_span_processor(RaisesAtTheEnd())
    assert (await buses(**recorder.options).publish(stream, 1)).id
    assert said(caplog, names.EVENT_BUS_INTERNAL_ERROR)


# --- keys that others write to ---------------------------------------------------------------------------------------


async def test_what_others_put_into_a_retry_stream_is_dead_lettered(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    handled: list[Any] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        handled.append(message.data)

    async with bus:
        retry = Keys.of(stream, "svc").retry
        await redis_client.xadd(retry, {"a": "b"})
        await redis_client.xadd(retry, {b"\xff": b"\xff", "a": 1, "b": 2, "c": 3, "d": 4})
        await bus.publish(stream, "good")
        await eventually(lambda: handled)
        await eventually(lambda: all_acked(redis_client, stream))
    dead = await stored(redis_client, dlq)
    assert [entry.pairs[0] for entry in dead] == [("a", "b"), ("\udcff", "\udcff")]
    assert {entry["dlq.reason"] for entry in dead} == {names.REASON_UNDECODABLE}
    assert await redis_client.xlen(retry) == 0


async def test_a_mark_of_another_type_holds_nothing_up(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[str] = []

    @bus.subscriber(stream, idempotent=60.0, concurrency=4)
    async def handle(message: Message) -> None:
        handled.append(message.message_id)

    await redis_client.sadd(Keys.of(stream, "svc").seen + "m-1", "odd")
    await bus.publish_many(stream, [Event({}, message_id=f"m-{number}") for number in range(4)])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == ["m-0", "m-1", "m-2", "m-3"]


async def test_groups_whose_names_share_a_beginning_share_no_marks(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[tuple[str, str]] = []

    @bus.subscriber(stream, group="svc", idempotent=60.0)
    async def first(message: Message) -> None:
        handled.append((message.group, message.message_id))

    @bus.subscriber(stream, group="svc:eu", idempotent=60.0)
    async def second(message: Message) -> None:
        handled.append((message.group, message.message_id))

    async with bus:
        for message_id in ("eu:1", "1"):
            await bus.publish(stream, {}, message_id=message_id)
            for group in ("svc", "svc:eu"):
                await eventually(lambda group=group: all_acked(redis_client, stream, group))
    assert sorted(handled) == [("svc", "1"), ("svc", "eu:1"), ("svc:eu", "1"), ("svc:eu", "eu:1")]


@pytest.mark.parametrize("fails", [True, False])
async def test_an_entry_that_is_deleted_while_it_runs_leaves_no_mark(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, fails: bool
) -> None:
    """Its copy would wait until the window ends."""
    bus = buses()
    gate = Gate()
    handled: list[str] = []

    @bus.subscriber(stream, idempotent=3_600.0, ack_wait=0.9)
    async def handle(message: Message) -> None:
        handled.append(message.id)
        if len(handled) == 1:
            await gate.passed()
            if fails:
                raise ValueError

    async with bus:
        first = (await bus.publish(stream, {}, message_id="m")).id
        await eventually(lambda: handled == [first])
        await redis_client.xdel(stream, first)
        second = (await bus.publish(stream, {}, message_id="m")).id
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
    # where the deleted one was handled to its end and could be acked, its copy is skipped, and that is right
    assert handled in ([first, second], [first])
    mark = await redis_client.get(Keys.of(stream, "svc").seen + "m")
    assert mark is not None
    assert mark.startswith(b"done:")


# --- groups that go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"idempotent": 60.0}, {"ordered": True}], ids=["idempotent", "ordered"])
async def test_a_group_that_vanishes_under_a_full_consumer_is_made_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, options: dict[str, Any]
) -> None:
    bus = buses(block=0.05)
    handled: set[Any] = set()

    @bus.subscriber(stream, concurrency=1, **options)
    async def handle(message: Message) -> None:
        handled.add(message.data)
        await pause(0.002)

    await bus.publish_many(stream, list(range(300)))
    async with bus:
        for count in (20, 80, 140):
            await eventually(lambda count=count: len(handled) >= count)
            await redis_client.xgroup_destroy(stream, "svc")
        await eventually(lambda: len(handled) == 300)


@pytest.mark.parametrize("start", ["new", "beginning"])
async def test_a_group_that_was_destroyed_while_its_service_was_down_goes_on_where_it_had_come_to(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, start: str
) -> None:
    handled: list[Any] = []

    def bus() -> Any:
        made = buses()

        @made.subscriber(stream, start=start)
        async def handle(message: Message) -> None:
            handled.append(message.data)

        return made

    first = bus()
    async with first:
        await first.publish(stream, "before")
        await eventually(lambda: handled == ["before"])
        await eventually(lambda: all_acked(redis_client, stream))
        last = (await redis_client.xrevrange(stream, count=1))[0][0]

        async def noted() -> bool:
            return await redis_client.hget(Keys.of(stream, "svc").notes, "low:svc") == last

        await eventually(noted)
    await redis_client.xgroup_destroy(stream, "svc")
    await buses().publish(stream, "meanwhile")
    async with bus():
        await eventually(lambda: len(handled) == 2)
    assert handled == ["before", "meanwhile"]


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_bus_is_paused_and_resumed_from_any_thread(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quantum_bus")
    bus = buses()
    handled: list[Any] = []
    assert isinstance(bus.raw, EventBus)

    @bus.subscriber(stream, concurrency=1)
    def handle(message: Message) -> None:
        handled.append(message.data)
        if message.data == 0:
            bus.raw.pause()

    async with bus:
        await bus.publish(stream, 0)
        await eventually(lambda: said(caplog, names.EVENT_BUS_PAUSED))
        await eventually(lambda: all_acked(redis_client, stream))
        await bus.publish(stream, 1)
        await asyncio.to_thread(bus.raw.resume)
        await eventually(lambda: handled == [0, 1])
