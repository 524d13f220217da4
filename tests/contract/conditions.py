"""Waiting for what is to happen, in a test's event loop and in a handler's thread alike; never for time to pass."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0
"""Seconds until a condition counts as never coming true. Far more than it takes: machines differ."""


async def eventually(condition: Callable[[], Any], *, timeout: float = PATIENCE) -> Any:
    """The first true value of `condition`, a function or a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {timeout:g} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.003)


def in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def pause(seconds: float) -> None:
    """A handler at work: other handlers run meanwhile."""
    if in_event_loop():
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)  # noqa: ASYNC251 - here is a thread of the handler's own


class Gate:
    """Holds handlers until the test lets them go on."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        if not in_event_loop():
            assert self._open.wait(PATIENCE), "the gate was never opened"
            return
        await eventually(self._open.is_set)
