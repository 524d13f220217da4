"""``message.ack()`` and its siblings over asyncio, from the event loop or from a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from . import delivery
from .delivery import Outcome
from .inbox import Held


class Settler(Protocol):
    """What settles: a consumer."""

    def post_by_hand(self, held: Held, outcome: Outcome) -> Coroutine[Any, Any, None]: ...
    def keep_by_hand(self, held: Held) -> Coroutine[Any, Any, None]: ...
    def check_by_hand(self, held: Held) -> Coroutine[Any, Any, None]: ...


class ByHand:
    """Carries ``message.ack()`` and its siblings to the consumer, from the event loop or from a worker thread."""

    def __init__(self, consumer: Settler) -> None:
        self._consumer = consumer
        self._loop = asyncio.get_running_loop()

    def ack(self, held: Held) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(held, delivery.ACK))

    def nack(self, held: Held) -> Any:
        return self._carry(lambda: self._consumer.check_by_hand(held))

    def term(self, held: Held, reason: str) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(held, delivery.after_term(reason)))

    def in_progress(self, held: Held) -> Any:
        return self._carry(lambda: self._consumer.keep_by_hand(held))

    def _carry(self, call: Callable[[], Coroutine[Any, Any, None]]) -> Any:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            return call()

        async def called() -> None:
            await call()

        future = asyncio.run_coroutine_threadsafe(called(), self._loop)
        if running is None:  # a worker thread: block until Redis has answered
            return future.result()
        return asyncio.wrap_future(future)  # a worker thread that runs an event loop of its own
