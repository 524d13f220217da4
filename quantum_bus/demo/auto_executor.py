"""auto_executor: turns intents into orders at an exchange. ``python -m quantum_bus.demo.auto_executor``"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Any, Final

from quantum_bus import names
from quantum_bus.bus import EventBus
from quantum_bus.demo.service import consumer_options, run_service
from quantum_bus.demo.trading import AUTO_EXECUTOR, EXECUTION_STREAM, INTENT_STREAM, Execution, Intent
from quantum_bus.jsonlog import Logger, log_intent_received, log_order_response, log_order_submit

ORDER_TYPE: Final = "MARKET"
STATUS_FILLED: Final = "FILLED"
# How long the exchange takes to answer, seconds.
EXCHANGE_LATENCY: Final = 0.005
SLIPPAGE: Final = 0.0005


def order_id_of(intent: Intent) -> str:
    """The order's id, known before the exchange is asked. It follows from the intent's: asked twice, it is one."""
    return intent.intent_id.replace("intent", "order", 1)


async def place_order(intent: Intent) -> Execution:
    """What an exchange would do."""
    await asyncio.sleep(EXCHANGE_LATENCY)
    worse = 1 + SLIPPAGE if intent.side == "BUY" else 1 - SLIPPAGE
    return Execution(
        order_id=order_id_of(intent),
        intent_id=intent.intent_id,
        symbol=intent.symbol,
        side=intent.side,
        qty=intent.qty,
        price=round(intent.price * worse, 2),
    )


def make_bus(log: Logger, **options: Any) -> EventBus:
    """The service's bus: one subscriber, ``options`` as it takes them."""
    bus = EventBus(service=AUTO_EXECUTOR)

    @bus.subscriber(INTENT_STREAM, **options)
    async def execute(intent: Intent) -> None:
        log_intent_received(log, intent.intent_id, intent.symbol, intent.confidence)
        # By its order_id an order that gets no answer is noticed.
        ids = {"order_id": order_id_of(intent), "intent_id": intent.intent_id}
        log_order_submit(log, intent.symbol, intent.side, intent.qty, ORDER_TYPE, **ids)
        submitted = perf_counter()
        execution = await place_order(intent)
        latency_ms = round((perf_counter() - submitted) * 1000, 3)
        log_order_response(log, execution.order_id, intent.symbol, STATUS_FILLED, latency_ms=latency_ms)
        await bus.publish(EXECUTION_STREAM, execution, event=names.EVENT_ORDER_FILLED, key=intent.symbol)

    return bus


def main(arguments: list[str] | None = None) -> int:
    """Run the service; its exit code."""
    options = consumer_options(AUTO_EXECUTOR, __doc__ or "", arguments)
    return run_service(AUTO_EXECUTOR, lambda log: make_bus(log, **options).run())


if __name__ == "__main__":
    sys.exit(main())
