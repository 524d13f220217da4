"""Takes orders over HTTP, publishes them, and learns from the bus what became of them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from quantum_bus import EventBus, get_logger, setup_json_logging
from quantum_bus.asgi import CorrelationMiddleware

setup_json_logging("api")
log = get_logger()
bus = EventBus(service="api")  # the URL comes from QUANTUM_BUS_URL


class Order(BaseModel):
    """What a client asks for."""

    symbol: str
    qty: float = Field(gt=0)


# In this process's memory, for the example's sake: a real service keeps them where all of its processes look.
statuses: dict[str, dict[str, Any]] = {}


@bus.subscriber("fills")
async def note_fill(fill: dict[str, Any]) -> None:
    """Runs in the flow of the request that ordered, though that one has long been answered."""
    statuses[fill["order_id"]] = {"status": "filled", "price": fill["price"]}
    log.info("Order filled: %s", fill["order_id"], event="ORDER_FILLED", order_id=fill["order_id"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """The bus lives as long as the application does."""
    async with bus:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(CorrelationMiddleware)


@app.post("/orders", status_code=202)
async def create(order: Order) -> dict[str, str]:
    """No id is passed along here: the request's flow is the message's."""
    order_id = str(uuid.uuid4())
    statuses[order_id] = {"status": "accepted"}
    await bus.publish("orders", {"order_id": order_id, **order.model_dump()}, event="ORDER_CREATED", key=order_id)
    log.info("Order accepted: %s", order_id, event="ORDER_ACCEPTED", order_id=order_id)
    return {"order_id": order_id}


@app.get("/orders/{order_id}")
async def show(order_id: str) -> dict[str, Any]:
    """What is known of an order."""
    if order_id not in statuses:
        raise HTTPException(404, "no such order")
    return statuses[order_id]
