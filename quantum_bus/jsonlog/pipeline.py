"""From a log call to its line: one class for each way a record can be written, chosen once at set-up.

:class:`JsonPipeline` has a fast path for the ordinary record (known names, plain values, nothing that looks
like a secret), assembled from parts encoded before. Whatever is not ordinary, an error on the fast path
included, is left to :class:`RecordPipeline`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import time_ns
from typing import Final, Protocol

import orjson
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, SpanContext

from .. import names
from ..propagation import get_correlation_id, valid_correlation_id
from .encode import Clock
from .escape import escaped
from .logrecord import as_extra, fields_of
from .masking import HINT
from .plain import Limits, plain_object
from .record import Context, Record, formatted, logger_context, read_call
from .safetext import text_of
from .sinks import Sink

# The texts of events and messages are few and constant, unless a caller puts values into them.
_CACHED_TEXTS: Final = 1024
_LONGEST_CACHED: Final = 256
_FORWARDED: Final = Limits(text=4096, nodes=200)

Encode = Callable[[Record, Clock, int], bytes]


class Pipeline(Protocol):
    """Where loggers and the standard library's handler hand their records.

    Attributes:
        threshold: records of a lower level are not wanted; loggers ask before they call.
    """

    threshold: int

    @property
    def dropped(self) -> int:
        """Records lost since the pipeline was made."""

    def emit(
        self,
        level: int,
        context: Context,
        msg: object,
        args: tuple[object, ...],
        fields: dict[str, object],
        micros: int = 0,
    ) -> None:
        """Write one record, of now unless ``micros`` since the epoch are given. Never raises.

        ``fields`` is the pipeline's from here on.
        """

    def emit_stdlib(self, record: logging.LogRecord) -> None:
        """Write one record of the standard library. Never raises."""

    def flush(self) -> None:
        """Hand on what is still held."""

    def close(self) -> None:
        """Close what the pipeline's sink has opened."""

    def release(self) -> None:
        """Let a successor open the same file."""

    def after_fork(self) -> None:
        """Called in the child of a fork."""


def level_name(level: int) -> str:
    """``INFO`` for 20 and so on; a level without a name is ``Level 25``."""
    return text_of(logging.getLevelName(level))


class RecordPipeline:
    """Takes every call apart into a :class:`Record`, and writes that in the format it was given."""

    def __init__(self, service: str, threshold: int, sink: Sink, encode: Encode, limit: int) -> None:
        self.threshold = threshold
        self._service = service
        self._sink = sink
        self._encode = encode
        self._limit = limit
        self._clock = Clock()
        self._lost = 0
        sink.notice = self._notice

    @property
    def dropped(self) -> int:
        """Records lost since the pipeline was made."""
        return self._lost + self._sink.dropped

    def emit(
        self,
        level: int,
        context: Context,
        msg: object,
        args: tuple[object, ...],
        fields: dict[str, object],
        micros: int = 0,
    ) -> None:
        """Write one record."""
        try:
            call = read_call(context, msg, args, fields)
            record = Record(
                micros=micros or time_ns() // 1000,
                level=level_name(level),
                service=context.service or self._service,
                event=call.event,
                correlation_id=call.correlation_id if call.correlation_id is not None else get_correlation_id(),
                msg=call.msg,
                trace=_current_ids(),
                fields=call.fields,
                error=call.error,
                stack=call.stack,
            )
            self._sink.write(self._encode(record, self._clock, self._limit))
        except Exception:  # noqa: BLE001 - a log call never raises; what was lost is counted
            self._lost += 1

    def emit_stdlib(self, record: logging.LogRecord) -> None:
        """Write one record of the standard library."""
        try:
            fields = fields_of(record)
            fields["exc_info"] = record.exc_info
            fields["stack_info"] = record.stack_info
            msg, args = _message(record)
            self.emit(record.levelno, logger_context(record.name), msg, args, fields, _micros(record))
        except Exception:  # noqa: BLE001 - as above
            self._lost += 1

    def flush(self) -> None:
        """Hand on what is still held."""
        self._sink.flush()

    def close(self) -> None:
        """Close what the sink has opened."""
        self._sink.close()

    def release(self) -> None:
        """Let a successor open the same file."""
        self._sink.release()

    def after_fork(self) -> None:
        """Called in the child of a fork."""
        self._sink.after_fork()

    def _notice(self, dropped: int) -> bytes:
        record = Record(
            micros=time_ns() // 1000,
            level="WARNING",
            service=self._service,
            event=EVENT_LOG_RECORDS_DROPPED,
            correlation_id=None,
            msg="Log records were dropped",
            fields={"dropped": dropped, "pid": os.getpid()},
        )
        return self._encode(record, self._clock, self._limit)


class JsonPipeline:
    """JSON lines, fast."""

    __slots__ = (
        "_clock", "_events", "_heads", "_limit", "_messages", "_second", "_slow", "_span", "_write", "service", "threshold",
    )  # fmt: skip

    def __init__(self, slow: RecordPipeline, service: str, sink: Sink, limit: int) -> None:
        self.threshold = slow.threshold
        self.service = service
        self._slow = slow
        self._write = sink.write
        self._limit = limit
        self._clock = Clock()
        # Each of these is read and replaced as a whole, or only grows: right in every thread.
        self._second = (0, b"")
        self._span: tuple[SpanContext | None, bytes] = (None, b"")
        self._heads: dict[str | None, dict[int, bytes]] = {}
        self._events: dict[object, bytes] = {}
        self._messages: dict[object, bytes] = {}

    @property
    def dropped(self) -> int:
        """Records lost since the pipeline was made."""
        return self._slow.dropped

    def emit(
        self,
        level: int,
        context: Context,
        msg: object,
        args: tuple[object, ...],
        fields: dict[str, object],
        micros: int = 0,
    ) -> None:
        """Write one record."""
        event: object = context.event
        correlation_id: object = context.correlation_id
        try:
            if fields:
                event = fields.pop("event", event)
                correlation_id = fields.pop("correlation_id", correlation_id)
            line = self._line(level, context, msg, args, fields, micros, event, correlation_id)
        except Exception:  # noqa: BLE001 - what orjson or a foreign __eq__ refuses is not ordinary
            line = None
        if line is not None:
            self._write(line)
            return
        fields["event"] = event
        fields["correlation_id"] = correlation_id
        self._slow.emit(level, context, msg, args, fields, micros)

    def _line(
        self,
        level: int,
        context: Context,
        msg: object,
        args: tuple[object, ...],
        fields: dict[str, object],
        micros: int,
        event: object,
        correlation_id: object,
    ) -> bytes | None:
        """The record's line; None where it is not ordinary."""
        comma, rest = b"", b"}"
        if fields:
            if not context.ordinary.issuperset(fields) and not context.learn(fields):
                return None
            comma, rest = b",", orjson.dumps(fields)[1:]
            if not _ordinary(rest.decode(), values=True):
                return None

        if args:
            message = _text_part(formatted(msg, args))
        else:
            message = self._messages.get(msg) or self._learn_message(msg)
        if message is None:
            return None

        if correlation_id is None:
            flow = orjson.dumps(get_correlation_id())
        elif valid_correlation_id(correlation_id):
            flow = orjson.dumps(correlation_id)
        else:
            return None

        span = trace.get_current_span()
        start, second = self._second
        since = (micros or time_ns() // 1000) - start
        if not 0 <= since < 1_000_000:
            start, second = self._turn(start + since)
            since = (micros or time_ns() // 1000) - start
        line = b"".join(
            (
                second,
                b"%06d" % since,
                self._heads[context.service][level],
                self._events[event],
                flow,
                message,
                b"" if span is INVALID_SPAN else self._span_part(span.get_span_context()),
                context.members,
                comma,
                rest,
                b"\n",
            )
        )
        return line if len(line) <= self._limit else None
