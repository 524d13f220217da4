"""auto_executor: turns intents into orders at an exchange. ``python -m quantum_bus.demo.auto_executor``

With ``--trouble-every N`` one order of N goes wrong, so that there is something to see of errors, retries and dead
letters.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from time import perf_counter
from typing import Any, Final

from quantum_bus import names
from quantum_bus.bus import EventBus
from quantum_bus.config import Breaker
from quantum_bus.demo.service import consumer_parser, run_service
from quantum_bus.demo.trading import AUTO_EXECUTOR, EXECUTION_STREAM, INTENT_STREAM, Execution, Intent
from quantum_bus.errors import Reject
from quantum_bus.jsonlog import Logger, log_intent_received, log_order_error, log_order_response, log_order_submit
from quantum_bus.message import Message

ORDER_TYPE: Final = "MARKET"
STATUS_FILLED: Final = "FILLED"
STATUS_REJECTED: Final = "REJECTED"
# How long the exchange takes to answer, seconds.
EXCHANGE_LATENCY: Final = 0.005
SLIPPAGE: Final = 0.0005


def order_id_of(intent: Intent) -> str:
    """The order's id, known before the exchange is asked. It follows from the intent's: asked twice, it is one."""
    return intent.intent_id.replace("intent", "order", 1)


class ExchangeTimeout(Exception):
    """The exchange gave no answer; asked again, it will."""


class OrderRefused(Exception):
    """The exchange does not want this order, however often it is asked."""


class Exchange:
    """What an exchange would do.

    Args:
        trouble_every: of so many orders one gets no answer at first, and the one after as many again is refused, in
            turn; 0 for an exchange that is always well.
    """

    def __init__(self, trouble_every: int = 0) -> None:
        self._trouble_every = trouble_every
        self._placed = count(1)

    async def place_order(self, intent: Intent, *, attempt: int) -> Execution:
        await asyncio.sleep(EXCHANGE_LATENCY)
        if self._trouble_every and attempt == 1:
            trouble, rest = divmod(next(self._placed), self._trouble_every)
            if rest == 0 and trouble % 2:
                raise ExchangeTimeout(f"no answer to {order_id_of(intent)}")
            if rest == 0:
                raise OrderRefused(f"not enough margin for {intent.qty} {intent.symbol}")
        worse = 1 + SLIPPAGE if intent.side == "BUY" else 1 - SLIPPAGE
        return Execution(
            order_id=order_id_of(intent),
            intent_id=intent.intent_id,
            symbol=intent.symbol,
            side=intent.side,
            qty=intent.qty,
            price=round(intent.price * worse, 2),
        )


def make_bus(log: Logger, *, trouble_every: int = 0, **options: Any) -> EventBus:
    """The service's bus: one subscriber, ``options`` as it takes them; ``trouble_every`` of :class:`Exchange`."""
    bus = EventBus(service=AUTO_EXECUTOR)
    exchange = Exchange(trouble_every)

    # While the exchange is away, intents wait in their stream instead of using up their attempts.
    @bus.subscriber(INTENT_STREAM, breaker=Breaker(), **options)
    async def execute(intent: Intent, message: Message) -> None:
        log_intent_received(log, intent.intent_id, intent.symbol, intent.confidence)
        # By its order_id an order that gets no answer is noticed.
        ids = {"order_id": order_id_of(intent), "intent_id": intent.intent_id}
        log_order_submit(log, intent.symbol, intent.side, intent.qty, ORDER_TYPE, **ids)
        submitted = perf_counter()
        refusal: OrderRefused | None = None
        try:
            execution = await exchange.place_order(intent, attempt=message.attempt)
        except OrderRefused as error:
            refusal = error
        latency_ms = round((perf_counter() - submitted) * 1000, 3)
        status = STATUS_FILLED if refusal is None else STATUS_REJECTED
        log_order_response(log, ids["order_id"], intent.symbol, status, latency_ms=latency_ms)
        if refusal is not None:
            log_order_error(log, intent.symbol, str(refusal), **ids)
            raise Reject(str(refusal)) from refusal
        await bus.publish(EXECUTION_STREAM, execution, event=names.EVENT_ORDER_FILLED, key=intent.symbol)

    return bus


def main(arguments: list[str] | None = None) -> int:
    """Run the service; its exit code."""
    parser = consumer_parser(AUTO_EXECUTOR, __doc__ or "")
    parser.add_argument(
        "--trouble-every", type=int, default=0, metavar="N", help="one order of N goes wrong, 0 for none (%(default)s)"
    )
    options = vars(parser.parse_args(arguments))
    if options["trouble_every"] < 0:
        parser.error("--trouble-every is 0 or more")
    return run_service(AUTO_EXECUTOR, lambda log: make_bus(log, **options).run())


if __name__ == "__main__":
    sys.exit(main())
