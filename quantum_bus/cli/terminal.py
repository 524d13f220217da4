"""What commands print to: colours and width of a terminal, plain text that is never cut for a file or a pipe.

rich is imported where something is shown with it: 30 ms, which plain text and ``--json`` do not need.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Columns where the output is no terminal, so that nothing is cut or broken into two lines.
NO_TERMINAL: Final = 400
# Seconds until a bar is shown: what is done by then needs none.
BAR_AFTER: Final = 0.5


def wide_console() -> Console:
    """Of the terminal's width; far wider for a file or a pipe. ``NO_COLOR`` is heeded."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else NO_TERMINAL)


def terminal() -> Console | None:
    """:func:`wide_console` where standard output is a terminal, or is to be taken for one; else None."""
    forced = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return wide_console() if forced or sys.stdout.isatty() else None


def progress_bar(what: str) -> Progress:
    """A bar on standard error, where that is a terminal; it is gone behind the work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class Bar:
    """A bar for what may be long: shown once it has taken a while."""

    def __init__(self, what: str) -> None:
        self._progress = progress_bar(what)
        self._task = self._progress.add_task("", total=None)
        self._shown_from = time.monotonic() + BAR_AFTER

    def __enter__(self) -> Self:
        return self

    def at(self, done: int, total: int | None) -> None:
        """So much is done; ``total`` None where nobody knows of how much."""
        self._progress.update(self._task, completed=done, total=total)
        if not self._progress.live.is_started and time.monotonic() > self._shown_from:
            self._progress.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
