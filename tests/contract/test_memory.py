"""Memory stays flat, however many messages go through."""

import ctypes
import gc
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_bus import Message
from quantum_bus.demo.redis_server import start_redis
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.entries import all_acked
from tests.contract.twins import Buses
from tests.servers import series_to_test, server_of

MESSAGES = 200_000
WARM_UP = 20_000
CHUNK = 1_000
# What 180,000 messages may add: an object kept for each would be 9 MB or more. Threads leave 4 MB free on a busy
# machine.
MAY_GROW_BY = 7_000_000
LARGE, LARGE_BYTES = 10, 500_000


def resident() -> int:
    """Bytes of this process in memory, with what is free given back first."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture
def newest() -> Iterator[Backend]:
    series = series_to_test()[-1]
    with start_redis(server_of(series)) as server:
        yield Backend(series, server.url)


@pytest.mark.timeout(900)
async def test_memory_is_flat_over_two_hundred_thousand_messages(twin: str, newest: Backend) -> None:
    buses = Buses(twin, newest)
    bus = buses()
    client = newest.asyncio_client()
    handled = 0
    counting = threading.Lock()

    @bus.subscriber("s")
    async def handle(order: dict[str, Any], message: Message) -> None:
        nonlocal handled
        with counting:
            handled += 1

    payload = {"symbol": "BTCUSDT", "quantity": 1.5, "note": "x" * 50}

    async def through(count: int) -> None:
        for wanted in range(handled + CHUNK, handled + count + 1, CHUNK):
            await bus.publish_many("s", [payload] * CHUNK)
            await eventually(lambda wanted=wanted: handled >= wanted)
            await client.xtrim("s", maxlen=2 * CHUNK)

    async with bus:
        await through(WARM_UP)
        before = resident()
        await through(MESSAGES - WARM_UP)
        grown = resident() - before
    print(f"{twin}: {MESSAGES - WARM_UP:,} messages more, {grown / 1e6:+.2f} MB")  # noqa: T201 - worth reading
    assert handled == MESSAGES
    assert grown < MAY_GROW_BY
    await client.aclose()
    await buses.stop()


async def test_what_was_handled_and_acked_is_kept_no_longer(twin: str, newest: Backend) -> None:
    """A consumer that waits for its next message kept the page that it had read before, and what it had acked."""
    buses = Buses(twin, newest)
    bus = buses()
    client = newest.asyncio_client()
    handled = 0

    @bus.subscriber("s", concurrency=LARGE)
    async def handle(text: str) -> None:
        nonlocal handled
        handled += 1

    async def through(size: int) -> None:
        wanted = handled + LARGE
        await bus.publish_many("s", ["x" * size] * LARGE)
        await eventually(lambda: handled == wanted)
        await eventually(lambda: all_acked(client, "s"))

    tracemalloc.start()
    try:
        async with bus:
            await through(10)
            before = traced()
            await through(LARGE_BYTES)
            await eventually(lambda: traced() - before < LARGE_BYTES)
    finally:
        tracemalloc.stop()
    await client.aclose()
    await buses.stop()


def traced() -> int:
    """Bytes that Python's own allocators have given out since it was asked to trace them."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
