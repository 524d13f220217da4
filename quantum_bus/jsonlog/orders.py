"""The events of one order's life, each with the fields that dashboards and queries look for."""

from __future__ import annotations

import logging
from typing import Any, Final

from quantum_bus import names

from .logger import Logger, level_number
from .logrecord import as_extra
from .masking import mask_text
from .safetext import text_of

AnyLogger = Logger | logging.Logger | logging.LoggerAdapter[Any]

# Frames from Logger.log up to the caller of a function here.
_CALLER: Final = 3


def log_event(logger: AnyLogger, level: int | str, event: str, msg: str, **fields: Any) -> None:
    """Log ``msg`` as ``event`` with fields, by a logger of ours or of the standard library.

    With a standard library's logger, fields become attributes of its record; a name that a record has already
    (``name``, ``args``) gets a ``_`` behind it.
    """
    _log(logger, level, event, msg, fields)


def log_intent_received(
    logger: AnyLogger,
    intent_id: str,
    symbol: str,
    confidence: float,
    correlation_id: str | None = None,
    **fields: Any,
) -> None:
    """Log ``INTENT_RECEIVED``. Without a correlation id the current flow's is taken, here and below."""
    own = {"symbol": symbol, "intent_id": intent_id, "confidence": confidence}
    msg = f"Intent received: {text_of(symbol)}"
    _log(logger, logging.INFO, names.EVENT_INTENT_RECEIVED, msg, own | fields, correlation_id)


def log_order_submit(
    logger: AnyLogger,
    symbol: str,
    side: str,
    qty: float,
    order_type: str,
    correlation_id: str | None = None,
    **fields: Any,
) -> None:
    """Log ``ORDER_SUBMIT``: the order leaves for the exchange."""
    own = {"symbol": symbol, "side": side, "qty": qty, "order_type": order_type}
    msg = f"Order submitted: {text_of(symbol)}"
    _log(logger, logging.INFO, names.EVENT_ORDER_SUBMIT, msg, own | fields, correlation_id)


def log_order_response(
    logger: AnyLogger,
    order_id: str,
    symbol: str,
    status: str,
    correlation_id: str | None = None,
    **fields: Any,
) -> None:
    """Log ``ORDER_RESPONSE``: the exchange has answered. ``latency_ms=`` says how long it took, in milliseconds."""
    own = {"order_id": order_id, "symbol": symbol, "status": status}
    msg = f"Order response: {text_of(symbol)}"
    _log(logger, logging.INFO, names.EVENT_ORDER_RESPONSE, msg, own | fields, correlation_id)


def log_order_error(
    logger: AnyLogger,
    symbol: str,
    error: object,
    correlation_id: str | None = None,
    **fields: Any,
) -> None:
    """Log ``ORDER_ERROR`` at ERROR. An exception is written with its type, message and stack."""
    own: dict[str, Any] = {"symbol": symbol, "error": mask_text(text_of(error))}
    if isinstance(error, BaseException):
        own["exc_info"] = error
    msg = f"Order error: {text_of(symbol)}"
    _log(logger, logging.ERROR, names.EVENT_ORDER_ERROR, msg, own | fields, correlation_id)


def _log(
    logger: AnyLogger,
    level: int | str,
    event: str,
    msg: object,
    fields: dict[str, Any],
    correlation_id: str | None = None,
) -> None:
    fields[names.LOG_EVENT] = event
    if correlation_id is not None:
        fields[names.LOG_CORRELATION_ID] = correlation_id
    if isinstance(logger, Logger):
        logger.log(level, msg, **fields)
        return
    exc_info = fields.pop("exc_info", None)
    extra: dict[str, Any] = {}
    while isinstance(logger, logging.LoggerAdapter):  # before Python 3.13 it would replace our fields by its own
        msg, added = logger.process(msg, {})
        extra = {**(added.get("extra") or {}), **extra}
        logger = logger.logger
    extra |= as_extra(fields)
    logger.log(level_number(level), "%s", msg, exc_info=exc_info, extra=extra, stacklevel=_CALLER)
