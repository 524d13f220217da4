"""A sink that keeps what was logged, for tests."""

from __future__ import annotations

import json
from typing import Any

from quantum_bus import names

from .notices import Write, no_notice


class CaptureSink:
    """Keeps every line.

    Attributes:
        lines: as they were written, without line ends.
    """

    __slots__ = ("lines", "notice")

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notice: Write = no_notice

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines as parsed JSON objects, oldest first."""
        return [json.loads(line) for line in self.lines]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The records of one event."""
        return [record for record in self.records if record[names.LOG_EVENT] == event]

    def clear(self) -> None:
        """Forget what was logged so far."""
        self.lines.clear()

    @property
    def dropped(self) -> int:
        """Always 0: memory takes every line."""
        return 0

    def write(self, line: bytes) -> None:
        """Keep one line."""
        self.lines.append(line.decode().removesuffix("\n"))

    def flush(self) -> None:
        """Nothing is held back."""

    def release(self) -> None:
        """There is no file."""

    def close(self) -> None:
        """The lines stay readable."""

    def after_fork(self) -> None:
        """Parent and child each have their own copy."""
