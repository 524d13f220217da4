"""How a command ends when it cannot do what it was asked: one line on standard error, and an exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Final, NoReturn

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def fail(text: str, code: int, *, error: BaseException | None = None) -> NoReturn:
    """End the process; with ``error``, its traceback goes before the line."""
    if error is not None:
        traceback.print_exception(error)
    print(f"quantum-bus: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
