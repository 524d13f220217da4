"""What every tier shares: the tiers' marks and time limits, real Redis servers, names nobody else uses.

With `CI=true` nothing may be skipped: a test that skips there fails, with its reason.
"""

import re
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from quantum_bus.demo.redis_server import RedisProcess, RedisServer, start_redis
from tests.faults.forms import FORMS, LONG, SHORT, WHOLE
from tests.servers import IN_CI, RedisPool, series_to_test, server_of

TESTS = Path(__file__).parent
TIMEOUTS = {"unit": 30, "contract": 60, "packaging": 3600, "stack": 900, "benchmarks": 120}
FAULTS_TIMEOUTS = {SHORT: 180, WHOLE: 600, LONG: 6 * 3600}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "how much of tests/faults is run; see tests/faults/README.md")
    group.addoption("--faults", choices=FORMS, default=SHORT, help="short: 2 minutes; whole: 10; long: hours")
    group.addoption("--faults-seed", type=int, default=1, help="what is drawn at random there, is drawn from")


def pytest_configure() -> None:
    """What is started in the background of a script ignores Ctrl-C, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: {config.getoption('faults')}, --faults-seed={config.getoption('faults_seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    timeouts = TIMEOUTS | {"faults": FAULTS_TIMEOUTS[config.getoption("faults")]}
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if tier in timeouts:
            item.add_marker(tier)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(timeouts[tier]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Here and not in the fixture's own params: looking for servers may download one, which `make test-unit` need not.
    if "redis_binary" in metafunc.fixturenames:
        series = series_to_test()
        if "faults" in metafunc.definition.path.parts and metafunc.config.getoption("faults") == SHORT:
            series = series[-1:]
        metafunc.parametrize("redis_binary", series, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longreprtext}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longreprtext}"
    return report


@pytest.fixture(scope="session")
def redis_pool() -> Iterator[RedisPool]:
    """For suites with parameters of their own: `redis_pool.of("7.0")` for each of `series_to_test()`."""
    pool = RedisPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def redis_binary(request: pytest.FixtureRequest) -> RedisServer:
    """Every Redis at hand in turn, not started."""
    return server_of(request.param)


@pytest.fixture(scope="session")
def redis_server(redis_binary: RedisServer, redis_pool: RedisPool) -> RedisProcess:
    """Every Redis at hand in turn, running, shared by all tests: not to be flushed, stopped or configured."""
    return redis_pool.of(redis_binary.series)


@pytest.fixture
def redis_url(redis_server: RedisProcess) -> str:
    return redis_server.url


@pytest.fixture
def own_redis(redis_binary: RedisServer) -> Iterator[RedisProcess]:
    """Every Redis at hand in turn, one for this test alone: to stop, kill, suspend and configure."""
    with start_redis(redis_binary) as process:
        yield process


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Starts the name of everything a test keeps in a shared Redis; no other test has the same."""
    readable = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    return f"{readable}:{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def unique(prefix: str) -> Callable[[str], str]:
    """`unique("intent")` is the same name within a test, and another one in every other test."""
    return lambda name: prefix + name
