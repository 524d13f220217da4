from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import metrics, trace

import quantum_bus.sync
from quantum_bus import ConfigurationError, EventBus, Message, NotDurable, Receipt, Reject, Retry, get_logger
from quantum_bus.testing import TestBus


async def test_what_is_published_is_handled_and_caught() -> None:
    @dataclass
    class Order:
        id: int

    async with TestBus() as bus:

        @bus.subscriber("orders")
        async def handle(order: Order, message: Message) -> None:
            get_logger().info("Order accepted", event="ORDER_SUBMIT", order_id=order.id)
            await bus.publish("fills", {"id": order.id}, event="ORDER_FILLED")

        receipt = await bus.publish("orders", {"id": 7}, correlation_id="a-7")
        await bus.drained()

        assert [entry.fields["correlation_id"] for entry in await bus.entries("fills")] == ["a-7"]
        assert [(line["correlation_id"], line["order_id"]) for line in bus.logs if line["event"] == "ORDER_SUBMIT"] == [
            ("a-7", 7)
        ]
        assert [span.name for span in bus.spans] == ["send orders", "send fills", "process orders"]
        assert bus.spans[0].context is not None
        assert (await bus.entries("orders"))[0].id == receipt.id
        (consumed,) = bus.metrics()["messaging.client.consumed.messages"]
        assert consumed.value == 1


async def test_drained_waits_for_what_handlers_publish_and_retry() -> None:
    seen: list[tuple[int, int]] = []
    async with TestBus() as bus:

        @bus.subscriber("chain", retry=Retry(max_attempts=2, initial=0.05, jitter="none"))
        async def handle(number: int, message: Message) -> None:
            await asyncio.sleep(0.01)
            seen.append((number, message.attempt))
            if message.attempt == 1:
                raise ValueError(number)
            if number:
                await bus.publish("chain", number - 1)

        await bus.publish("chain", 3)
        await bus.drained()
    assert seen == [(number, attempt) for number in (3, 2, 1, 0) for attempt in (1, 2)]


async def test_drained_waits_for_a_short_delay_and_not_for_one_past_its_timeout() -> None:
    seen: list[int] = []
    async with TestBus() as bus:

        @bus.subscriber("reminders")
        async def handle(number: int) -> None:
            seen.append(number)

        await bus.publish("reminders", 1, delay=0.05)
        await bus.publish("reminders", 2, delay=3600)
        await bus.drained()
    assert seen == [1]


async def test_replicas_confirm_what_is_published_unless_told_otherwise() -> None:
    async with TestBus() as bus:
        assert (await bus.publish("orders", 1, wait_replicas=3)).id
        assert isinstance((await bus.publish_many("orders", [2], wait_replicas=3))[0], Receipt)
    own = EventBus("redis://127.0.0.1:1/0", service="own")
    async with TestBus(own, replicas=1) as bus:
        assert (await own.publish("orders", 1, wait_replicas=1)).id
        with pytest.raises(NotDurable) as failed:
            await own.publish("orders", 2, wait_replicas=2, dedupe=60)
        assert (failed.value.wanted, failed.value.confirmed) == (2, 1)
        assert [entry.id for entry in await bus.entries("orders")][1] == failed.value.receipt.id
    assert "_new_waiting_link" not in vars(own), "it is its own again"


async def test_drained_names_the_group_that_is_not_done() -> None:
    async with TestBus(service="slow_one") as bus:

        @bus.subscriber("orders")
        async def handle(order: dict[str, Any]) -> None:
            await asyncio.sleep(60)

        await bus.publish("orders", {})
        with pytest.raises(TimeoutError, match="slow_one on orders"):
            await bus.drained(timeout=0.05)


async def test_drained_returns_at_once_where_nobody_subscribes() -> None:
    async with TestBus() as bus:
        await bus.publish("orders", {})
        await bus.drained()


async def test_dead_letters_can_be_looked_at() -> None:
    async with TestBus(prefix="staging:") as bus:

        @bus.subscriber("orders")
        async def handle(order: dict[str, Any]) -> None:
            raise Reject("no such symbol")

        await bus.publish("orders", {})
        await bus.drained()
        (letter,) = await bus.dead_letters("orders")
        assert letter.fields["dlq.reason"] == "rejected"
        assert "no such symbol" in letter.fields["dlq.error_message"]
        assert len(await bus.entries("orders")) == 1


async def test_a_programs_own_bus_is_lent_and_given_back() -> None:
    app = EventBus("redis://127.0.0.1:1/0", service="shop")
    seen: list[int] = []

    @app.subscriber("orders")
    async def handle(order: int) -> None:
        seen.append(order)
        await app.publish("fills", order)

    for number in (1, 2):
        async with TestBus(app) as bus:
            fills: list[int] = []

            @bus.subscriber("fills", group="probe")
            async def probe(order: int, fills: list[int] = fills) -> None:
                fills.append(order)

            await bus.publish("orders", number)
            await bus.drained()
            assert fills == [number]
            assert [entry.fields["service"] for entry in await bus.entries("fills")] == ["shop"]
            assert any(line["service"] == "shop" for line in bus.logs)
    assert seen == [1, 2]
    assert app._client is None
    assert [config.streams for config, _ in app._subscriptions] == [("orders",)]


async def test_a_bus_that_runs_cannot_be_lent() -> None:
    async with TestBus() as bus:
        await bus.start()
        with pytest.raises(ConfigurationError, match="not started"):
            async with TestBus(bus.bus):
                pass


def test_a_bus_and_options_of_one_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="either"):
        TestBus(EventBus("redis://localhost", service="shop"), service="other")


@pytest.mark.parametrize("given", ["redis://u:hunter2@h/0", quantum_bus.sync.EventBus("redis://h", service="s")])
def test_what_is_no_bus_over_asyncio_is_refused(given: Any) -> None:
    # fails without: a look at what is given; it was a TypeError from the midst of entering it
    with pytest.raises(ConfigurationError, match="give an EventBus over asyncio") as refused:
        TestBus(given)
    assert "hunter2" not in str(refused.value)


async def test_two_at_once_know_nothing_of_each_other() -> None:
    async with TestBus() as first:
        await first.publish("orders", 1)
        async with TestBus() as second:
            await second.publish("orders", 2)
            assert [entry.fields["data"] for entry in await second.entries("orders")] == ["2"]
        assert [entry.fields["data"] for entry in await first.entries("orders")] == ["1"]
        assert len(first.spans) == 1


async def test_nothing_global_is_changed() -> None:
    tracer_provider, meter_provider = trace.get_tracer_provider(), metrics.get_meter_provider()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    async with TestBus() as bus:
        await bus.publish("orders", 1)
    assert trace.get_tracer_provider() is tracer_provider
    assert metrics.get_meter_provider() is meter_provider
    assert (root.handlers, root.level) == (handlers, level)
