"""The real Redis servers the tests run against.

Every release series at hand is used: the packaged 6.2, and what the PATH has. In CI one of 6.2 and one of 7.0 or later
must be there; elsewhere one server of any series will do.
"""

import os
from contextlib import ExitStack
from functools import cache

import pytest

from quantum_bus.demo.redis_server import RedisProcess, RedisServer, find_redis_servers, start_redis

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
OLDEST_SERIES = "6.2"


@cache
def servers_at_hand() -> dict[str, RedisServer]:
    """By release series, oldest first."""
    return {server.series: server for server in find_redis_servers()}


@cache
def series_to_test() -> tuple[str, ...]:
    """The release series at hand; in CI also the required ones that are not, whose tests then fail."""
    found = list(servers_at_hand())
    if IN_CI:
        if OLDEST_SERIES not in found:
            found.insert(0, OLDEST_SERIES)
        if found == [OLDEST_SERIES]:
            found.append("7.0")
    return tuple(found) or ("any",)


def server_of(series: str) -> RedisServer:
    """Fails the test where there is none: what this suite promises cannot be shown without a real Redis."""
    server = servers_at_hand().get(series)
    if server is None:
        pytest.fail(f"no redis-server of series {series}: put one on the PATH (`apt-get install redis-server`)")
    return server


class RedisPool:
    """One running server a series, each started when first asked for."""

    def __init__(self) -> None:
        self._running: dict[str, RedisProcess] = {}
        self._stack = ExitStack()

    def of(self, series: str) -> RedisProcess:
        """The shared server of that series. Tests use stream names of their own, and never flush it."""
        if series not in self._running:
            self._running[series] = self._stack.enter_context(start_redis(server_of(series)))
        return self._running[series]

    def close(self) -> None:
        self._stack.close()
