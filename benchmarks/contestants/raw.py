"""redis-py alone: the floor. It writes the bus's own fields and bytes, made ready beforehand.

With telemetry on it is what opentelemetry-instrumentation-redis makes of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor

from .filling import entries_of_the_bus, fill, pending, stored
from .observed import Level, Observed
from .trial import (
    BATCH,
    GROUP,
    STREAM,
    WARM_UP,
    Outcome,
    Tally,
    Trial,
    in_flight,
    main,
    one_at_a_time,
    percentiles,
)


def observed(trial: Trial) -> Observed:
    providers = Observed(trial.level)
    if trial.level is not Level.OFF:
        RedisInstrumentor().instrument()
    return providers


async def publish(trial: Trial) -> Outcome:
    return await _publish(trial, one_at_a_time)


async def publish_in_flight(trial: Trial) -> Outcome:
    return await _publish(trial, in_flight)


async def _publish(trial: Trial, run: Callable[[int, Callable[[int], Awaitable[Any]]], Awaitable[float]]) -> Outcome:
    fields = entries_of_the_bus(trial.url, 1)[0]
    providers = observed(trial)
    async with redis.asyncio.Redis.from_url(trial.url) as client:
        rate = await run(trial.count, lambda _: client.xadd(STREAM, fields))
    return Outcome({"rate": rate}, providers.end() | stored(trial.url, STREAM))


async def publish_many(trial: Trial) -> Outcome:
    """A pipeline of a hundred."""
    fields = entries_of_the_bus(trial.url, BATCH)
    providers = observed(trial)
    async with redis.asyncio.Redis.from_url(trial.url) as client:

        async def publish(_: int) -> None:
            async with client.pipeline(transaction=False) as pipeline:
                for entry in fields:
                    pipeline.xadd(STREAM, entry)
                await pipeline.execute()

        rate = BATCH * await one_at_a_time(-(-trial.count // BATCH), publish)
    return Outcome({"rate": rate}, providers.end() | stored(trial.url, STREAM))


async def consume(trial: Trial) -> Outcome:
    """A loop that reads a hundred and acknowledges a hundred, and looks at none."""
    fill(trial.url, STREAM, entries_of_the_bus(trial.url), trial.count)
    providers = observed(trial)
    tally = Tally(trial.count)
    async with redis.asyncio.Redis.from_url(trial.url) as client:
        await client.xgroup_create(STREAM, GROUP, id="0")
        while tally.seen < trial.count:
            reply: Any = await client.xreadgroup(GROUP, "raw", {STREAM: ">"}, count=BATCH)
            [(_, entries)] = reply
            await client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
            tally.add(len(entries))
    facts = {"handled": tally.seen, "pending": pending(trial.url, STREAM, GROUP)}
    return Outcome({"rate": tally.per_second}, providers.end() | facts)


async def latency(trial: Trial) -> Outcome:
    """From XADD on one connection to what a blocked XREADGROUP returns on another."""
    fields = entries_of_the_bus(trial.url, 1)[0]
    times: list[float] = []
    arrived = asyncio.Event()
    sent = 0.0
    async with redis.asyncio.Redis.from_url(trial.url) as reader, redis.asyncio.Redis.from_url(trial.url) as writer:
        await reader.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

        async def read() -> None:
            while len(times) < trial.count:
                reply: Any = await reader.xreadgroup(GROUP, "raw", {STREAM: ">"}, count=BATCH, block=4_000)
                if not reply:  # nothing was sent for so long
                    continue
                times.append(time.perf_counter() - sent)
                [(_, [(entry_id, _)])] = reply
                await reader.xack(STREAM, GROUP, entry_id)
                arrived.set()

        reading = asyncio.create_task(read())
        for _ in range(trial.count):
            await asyncio.sleep(0.001)
            arrived.clear()
            sent = time.perf_counter()
            await writer.xadd(STREAM, fields)
            await arrived.wait()
        await reading
    return Outcome(percentiles(times[len(times) // 10 :]), {"handled": len(times)})


def publish_threads(trial: Trial) -> Outcome:
    fields = entries_of_the_bus(trial.url, 1)[0]
    providers = observed(trial)
    warm = int(trial.count * WARM_UP)
    started = 0.0
    with redis.Redis.from_url(trial.url) as client:
        for number in range(trial.count):
            if number == warm:
                started = time.perf_counter()
            client.xadd(STREAM, fields)
        elapsed = time.perf_counter() - started
    return Outcome({"rate": (trial.count - warm) / elapsed}, providers.end() | stored(trial.url, STREAM))


if __name__ == "__main__":
    main(
        {
            "publish": publish,
            "publish-in-flight": publish_in_flight,
            "publish-many": publish_many,
            "publish-threads": publish_threads,
            "consume": consume,
            "latency": latency,
        }
    )
