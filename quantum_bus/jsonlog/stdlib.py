"""The standard library's loggers, everybody's: a root handler that writes their records in our format."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from typing import Final

from .active import active

_WARNINGS_LOGGER: Final = "py.warnings"


class StdlibHandler(logging.Handler):
    """Hands records to the pipeline in force. Takes no lock: the pipeline's sink has one."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and write one record."""
        if self.filters:
            kept: object = self.filter(record)
            if not kept:
                return False
            if isinstance(kept, logging.LogRecord):  # Python 3.12: a filter may replace it
                record = kept
        if record.name == _WARNINGS_LOGGER:
            record = _warning(record)
        active.pipeline.emit_stdlib(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, filters aside."""
        active.pipeline.emit_stdlib(record)


@dataclass(slots=True)
class Takeover:
    """What was changed in the standard library's ``logging``, so that it can be put back."""

    handler: StdlibHandler
    level: int
    removed: list[tuple[logging.Logger, logging.Handler, bool]] = field(default_factory=list)
    captured_warnings: bool = False

    def undo(self) -> None:
        """Put everything back."""
        root = logging.getLogger()
        root.removeHandler(self.handler)
        root.setLevel(self.level)
        for logger, handler, propagate in self.removed:
            logger.addHandler(handler)
            logger.propagate = propagate
        self.removed.clear()
        if self.captured_warnings:
            logging.captureWarnings(False)


def take_over(level: int, *, capture_warnings: bool) -> Takeover:
    """Make the root logger write through the pipeline in force.

    Handlers that print to the console (``logging.basicConfig``, uvicorn) are taken off, whichever logger they are on,
    so that each record is written once and in one format. All other handlers stay.
    """
    root = logging.getLogger()
    takeover = Takeover(StdlibHandler(), root.level)
    for logger in (root, *logging.Logger.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for handler in [handler for handler in logger.handlers if _is_console(handler)]:
            takeover.removed.append((logger, handler, logger.propagate))
            logger.removeHandler(handler)
            logger.propagate = True
    root.addHandler(takeover.handler)
    root.setLevel(level)
    if capture_warnings and logging._warnings_showwarning is None:  # type: ignore[attr-defined]  # noqa: SLF001 - the only way to see whether it is on
        logging.captureWarnings(True)
        takeover.captured_warnings = True
    return takeover


def _is_console(handler: logging.Handler) -> bool:
    # Not isinstance: subclasses (files, a test runner's capture) have other purposes.
    consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return type(handler) is logging.StreamHandler and handler.stream in consoles


def _warning(record: logging.LogRecord) -> logging.LogRecord:
    """A warning's first line: where it arose and what it says, without the line of source code behind it."""
    text = str(record.args[0]) if isinstance(record.args, tuple) and record.args else str(record.msg)
    copy = logging.makeLogRecord(record.__dict__)
    copy.msg, copy.args = text.partition("\n")[0], None
    return copy
