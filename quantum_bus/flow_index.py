"""Where the index of flows is: which entries of a stream are of which correlation id. Pure.

Off by default; a bus with ``index=seconds`` writes it in the same step as the entry (indexed.lua). For each hour of
publishing a stream has some hashes, among which correlation ids are spread, so that none is large when it expires:
``{name}:flows:HOUR:SHARD``. A field is a correlation id; its value is entry ids, with blanks between.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import names
from .envelope import is_entry_id
from .streams import Command, side_key

HOUR_MS: Final = 3_600_000
SHARDS: Final = 64
# The longest that an index may reach back, seconds: a reader asks for so many hours.
LONGEST: Final = 604_800.0
# Bytes of one flow's entry ids in one hour and stream; what comes then is marked as left out.
MOST_BYTES: Final = 8_192
LEFT_OUT: Final = "..."
# Stands before the message's id where the entry is not in the stream yet.
DELAYED: Final = "~"


def key(stream: str, correlation_id: str, now_ms: int) -> str:
    """The hash that a flow's entries of this hour are in."""
    return side_key(stream, f"{names.SUFFIX_FLOWS}:{now_ms // HOUR_MS}:{zlib.crc32(correlation_id.encode()) % SHARDS}")


def lookup(stream: str, correlation_id: str, now_ms: int, since_ms: int | None) -> list[Command]:
    """HGET from every hash that may know of the flow, the newest first."""
    first = now_ms - int(LONGEST * 1000) if since_ms is None else max(since_ms, now_ms - int(LONGEST * 1000))
    hours = range(now_ms // HOUR_MS + 1, max(0, first) // HOUR_MS - 1, -1)  # a publisher's clock may be ahead
    return [("HGET", key(stream, correlation_id, hour * HOUR_MS), correlation_id) for hour in hours]


@dataclass(frozen=True, slots=True)
class Listed:
    """What an index says of a flow in one stream.

    Attributes:
        entry_ids: in the order of publishing.
        left_out: there were more.
        delayed: there are messages that came into the stream later, under ids that the index does not know.
    """

    entry_ids: Sequence[str]
    left_out: bool
    delayed: bool


def parse(values: Sequence[Any]) -> Listed:
    """Replies to :func:`lookup`; what is refused or no list of ids counts as empty."""
    words = [
        word
        for value in reversed(values)
        if isinstance(value, bytes)
        for word in value.decode(errors="backslashreplace").split()
    ]
    return Listed(
        [word for word in dict.fromkeys(words) if is_entry_id(word)],
        LEFT_OUT in words,
        any(word.startswith(DELAYED) for word in words),
    )
