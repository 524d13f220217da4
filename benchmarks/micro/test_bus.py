"""What a call costs the caller, Redis included."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contestants.filling import entries_of_the_bus, fill
from benchmarks.contestants.trial import EVENT, PAYLOAD, SERVICE
from quantum_bus import Event, EventBus

STREAM = "micro:intent"
WAITING = 2_000


@pytest.fixture(autouse=True)
def empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


def stored(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.xlen(STREAM))


@pytest.mark.benchmark(group="publish")
def test_publish(benchmark: BenchmarkFixture, loop: uvloop.Loop, redis_url: str, providers: dict[str, Any]) -> None:
    bus = EventBus(redis_url, service=SERVICE, **providers)
    receipt = benchmark(lambda: loop.run_until_complete(bus.publish(STREAM, PAYLOAD, event=EVENT)))
    loop.run_until_complete(bus.stop())
    assert receipt.stream == STREAM
    assert stored(redis_url) >= benchmark.stats.stats.rounds


@pytest.mark.benchmark(group="publish")
def test_publish_100_in_flight(
    benchmark: BenchmarkFixture, loop: uvloop.Loop, redis_url: str, providers: dict[str, Any]
) -> None:
    bus = EventBus(redis_url, service=SERVICE, **providers)

    async def publish() -> list[Any]:
        return await asyncio.gather(*(bus.publish(STREAM, PAYLOAD, event=EVENT) for _ in range(100)))

    receipts = benchmark(lambda: loop.run_until_complete(publish()))
    loop.run_until_complete(bus.stop())
    assert len({receipt.id for receipt in receipts}) == 100


@pytest.mark.benchmark(group="publish")
def test_publish_many_100(
    benchmark: BenchmarkFixture, loop: uvloop.Loop, redis_url: str, providers: dict[str, Any]
) -> None:
    bus = EventBus(redis_url, service=SERVICE, **providers)
    items = [Event(PAYLOAD, event=EVENT)] * 100
    receipts = benchmark(lambda: loop.run_until_complete(bus.publish_many(STREAM, items)))
    loop.run_until_complete(bus.stop())
    assert len({receipt.id for receipt in receipts}) == 100


@pytest.mark.benchmark(group="consume 2,000", min_rounds=3)
@pytest.mark.parametrize("batch", [1, 100])
def test_consume(
    benchmark: BenchmarkFixture, loop: uvloop.Loop, redis_url: str, providers: dict[str, Any], batch: int
) -> None:
    entries = entries_of_the_bus(redis_url)
    handled: list[int] = []

    def ready() -> tuple[tuple[EventBus, asyncio.Event], dict[str, Any]]:
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        fill(redis_url, STREAM, entries, WAITING)
        bus, done = EventBus(redis_url, service=SERVICE, **providers), asyncio.Event()
        handled.clear()

        def count(number: int) -> None:
            handled.append(number)
            if sum(handled) == WAITING if batch > 1 else len(handled) == WAITING:
                done.set()

        if batch > 1:

            @bus.subscriber(STREAM, batch=batch)
            async def handle_batch(intents: list[dict]) -> None:
                count(len(intents))
        else:

            @bus.subscriber(STREAM)
            async def handle(_: dict) -> None:
                count(1)

        return (bus, done), {}

    def drain(bus: EventBus, done: asyncio.Event) -> None:
        async def run() -> None:
            async with bus:
                await done.wait()

        loop.run_until_complete(run())

    benchmark.pedantic(drain, setup=ready, rounds=5)
    assert sum(handled) == WAITING
    with redis.Redis.from_url(redis_url) as client:
        assert client.xpending(STREAM, SERVICE)["pending"] == 0
