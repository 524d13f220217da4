"""Something answers in Redis's place that is not Redis."""

from typing import Any

import pytest
import redis.asyncio

from quantum_bus import Message, names
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked
from tests.contract.twins import Buses
from tests.faults.proxy import Proxy


@pytest.mark.parametrize("ordered", [False, True], ids=["any order", "ordered"])
async def test_answers_that_are_none_of_rediss_are_a_lost_connection_and_end_nothing(
    buses: Buses, redis_client: redis.asyncio.Redis, proxy: Proxy, caplog: pytest.LogCaptureFixture, ordered: bool
) -> None:
    # Without its translation in the links it was an error that nobody reckoned with.
    bus = buses(url=proxy.url, block=0.05, backoff_maximum=0.1)
    gate = Gate()
    runs: list[tuple[Any, int]] = []

    @bus.subscriber("s", ordered=ordered, ack_wait=1.2)
    async def handle(message: Message) -> None:
        runs.append((message.data, message.attempt))
        if message.data == 0:
            await gate.passed()

    async with bus:
        await buses().publish("s", 0)
        await eventually(lambda: runs)
        proxy.answer_in_http()
        await eventually(lambda: proxy.refused.total() > 5)
        proxy.refuse_commands("")
        await buses().publish("s", 1)
        await eventually(lambda: (1, 1) in runs)
        gate.open()
        await eventually(lambda: all_acked(redis_client, "s"))
    said = [getattr(record, "event", "") for record in caplog.records]
    assert names.EVENT_BUS_INTERNAL_ERROR not in said
    assert names.EVENT_BUS_CONNECTION_LOST in said
