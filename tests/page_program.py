"""Runs the Python blocks of one page, one after the other as somebody reading would, on a Redis in memory.

Started by tests/unit/test_pages.py as a process of its own; reads a list of `[name, source]` from standard input. A
`run()` on a page ends by itself, once the bus has had a moment to work.
"""

import ast
import asyncio
import inspect
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import fakeredis
import redis
import redis.asyncio

import quantum_bus
import quantum_bus.sync

RUN_SECONDS = 0.4
SERVER = fakeredis.FakeServer(version=(7, 0))


def in_memory() -> None:
    """Whatever Redis a page names, it is this one."""
    redis.asyncio.Redis.from_url = lambda _url, **_: fakeredis.FakeAsyncRedis(server=SERVER)  # type: ignore[method-assign]
    redis.Redis.from_url = lambda _url, **options: fakeredis.FakeRedis(  # type: ignore[method-assign]
        server=SERVER, decode_responses=options.get("decode_responses", False)
    )


def stop_soon() -> None:
    """`run()` returns by itself, the way a signal ends it."""
    run = quantum_bus.EventBus.run
    run_blocking = quantum_bus.sync.EventBus.run

    async def shortly(bus: quantum_bus.EventBus, **options: Any) -> None:
        asyncio.get_running_loop().call_later(RUN_SECONDS, bus.request_stop)
        await run(bus, **options)

    def shortly_blocking(bus: quantum_bus.sync.EventBus, **options: Any) -> None:
        threading.Timer(RUN_SECONDS, bus.request_stop).start()
        run_blocking(bus, **options)

    quantum_bus.EventBus.run = shortly  # type: ignore[method-assign]
    quantum_bus.sync.EventBus.run = shortly_blocking  # type: ignore[method-assign]


def execute(name: str, source: str, namespace: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
    """With `await` outside of a function the block runs in the page's loop, otherwise as a program does."""
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        function: Callable[[], Any] = eval(code, namespace)
        loop.run_until_complete(function)  # type: ignore[arg-type]  # such code evaluates to its coroutine
    else:
        exec(code, namespace)


def main() -> None:
    in_memory()
    stop_soon()
    namespace: dict[str, Any] = {"__name__": "page"}
    with asyncio.Runner() as runner:
        for name, source in json.load(sys.stdin):
            execute(name, source, namespace, runner.get_loop())


if __name__ == "__main__":
    main()
