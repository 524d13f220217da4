"""A message as ``--json`` shows it, wherever it was met: in its stream, or among dead letters."""

from __future__ import annotations

from typing import Any, Final

from quantum_bus import propagation
from quantum_bus.envelope import Incoming

# In JSON text these stand between values only.
_ON_ONE_LINE: Final = bytes.maketrans(b"\n\r\t", b"   ")


def fields(message: Incoming) -> dict[str, Any]:
    """All but its payload."""
    return {
        "event": message.event,
        "key": message.key,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "causation_id": message.causation_id,
        "service": message.service,
        "ts": message.ts,
        "traceparent": propagation.format_traceparent(message.context),
        "headers": dict(message.headers),
    }


def on_one_line(message: Incoming) -> bytes:
    """The payload as it was written, JSON or not, without line ends."""
    return message.raw.translate(_ON_ONE_LINE)
