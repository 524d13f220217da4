"""What the spans of sending and of processing have in common."""

from __future__ import annotations

from typing import Final

from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from . import names
from .delivery import Failure

Attributes = dict[str, AttributeValue]

# Streams whose attribute sets are kept ready; a program that makes up stream names must not fill the memory.
CACHED_STREAMS: Final = 1024


def record_failure(span: Span, failure: Failure) -> None:
    """As ``record_exception`` would, but masked and bounded."""
    if not span.is_recording():
        return
    span.set_attribute(names.ATTR_ERROR_TYPE, failure.error_type)
    span.set_status(Status(StatusCode.ERROR, failure.message))
    event: Attributes = {
        names.ATTR_EXCEPTION_TYPE: failure.error_type,
        names.ATTR_EXCEPTION_MESSAGE: failure.message,
    }
    if failure.stack:
        event[names.ATTR_EXCEPTION_STACK] = failure.stack
    span.add_event(names.EXCEPTION_EVENT, event)
