"""What the logging says of itself: lines it lost, and files it closed.

A file is closed by rotation with a line that says how many lines it holds, and how many were in the files before it.
Who finds the lines of one chain of files can tell from these how many are missing, whatever order they came in:
the highest ``lines_total``, less the lowest ``lines_before``, less the sum of ``lines``.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantum_bus import names

_PIECE: Final = 262_144
# What the closing line is looked for in; it is not longer than this.
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Notice:
    """One line of the logging's own."""

    level: str
    event: str
    msg: str
    fields: Mapping[str, object]


# Makes a notice a line, its line end included.
Write = Callable[[Notice], bytes]


def no_notice(notice: Notice) -> bytes:  # noqa: ARG001 - the form of a Write
    """Until a sink is part of a pipeline, nothing tells of what it does."""
    return b""


def records_dropped(dropped: int) -> Notice:
    """Lines could not be written."""
    fields = {"dropped": dropped, "pid": os.getpid()}
    return Notice("WARNING", names.EVENT_LOG_RECORDS_DROPPED, "Log records were dropped", fields)


@dataclass(frozen=True, slots=True)
class Chain:
    """The files that followed each other under one name.

    Attributes:
        name: of this chain alone.
        lines: how many are in its closed files, those since deleted included.
    """

    name: str
    lines: int

    @classmethod
    def new(cls) -> Chain:
        """A chain that begins."""
        return cls(secrets.token_hex(8), 0)

    @classmethod
    def after(cls, closed: Path) -> Chain:
        """The chain that a closed file belongs to; a new one where the file does not say."""
        try:
            with closed.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
                # The last line, but for what another thread was writing when the file was closed.
                for line in reversed(file.read().splitlines()):
                    if names.EVENT_LOG_FILE_CLOSED.encode() in line:
                        said = json.loads(line)
                        return cls(str(said["chain"]), int(said["lines_total"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return cls.new()

    def longer(self, lines: int) -> Chain:
        """The chain with one more closed file."""
        return Chain(self.name, self.lines + lines)

    def file_closed(self, file: str, lines: int) -> Notice:
        """The chain's next file is full."""
        fields = {
            "file": file,
            "chain": self.name,
            "lines": lines,
            "lines_before": self.lines,
            "lines_total": self.lines + lines,
        }
        return Notice("INFO", names.EVENT_LOG_FILE_CLOSED, "Log file closed", fields)


def count_lines(fd: int) -> int:
    """How many line ends a file has; its position stays."""
    lines = offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        lines += piece.count(b"\n")
        offset += len(piece)
    return lines
