"""taskiq over taskiq-redis's stream broker, as fast as its documentation makes it: orjson, no results kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

from .filling import fill, pending, stored, taken_from
from .observed import Level, Observed
from .trial import BATCH, GROUP, PAYLOAD, SCRATCH, STREAM, Outcome, Tally, Trial, in_flight, main, one_at_a_time


def _broker(trial: Trial, stream: str = STREAM) -> RedisStreamBroker:
    broker = RedisStreamBroker(trial.url, queue_name=stream, consumer_group_name=GROUP, consumer_id="0")
    broker = broker.with_serializer(ORJSONSerializer())
    if trial.level is not Level.OFF:
        broker = broker.with_middlewares(OpenTelemetryMiddleware())
    return broker


async def publish(trial: Trial) -> Outcome:
    return await _publish(trial, one_at_a_time)


async def publish_in_flight(trial: Trial) -> Outcome:
    return await _publish(trial, in_flight)


async def _publish(trial: Trial, run: Callable[[int, Callable[[int], Awaitable[Any]]], Awaitable[float]]) -> Outcome:
    providers = Observed(trial.level)
    broker = _broker(trial)

    @broker.task
    async def handle(intent: dict) -> None: ...

    await broker.startup()
    rate = await run(trial.count, lambda _: handle.kiq(PAYLOAD))
    await broker.shutdown()
    return Outcome({"rate": rate}, providers.end() | stored(trial.url, STREAM))


async def consume(trial: Trial) -> Outcome:
    providers = Observed(trial.level)
    tally = Tally(trial.count)
    broker = _broker(trial)

    @broker.task(task_name="handle")
    async def handle(_: dict) -> None:
        tally.add()

    sender = _broker(trial, SCRATCH)
    sender.register_task(handle.original_func, task_name="handle")
    await sender.startup()
    for _ in range(BATCH):
        await sender.find_task("handle").kiq(PAYLOAD)
    await sender.shutdown()
    fill(trial.url, STREAM, taken_from(trial.url, SCRATCH), trial.count)

    await broker.startup()
    # Parameters are not validated, and a message is acknowledged once its task is done.
    receiving = asyncio.create_task(
        run_receiver_task(broker, validate_params=False, ack_time=AcknowledgeType.WHEN_EXECUTED)
    )
    await tally.all_seen.wait()
    while pending(trial.url, STREAM, GROUP):  # noqa: ASYNC110 - Redis is what is waited for
        await asyncio.sleep(0.01)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    await broker.shutdown()
    return Outcome({"rate": tally.per_second}, providers.end() | {"handled": tally.seen, "pending": 0})


if __name__ == "__main__":
    main({"publish": publish, "publish-in-flight": publish_in_flight, "consume": consume})
