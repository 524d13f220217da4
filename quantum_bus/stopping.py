"""A request to stop, which a signal handler may make, and waits that notice it.

The kernel may give a process's signal to any of its threads. Python's handler runs in the main thread all the same, but
only once that runs: waiting for a lock, it is woken only by a signal that it was given itself. So the main thread waits
in slices wherever other threads are about.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Final

# Seconds that a signal which another thread was given may go unnoticed.
SLICE: Final = 0.25


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
        for patience in slices(None if timeout is None else monotonic() + timeout):
            if self._asked:
                break
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=patience)
        return self._asked


def join(thread: threading.Thread, deadline: float) -> None:
    """Wait until it has ended, or until ``deadline`` on the monotonic clock."""
    for patience in slices(deadline):
        if not thread.is_alive():
            break
        thread.join(patience)


def slices(deadline: float | None) -> Iterator[float]:
    """Seconds to wait at a time until ``deadline`` on the monotonic clock; None: for ever."""
    while deadline is None or (left := deadline - monotonic()) > 0:
        yield SLICE if deadline is None else min(left, SLICE)
