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
from .config import LONGEST_INDEX
from .envelope import is_entry_id
from .streams import INDEXED, PUBLISH, Command, side_key

HOUR_MS: Final = 3_600_000
SHARDS: Final = 64
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
    first = (
        now_ms - int(LONGEST_INDEX * 1000) if since_ms is None else max(since_ms, now_ms - int(LONGEST_INDEX * 1000))
    )
    hours = range(now_ms // HOUR_MS + 1, max(0, first) // HOUR_MS - 1, -1)  # a publisher's clock may be ahead
    return [("HGET", key(stream, correlation_id, hour * HOUR_MS), correlation_id) for hour in hours]


def indexed(command: Command, *, correlation_id: str, message_id: str, seconds: float, now_ms: int) -> Command:
    """A publish that notes its entry in the index, in the same step.

    Args:
        command: of ``streams.add`` or ``streams.add_with_care``; its reply stays one for ``streams.parse_added``.
        seconds: how long the index stands, from its hour on.
    """
    if command[0] == "XADD":
        stream = str(command[1])
        command = PUBLISH.call(
            [stream, side_key(stream, names.SUFFIX_DUE), side_key(stream, names.SUFFIX_COPIES)],
            message_id, 0, 0, correlation_id, *command[3:],
        )  # fmt: skip
    count = int(command[2])
    keys, arguments = [str(of) for of in command[3 : 3 + count]], command[3 + count :]
    lasts_ms = int(seconds * 1000) + HOUR_MS
    own = key(keys[0], correlation_id, now_ms)
    return INDEXED.call([own, *keys], correlation_id, message_id, lasts_ms, MOST_BYTES, *arguments)


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
