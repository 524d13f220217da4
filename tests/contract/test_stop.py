"""Start, stop and run: what is begun is ended, and nothing is taken that cannot be."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import BusClosed, ConfigurationError, ConnectionLost, Message
from quantum_bus.backoff import Backoff
from quantum_bus.demo.redis_server import RedisProcess
from tests.contract.backends import Backend
from tests.contract.conditions import Gate, eventually, pause
from tests.contract.entries import all_acked, delivered, pending, stored
from tests.contract.twins import ASYNCIO, Buses

Unique = Callable[[str], str]


# --- start -------------------------------------------------------------------------------------------------------


async def test_publishing_needs_no_start(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    await buses().publish(stream, 1)
    assert len(await stored(redis_client, stream)) == 1


async def test_starting_twice_is_starting_once(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        handled.append(number)

    await bus.start()
    await bus.start()
    await bus.publish(stream, 1)
    await eventually(lambda: all_acked(redis_client, stream))
    await bus.stop()
    assert handled == [1]


@pytest.mark.parametrize("started", [True, False])
async def test_stopping_twice_or_without_a_start_does_no_harm(buses: Buses, started: bool) -> None:
    bus = buses()
    if started:
        await bus.start()
    await bus.stop()
    await bus.stop()


@pytest.mark.parametrize("timeout", [None, "5", -1, float("nan"), True])
async def test_a_time_to_stop_that_is_none_is_refused_and_the_bus_can_still_be_stopped(
    buses: Buses, timeout: Any
) -> None:
    # fails without: the check before anything is changed; every later stop() returned at once, and handlers ran on
    bus = buses()
    await bus.start()
    with pytest.raises(ConfigurationError, match="timeout="):
        await bus.stop(timeout)
    await bus.stop()
    with pytest.raises(BusClosed):
        await bus.publish("s", 1)


async def test_a_handler_that_stops_its_own_bus_is_told_what_to_call(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # fails without: a look at who calls; it waited for itself, or was told that a thread cannot join itself
    bus = buses()
    errors: list[str] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        try:
            await bus.stop()
        except ConfigurationError as error:
            errors.append(str(error))

    await bus.publish(stream, 1)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(errors) == 1
    assert "request_stop()" in errors[0]


async def test_a_stopped_bus_publishes_no_more_and_says_so(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(service="auto_executor")
    async with bus:
        await bus.publish(stream, 1)
    with pytest.raises(BusClosed, match="auto_executor"):
        await bus.publish(stream, 2)
    with pytest.raises(BusClosed):
        await bus.publish_many(stream, [2])
    with pytest.raises(BusClosed):
        await bus.start()
    assert len(await stored(redis_client, stream)) == 1


async def test_a_bus_that_published_and_was_never_started_can_be_stopped(buses: Buses, stream: str) -> None:
    bus = buses()
    await bus.publish(stream, 1)
    await bus.stop()
    with pytest.raises(BusClosed):
        await bus.publish(stream, 2)


async def test_where_there_is_no_redis_start_says_so_within_its_timeout(
    buses: Buses, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def noted(self: Backoff, following: Callable[[Backoff], float] = Backoff.next) -> float:
        pauses.append(following(self))
        return pauses[-1]

    monkeypatch.setattr(Backoff, "next", noted)
    bus = buses(url="redis://user:hunter2@127.0.0.1:1/0", connect_timeout=0.2)
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1") as refused:
            await bus.start()
    assert sum(pauses[:-1]) < 1, "the last is the one that there is no time for"
    assert "hunter2" not in str(refused.value)


async def test_after_a_start_that_failed_the_bus_is_closed(buses: Buses, stream: str) -> None:
    bus = buses(url="redis://127.0.0.1:1/0", connect_timeout=0.1)
    with pytest.raises(ConnectionLost):
        await bus.start()
    with pytest.raises(BusClosed):
        await bus.publish(stream, 1)


# --- stop --------------------------------------------------------------------------------------------------------


async def test_stop_waits_for_running_handlers_and_takes_no_new_messages(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    began, gate = Gate(), Gate()
    handled: list[int] = []

    @bus.subscriber(stream, concurrency=2)
    async def handle(number: int) -> None:
        if number == 1:
            began.open()
        await gate.passed()
        handled.append(number)

    await bus.start()
    await bus.publish_many(stream, [0, 1])
    await began.passed()
    stopping = asyncio.ensure_future(bus.stop(timeout=20))
    await eventually(lambda: _is_stopping(bus))
    await buses().publish_many(stream, [2, 3])
    assert not stopping.done()
    gate.open()
    await stopping
    assert sorted(handled) == [0, 1]
    assert not await pending(redis_client, stream)
    entries = await stored(redis_client, stream)
    assert await delivered(redis_client, stream) == entries[1].id, "the later ones are left for the next consumer"


def _is_stopping(bus: Any) -> bool:
    return bool(bus.raw._state.value == "stopping")


async def test_what_is_published_in_a_draining_handler_still_goes_out(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses()
    began, gate = Gate(), Gate()

    @bus.subscriber(stream)
    async def handle(number: int) -> None:
        began.open()
        await gate.passed()
        await bus.publish(unique("next"), number)

    await bus.start()
    await bus.publish(stream, 1)
    await began.passed()
    stopping = asyncio.ensure_future(bus.stop(timeout=20))
    await eventually(lambda: _is_stopping(bus))
    gate.open()
    await stopping
    assert len(await stored(redis_client, unique("next"))) == 1
    assert not await pending(redis_client, stream)


async def test_handlers_past_the_deadline_are_left_and_their_messages_stay_pending(
    buses: Buses,
    twin: str,
    redis_client: redis.asyncio.Redis,
    stream: str,
    dlq: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = buses()
    began, gate = Gate(), Gate()
    ended: list[str] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        began.open()
        try:
            await gate.passed()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    await bus.start()
    receipt = await bus.publish(stream, 1)
    await began.passed()
    async with asyncio.timeout(15):  # the handler would go on for longer
        await bus.stop(timeout=0.1)
    assert ended == (["cancelled"] if twin == ASYNCIO else [])
    gate.open()  # a thread cannot be cancelled: it ends by itself, and writes nothing
    await eventually(lambda: ended)
    assert await pending(redis_client, stream) == [receipt.id]
    assert not await stored(redis_client, dlq)
    assert "BUS_ABANDONED" in [getattr(record, "event", "") for record in caplog.records]


async def test_stop_is_prompt_while_a_read_blocks_and_strands_nothing(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    for number in range(5):
        bus = buses(block=60.0)

        @bus.subscriber(stream)
        async def handle(payload: Any) -> None: ...

        await bus.start()
        if number % 2:  # also where the read is not there yet
            await eventually(lambda: _one_blocks(redis_client))
        async with asyncio.timeout(20):
            await bus.stop()
        receipt = await buses().publish(stream, number)
        assert receipt.id not in await pending(redis_client, stream), "no read is left behind that would take it"
    assert len(await stored(redis_client, stream)) == 5


async def _one_blocks(client: redis.asyncio.Redis) -> bool:
    return any(int(item["flags"].count("b")) for item in await client.client_list())


async def test_a_bus_that_stops_under_load_leaves_every_message_acked_or_to_the_next(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    handled: list[int] = []

    def consumer() -> Any:
        bus = buses()

        @bus.subscriber(stream, concurrency=3)
        async def handle(number: int) -> None:
            await pause(0.001)
            handled.append(number)

        return bus

    await buses().publish_many(stream, range(200))
    for share in (30, 60, 90):
        async with consumer():
            await eventually(lambda share=share: len(handled) >= share)
    async with consumer():
        await eventually(lambda: all_acked(redis_client, stream))
    assert sorted(handled) == list(range(200)), "none is lost, none is handled twice"


async def test_a_bus_that_stops_takes_its_consumers_names_along_unless_something_is_pending(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    async def consumers() -> int:
        return len(await redis_client.xinfo_consumers(stream, "svc"))

    bus = buses()

    @bus.subscriber(stream)
    async def handle(payload: Any) -> None: ...

    async with bus:
        await bus.publish(stream, 1)
        await eventually(lambda: all_acked(redis_client, stream))
        assert await consumers() == 1
    assert await consumers() == 0

    await redis_client.xadd(stream, {"data": "2"})
    await redis_client.xreadgroup("svc", "another", {stream: ">"})
    successor = buses()

    @successor.subscriber(stream)
    async def handle_next(payload: Any) -> None: ...

    async with successor:
        await eventually(lambda: pending(redis_client, stream))
    assert await consumers() == 1, "what another consumer holds would be discarded with its name"


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_bus_belongs_to_the_event_loop_it_was_first_used_in(buses: Buses, stream: str) -> None:
    bus = buses()
    await bus.publish(stream, 1)

    def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            asyncio.run(bus.publish(stream, 2))

    await asyncio.to_thread(elsewhere)


# --- run ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys, time
from quantum_bus{module} import EventBus

bus = EventBus(sys.argv[1], service="svc", block=10.0)

@bus.subscriber(sys.argv[2])
{define} handle(number: int) -> None:
    print("began", number, flush=True)
    {sleep}(float(sys.argv[3]))
    print("ended", number, flush=True)

{run}
print("returned", flush=True)
"""
ASYNCIO_PROGRAM = PROGRAM.format(
    module="", define="async def", sleep="await asyncio.sleep", run="asyncio.run(bus.run(stop_timeout=20))"
)
THREADS_PROGRAM = PROGRAM.format(module=".sync", define="def", sleep="time.sleep", run="bus.run(stop_timeout=20)")


@contextlib.asynccontextmanager
async def running(twin: str, url: str | None, stream: str, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose bus runs until a signal, with one message in its handler."""
    program = ASYNCIO_PROGRAM if twin == ASYNCIO else THREADS_PROGRAM
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        str(url),
        stream,
        str(seconds),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_drains_at_a_signal_and_returns(
    buses: Buses,
    twin: str,
    real_backend: Backend,
    redis_client: redis.asyncio.Redis,
    stream: str,
    number: signal.Signals,
) -> None:
    await buses().publish(stream, 7)
    async with running(twin, real_backend.url, stream, 0.3) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"began 7\n"
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 15)
    assert (out, err) == (b"ended 7\nreturned\n", b"")
    assert process.returncode == 0
    assert not await pending(redis_client, stream)


async def test_a_second_signal_stops_without_draining(
    buses: Buses, twin: str, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    receipt = await buses().publish(stream, 7)
    async with running(twin, real_backend.url, stream, 60.0) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"began 7\n"
        async with asyncio.timeout(15):  # draining takes up to 20
            while process.returncode is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 0.2)
        out, _ = await process.communicate()
    assert b"ended" not in out
    assert await pending(redis_client, stream) == [receipt.id]


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_second_signal_while_the_bus_starts_ends_run(buses: Buses, own_redis: RedisProcess) -> None:
    # fails without: a start that is part of what a second signal ends; run() raised CancelledError
    bus = buses(url=own_redis.url, connect_timeout=60.0, reply_timeout=60.0)
    own_redis.suspend()
    running = asyncio.ensure_future(bus.raw.run())
    await eventually(lambda: bus.raw._state.value == "running")
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
    await asyncio.wait_for(running, 20)
    assert bus.raw._state.value == "closed"
    own_redis.resume()


async def test_request_stop_has_run_drain_and_return(buses: Buses, twin: str, stream: str) -> None:
    if twin == ASYNCIO:
        bus = buses()
        running = asyncio.ensure_future(bus.raw.run())
        await eventually(lambda: bus.raw._state.value == "running")
        bus.raw.request_stop()
        await asyncio.wait_for(running, 10)
        assert bus.raw._state.value == "closed"
        return
    bus = buses()  # the threads' run needs the main thread, which is this one: it may not be stopped from here first
    asyncio.get_running_loop().run_in_executor(None, _request_when_running, bus.raw)
    bus.raw.run()
    assert bus.raw._state.value == "closed"


def _request_when_running(raw: Any) -> None:
    while raw._state.value != "running":
        time.sleep(0.005)
    raw.request_stop()
