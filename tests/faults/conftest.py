"""Buses of both twins on a Redis of the test's own, which it may stop, kill or fill, and a proxy before it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from quantum_bus.demo.redis_server import RedisProcess
from tests.contract.backends import Backend
from tests.contract.twins import TWINS, Buses
from tests.faults.proxy import Proxy


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quantum_bus")


@pytest.fixture
async def buses(twin: str, own_redis: RedisProcess) -> AsyncIterator[Buses]:
    made = Buses(twin, Backend(own_redis.server.series, own_redis.url))
    yield made
    await made.stop()


@pytest.fixture
async def redis_client(own_redis: RedisProcess) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(own_redis.url)
    yield client
    await client.aclose()


@pytest.fixture
def proxy(own_redis: RedisProcess) -> Iterator[Proxy]:
    with Proxy(own_redis.url) as proxy:
        yield proxy
