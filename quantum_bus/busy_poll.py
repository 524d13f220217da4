"""Whether it pays to look for a reply for a moment, again and again, before going to sleep for it. Pure.

A reply of a Redis that is near is there after 26 µs, and read after 53 where the process sleeps for it: on a virtual
machine that is a halt, an interrupt and a way through its host. Linux does the same for a whole guest where it is set
up to, up to 200 µs (its ``Documentation/virt/guest-halt-polling.rst``).
"""

from __future__ import annotations

from typing import Final

# A reply that did not come in time has at least so many slept for at once, and at most so many.
LEAST_SKIPPED: Final = 8
MOST_SKIPPED: Final = 1_024


class BusyPoll:
    """For how long to look for the next reply.

    Where a reply did not come in time, looking was in vain: the next 8 are slept for at once, after another failure 24,
    then 56, up to 1,024. A reply that came in time takes one off that. So it costs nothing to speak of where Redis is
    far, or has to wait for this very processor, and goes on where one in twenty is late.

    Args:
        seconds: for how long to look for each; 0 for never.
    """

    __slots__ = ("_again", "_seconds", "_skip")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._skip = 0  # replies still to be slept for at once
        self._again = 0  # how many it was the last time, less those that came in time since

    def seconds(self) -> float:
        """For how long to look for the reply to what was just written; 0: not at all."""
        if self._skip:
            self._skip -= 1
            return 0.0
        return self._seconds

    def ended(self, *, came: bool) -> None:
        """Looking has ended, with the reply or without."""
        if not came:
            self._skip = self._again = min(2 * self._again + LEAST_SKIPPED, MOST_SKIPPED)
        elif self._again:
            self._again -= 1
