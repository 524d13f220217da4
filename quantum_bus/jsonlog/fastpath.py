"""The fast path: ordinary records as JSON lines, assembled from parts that were encoded before.

Ordinary is a record with known names, plain values, no exception, and nothing that looks like a secret. Whatever else
comes, an error in here included, is left to :class:`RecordPipeline`.
"""

from __future__ import annotations

import logging
import re
from math import isfinite
from time import time_ns
from typing import Final

import orjson
from opentelemetry.context import Context as OtelContext

from quantum_bus import names
from quantum_bus.propagation import read_context, read_correlation_id, span_context, valid_correlation_id

from .encode import Clock
from .escape import escaped
from .logrecord import fields_of
from .masking import HINT, is_secret_name
from .pipeline import RecordPipeline, level_name, message_in
from .plain import plain_text
from .record import Context, Kinds, formatted, logger_context
from .sinks import Sink

# The texts of events and messages are few and constant, unless a caller puts values into them.
_CACHED_TEXTS: Final = 1024
_LONGEST_CACHED: Final = 256

_dumps = orjson.dumps
_EVENT: Final = names.LOG_EVENT
_CORRELATION_ID: Final = names.LOG_CORRELATION_ID
_APPEND_NEWLINE: Final = orjson.OPT_APPEND_NEWLINE
_HINT = HINT.search
_SPAN: Final = b',"%b":"%%032x","%b":"%%016x"' % (names.LOG_TRACE_ID.encode(), names.LOG_SPAN_ID.encode())
_TS: Final = b'{"%b":"' % names.LOG_TS.encode()
_DIGITS: Final = tuple(b"%03d" % number for number in range(1000))  # looked up in half the time of formatting
# What stands between two quotes and before a colon; looked ahead, so that no match hides the next.
_NAMES = re.compile(r'"(?=((?:[^"\\]|\\.)*)":)').findall


class JsonPipeline:
    """JSON lines, fast."""

    __slots__ = (
        "_clock",

        "_flow",
        "_kinds",
        "_limit",
        "_messages",
        "_slow",
        "_stamp",
        "_write",
        "service",
        "threshold",
    )  # fmt: skip

    def __init__(self, slow: RecordPipeline, service: str, sink: Sink, limit: int) -> None:
        self.threshold = slow.threshold
        self.service = service
        self._slow = slow
        self._write = sink.write
        self._limit = limit
        self._clock = Clock()
        # Each of these is read and replaced as a whole, or only grows: right in every thread.
        self._stamp = (0, b"")
        self._flow: tuple[OtelContext | None, object, bytes, bytes] = (None, None, b"", b"")
        self._kinds: Kinds = {}
        self._messages: dict[object, bytes] = {}

    @property
    def dropped(self) -> int:
        """Records lost since the pipeline was made."""
        return self._slow.dropped

    def emit(  # noqa: C901 - in one piece: a call inside costs a twentieth of a record's time
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
            comma, rest, ordinary = b"", b"}\n", True
            if fields:
                event = fields.pop(_EVENT, event)
                if not context.ordinary.issuperset(fields):
                    correlation_id = fields.pop(_CORRELATION_ID, correlation_id)
                    ordinary = context.learn(fields)
            if fields:
                comma, rest = b",", _dumps(fields, None, _APPEND_NEWLINE)[1:]
                text = rest.decode()
                more = text.count(":") > len(fields)  # pairs inside: of an object, or in a text
                # As _harmless, inline.
                if (
                    (not text.isascii() and not text[:-1].isprintable())
                    or "\x7f" in text
                    or (more and "{" in text and _names_secret(text))
                    or (
                        (more or "=" in text or "@" in text or " " in text or "\\" in text)
                        and _HINT(text.lower()) is not None
                    )
                    or ("null" in text and not _nulls_are_none(fields))
                ):
                    ordinary = False

            known = None if args else self._messages.get(msg)
            message = known or self._learn_message(formatted(msg, args))

            flow_id = correlation_id
            if flow_id is None:
                flow_id = read_correlation_id()
            elif not valid_correlation_id(flow_id):
                ordinary = False

            current = read_context()
            within, last_id, flow, span = self._flow
            if current is not within or flow_id is not last_id:
                flow, span = self._enter(current, flow_id)

            kinds = context.kinds
            if kinds is None:
                kinds = self._kinds
            now = micros or time_ns() // 1000
            start, stamp = self._stamp
            since = now - start
            if not 0 <= since < 1000:
                start, stamp = self._turn(now)
                since = now - start

            if ordinary and message is not None:
                line = b"".join(
                    (
                        stamp,
                        _DIGITS[since],
                        kinds[level][event],
                        flow,
                        message,
                        span,
                        context.members,
                        comma,
                        rest,
                    )
                )
                if len(line) <= self._limit:
                    self._write(line)
                    return
        except Exception:  # noqa: BLE001, S110 - what orjson or a foreign __eq__ refuses is not ordinary
            pass
        if event is not context.event:
            fields[_EVENT] = event
        if correlation_id is not context.correlation_id:
            fields[_CORRELATION_ID] = correlation_id
        self._learn(level, context, event)
        self._slow.emit(level, context, msg, args, fields, micros)

    def emit_stdlib(self, record: logging.LogRecord) -> None:
        """Write one record of the standard library."""
        try:
            if not record.exc_info and not record.stack_info:
                msg, args = message_in(record)
                context = logger_context(record.name)
                self.emit(record.levelno, context, msg, args, fields_of(record), round(record.created * 1_000_000))
                return
        except Exception:  # noqa: BLE001 - a record with a hostile attribute
            self._slow.emit_stdlib(record)
            return
        self._slow.emit_stdlib(record)

    def flush(self) -> None:
        """There is no buffer to empty; tells of dropped lines."""
        self._slow.flush()

    def close(self) -> None:
        """Close what the sink has opened."""
        self._slow.close()

    def release(self) -> None:
        """Let a successor open the same file."""
        self._slow.release()

    def after_fork(self) -> None:
        """Called in the child of a fork."""
        self._slow.after_fork()

    def _turn(self, now: int) -> tuple[int, bytes]:
        """Begin another millisecond."""
        self._stamp = now // 1000 * 1000, _TS + self._clock.stamp(now)[:-4]
        return self._stamp

    def _enter(self, current: OtelContext, correlation_id: object) -> tuple[bytes, bytes]:
        """Note another flow or OpenTelemetry context; contexts are immutable, so one object stands for one span."""
        ids = span_context(current)
        flow = _dumps(correlation_id)
        span = _SPAN % (ids.trace_id, ids.span_id) if ids.is_valid else b""
        self._flow = current, correlation_id, flow, span
        return flow, span

    def _learn(self, level: int, context: Context, event: object) -> None:
        """Prepare the part that the next record of this level, service and event will need."""
        if type(event) is not str or not 0 < len(event) <= _LONGEST_CACHED:
            return
        known = (self._kinds if context.kinds is None else context.kinds).setdefault(level, {})
        try:
            encoded = _dumps(event)
        except orjson.JSONEncodeError:
            return
        if event not in known and _harmless(encoded.decode()):
            part = b'Z","%b":%b,"%b":%b,"%b":%b,"%b":' % (
                names.LOG_LEVEL.encode(),
                _encoded(level_name(level)),
                names.LOG_SERVICE.encode(),
                _encoded(context.service or self.service),
                names.LOG_EVENT.encode(),
                encoded,
                names.LOG_CORRELATION_ID.encode(),
            )
            _keep(known, event, part)

    def _learn_message(self, msg: str) -> bytes | None:
        part = _text_part(msg)
        if part is not None and len(msg) <= _LONGEST_CACHED:
            _keep(self._messages, msg, part)
        return part


def _harmless(text: str) -> bool:
    """Whether encoded JSON needs neither escaping nor masking; in doubt not."""
    if "\x7f" in text or not (text.isascii() or text.isprintable()):
        return False
    # Every secret that mask_text finds by its form has one of these by it.
    if "=" in text or "@" in text or ":" in text or " " in text or "\\" in text:
        return HINT.search(text.lower()) is None
    return True


def _names_secret(text: str) -> bool:
    """Whether an object inside has a secret's name; a brace inside a text is taken for one, without harm."""
    return any(map(is_secret_name, _NAMES(text)))


def _nulls_are_none(fields: dict[str, object]) -> bool:
    """Whether no ``null`` can stand for a NaN or an infinity."""
    return all(
        value is None or type(value) in (str, int, bool) or (type(value) is float and isfinite(value))
        for value in fields.values()
    )


def _text_part(text: str) -> bytes | None:
    encoded = _dumps(text)
    return b',"%b":%b' % (names.LOG_MSG.encode(), encoded) if _harmless(encoded.decode()) else None


def _encoded(text: str) -> bytes:
    return escaped(_dumps(plain_text(text, _LONGEST_CACHED)))


def _keep(cache: dict[object, bytes], text: str, part: bytes) -> None:
    if len(cache) >= _CACHED_TEXTS:
        cache.clear()
    cache[text] = part
