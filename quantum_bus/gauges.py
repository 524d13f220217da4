"""The state of streams and groups as gauges: which figure goes under which name. Pure.

A figure that Redis did not tell has no point: nobody could tell a made-up zero from a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from . import names
from .state import BusState, GroupState, StreamState

Attributes = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric and its points, as pairs of attributes and value."""

    name: str
    unit: str
    description: str
    points: Sequence[tuple[Attributes, float]]


@dataclass(frozen=True, slots=True)
class Collection:
    """What one look at Redis came to.

    Attributes:
        state: None where Redis could not be asked.
        last_success: when it last could, seconds since 1970; None before the first time.
        streams_left_out: streams past the limit.
    """

    state: BusState | None
    last_success: float | None = None
    streams_left_out: int = 0


# Seconds. A consumer of the bus makes itself seen every few of them, also where there is nothing to read.
ALIVE_WITHIN: Final = 60.0


def alive(group: GroupState) -> int | None:
    """Consumers of a group that were seen within the last minute; None where Redis does not tell."""
    if group.consumers is None:
        return None
    return sum(consumer.idle <= ALIVE_WITHIN for consumer in group.consumers)


_Of = tuple[str, str, str]

_OF_STREAM: Final[Sequence[tuple[_Of, Callable[[StreamState], float | None]]]] = (
    (
        (names.METRIC_STREAM_LENGTH, "{message}", "Entries of a stream, handled or not."),
        lambda stream: stream.length,
    ),
    (
        (names.METRIC_DEAD_LETTER_SIZE, "{message}", "Entries of a stream's dead-letter stream."),
        lambda stream: stream.dead_letters,
    ),
)
_OF_GROUP: Final[Sequence[tuple[_Of, Callable[[GroupState], float | None]]]] = (
    (
        (names.METRIC_LAG, "{message}", "Messages that a group could read, its retries included, and no consumer has."),
        lambda group: group.lag,
    ),
    (
        (names.METRIC_LAG_AGE, "s", "How long the oldest of those has been readable; 0 where there is none."),
        lambda group: group.lag_age,
    ),
    (
        (names.METRIC_PENDING, "{message}", "Messages given to a group's consumers and not settled."),
        lambda group: group.pending,
    ),
    (
        (names.METRIC_PENDING_AGE, "s", "How long the oldest of those has been there; 0 where there is none."),
        lambda group: group.pending_age,
    ),
    (
        (names.METRIC_CONSUMERS, "{consumer}", "Consumers that a group knows, dead ones included."),
        lambda group: None if group.consumers is None else len(group.consumers),
    ),
    (
        (names.METRIC_CONSUMERS_ALIVE, "{consumer}", "Those of them that were seen within the last minute."),
        alive,
    ),
)
# These are a stream's, published with a delay, and a group's, waiting for their next attempt.
_OF_BOTH: Final[Sequence[tuple[_Of, Callable[[StreamState | GroupState], float | None]]]] = (
    (
        (names.METRIC_SCHEDULED, "{message}", "Messages that wait for their time, or for their next attempt."),
        lambda one: one.scheduled,
    ),
    (
        (names.METRIC_SCHEDULED_DUE, "{message}", "Those of them whose time has come and which no consumer moved yet."),
        lambda one: one.due,
    ),
)


def gauges(collection: Collection) -> list[Gauge]:
    """Every metric that has a point."""
    found = list(_of_exporter(collection))
    streams = collection.state.streams if collection.state is not None else ()
    of_streams = [({names.ATTR_DESTINATION: stream.name}, stream) for stream in streams]
    of_groups = [
        ({**attributes, names.ATTR_GROUP: group.name}, group)
        for attributes, stream in of_streams
        for group in stream.groups
    ]
    for of, read in _OF_STREAM:
        found.append(Gauge(*of, _points((attributes, read(stream)) for attributes, stream in of_streams)))
    for of, read_group in _OF_GROUP:
        found.append(Gauge(*of, _points((attributes, read_group(group)) for attributes, group in of_groups)))
    for of, read_both in _OF_BOTH:
        of_each = [(attributes, read_both(stream)) for attributes, stream in of_streams]
        of_each += [(attributes, read_both(group)) for attributes, group in of_groups]
        found.append(Gauge(*of, _points(of_each)))
    return [gauge for gauge in found if gauge.points]


def _of_exporter(collection: Collection) -> Iterator[Gauge]:
    state = collection.state
    yield Gauge(names.METRIC_EXPORTER_UP, "", "Whether Redis could be asked: 1 or 0.", [({}, float(state is not None))])
    if collection.last_success is not None:
        yield Gauge(
            names.METRIC_EXPORTER_LAST_SUCCESS,
            "s",
            "When Redis could last be asked, in seconds since 1970.",
            [({}, collection.last_success)],
        )
    if state is not None:
        yield Gauge(
            names.METRIC_EXPORTER_LEFT_OUT,
            "{group}",
            "Streams and groups past the exporter's limits, which have no figures.",
            [({}, float(collection.streams_left_out + state.groups_left_out))],
        )
        yield Gauge(
            names.METRIC_EXPORTER_REFUSED,
            "{command}",
            "Questions that Redis refused, whose figures are missing: rights, or a key of another type.",
            [({}, float(len(state.refused)))],
        )


def _points(pairs: Iterable[tuple[Attributes, float | None]]) -> list[tuple[Attributes, float]]:
    return [(attributes, value) for attributes, value in pairs if value is not None]
