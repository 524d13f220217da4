"""Whether a service is alive and ready, from what its bus knows of itself. Pure: the probes' verdicts and their words.

*Live* says that the process can still do anything: its event loop turns, and what the bus runs in the background runs.
An orchestrator starts a process anew that is not. *Ready* says that it is at work now: Redis answers, and every
subscriber reads, or does not by intent. Liveness asks nobody else, so that an outage of Redis restarts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from . import names
from .config import State

ALLOWED_METHODS: Final = ("GET", "HEAD")
OK: Final = 200
NOT_FOUND: Final = 404
METHOD_NOT_ALLOWED: Final = 405
UNAVAILABLE: Final = 503

# Seconds that Redis has to answer a probe, and an event loop to come to it: longer, and it does not turn.
REDIS_SECONDS: Final = 1.0
STALLED_SECONDS: Final = 2.0

# Of a bus; that it is running shows once its subscribers have begun.
STATES: Final = {
    State.NEW: names.HEALTH_STARTING,
    State.RUNNING: names.HEALTH_STARTING,
    State.STOPPING: names.HEALTH_DRAINING,
    State.CLOSED: names.HEALTH_STOPPED,
}
# In which a bus has a connection; asking in any other would open one that nobody closes.
CONNECTED: Final = (State.RUNNING, State.STOPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberHealth:
    """What one subscriber is doing.

    Attributes:
        streams: what it reads, with the bus's prefix.
        begun: whether it has set about reading.
        ended: what of it has ended though it should go on, as ``("reader",)``.
        failures: reads in a row that failed, the last one included.
        since: seconds since its reader last set about a read; None where it has not yet.
        longest: seconds that a read may take at the most.
        full: whether its handlers have all that they can take, so that it reads nothing.
        paused: by hand.
        breaker_open: whether its circuit breaker stands open.
        standing_by: whether, handling in order, it leaves the stream to another consumer.
    """

    streams: tuple[str, ...]
    group: str
    begun: bool = True
    ended: tuple[str, ...] = ()
    failures: int = 0
    since: float | None = 0.0
    longest: float = 0.0
    full: bool = False
    paused: bool = False
    breaker_open: bool = False
    standing_by: bool = False

    @property
    def fault(self) -> str | None:
        """Why it is not ready; None where it is."""
        if not self.begun:
            return "it has not begun to read"
        if self.ended:
            return f"its {' and '.join(self.ended)} ended"
        if self.failures and not self.waits:
            return f"its reads fail: {self.failures} in a row"
        if self.since is None and not self.waits:
            return "it has not begun to read"
        if self.stuck:
            return f"its reader has done nothing for {self.since:.0f} s"
        return None

    @property
    def waits(self) -> bool:
        """Whether it reads nothing for now, by intent: what became of its last read says nothing then."""
        return self.full or self.paused or self.breaker_open or self.standing_by

    @property
    def stuck(self) -> bool:
        """Whether its reader should have come back by now."""
        return not self.waits and self.since is not None and self.since > self.longest

    @property
    def doing(self) -> str:
        """One of ``names.DOING_*``."""
        if self.fault is not None:
            return names.DOING_NOTHING
        if self.paused:
            return names.DOING_PAUSED
        if self.breaker_open:
            return names.DOING_BREAKER_OPEN
        if self.standing_by:
            return names.DOING_STANDING_BY
        return names.DOING_FULL if self.full else names.DOING_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a bus knows of itself at one moment; made by its ``health()``.

    Attributes:
        state: one of ``names.HEALTH_*``.
        redis: the server's address, without secrets.
        redis_fault: why Redis is not to be reached; None where it answered, or was not asked.
        stalled: why nothing could be asked: the event loop does not turn. None where it does.
        ended: what of the bus itself has ended though it should go on.
    """

    service: str
    state: str
    redis: str
    redis_fault: str | None = None
    stalled: str | None = None
    ended: tuple[str, ...] = ()
    subscribers: tuple[SubscriberHealth, ...] = ()

    @property
    def live(self) -> bool:
        """Whether the process can go on as it is; where not, only a new start helps."""
        return self.stalled is None and not self.ended and not any(each.ended for each in self.subscribers)

    @property
    def ready(self) -> bool:
        """Whether it is at work: Redis answers and every subscriber reads, or does not by intent."""
        return (
            self.live
            and self.state == names.HEALTH_RUNNING
            and self.redis_fault is None
            and all(each.fault is None for each in self.subscribers)
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, each in a sentence."""
        if self.stalled is not None:
            return (self.stalled,)
        faults = [] if self.state == names.HEALTH_RUNNING else [f"the bus is {self.state}"]
        if self.redis_fault is not None:
            faults.append(self.redis_fault)
        if self.state in (names.HEALTH_RUNNING, names.HEALTH_STARTING):
            faults += [f"the bus's {part} ended" for part in self.ended]
            faults += [
                f"{', '.join(each.streams)} / {each.group}: {each.fault}" for each in self.subscribers if each.fault
            ]
        return tuple(faults)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe is told over HTTP; ``headers`` in lower case."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...]


def answer(path: str, health: Health) -> Answer:
    """The answer at ``names.PATH_LIVE`` or ``names.PATH_READY``."""
    live = path == names.PATH_LIVE
    return _json(OK if (health.live if live else health.ready) else UNAVAILABLE, _told(health, live=live))


def no_such_path() -> Answer:
    """There is nothing else to be asked for."""
    return _json(NOT_FOUND, {"error": f"there are {names.PATH_LIVE} and {names.PATH_READY}"})


def no_such_method() -> Answer:
    """Probes change nothing."""
    allowed = ", ".join(ALLOWED_METHODS)
    return _json(METHOD_NOT_ALLOWED, {"error": f"there are {allowed}"}, ("allow", allowed))


def refused(status: int) -> Answer:
    """What was no request that could be read."""
    return _json(status, {"error": "no request that can be read"})


def _told(health: Health, *, live: bool) -> dict[str, Any]:
    if live:
        ended = [*health.ended, *(part for each in health.subscribers for part in each.ended)]
        faults = [health.stalled] if health.stalled is not None else [f"the {part} ended" for part in ended]
        return {"live": health.live, "service": health.service, "state": health.state, "faults": faults}
    return {
        "ready": health.ready,
        "service": health.service,
        "state": health.state,
        "faults": list(health.faults),
        "redis": health.redis,
        "subscribers": [
            {"streams": list(each.streams), "group": each.group, "doing": each.doing, "fault": each.fault}
            for each in health.subscribers
        ],
    }


def _json(status: int, told: dict[str, Any], *headers: tuple[str, str]) -> Answer:
    body = orjson.dumps(told) + b"\n"
    fixed = (("content-type", "application/json"), ("content-length", str(len(body))), ("cache-control", "no-store"))
    return Answer(status, body, (*fixed, *headers))
