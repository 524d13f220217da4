"""quantum-bus over asyncio. Its guarantees are all on: owner-checked acks, heartbeats, completion records, upkeep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from quantum_bus import Event, EventBus, setup_json_logging
from quantum_bus.jsonlog import Logger, close_logging

from .filling import entries_of_the_bus, fill, pending, stored
from .observed import Observed, lines_in
from .trial import (
    BATCH,
    CONCURRENCY,
    EVENT,
    GROUP,
    PAYLOAD,
    SERVICE,
    STREAM,
    Outcome,
    Tally,
    Trial,
    in_flight,
    main,
    one_at_a_time,
    percentiles,
)

# A subscriber has a connection of its own; redis-py's pool would stop at 100.
CONNECTIONS: Final = 1_000


@dataclass
class Set:
    """A bus with the trial's telemetry.

    Attributes:
        log: None where nothing is logged.
        facts: what was exported and logged, once it is left.
    """

    bus: EventBus
    log: Logger | None
    facts: dict[str, Any]


@asynccontextmanager
async def set_up(trial: Trial) -> AsyncIterator[Set]:
    observed = Observed(trial.level)
    log = setup_json_logging(SERVICE, path=trial.folder / "bench.jsonl", announce=False) if trial.level.logs else None
    facts: dict[str, Any] = {}
    bus = EventBus(f"{trial.url}?max_connections={CONNECTIONS}", service=SERVICE)
    try:
        yield Set(bus, log, facts)
    finally:
        await bus.stop()
    facts.update(observed.end())
    close_logging()
    facts["lines"] = lines_in(trial.folder)


def publishing(on: Set) -> Callable[[int], Awaitable[Any]]:
    """Publishes one message, and logs it where the trial says so."""
    bus, log = on.bus, on.log

    async def publish(_: int) -> None:
        await bus.publish(STREAM, PAYLOAD, event=EVENT)

    async def publish_and_log(number: int) -> None:
        await bus.publish(STREAM, PAYLOAD, event=EVENT)
        log.info("Intent created", event=EVENT, symbol="BTCUSDT", number=number)

    return publish if log is None else publish_and_log


async def publish(trial: Trial) -> Outcome:
    async with set_up(trial) as on:
        rate = await one_at_a_time(trial.count, publishing(on))
    return Outcome({"rate": rate}, on.facts | stored(trial.url, STREAM))


async def publish_in_flight(trial: Trial) -> Outcome:
    async with set_up(trial) as on:
        rate = await in_flight(trial.count, publishing(on))
    return Outcome({"rate": rate}, on.facts | stored(trial.url, STREAM))


async def publish_many(trial: Trial) -> Outcome:
    async with set_up(trial) as on:
        bus, log = on.bus, on.log
        items = [Event(PAYLOAD, event=EVENT)] * BATCH

        async def publish(_: int) -> None:
            receipts = await bus.publish_many(STREAM, items)
            if log is not None:
                for receipt in receipts:
                    log.info("Intent created", event=EVENT, symbol="BTCUSDT", message_id=receipt.message_id)

        rate = BATCH * await one_at_a_time(-(-trial.count // BATCH), publish)
    return Outcome({"rate": rate}, on.facts | stored(trial.url, STREAM))


async def consume(trial: Trial) -> Outcome:
    """As many handlers at once as others read messages at once."""
    return await _consume(trial, concurrency=BATCH)


async def consume_by_default(trial: Trial) -> Outcome:
    return await _consume(trial)


async def consume_batches(trial: Trial) -> Outcome:
    return await _consume(trial, batch=BATCH)


async def _consume(trial: Trial, *, batch: int = 1, concurrency: int = CONCURRENCY) -> Outcome:
    streams = [f"{STREAM}:{number}" for number in range(trial.spread)]
    entries = entries_of_the_bus(trial.url)
    for stream in streams:
        fill(trial.url, stream, entries, trial.count // trial.spread)
    tally = Tally(trial.count // trial.spread * trial.spread)
    async with set_up(trial) as on:
        handle = _batch_handler(tally, on.log) if batch > 1 else handler(tally, on.log)
        for stream in streams:
            on.bus.subscriber(stream, group=GROUP, batch=batch, concurrency=concurrency)(handle)
        await on.bus.start()
        await tally.all_seen.wait()
    facts = {"handled": tally.seen, "pending": sum(pending(trial.url, stream, GROUP) for stream in streams)}
    return Outcome({"rate": tally.per_second}, on.facts | facts)


def handler(tally: Tally, log: Logger | None) -> Callable[..., Awaitable[None]]:
    """Counts a message, and logs it where there is a logger."""

    async def handle(_: dict) -> None:
        tally.add()

    async def handle_and_log(intent: dict) -> None:
        tally.add()
        log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"], number=tally.seen)

    return handle if log is None else handle_and_log


def _batch_handler(tally: Tally, log: Logger | None) -> Callable[..., Awaitable[None]]:
    async def handle(intents: list[dict]) -> None:
        tally.add(len(intents))

    async def handle_and_log(intents: list[dict]) -> None:
        tally.add(len(intents))
        for intent in intents:
            log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"], number=tally.seen)

    return handle if log is None else handle_and_log


async def latency(trial: Trial) -> Outcome:
    """From the call of publish to the handler's first line, with nothing else under way."""
    times: list[float] = []
    arrived = asyncio.Event()
    sent = 0.0
    async with set_up(trial) as on:

        @on.bus.subscriber(STREAM, group=GROUP)
        async def handle(intent: dict) -> None:
            times.append(time.perf_counter() - sent)
            if on.log is not None:
                on.log.info("Intent received", event="INTENT_RECEIVED", symbol=intent["symbol"])
            arrived.set()

        await on.bus.start()
        for _ in range(trial.count):
            await asyncio.sleep(0.001)  # the bus is idle again
            arrived.clear()
            sent = time.perf_counter()
            await on.bus.publish(STREAM, PAYLOAD, event=EVENT)
            await arrived.wait()
    return Outcome(percentiles(times[len(times) // 10 :]), on.facts | {"handled": len(times)})


if __name__ == "__main__":
    main(
        {
            "publish": publish,
            "publish-in-flight": publish_in_flight,
            "publish-many": publish_many,
            "consume": consume,
            "consume-by-default": consume_by_default,
            "consume-batches": consume_batches,
            "latency": latency,
        }
    )
