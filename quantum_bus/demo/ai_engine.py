"""ai_engine: thinks of intents and publishes them, at a steady pace. ``python -m quantum_bus.demo.ai_engine``"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, islice
from typing import Final

from opentelemetry import trace

from quantum_bus import names
from quantum_bus.bus import EventBus
from quantum_bus.demo.service import run_service
from quantum_bus.demo.trading import AI_ENGINE, INTENT_STREAM, Intent, Side
from quantum_bus.errors import PublishError
from quantum_bus.jsonlog import Logger, log_event
from quantum_bus.propagation import correlation_scope

# What a unit costs, roughly.
PRICES: Final = {"BTCUSDT": 91_250.0, "ETHUSDT": 3_140.0, "SOLUSDT": 138.0, "BNBUSDT": 905.0}
SIDES: Final[tuple[Side, ...]] = ("BUY", "SELL")
DEFAULT_RATE: Final = 2.0


def think(seed: int) -> Iterator[Intent]:
    """Intents without end, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - a model of a market, not a secret
    for number in count(1):
        symbol = chance.choice(tuple(PRICES))
        price = round(PRICES[symbol] * chance.uniform(0.99, 1.01), 2)
        yield Intent(
            intent_id=f"intent_{seed}_{number}",
            symbol=symbol,
            side=chance.choice(SIDES),
            qty=round(1_000 / price * chance.uniform(0.5, 2.0), 4),
            price=price,
            confidence=round(chance.uniform(0.55, 0.99), 2),
        )


async def publish_intent(bus: EventBus, log: Logger, intent: Intent) -> None:
    """Begin a flow: everything that follows from this intent will carry its correlation id."""
    tracer = trace.get_tracer(names.INSTRUMENTATION_NAME)
    with tracer.start_as_current_span("create intent"), correlation_scope():
        log_event(
            log,
            "INFO",
            names.EVENT_INTENT_CREATED,
            f"Intent created: {intent.symbol}",
            symbol=intent.symbol,
            intent_id=intent.intent_id,
            side=intent.side,
            qty=intent.qty,
            confidence=intent.confidence,
        )
        try:
            await bus.publish(INTENT_STREAM, intent, event=names.EVENT_INTENT_CREATED, key=intent.symbol)
        except PublishError:  # Redis is away: what this service thinks of next may still arrive
            log.exception("Intent not published", intent_id=intent.intent_id)


async def serve(log: Logger, *, intents: Iterator[Intent], rate: float) -> None:
    """Publish until there are no more intents, or a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
            handlers.callback(loop.remove_signal_handler, number)
        async with EventBus(service=AI_ENGINE) as bus:
            due = loop.time()
            for intent in intents:
                await publish_intent(bus, log, intent)
                due = max(due + 1 / rate, loop.time())  # after an outage: at the usual pace, not all at once
                if await _stopped_before(stop, due):
                    return


async def _stopped_before(stop: asyncio.Event, due: float) -> bool:
    try:
        async with asyncio.timeout_at(due):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the service; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m quantum_bus.demo.ai_engine", description=__doc__)
    parser.add_argument("--intents", type=int, default=0, metavar="N", help="how many, 0 for no end (%(default)s)")
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, metavar="R", help="a second (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed makes the same intents")
    options = parser.parse_args(arguments)
    if options.intents < 0 or not 0 < options.rate < float("inf"):
        parser.error("--intents is 0 or more, --rate above 0")
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    intents = islice(think(seed), options.intents or None)
    return run_service(AI_ENGINE, lambda log: serve(log, intents=intents, rate=options.rate))


if __name__ == "__main__":
    sys.exit(main())
