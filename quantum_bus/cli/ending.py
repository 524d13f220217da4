"""How a command ends when it cannot do what it was asked: one line on standard error, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_UNWRITABLE: Final = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def fail(text: str, code: int, *, error: BaseException | None = None) -> NoReturn:
    """End the process; with ``error``, its traceback goes before the line."""
    if error is not None:
        traceback.print_exception(error)
    if sys.stderr is not None:  # it was closed when the process was started; print would take standard output
        print(f"quantum-bus: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def written_out() -> Iterator[None]:
    """End the process with 1 where what the block printed does not reach standard output: with a line, if it is full.

    A closed pipe, as behind ``head``, is nothing to tell. The interpreter would notice when it ends, print ``Exception
    ignored``, and exit with 120. A command that had failed already ends as it would have.
    """
    if sys.stdout is None:  # it was closed when the process was started: nobody wants what is printed
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    code: str | int = EXIT_FAILED
    try:
        try:
            yield
        except SystemExit as ended:
            code = ended.code or EXIT_FAILED
            raise
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in its buffer
        if error.errno != errno.EPIPE and sys.stderr is not None:
            print(f"quantum-bus: standard output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(code)
