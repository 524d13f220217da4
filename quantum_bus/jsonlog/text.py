"""Record → plain lines for people: ``QUANTUM_BUS_LOG_FORMAT=text``."""

from __future__ import annotations

import orjson

from .encode import Clock
from .escape import escaped, visible
from .plain import JSON, Limits, plain_object, plain_text
from .record import Record


def render_record(record: Record, clock: Clock, limit: int) -> bytes:
    """``ts LEVEL service [correlation_id] EVENT msg key=value …``; a stack follows on indented lines of its own.

    Texts are shortened to a share of ``limit`` bytes.
    """
    limits = Limits(text=limit // 16, nodes=200)
    fields = plain_object(record.fields, limits)
    parts = [
        clock.stamp(record.micros).decode(),
        f"{visible(plain_text(record.level, 64)):<8}",
        visible(plain_text(record.service, 256)),
        f"[{visible(plain_text(record.correlation_id or '-', 256))}]",
        visible(plain_text(record.event, 256)),
        visible(plain_text(record.msg, limits.text)),
        *(f"{visible(name)}={_shown(value)}" for name, value in fields.items()),
    ]
    if record.error is not None:
        message = visible(plain_text(record.error.message, limits.text))
        parts.append(f"({record.error.type}: {message})" if message else f"({record.error.type})")
    line = " ".join(parts)
    stack = record.stack if record.error is None else record.error.stack
    if stack:
        shown = plain_text(stack, limits.text)
        line += "".join(f"\n    {visible(part)}" for part in shown.splitlines())
    return line.encode() + b"\n"


def _shown(value: JSON) -> str:
    if isinstance(value, str) and value and value.isprintable() and not set(value) & set(" \"'=,"):
        return value
    return escaped(orjson.dumps(value)).decode()
