"""What a doctor wants to know of a Redis: the state of its streams, and what only a diagnosis needs. Pure.

More is asked than an exporter asks every few seconds, and still nothing that grows with what waits: of long pending
lists the oldest :data:`SAMPLE` are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import names
from .discovery import Found, SideKey, discover
from .inquiry import Inquiry, Refusal, Refusals, asked, asked_each
from .state import BusState, EntryId, StreamState, age, entry_id, observe
from .streams import Command, Keys, side_key

# Pending entries of a group that are looked for in their stream: the oldest.
SAMPLE: Final = 100

_TYPES: Final = {
    "dead": "stream",
    "completed": "stream",
    "delayed_due": "zset",
    "delayed_copies": "hash",
    "notes": "hash",
    "marks": "zset",
}
_GROUP_TYPES: Final = {"retry": "stream", "due": "zset", "copies": "hash", "lease": "string"}


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is worth a finding. Seconds, but for ``length``.

    Attributes:
        dead_after: a consumer that was not seen for so long is dead; what waits for so long waits too long.
        forgotten_after: a consumer with nothing pending that was not seen for so long is left over.
        overdue_after: what is scheduled and so late is stuck.
        length: entries of a stream.
    """

    dead_after: float = 300.0
    forgotten_after: float = 7_200.0
    overdue_after: float = 60.0
    length: int = 1_000_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Ghosts:
    """Pending entries that their stream has no more.

    Attributes:
        key: the stream, or the group's retry stream.
        ids: those among the oldest pending that are gone.
        looked_at: how many of the oldest were looked at.
        pending: how many there are.
    """

    stream: str
    group: str
    key: str
    ids: Sequence[str]
    looked_at: int
    pending: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A key of a group that is not on its stream, and how many messages it holds."""

    key: str
    side: SideKey
    size: int


@dataclass(frozen=True, slots=True)
class WrongType:
    """A key that holds something else than the bus puts there."""

    key: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a diagnosis is made from.

    Attributes:
        named: streams that were asked for by name; empty where they were looked for.
        expected: groups that each of them should have.
        found: what the look among the keys came to.
        server: INFO, name by name; None where it was refused.
        config: CONFIG GET of what INFO does not tell; what was refused is not in it.
        oldest_dead: age of each dead-letter stream's first entry in seconds, by stream; None where it is not known.
        refused: what Redis did not answer, apart from keys of a wrong type.
        limits: from where on something is worth a finding.
    """

    named: Sequence[str]
    expected: Sequence[str]
    state: BusState
    found: Found
    server: Mapping[str, str] | None
    config: Mapping[str, str]
    ghosts: Sequence[Ghosts] = ()
    orphans: Sequence[Orphan] = ()
    wrong_types: Sequence[WrongType] = ()
    oldest_dead: Mapping[str, float | None] | None = None
    refused: Sequence[Refusal] = ()
    limits: Limits = DEFAULT_LIMITS


def examine(
    named: Sequence[str] = (), *, expected: Sequence[str] = (), prefix: str = "", limits: Limits = DEFAULT_LIMITS
) -> Inquiry[Facts]:
    """Ask everything.

    Args:
        named: streams to look at; empty: every one there is.
        expected: groups that each of them should have.
        prefix: only streams whose names begin so, where they are looked for.
        limits: from where on something is worth a finding.

    Raises:
        ConfigurationError: Redis refuses even to tell its time.
    """
    found = yield from discover(types=("stream", "zset"))
    wanted = named or [stream for stream in found.streams if stream.startswith(prefix)]
    state = yield from observe(wanted)
    refusals = Refusals()
    [info, save, fsync] = yield from asked(
        [("INFO",), ("CONFIG", "GET", "save"), ("CONFIG", "GET", "appendfsync")], refusals
    )
    oldest_dead = yield from _oldest_dead(state, refusals)
    ghosts = yield from _ghosts(state, refusals)
    orphans = yield from _orphans(state, found.side_keys, refusals)
    wrong_types = yield from _wrong_types(state, refusals)
    refused = [refusal for refusal in dict.fromkeys((*state.refused, *refusals.found)) if not refusal.wrong_type]
    return Facts(
        named=named,
        expected=expected,
        state=state,
        found=found,
        server=None if info is None else _lines(info),
        config=_pairs(save) | _pairs(fsync),
        ghosts=ghosts,
        orphans=orphans,
        wrong_types=wrong_types,
        oldest_dead=oldest_dead,
        refused=refused,
        limits=limits,
    )


def _lines(info: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def _pairs(reply: Any) -> dict[str, str]:
    flat = [value.decode() for value in reply or ()]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _oldest_dead(state: BusState, refusals: Refusals) -> Inquiry[dict[str, float | None]]:
    dead = [stream.name for stream in state.streams if stream.dead_letters]
    replies = yield from asked(
        [("XRANGE", side_key(stream, names.SUFFIX_DLQ), "-", "+", "COUNT", 1) for stream in dead], refusals
    )
    return {
        stream: age(entry_id(reply[0][0]), state.now) if reply else None
        for stream, reply in zip(dead, replies, strict=True)
    }


def _ghosts(state: BusState, refusals: Refusals) -> Inquiry[list[Ghosts]]:
    holders = [
        (stream, group.name, key)
        for stream in state.streams
        for group in stream.groups
        if group.pending != 0
        for key in (stream.name, Keys.of(stream.name, group.name).retry)
    ]
    asking: list[list[Command]] = [
        [("XPENDING", key, group), ("XPENDING", key, group, "-", "+", SAMPLE)] for _, group, key in holders
    ]
    told = yield from asked_each(asking, refusals)
    oldest = [[row[0].decode() for row in rows or ()] for _, rows in told]
    looking = [
        [_looked_up(key, pending_id, stream) for pending_id in ids]
        for (stream, _, key), ids in zip(holders, oldest, strict=True)
    ]
    there = yield from asked_each(looking, refusals)
    found = []
    for (stream, group, key), (summary, _), ids, entries in zip(holders, told, oldest, there, strict=True):
        gone = [pending_id for pending_id, entry in zip(ids, entries, strict=True) if entry == []]
        if gone:
            pending = summary[0] if summary else len(ids)
            found.append(Ghosts(stream.name, group, key, gone, len(ids), pending))
    return found


def _looked_up(key: str, pending_id: str, stream: StreamState) -> Command | None:
    """The question whether an entry is there; None where that is plain: it lies before the stream's first."""
    if key == stream.name and stream.length is not None and _before(entry_id(pending_id), stream.first_id):
        return None
    return ("XRANGE", key, pending_id, pending_id, "COUNT", 1)


def _before(of: EntryId, first: EntryId | None) -> bool:
    return first is None or of < first


def _orphans(state: BusState, side_keys: Iterable[SideKey], refusals: Refusals) -> Inquiry[list[Orphan]]:
    refused = {refusal.key for refusal in state.refused}
    groups = {
        stream.name: {group.name for group in stream.groups}
        for stream in state.streams
        if stream.name not in refused and not state.groups_left_out
    }
    orphans = sorted(
        (
            (side_key(side.stream, f"{side.kind}:{side.group}"), side)
            for side in side_keys
            if side.group is not None and side.group not in groups.get(side.stream, {side.group})
        ),
        key=lambda orphan: orphan[0],
    )
    sizes = yield from asked(
        [("XLEN" if side.kind == names.SUFFIX_RETRY else "ZCARD", key) for key, side in orphans], refusals
    )
    return [Orphan(key, side, size) for (key, side), size in zip(orphans, sizes, strict=True) if size]


def _wrong_types(state: BusState, refusals: Refusals) -> Inquiry[list[WrongType]]:
    expected: dict[str, str] = {}
    for stream in state.streams:
        expected[stream.name] = "stream"
        of_stream = Keys.of(stream.name, "")
        expected |= {getattr(of_stream, field): kind for field, kind in _TYPES.items()}
        for group in stream.groups:
            keys = Keys.of(stream.name, group.name)
            expected |= {getattr(keys, field): kind for field, kind in _GROUP_TYPES.items()}
    replies = yield from asked([("TYPE", key) for key in expected], refusals)
    return [
        WrongType(key, reply.decode(), kind)
        for (key, kind), reply in zip(expected.items(), replies, strict=True)
        if reply is not None and reply.decode() not in (kind, "none")
    ]
