"""Finding the streams of a Redis by their keys, and telling them from the keys beside them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from . import names
from .config import hash_tag
from .inquiry import Inquiry, Refusals, asked

# Keys that one SCAN looks at, and how many of them one look may take: ten million keys.
SCAN_COUNT: Final = 1_000
SCAN_PAGES: Final = 10_000

_SHARED: Final = (names.SUFFIX_DLQ, names.SUFFIX_COMPLETED, names.SUFFIX_DUE)
_OF_A_GROUP: Final = (names.SUFFIX_RETRY, names.SUFFIX_DUE)


@dataclass(frozen=True, slots=True)
class SideKey:
    """A key that belongs to a stream.

    Attributes:
        stream: that stream's name.
        kind: one of ``names.SUFFIX_*``.
        group: whose it is, where it is a group's own.
    """

    stream: str
    kind: str
    group: str | None = None


def side_key_of(key: str) -> SideKey | None:
    """What a key is beside, where it has the form that :func:`streams.side_key` gives; None for any other.

    A stream that somebody named so himself cannot be told from a side key.
    """
    for kind in _SHARED:
        if key.endswith(f":{kind}") and (stream := _owner(key[: -len(kind) - 1])) is not None:
            return SideKey(stream, kind)
    for kind in _OF_A_GROUP:
        before, found, group = key.partition(f":{kind}:")
        while found:
            if group and (stream := _owner(before)) is not None:
                return SideKey(stream, kind, group)
            more, found, group = group.partition(f":{kind}:")
            before = f"{before}:{kind}:{more}"
    return None


def _owner(base: str) -> str | None:
    """The stream whose side keys begin with ``base``."""
    tag = hash_tag(base)
    if tag is None:
        return None
    return tag if base == f"{{{tag}}}" else base


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the keys has found.

    Attributes:
        streams: streams, and those whose side keys are there without them; by name.
        side_keys: streams' and groups' own keys.
        complete: whether all keys were looked at.
        refused: why none could be, where Redis refused.
    """

    streams: Sequence[str]
    side_keys: Collection[SideKey]
    complete: bool
    refused: str = ""


def discover(*, types: Sequence[str] = ("stream",), pages: int = SCAN_PAGES) -> Inquiry[Found]:
    """Look at all keys, a page a round trip.

    Args:
        types: of keys to look at; ``zset`` finds what is scheduled.
        pages: how many round trips a type may take.
    """
    streams: set[str] = set()
    side_keys: set[SideKey] = set()
    refusals = Refusals()
    complete = True
    for kind in types:
        cursor = b"0"
        for _ in range(pages):
            [reply] = yield from asked([("SCAN", cursor, "COUNT", SCAN_COUNT, "TYPE", kind)], refusals)
            if reply is None:
                return Found((), (), complete=False, refused=refusals.found[0].text)
            cursor, keys = reply
            for key in keys:
                try:
                    name = key.decode()
                except UnicodeDecodeError:  # no bus can name it
                    continue
                side = side_key_of(name)
                if side is not None:
                    side_keys.add(side)
                    streams.add(side.stream)
                elif kind == "stream":
                    streams.add(name)
            if cursor == b"0":
                break
        else:
            complete = False
    return Found(sorted(streams), side_keys, complete)
