"""From a log call to its line: one class for each way a record can be written, chosen once at set-up.

This one can write every record, in every format; ``fastpath`` writes the ordinary ones in less time, ``forward``
hands them to the standard library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time_ns
from typing import Protocol

from opentelemetry import trace

from quantum_bus.propagation import get_correlation_id

from .encode import Clock
from .logrecord import fields_of
from .notices import Notice
from .record import Context, Record, logger_context, read_call
from .safetext import text_of
from .sinks import Sink

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
            msg, args = message_in(record)
            self.emit(record.levelno, logger_context(record.name), msg, args, fields, micros_of(record))
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

    def _notice(self, notice: Notice) -> bytes:
        record = Record(
            micros=time_ns() // 1000,
            level=notice.level,
            service=self._service,
            event=notice.event,
            correlation_id=None,
            msg=notice.msg,
            fields=notice.fields,
        )
        return self._encode(record, self._clock, self._limit)


def _current_ids() -> tuple[str, str] | None:
    try:
        context = trace.get_current_span().get_span_context()
        ids = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    except Exception:  # noqa: BLE001 - a foreign span; the record is worth more than its ids
        return None
    return ids if context.is_valid else None


def micros_of(record: logging.LogRecord) -> int:
    return round(record.created * 1_000_000)


def message_in(record: logging.LogRecord) -> tuple[object, tuple[object, ...]]:
    """What the record says: its finished text, or message and arguments where these do not match."""
    if not record.args and type(record) is logging.LogRecord:
        return record.msg, ()
    try:
        return record.getMessage(), ()
    except Exception:  # noqa: BLE001 - wrong arguments
        return record.msg, record.args if isinstance(record.args, tuple) else (record.args,)
