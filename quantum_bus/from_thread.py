"""Publishing through an asyncio bus from other threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from .config import DEFAULT_PUBLISH_TIMEOUT
from .errors import ConfigurationError, PublishError
from .receipt import Receipt

T = TypeVar("T")


class FromThread:
    """``publish`` and ``publish_many`` for other threads: they block until the bus's event loop has done it.

    The caller's flow goes along.

    Args:
        publish: the bus's.
        publish_many: the bus's.
        loop: tells the loop the bus runs in; raises where there is none.
    """

    def __init__(
        self,
        publish: Callable[..., Coroutine[Any, Any, Receipt]],
        publish_many: Callable[..., Coroutine[Any, Any, list[Receipt | PublishError]]],
        loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self._publish = publish
        self._publish_many = publish_many
        self._loop = loop

    def publish(self, stream: str, payload: Any, **arguments: Any) -> Receipt:
        """As :meth:`EventBus.publish`, blocking."""
        return self._blocking(lambda: self._publish(stream, payload, **arguments))

    def publish_many(
        self,
        stream: str,
        items: Sequence[Any],
        *,
        wait_replicas: int | None = None,
        timeout: float = DEFAULT_PUBLISH_TIMEOUT,
    ) -> list[Receipt | PublishError]:
        """As :meth:`EventBus.publish_many`, blocking."""
        return self._blocking(lambda: self._publish_many(stream, items, wait_replicas=wait_replicas, timeout=timeout))

    def _blocking(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._loop()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            raise ConfigurationError("from_thread blocks the event loop it waits for; there, await bus.publish(…)")
        return asyncio.run_coroutine_threadsafe(call(), loop).result()
