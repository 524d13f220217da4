"""The story of one correlation id, put together from log lines and stream entries. Pure: nothing here does I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quantum_bus import names
from quantum_bus.demo.trading import AI_ENGINE, CONSUMERS

Line = Mapping[str, Any]
"""A parsed log line."""


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """An entry as it stands in Redis, fields as text."""

    stream: str
    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One log line, or one entry published.

    Attributes:
        offset_ms: milliseconds since the flow began.
        event: the line's or the entry's.
        text: the line's message, or the entry's id.
        stream: of an entry; None for a log line.
    """

    offset_ms: float
    event: str
    text: str
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """What one service did in the flow.

    Attributes:
        waited_ms: from the publishing of what it handles to its first line: serializing, Redis, and being read. None
            for the service that began the flow.
        steps: in the order of time.
        next: the hops that follow from what it published.
    """

    service: str
    waited_ms: float | None
    steps: Sequence[Step]
    next: Sequence[Hop]


@dataclass(frozen=True, slots=True)
class Flow:
    """A whole flow; ``duration_ms`` is from its first line to its last."""

    correlation_id: str
    first: Hop
    duration_ms: float


def parse_lines(text: bytes) -> list[Line]:
    """The whole JSON lines in a log file's bytes; what is none, as a half-written one, is left out."""
    lines: list[Line] = []
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How often each event was logged, in the order of its first line."""
    return dict(Counter(str(line.get(names.LOG_EVENT)) for line in lines))


def flows_with(lines: Iterable[Line], event: str) -> list[str]:
    """The correlation ids that ``event`` was logged under, in order, each once."""
    ids = (line.get(names.LOG_CORRELATION_ID) for line in lines if line.get(names.LOG_EVENT) == event)
    return list(dict.fromkeys(found for found in ids if isinstance(found, str)))


def build_flow(correlation_id: str, lines: Mapping[str, Iterable[Line]], entries: Iterable[StreamEntry]) -> Flow:
    """Put a flow together.

    Args:
        lines: of each service.
        entries: of both streams.

    Raises:
        ValueError: the first service has logged nothing under that id.
    """
    of_flow = {
        service: [line for line in own if line.get(names.LOG_CORRELATION_ID) == correlation_id]
        for service, own in lines.items()
    }
    published = [entry for entry in entries if entry.fields.get(names.FIELD_CORRELATION_ID) == correlation_id]
    if not of_flow.get(AI_ENGINE):
        raise ValueError(f"{AI_ENGINE} has logged nothing under {correlation_id}")
    begin = min(_micros(line[names.LOG_TS]) for line in of_flow[AI_ENGINE])
    end = max(_micros(line[names.LOG_TS]) for own in of_flow.values() for line in own)

    def hop(service: str, sent: int | None) -> Hop:
        own = of_flow.get(service, [])
        steps = [(_micros(line[names.LOG_TS]), _logged(line, begin)) for line in own]
        outgoing = [entry for entry in published if entry.fields.get(names.FIELD_SERVICE) == service]
        steps += [(_micros(entry.fields[names.FIELD_TS]), _sent(entry, begin)) for entry in outgoing]
        first = min((at for at, _ in steps), default=None)
        return Hop(
            service=service,
            waited_ms=None if sent is None or first is None else _ms(first - sent),
            steps=[step for _, step in sorted(steps, key=lambda pair: pair[0])],
            next=[
                hop(CONSUMERS[entry.stream], _micros(entry.fields[names.FIELD_TS]))
                for entry in outgoing
                if entry.stream in CONSUMERS
            ],
        )

    return Flow(correlation_id, hop(AI_ENGINE, None), _ms(end - begin))


def _logged(line: Line, begin: int) -> Step:
    return Step(_ms(_micros(line[names.LOG_TS]) - begin), str(line[names.LOG_EVENT]), str(line[names.LOG_MSG]))


def _sent(entry: StreamEntry, begin: int) -> Step:
    event = entry.fields.get(names.FIELD_EVENT, names.DEFAULT_EVENT)
    return Step(_ms(_micros(entry.fields[names.FIELD_TS]) - begin), event, entry.id, entry.stream)


def _micros(timestamp: str) -> int:
    moment = datetime.fromisoformat(timestamp)
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def _ms(micros: int) -> float:
    return micros / 1000
