"""Fields in and out of the standard library's ``LogRecord``, where ``extra=`` becomes attributes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Final

_EMPTY: Final = logging.LogRecord("", 0, "", 0, "", None, None)
_ATTRIBUTES: Final = frozenset(_EMPTY.__dict__) | {"message", "asctime"}
_COUNT: Final = len(_EMPTY.__dict__)
# Put on every record by others: what a formatter computed, OpenTelemetry's copy of the span, uvicorn's coloured text.
_NOT_FIELDS: Final = _ATTRIBUTES | {
    "otelSpanID",
    "otelTraceID",
    "otelTraceSampled",
    "otelServiceName",
    "color_message",
}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What ``extra=`` has put on a record."""
    attributes = record.__dict__
    if len(attributes) == _COUNT:
        return {}
    # LogRecord sets its own attributes first, so what was added stands behind them.
    fields = dict(islice(attributes.items(), _COUNT, None))
    if not _NOT_FIELDS.isdisjoint(fields):
        return {name: value for name, value in fields.items() if name not in _NOT_FIELDS}
    return fields


def as_extra(fields: Mapping[str, object]) -> dict[str, object]:
    """``fields`` as ``extra=`` takes them: a name that a record has already (``name``, ``args``) gets a ``_``."""
    return {f"{name}_" if name in _ATTRIBUTES else name: value for name, value in fields.items()}
