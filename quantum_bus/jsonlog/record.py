"""What one log call means: reserved names, ``%`` arguments, ``extra``, exceptions. No encoding, no I/O."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from quantum_bus import names

from .escape import encode_members
from .masking import MaskedException, is_secret_name, mask_exception, mask_text
from .plain import Limits, plain_object
from .safetext import repr_of, text_of

RESERVED: Final = frozenset(
    {
        names.LOG_TS,
        names.LOG_LEVEL,
        names.LOG_SERVICE,
        names.LOG_EVENT,
        names.LOG_CORRELATION_ID,
        names.LOG_MSG,
        names.LOG_TRACE_ID,
        names.LOG_SPAN_ID,
        names.LOG_EXC_TYPE,
        names.LOG_EXC_MESSAGE,
        names.LOG_STACK,
    }
)

# Keywords of a log call that are no fields, as in the standard library.
_CONTROLS: Final = frozenset({"extra", "exc_info", "stack_info", "stacklevel"})
_KNOWN_NAMES_KEPT: Final = 1024
_BOUND: Final = Limits(text=16_384, nodes=256)

Kinds = dict[int, dict[object, bytes]]


@dataclass(frozen=True, slots=True)
class Context:
    """What a logger adds to each of its records.

    Attributes:
        fields: the bound fields, masked and bounded; in the order they were given.
        members: the same as JSON, ``,"key":value,…``, ready to be joined into a line.
        ordinary: names of fields known to need no care in this context: neither reserved, secret nor bound already.
        service: overrides the configured service.
        event: of records that name none.
        correlation_id: of records that name none; None takes the current flow's.
        logger: the standard library's name for it, used before ``setup_json_logging``.
        kinds: encoded parts of lines by level and event, kept by the fast path; its own where ``service`` is None.
    """

    fields: Mapping[str, object] = field(default_factory=dict)
    members: bytes = b""
    ordinary: set[str] = field(default_factory=set)
    service: str | None = None
    event: str = names.DEFAULT_EVENT
    correlation_id: str | None = None
    logger: str = names.INSTRUMENTATION_NAME
    kinds: Kinds | None = None

    def bind(self, added: Mapping[str, object]) -> Context:
        """This context with more fields; ``event`` and ``correlation_id`` among them become its defaults."""
        fields, event, correlation_id = _split({}, added)
        merged = plain_object(unreserved({**self.fields, **fields}), _BOUND)
        return Context(
            fields=merged,
            members=encode_members(merged),
            ordinary=_ordinary_names(frozenset(merged)),
            service=self.service,
            event=self.event if event is None else text_of(event) or self.event,
            correlation_id=self.correlation_id if correlation_id is None else text_of(correlation_id),
            logger=self.logger,
            kinds=self.kinds,
        )

    def learn(self, fields: Mapping[str, object]) -> bool:
        """Whether every name in ``fields`` is ordinary; those that are will be known as such."""
        for name in fields:
            if name in self.ordinary:
                continue
            if name in RESERVED or name in _CONTROLS or name in self.fields or is_secret_name(name):
                return False
            if len(self.ordinary) >= _KNOWN_NAMES_KEPT:
                self.ordinary.clear()
            self.ordinary.add(name)
        return True


@lru_cache(maxsize=256)
def _ordinary_names(bound: frozenset[str]) -> set[str]:  # noqa: ARG001 - the cache key: loggers with equal names share
    return set()


@lru_cache(maxsize=1024)
def logger_context(name: str) -> Context:
    """What records of a standard library's logger carry: its name."""
    return Context().bind({"logger": name})


@dataclass(frozen=True, slots=True)
class Record:
    """One log record, before it is written in either format.

    Attributes:
        micros: microseconds since the epoch.
        correlation_id: None outside a flow.
        trace: trace id and span id in hex, or None outside a span.
        fields: the caller's, under names that are free; values as they came.
        stack: a stack asked for without an exception; empty where none was.
    """

    micros: int
    level: str
    service: str
    event: str
    correlation_id: str | None
    msg: str
    trace: tuple[str, str] | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    error: MaskedException | None = None
    stack: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A log call taken apart."""

    event: str
    correlation_id: str | None
    msg: str
    fields: dict[str, object]
    error: MaskedException | None
    stack: str


def read_call(context: Context, msg: object, args: tuple[object, ...], fields: Mapping[str, object]) -> Call:
    """Take a call apart: what is bound, then ``extra``, then the keywords; a later one replaces an earlier one."""
    text, unmatched = message_of(msg, args)
    own, event, correlation_id = _split(_extra(fields.get("extra")), fields)
    if unmatched:
        own.setdefault("args", unmatched)
    stack_info = fields.get("stack_info")
    return Call(
        event=(context.event if event is None else text_of(event)) or names.DEFAULT_EVENT,
        correlation_id=context.correlation_id if correlation_id is None else text_of(correlation_id),
        msg=text,
        fields=unreserved({**context.fields, **own}),
        error=error_of(fields.get("exc_info")),
        stack=mask_text(stack_info) if isinstance(stack_info, str) else "",
    )


def message_of(msg: object, args: tuple[object, ...]) -> tuple[str, list[str]]:
    """The text of a message with its ``%`` arguments, and those arguments where they do not match it."""
    try:
        return mask_text(formatted(msg, args)), []
    except Exception:  # noqa: BLE001 - a wrong format is the caller's mistake, and no reason to lose the record
        return mask_text(text_of(msg)), [mask_text(repr_of(value)) for value in args]


def formatted(msg: object, args: tuple[object, ...]) -> str:
    """``msg % args``, as in ``logging.LogRecord``: one mapping alone is for ``%(name)s``."""
    text = text_of(msg)
    if len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
        return text % args[0]
    return text % args if args else text


def unreserved(fields: Mapping[str, object]) -> dict[str, object]:
    """``fields`` with ``_`` behind each reserved name, and behind that as long as it is taken."""
    if RESERVED.isdisjoint(fields):
        return dict(fields)
    result: dict[str, object] = {}
    for name, value in fields.items():
        free = name
        while free in RESERVED or free in result or (free != name and free in fields):
            free += "_"
        result[free] = value
    return result


def error_of(exc_info: object) -> MaskedException | None:
    """The exception that ``exc_info`` means: one, a ``sys.exc_info()`` tuple, or true for the one being handled."""
    if not isinstance(exc_info, (BaseException, tuple)):
        try:
            exc_info = sys.exception() if exc_info else None
        except Exception:  # noqa: BLE001 - a foreign __bool__ ran
            return None
    elif isinstance(exc_info, tuple):
        exc_info = exc_info[1] if len(exc_info) == 3 else None
    return mask_exception(exc_info) if isinstance(exc_info, BaseException) else None


def _extra(extra: object) -> dict[object, object]:
    """Its members; under its own name what has none, or does not give them."""
    if extra is None:
        return {}
    try:
        if isinstance(extra, Mapping):
            return dict(extra.items())
    except Exception:  # noqa: BLE001, S110 - a foreign items() ran; what it is can still be written
        pass
    return {"extra": extra}


def _split(
    extra: Mapping[object, object], fields: Mapping[str, object]
) -> tuple[dict[str, object], object | None, object | None]:
    """The caller's own fields, and the event and the correlation id among them."""
    merged = {name if type(name) is str else text_of(name): value for name, value in extra.items()}
    merged.update((name, value) for name, value in fields.items() if name not in _CONTROLS)
    return merged, merged.pop(names.LOG_EVENT, None), merged.pop(names.LOG_CORRELATION_ID, None)
