"""The names of streams that a bus publishes to: checked once each, not with every message."""

from __future__ import annotations

from typing import Final

from .config import check_stream

# A program that makes up stream names must not fill the memory.
_KEPT: Final = 1024


class StreamNames:
    """From names as callers give them to full ones.

    Args:
        prefix: put before every name.
    """

    __slots__ = ("_known", "_prefix")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._known: dict[str, str] = {}

    def full(self, stream: str) -> str:
        """The name with its prefix.

        Raises:
            ConfigurationError: it cannot be a stream's name.
        """
        try:
            return self._known[stream]
        except (KeyError, TypeError):  # what cannot even be looked up is refused below
            check_stream(stream)
            check_stream(self._prefix + stream)  # together they may be too long, or half a hash tag each
            if len(self._known) >= _KEPT:
                self._known.clear()
            return self._known.setdefault(stream, self._prefix + stream)
