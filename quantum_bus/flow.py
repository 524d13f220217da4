"""The story of a flow: who published what, who ran it, what became of it. Pure.

::

    Hop ai_engine                      a service that began something
        Message → intents 17…-0        what it published
            Hop auto_executor          a group that was to handle it: its runs, its outcome
                LogLine                what the service logged meanwhile
                Message → executions … what it published in turn

:mod:`quantum_bus.assembly` puts one together. Times are seconds since 1970; those of messages and runs are the
services' own clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from . import names
from .envelope import Incoming
from .sightings import Run, seconds_of

UNKNOWN_SERVICE: Final = "unknown service"


class Outcome(StrEnum):
    """What became of a message in a group; the worst last."""

    HANDLED = "handled"
    SKIPPED = "skipped"
    """Its id was handled before."""
    UNKNOWN = "unknown"
    """It was given to the group and is not pending; no record is left."""
    PENDING = "pending"
    """A consumer has it."""
    DELAYED = "delayed"
    """It waits for its time, and no group can read it."""
    WAITING = "waiting"
    """The group was not given it yet."""
    RETRYING = "retrying"
    """A run failed, and another is to come."""
    DEAD = "dead"


_RANKS: Final = {outcome: rank for rank, outcome in enumerate(Outcome)}


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a service logged in the flow."""

    at: float
    service: str
    level: str
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message, as an entry of a stream or on its way into one.

    Attributes:
        entry_id: in the stream; empty where it is delayed, and where its dead letter does not tell.
        at: when it was published; None where nothing tells.
        delayed: it waits for its time, and is in no stream yet.
        due: when that is.
        incoming: None where the entry is gone and only records tell of it.
        caused_by: the ``message_id`` of the message in whose handling it was published.
        cause_missing: that message was not seen.
        replayed: it was a dead letter, and was given back to its stream.
        matched: it is what was asked about.
        hops: what each group did with it.
    """

    stream: str
    entry_id: str
    message_id: str
    correlation_id: str
    at: float | None
    delayed: bool = False
    due: float | None = None
    incoming: Incoming | None = None
    caused_by: str | None = None
    cause_missing: bool = False
    replayed: bool = False
    matched: bool = False
    hops: list[Hop] = field(default_factory=list)

    @property
    def event(self) -> str | None:
        return self.incoming.event if self.incoming is not None else None

    @property
    def service(self) -> str:
        return (self.incoming.service if self.incoming is not None else None) or UNKNOWN_SERVICE


@dataclass(frozen=True, slots=True)
class Hop:
    """What one service did in the flow.

    Attributes:
        group: whose handling this is; None where the service began something by itself.
        outcome: None where nothing was to be handled, or who handled it is not known by any group.
        due: when the next run may begin, where one is to come and waits for its time.
        waited: seconds from publishing to the first run; None where one of both is unknown.
        consumer: who has it, where it is pending.
        idle: seconds since that one was seen with it.
        reason: why it is dead, one of ``names.REASON_*``.
        error: the last one, where it is dead.
        steps: what was logged and published, by time.
    """

    service: str
    group: str | None
    outcome: Outcome | None = None
    due: float | None = None
    waited: float | None = None
    consumer: str | None = None
    idle: float | None = None
    reason: str | None = None
    error: str | None = None
    runs: Sequence[Run] = ()
    steps: list[LogLine | Message] = field(default_factory=list)

    @property
    def took(self) -> float | None:
        """Seconds that its handler ran, over all runs; None where no record tells."""
        ran = [run.duration for run in self.runs if run.started is not None]
        return sum(ran) if ran else None


@dataclass(frozen=True, slots=True)
class Flow:
    """All of it.

    Attributes:
        correlation_ids: of its messages; one, but for what is found under another id.
        began, ended: of whatever is known of it; None where nothing has a time.
        roots: services that began something.
        messages: all of them, by time.
    """

    correlation_ids: Sequence[str]
    began: float | None
    ended: float | None
    roots: Sequence[Hop]
    messages: Sequence[Message]

    @property
    def services(self) -> Sequence[str]:
        """Every service that published, handled or logged something, in the order of the tree."""
        found = dict.fromkeys(hop.service for _, hop in walk(self.roots))
        found.pop(UNKNOWN_SERVICE, None)
        return list(found)

    @property
    def outcome(self) -> Outcome | None:
        """The worst of all messages; None where no group was to handle anything."""
        found = [hop.outcome for message in self.messages for hop in message.hops if hop.outcome is not None]
        found += [Outcome.DELAYED for message in self.messages if message.delayed]
        return max(found, key=_RANKS.__getitem__, default=None)


def walk(roots: Sequence[Hop]) -> Iterator[tuple[int, Hop]]:
    """Every hop with its depth, each before what follows from it. Not recursive: a flow may be long."""
    waiting = [(0, hop) for hop in reversed(roots)]
    while waiting:
        depth, hop = waiting.pop()
        yield depth, hop
        below = [following for step in hop.steps if isinstance(step, Message) for following in step.hops]
        waiting.extend((depth + 1, following) for following in reversed(below))


def log_line(line: Mapping[str, Any]) -> LogLine | None:
    """A JSON log line as a step; None for one without a time."""
    at = seconds_of(line.get(names.LOG_TS))
    if at is None:
        return None
    service, level, event, text = (
        str(line.get(name) or default)
        for name, default in (
            (names.LOG_SERVICE, UNKNOWN_SERVICE),
            (names.LOG_LEVEL, ""),
            (names.LOG_EVENT, names.DEFAULT_EVENT),
            (names.LOG_MSG, ""),
        )
    )
    if (error := line.get(names.LOG_EXC_TYPE)) is not None:
        text = f"{text}: {error}: {line.get(names.LOG_EXC_MESSAGE)}"
    return LogLine(at, service, level, event, text)
