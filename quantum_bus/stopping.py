"""A request to stop, which a signal handler may make."""

from __future__ import annotations

import contextlib
import queue
from typing import Final


class StopRequest:
    """As a :class:`threading.Event` that stays set, but safe to set from a signal handler.

    A handler runs in the main thread wherever that just is. An Event holds a lock while ``wait()`` begins and ends, and
    a handler that sets it there waits for itself for ever. ``SimpleQueue.put`` is documented to be reentrant.
    """

    __slots__ = ("_asked", "_wake")

    def __init__(self) -> None:
        self._asked = False
        self._wake: Final[queue.SimpleQueue[None]] = queue.SimpleQueue()

    def set(self) -> None:
        """Ask; from any thread, and from a signal handler."""
        self._asked = True
        self._wake.put(None)

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._asked

    def wait(self, timeout: float | None = None) -> bool:
        """Until somebody asks, or for ``timeout`` seconds; whether somebody has. For one thread."""
        if not self._asked:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=timeout)
        return self._asked
