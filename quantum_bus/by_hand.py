"""``message.ack()`` and its siblings over asyncio, from the event loop or from a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from . import delivery
from .delivery import Outcome
from .inbox import Held
from .message import Message
from .run import Run


class Settler(Protocol):
    """What settles: a consumer."""

    def post_by_hand(self, held: Held, outcome: Outcome) -> Coroutine[Any, Any, None]: ...
    def keep_by_hand(self, held: Held) -> Coroutine[Any, Any, None]: ...


class ByHand:
    """Carries ``message.ack()`` and its siblings to the consumer, from the event loop or from a worker thread."""

    def __init__(self, consumer: Settler) -> None:
        self._consumer = consumer
        self._loop = asyncio.get_running_loop()
        self._held: dict[Message, Held] = {}

    def began(self, run: Run) -> None:
        self._held.update(zip(run.messages, run.held, strict=True))

    def ended(self, run: Run) -> None:
        for message in run.messages:
            message.close()
            self._held.pop(message, None)

    def ack(self, message: Message) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(self._held[message], delivery.ACK))

    def nack(self, message: Message) -> Any:  # noqa: ARG002 - the run's end reads it off the message
        return self._carry(lambda: asyncio.sleep(0))

    def term(self, message: Message, reason: str) -> Any:
        return self._carry(lambda: self._consumer.post_by_hand(self._held[message], delivery.after_term(reason)))

    def in_progress(self, message: Message) -> Any:
        return self._carry(lambda: self._consumer.keep_by_hand(self._held[message]))

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
