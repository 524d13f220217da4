"""What commands print to: colours and width of a terminal, plain text that is never cut for a file or a pipe."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Columns where the output is no terminal, so that nothing is cut or broken into two lines.
NO_TERMINAL: Final = 400


def wide_console() -> Console:
    """Of the terminal's width; far wider for a file or a pipe. ``NO_COLOR`` is heeded."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else NO_TERMINAL)


def progress_bar(what: str) -> Progress:
    """A bar on standard error, where that is a terminal; it is gone behind the work."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
