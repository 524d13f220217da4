"""The logger: a handful of methods in front of whatever pipeline is set up now."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

from .active import active
from .record import Context

_DEBUG: Final = logging.DEBUG
_INFO: Final = logging.INFO
_WARNING: Final = logging.WARNING
_ERROR: Final = logging.ERROR
_CRITICAL: Final = logging.CRITICAL


class Logger:
    """Writes records with fields.

    ::

        log.info("Order accepted", event="ORDER_SUBMIT", order_id="o-17", qty=0.5)
        log.warning("%d of %d filled", 3, 5, extra={"order_id": "o-17"})
        log.error("Order failed", exc_info=error)

    Keywords are fields, in the order given, but for those the standard library knows: ``extra`` (a mapping of more
    fields), ``exc_info`` (an exception, or true for the one being handled), ``stack_info`` (a text) and
    ``stacklevel`` (ignored). ``event`` and ``correlation_id`` set the record's own; any other name of a line's own
    keys gets a ``_`` behind it.

    No call raises, whatever it is given. Loggers are immutable, and safe to use from any thread.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def debug(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at DEBUG."""
        if active.threshold <= _DEBUG:
            active.emit(_DEBUG, self._context, msg, args, fields)

    def info(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at INFO."""
        if active.threshold <= _INFO:
            active.emit(_INFO, self._context, msg, args, fields)

    def warning(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at WARNING."""
        if active.threshold <= _WARNING:
            active.emit(_WARNING, self._context, msg, args, fields)

    def error(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at ERROR."""
        if active.threshold <= _ERROR:
            active.emit(_ERROR, self._context, msg, args, fields)

    def critical(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at CRITICAL."""
        if active.threshold <= _CRITICAL:
            active.emit(_CRITICAL, self._context, msg, args, fields)

    def exception(self, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at ERROR with the exception being handled."""
        if active.threshold <= _ERROR:
            fields.setdefault("exc_info", True)
            active.emit(_ERROR, self._context, msg, args, fields)

    def log(self, level: int | str, msg: object, /, *args: object, **fields: Any) -> None:
        """Log at a level given by number or name; at INFO where there is no such level."""
        number = level_number(level)
        if active.threshold <= number:
            active.emit(number, self._context, msg, args, fields)

    def isEnabledFor(self, level: int | str, /) -> bool:  # noqa: N802 - as in the standard library
        """Whether records of this level are written."""
        return active.threshold <= level_number(level)

    def bind(self, /, **fields: Any) -> Logger:
        """A logger that adds these fields to each record, in front of the record's own.

        Values are masked, shortened and copied now. ``event`` and ``correlation_id`` become its records' defaults.
        """
        return Logger(self._context.bind(fields))

    @property
    def dropped(self) -> int:
        """Records that could not be written since set-up: disk full, stream closed, reader stalled."""
        return active.pipeline.dropped


def level_number(level: object) -> int:
    """A level's number; INFO for what is no level."""
    if isinstance(level, int):
        return int(level)
    number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else None
    return _INFO if number is None else number


def get_logger(name: str | None = None) -> Logger:
    """A logger for anywhere in the service, made at any time, also before :func:`setup_json_logging`.

    It follows the set-up in force when it is used. Before there is one, records go to the standard library's logger
    ``name`` (``quantum_bus`` without one), and by the application's own rules.

    Args:
        name: written as the field ``logger``, where given.
    """
    if name is None:
        return Logger(Context())
    return Logger(replace(Context().bind({"logger": name}), logger=name))


def service_logger(service: str) -> Logger:
    """The logger of a service; it keeps that name under a later set-up of another one."""
    return Logger(Context(service=service, kinds={}))
