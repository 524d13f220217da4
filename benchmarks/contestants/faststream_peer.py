"""FastStream on Redis Streams, as fast as its documentation makes it: no logger, no argument injection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from faststream.redis import RedisBroker, StreamSub
from faststream.redis.opentelemetry import RedisTelemetryMiddleware

from .filling import fill, pending, stored, taken_from
from .observed import Level, Observed
from .trial import (
    BATCH,
    GROUP,
    PAYLOAD,
    SCRATCH,
    STREAM,
    Outcome,
    Tally,
    Trial,
    in_flight,
    main,
    one_at_a_time,
)


def _broker(trial: Trial) -> RedisBroker:
    middlewares = [] if trial.level is Level.OFF else [RedisTelemetryMiddleware()]
    return RedisBroker(trial.url, middlewares=middlewares, logger=None, apply_types=False)


async def publish(trial: Trial) -> Outcome:
    return await _publish(trial, one_at_a_time)


async def publish_in_flight(trial: Trial) -> Outcome:
    return await _publish(trial, in_flight)


async def _publish(trial: Trial, run: Callable[[int, Callable[[int], Awaitable[Any]]], Awaitable[float]]) -> Outcome:
    providers = Observed(trial.level)
    async with _broker(trial) as broker:
        rate = await run(trial.count, lambda _: broker.publish(PAYLOAD, stream=STREAM))
    return Outcome({"rate": rate}, providers.end() | stored(trial.url, STREAM))


async def consume(trial: Trial) -> Outcome:
    return await _consume(trial, batch=False)


async def consume_batches(trial: Trial) -> Outcome:
    return await _consume(trial, batch=True)


async def _consume(trial: Trial, *, batch: bool) -> Outcome:
    providers = Observed(trial.level)
    broker = _broker(trial)
    tally = Tally(trial.count)
    subscription = StreamSub(STREAM, group=GROUP, consumer="peer", batch=batch, max_records=BATCH)
    if batch:

        @broker.subscriber(stream=subscription)
        async def handle_batch(messages: list[dict]) -> None:
            tally.add(len(messages))
    else:

        @broker.subscriber(stream=subscription)
        async def handle(_: dict) -> None:
            tally.add()

    async with broker:
        for _ in range(BATCH):
            await broker.publish(PAYLOAD, stream=SCRATCH)
        await broker.start()  # a new group starts behind what is there
        fill(trial.url, STREAM, taken_from(trial.url, SCRATCH), trial.count)
        await tally.all_seen.wait()
    facts = {"handled": tally.seen, "pending": pending(trial.url, STREAM, GROUP)}
    return Outcome({"rate": tally.per_second}, providers.end() | facts)


if __name__ == "__main__":
    main(
        {
            "publish": publish,
            "publish-in-flight": publish_in_flight,
            "consume": consume,
            "consume-batches": consume_batches,
        }
    )
