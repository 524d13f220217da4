"""Every test that takes `buses` runs for both twins on every backend; one that takes `real_backend` on real ones."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis.asyncio

from tests.contract.backends import FAKE, Backend, backend_of
from tests.contract.recording import Recorder
from tests.contract.twins import TWINS, Buses
from tests.servers import RedisPool, series_to_test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and "own_redis" not in metafunc.fixturenames:
        real_only = "real_backend" in metafunc.fixturenames
        metafunc.parametrize("backend", series_to_test() if real_only else (FAKE, *series_to_test()), indirect=True)
    if "twin" in metafunc.fixturenames and not _names_its_twin(metafunc):
        metafunc.parametrize("twin", TWINS)


def _names_its_twin(metafunc: pytest.Metafunc) -> bool:
    return any(mark.args[0] == "twin" for mark in metafunc.definition.iter_markers("parametrize"))


@pytest.fixture
def backend(request: pytest.FixtureRequest, redis_pool: RedisPool) -> Backend:
    if not hasattr(request, "param"):  # the test has a server of its own
        process = request.getfixturevalue("own_redis")
        return Backend(process.server.series, process.url)
    return backend_of(request.param, redis_pool)


@pytest.fixture
def real_backend(backend: Backend) -> Backend:
    """Asking for it keeps fakeredis out, where it is not faithful."""
    return backend


@pytest.fixture
async def buses(twin: str, backend: Backend) -> AsyncIterator[Buses]:
    made = Buses(twin, backend)
    yield made
    await made.stop()


@pytest.fixture
async def redis_client(backend: Backend) -> AsyncIterator[redis.asyncio.Redis]:
    """To look into Redis with, past the bus."""
    client = backend.asyncio_client()
    yield client
    await client.aclose()


@pytest.fixture
def stream(unique: Callable[[str], str]) -> str:
    return unique("stream")


@pytest.fixture
def dlq(stream: str) -> str:
    return f"{{{stream}}}:dlq"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """An OpenTelemetry SDK in memory; a bus made with its `options` is recorded."""
    made = Recorder()
    yield made
    made.close()
