"""Looks at Redis again and again, for as long as it runs, and says what it saw; no consumer is needed.

One thread looks, others ask for what it saw last: however many ask, and however often, Redis is asked once an interval.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from . import names
from .backoff import Backoff
from .blocking_link import Link
from .discovery import Found, discover
from .errors import QuantumBusError
from .gauges import Collection, Gauge, gauges
from .inquiry import answered
from .state import BusState, observe
from .stopping import StopRequest

log: Final = logging.getLogger(names.INSTRUMENTATION_NAME)

DEFAULT_INTERVAL: Final = 15.0
DEFAULT_MAX_STREAMS: Final = 500
DEFAULT_MAX_GROUPS: Final = 1_000
# Seconds between looks for streams among the keys, and how many pages of a thousand keys one may take.
DISCOVER_EVERY: Final = 60.0
DISCOVER_PAGES: Final = 1_000
# What was seen counts as gone after so many intervals, and a pause: a look may hang in a Redis that does.
INTERVALS_KEPT: Final = 3
KEPT_LONGER: Final = 10.0
# A Redis that is away is tried again after this many seconds, then less and less often, but once an interval.
FIRST_PAUSE: Final = 0.5

NOTHING_SEEN: Final = Collection(None)


class Exporter:
    """What was seen last, and the look that renews it.

    Args:
        link: nobody else's.
        streams: what to look at; empty: every stream there is.
        prefix: only streams whose names begin so, where they are looked for.
        interval: seconds from look to look.
        max_streams: how many streams have figures; the first by name.
        max_groups: how many groups of all streams together have figures.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: Link,
        *,
        streams: Sequence[str] = (),
        prefix: str = "",
        interval: float = DEFAULT_INTERVAL,
        max_streams: int = DEFAULT_MAX_STREAMS,
        max_groups: int = DEFAULT_MAX_GROUPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._streams = tuple(dict.fromkeys(streams))
        self._prefix = prefix
        self._interval = interval
        self._max_streams = max_streams
        self._max_groups = max_groups
        self._clock = clock
        self._found: Sequence[str] = ()
        self._next_discovery = clock()
        self._seen = NOTHING_SEEN
        self._seen_at = clock()
        self._backoff = Backoff(min(FIRST_PAUSE, interval), interval)
        self._said: set[object] = set()

    def gauges(self) -> list[Gauge]:
        """What was seen last. May be called from any thread."""
        seen, seen_at = self._seen, self._seen_at
        if self._clock() - seen_at > INTERVALS_KEPT * self._interval + KEPT_LONGER:
            seen = Collection(None, seen.last_success)
        return gauges(seen)

    def look(self) -> float:
        """Ask Redis, and return the seconds until it is to be asked again. Of one thread only."""
        begun = self._clock()
        try:
            wanted = self._wanted()
            kept = wanted[: self._max_streams]
            state = answered(observe(kept, max_groups=self._max_groups), self._link.execute)
        except QuantumBusError as error:
            if not self._backoff.failures:
                log.warning(
                    "Redis cannot be asked; trying again: %s", error, extra={"event": names.EVENT_BUS_CONNECTION_LOST}
                )
            self._keep(Collection(None, self._seen.last_success))
            return self._backoff.next()
        if self._backoff.failures:
            log.info("Redis answers again", extra={"event": names.EVENT_BUS_RECONNECTED})
            self._backoff.reset()
        self._keep(Collection(state, time.time(), len(wanted) - len(kept)))
        self._say_what_is_missing(state, len(wanted) - len(kept))
        return max(0.0, self._interval - (self._clock() - begun))

    def run(self, stop: StopRequest, *, seen: Callable[[list[Gauge]], None] = lambda _: None) -> None:
        """Look once an interval until ``stop``.

        Args:
            seen: called with the gauges after each look.
        """
        pause = 0.0
        while not stop.wait(pause):
            pause = self.look()
            seen(self.gauges())

    def _keep(self, seen: Collection) -> None:
        self._seen, self._seen_at = seen, self._clock()

    def _wanted(self) -> Sequence[str]:
        if self._streams:
            return self._streams
        if self._clock() >= self._next_discovery:
            found = answered(discover(pages=DISCOVER_PAGES), self._link.execute)
            self._next_discovery = self._clock() + DISCOVER_EVERY
            self._found = [stream for stream in found.streams if stream.startswith(self._prefix)]
            self._say_what_was_not_found(found)
        return self._found

    # --- what is missing is said once ------------------------------------------------------------

    def _say_what_was_not_found(self, found: Found) -> None:
        if found.refused:
            self._say_once("scan", "Redis does not let this user look for streams; name them: %s", found.refused)
        elif not found.complete:
            self._say_once("scan", "There are too many keys to find every stream among them; name the streams")

    def _say_what_is_missing(self, state: BusState, streams: int) -> None:
        if streams:
            self._say_once("streams", "%d streams past the limit of %d have no figures", streams, self._max_streams)
        if state.groups_left_out:
            self._say_once(
                "groups", "%d groups past the limit of %d have no figures", state.groups_left_out, self._max_groups
            )
        for refusal in state.refused[:1]:
            self._say_once(
                "refused",
                "Redis refused %d questions, whose figures are missing; the first: %s %s: %s",
                len(state.refused),
                refusal.command,
                refusal.key,
                refusal.text,
            )

    def _say_once(self, what: object, text: str, *arguments: object) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(text, *arguments)
