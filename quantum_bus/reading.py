"""Reading streams backwards in pages of bounded size, some side by side, and hashes by HSCAN. Pure: inquiries.

What was read is noted as intervals of ids, so that nothing is read twice, and what was not read can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from .inquiry import Inquiry, Refusals, asked
from .sightings import Place
from .state import EntryId, entry_id, id_text
from .streams import Command

# Entries of a stream's first page and of its largest one, and the bytes that a page should have.
FIRST_PAGE: Final = 100
LARGEST_PAGE: Final = 5_000
PAGE_BYTES: Final = 1_048_576
# Streams that are read side by side: so many pages are in memory.
SIDE_BY_SIDE: Final = 4
SCAN_COUNT: Final = 500

LAST: Final[EntryId] = (2**64 - 1, 2**64 - 1)

Interval = tuple[EntryId, EntryId]
"""Ids from the first to the second, both included."""


@dataclass(slots=True)
class Source:
    """A key that is read as a stream.

    Attributes:
        kind: what it holds; None for completion records.
        group: whose retry stream it is.
        length: entries when the search began.
        first: id of the first of them; None where there is none.
        last: the last id that was given, which following goes on behind.
        read: what was read, in order.
        entries: how many that were.
        page: how many the next page should have.
    """

    kind: Place | None
    stream: str
    key: str
    group: str | None = None
    length: int = 0
    first: EntryId | None = None
    last: EntryId = (0, 0)
    read: list[Interval] = field(default_factory=list)
    entries: int = 0
    page: int = FIRST_PAGE


Look = Callable[[Source, str, Sequence[bytes]], None]
"""Told of an entry: its source, its id, its fields."""


def read(
    ranges: Sequence[tuple[Source, Interval]],
    look: Look,
    refusals: Refusals,
    *,
    progress: Callable[[int, int], None],
    enough: Callable[[], bool] | None = None,
    most: int | None = None,
) -> Inquiry[None]:
    """Read ranges from their ends backwards, those that reach latest first.

    Args:
        progress: told of entries read, and of how many there may be.
        enough: asked behind each round of pages whether to stop.
        most: entries of one source to read.
    """
    waiting = [(source, first, min(last, source.last)) for source, (first, last) in ranges]
    waiting = [item for item in waiting if item[0].length and item[1] <= item[2]]
    total = sum(source.length for source in {item[0].key: item[0] for item in waiting}.values())
    done = 0
    while waiting:
        waiting.sort(key=lambda item: item[2], reverse=True)
        now, waiting = waiting[:SIDE_BY_SIDE], waiting[SIDE_BY_SIDE:]
        commands: list[Command] = [
            ("XREVRANGE", source.key, id_text(last), id_text(first), "COUNT", source.page)
            for source, first, last in now
        ]
        replies = yield from asked(commands, refusals)
        for (source, first, last), page in zip(now, replies, strict=True):
            if page is None:
                continue
            for own_id, fields in page:
                look(source, own_id.decode(), fields)
            count = len(page)
            done += count
            source.entries += count
            ended = count < source.page
            lowest = first if ended else entry_id(page[-1][0])
            source.read = joined((lowest, last), source.read)
            source.page = _page(source.page, count, sum(len(value) for _, fields in page for value in fields))
            if lowest > first and (most is None or source.entries < most):
                waiting.append((source, first, _before(lowest)))
        progress(done, total)
        if enough is not None and enough():
            return


@dataclass(frozen=True, slots=True)
class Hash:
    """Copies that wait until they are due, and the sorted set that knows when."""

    stream: str
    group: str | None
    due: str
    copies: str


def scan(
    hashes: Sequence[Hash],
    worth: Callable[[bytes, bytes], bool],
    look: Callable[[Hash, str, bytes, int | None], None],
    refusals: Refusals,
) -> Inquiry[None]:
    """Look through hashes, a page of each a round trip.

    Args:
        worth: whether to look at a copy, by its name and its bytes.
        look: told of it, and of when it is due, milliseconds since 1970.
    """
    cursors = [(about, b"0") for about in hashes]
    while cursors:
        pages = yield from asked(
            [("HSCAN", about.copies, cursor, "COUNT", SCAN_COUNT) for about, cursor in cursors], refusals
        )
        found: list[tuple[Hash, bytes, bytes]] = []
        following = []
        for (about, _), page in zip(cursors, pages, strict=True):
            cursor, pairs = page or (b"0", [])
            found += [
                (about, name, packed)
                for name, packed in zip(pairs[::2], pairs[1::2], strict=True)
                if worth(name, packed)
            ]
            if cursor != b"0":
                following.append((about, cursor))
        scores = yield from asked([("ZSCORE", about.due, name) for about, name, _ in found], refusals)
        for (about, name, packed), score in zip(found, scores, strict=True):
            look(about, name.decode(errors="backslashreplace"), packed, int(float(score)) if score else None)
        cursors = following


def _page(now: int, count: int, size: int) -> int:
    """How many entries the next page should have, after one of so many bytes."""
    if not count:
        return now
    fitting = PAGE_BYTES * count // max(1, size)
    return max(1, min(LARGEST_PAGE, now * 4, fitting))


# --- intervals of ids ----------------------------------------------------------------------------


def _before(of: EntryId) -> EntryId:
    return (of[0], of[1] - 1) if of[1] else (max(0, of[0] - 1), LAST[1])


def _after(of: EntryId) -> EntryId:
    return (of[0], of[1] + 1) if of[1] < LAST[1] else (of[0] + 1, 0)


def common(one: Interval, other: Interval) -> Interval | None:
    first, last = max(one[0], other[0]), min(one[1], other[1])
    return (first, last) if first <= last else None


def joined(added: Interval, read: Sequence[Interval]) -> list[Interval]:
    """Intervals in order, those that touch put together."""
    merged: list[Interval] = []
    for first, last in sorted([*read, added]):
        if merged and first <= _after(merged[-1][1]):
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def without(window: Interval, read: Sequence[Interval]) -> Iterator[Interval]:
    """What of a window is in none of the intervals, which are in order."""
    first, last = window
    for begin, end in read:
        if begin > last:
            break
        if end >= first:
            if begin > first:
                yield first, _before(begin)
            first = _after(end)
    if first <= last:
        yield first, last


def times(source: Source) -> list[tuple[int | None, int | None]]:
    start = source.first or (0, 0)
    return [
        (None if first <= start else first[0], None if last >= source.last else last[0]) for first, last in source.read
    ]
