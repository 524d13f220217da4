"""Fills orders. Started by `quantum-bus run worker:bus`, which also sets up JSON logging."""

from dataclasses import dataclass

from quantum_bus import EventBus, Message, get_logger

log = get_logger()
bus = EventBus(service="worker")

PRICES = {"BTCUSDT": 64_000.0, "ETHUSDT": 3_200.0}


@dataclass
class Order:
    """What the worker needs of the message; fields it does not know do not bother it."""

    order_id: str
    symbol: str
    qty: float


@bus.subscriber("orders")
async def fill(order: Order, message: Message) -> None:
    """A symbol without a price raises, is retried, and ends in `{orders}:dlq`."""
    price = PRICES[order.symbol]
    log.info("Filling %s", order.order_id, event="ORDER_SUBMIT", order_id=order.order_id, attempt=message.attempt)
    await bus.publish("fills", {"order_id": order.order_id, "price": price * order.qty}, event="ORDER_FILLED")
