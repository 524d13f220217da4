"""Buses of both twins on a Redis of the test's own, which it may stop, kill or fill, and a proxy before it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis.asyncio

from quantum_bus.demo.redis_server import RedisProcess, start_redis
from tests.contract.backends import Backend
from tests.contract.twins import TWINS, Buses
from tests.faults.forms import Form, settings
from tests.faults.nursery import Nursery
from tests.faults.proxy import Proxy
from tests.faults.scenario import Scenario
from tests.faults.small_disk import SmallDisk
from tests.faults.wall_clock import WallClock
from tests.servers import series_to_test, server_of

PERSISTENT = {"appendonly": "yes", "appendfsync": "always"}
"""What Redis has answered, it has on disk."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        runs = settings(metafunc.config.getoption("faults"), series_to_test())
        metafunc.parametrize("setting", runs, ids=["-".join(run) for run in runs])


@pytest.fixture(scope="session")
def form(pytestconfig: pytest.Config) -> Form:
    """How much is to be run; and the seed, which is printed where a test fails."""
    return Form(pytestconfig.getoption("faults"), pytestconfig.getoption("faults_seed"))


@pytest.fixture
def server_options() -> dict[str, str]:
    """Of the scenario's Redis; a test that needs others parametrizes it."""
    return {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Where the scenario's Redis keeps its data, if the test asks for it."""
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """What the scenario's Redis takes for the time of day, if the test asks for it."""
    return WallClock(tmp_path / "clock")


@pytest.fixture
def server(
    setting: tuple[str, str], server_options: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[RedisProcess]:
    """The scenario's own Redis."""
    asked = request.fixturenames
    folder = request.getfixturevalue("small_disk").folder if "small_disk" in asked else None
    environment = request.getfixturevalue("clock").environment if "clock" in asked else {}
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            process = start_redis(server_of(setting[1]), folder=folder, options=server_options)
            started = stack.enter_context(process)
        yield started


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
async def load(
    setting: tuple[str, str], server: RedisProcess, form: Form, tmp_path: Path, nursery: Nursery
) -> AsyncIterator[Scenario]:
    """Processes at work on a Redis of their own."""
    scenario = Scenario(server, setting[0], form, tmp_path, nursery)
    yield scenario
    await scenario.close()


@pytest.fixture
def net(server: RedisProcess) -> Iterator[Proxy]:
    """A network before the scenario's Redis."""
    with Proxy(server.url) as net:
        yield net


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
