"""What a search for a flow is bounded by, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .inquiry import Refusal
from .reading import LAST, Interval
from .sightings import Run, Sighting, Standing


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which times are read, milliseconds since 1970; ``everything`` reads all of them, whatever is found."""

    since_ms: int | None = None
    until_ms: int | None = None
    everything: bool = False

    @property
    def interval(self) -> Interval:
        first = (max(0, self.since_ms), 0) if self.since_ms is not None else (0, 0)
        return first, (max(0, self.until_ms), LAST[1]) if self.until_ms is not None else LAST


@dataclass(frozen=True, slots=True)
class Looked:
    """How much of a stream was read.

    Attributes:
        length: entries that it had.
        entries: those of them that were read.
        first_ms: of its first entry; None where it is empty.
        read: which times, as pairs of milliseconds since 1970, None for an open end.
    """

    key: str
    length: int
    entries: int
    first_ms: int | None
    read: Sequence[tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        correlation_ids: of the flows that the id names; empty where it was not found.
        matched: ids of messages that it names itself.
        flows_left_out, messages_left_out: past the limits.
        indexed: an index has told of the flow.
        comes_later: it knows of messages with a delay, whose entries it does not know.
        looked: at each stream.
    """

    now: float
    correlation_ids: Sequence[str]
    sightings: Sequence[Sighting]
    runs: Sequence[Run]
    standings: Sequence[Standing]
    matched: Sequence[str]
    flows_left_out: bool
    messages_left_out: int
    indexed: bool
    comes_later: bool
    looked: Sequence[Looked]
    refused: Sequence[Refusal]
