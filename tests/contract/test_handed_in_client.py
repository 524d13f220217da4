"""A client handed in: the bus borrows connections from it, and never closes it."""

from typing import Any

import pytest
import redis.asyncio

from quantum_bus import ConfigurationError
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.entries import all_acked, stored
from tests.contract.twins import Buses, blocking


async def ping(client: Any) -> bool:
    result = await blocking(client.ping) if not isinstance(client, redis.asyncio.Redis) else await client.ping()
    return bool(result)


async def test_the_bus_publishes_and_consumes_through_it_and_never_closes_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = buses.client()
    handled: list[int] = []

    def closed(*_: Any, **__: Any) -> None:
        raise AssertionError("it is the caller's to close")

    for owner, name in ((client, "aclose"), (client, "close"), (client.connection_pool, "disconnect")):
        monkeypatch.setattr(owner, name, closed, raising=False)
    for number in range(2):
        bus = buses(client=client)

        @bus.subscriber(stream)
        async def handle(payload: int) -> None:
            handled.append(payload)

        async with bus:
            await bus.publish(stream, number)
            await eventually(lambda: all_acked(redis_client, stream))
        assert await ping(client)
    assert handled == [0, 1]
    monkeypatch.undo()
    await buses.close(client)


async def test_a_client_that_decodes_its_responses_serves_as_well(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    client = buses.client(decode_responses=True)
    bus = buses(client=client)
    handled: list[dict[str, str]] = []

    @bus.subscriber(stream)
    async def handle(payload: dict[str, str]) -> None:
        handled.append(payload)

    await redis_client.xadd(stream, {"b": b"\xff"})
    async with bus:
        await bus.publish(stream, {"n": "1"})
        await eventually(lambda: len(handled) == 2)
    assert {"n": "1"} in handled, "two workers: in whichever order"
    await buses.close(client)


@pytest.mark.parametrize("options", [{"protocol": 3}, {"socket_timeout": 0.2}, {"health_check_interval": 1}])
async def test_whatever_options_the_client_has_reads_may_block_longer(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, options: dict[str, Any]
) -> None:
    client = buses.client(**options)
    bus = buses(client=client, block=0.5)
    handled: list[int] = []

    @bus.subscriber(stream)
    async def handle(payload: int) -> None:
        handled.append(payload)

    async with bus:
        before = (await redis_client.info("stats"))["total_connections_received"]
        reads = await _reads(redis_client)
        await eventually(lambda: _has_read(redis_client, reads + 2))
        assert (await redis_client.info("stats"))["total_connections_received"] == before, "no read broke off"
        await bus.publish(stream, 1)
        await eventually(lambda: handled == [1])
    assert len(await stored(redis_client, stream)) == 1
    await buses.close(client)


async def _reads(client: redis.asyncio.Redis) -> int:
    return int((await client.info("commandstats")).get("cmdstat_xreadgroup", {}).get("calls", 0))


async def _has_read(client: redis.asyncio.Redis, count: int) -> bool:
    return await _reads(client) >= count


async def test_its_connections_are_given_back(buses: Buses, real_backend: Backend, stream: str) -> None:
    client = buses.client(max_connections=3)
    for _ in range(3):
        bus = buses(client=client)

        @bus.subscriber(stream)
        async def handle(payload: Any) -> None: ...

        async with bus:
            await bus.publish(stream, 1)
    assert await ping(client)
    await buses.close(client)


async def test_a_closed_loop_of_another_twin_is_no_client(buses: Buses) -> None:
    with pytest.raises(ConfigurationError):
        buses(client=object())
