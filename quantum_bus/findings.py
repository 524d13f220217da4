"""What is wrong with a Redis that carries a bus, what that means, and what to type. Pure: each check reads the facts.

Longer than a room should be, because it is a list: each check stands by itself, and none knows another.
"""

from __future__ import annotations

import enum
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from . import names
from .checkup import Facts, Ghosts, Limits
from .state import ConsumerState, EntryId, GroupState, StreamState, id_text
from .streams import Keys, side_key

OLDEST_REDIS: Final = (6, 2)
# Of maxmemory, from which on it is near.
MEMORY_NEAR: Final = 0.9

_START: Final = "quantum-bus run MODULE:BUS"


class Severity(enum.StrEnum):
    """How bad a finding is: messages are lost, stuck or refused; they may be soon; worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know.

    Attributes:
        check: what found it; one of :data:`CHECKS`.
        subject: the stream, the group (as ``stream / group``) or the key that it is about; ``Redis`` for the server.
        means: what is so, and what follows from it.
        commands: what to type.
    """

    severity: Severity
    check: str
    subject: str
    means: str
    commands: Sequence[str] = ()


Check = Callable[[Facts], Iterator[Finding]]


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, the worst first."""
    found = [finding for check in CHECKS.values() for finding in check(facts)]
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


# --- messages and their groups -------------------------------------------------------------------


def ghost_pending(facts: Facts) -> Iterator[Finding]:
    """Pending entries that were deleted from their stream."""
    for ghosts in facts.ghosts:
        more = ghosts.pending > ghosts.looked_at
        yield Finding(
            Severity.ERROR,
            "ghost-pending",
            _of(ghosts.stream, ghosts.group),
            f"{'at least ' if more else ''}{_count(len(ghosts.ids), 'pending message')} of "
            f"{'the oldest ' if more else ''}{ghosts.looked_at} on {ghosts.key} were deleted or trimmed before they "
            "were "
            "handled: they are lost. A consumer that runs takes them off the list and counts them as "
            f"{names.METRIC_LOST}",
            _ghost_commands(ghosts),
        )


def _ghost_commands(ghosts: Ghosts) -> list[str]:
    first = ghosts.ids[0]
    return [
        _cli("XPENDING", ghosts.key, ghosts.group, first, first, 1),
        _cli("XACK", ghosts.key, ghosts.group, *ghosts.ids[:10]),
    ]


def dead_consumers(facts: Facts) -> Iterator[Finding]:
    """Consumers that hold messages and were not seen for long."""
    for stream, group, consumers in _consumers(facts):
        dead = [consumer for consumer in consumers if consumer.pending and consumer.idle > facts.limits.dead_after]
        if not dead:
            continue
        alive = _alive(consumers, facts.limits)
        held = sum(consumer.pending for consumer in dead)
        seen = min(consumer.idle for consumer in dead)
        yield Finding(
            Severity.WARNING if alive else Severity.ERROR,
            "dead-consumers",
            _of(stream.name, group.name),
            f"{_count(len(dead), 'consumer')} ({_some([consumer.name for consumer in dead])}), last seen "
            f"{_duration(seen)} ago or longer, {_verb(len(dead), 'holds', 'hold')} {_count(held, 'message')}. "
            + (
                "Another consumer is alive and should take them over within its ack_wait: it may be busy, or not "
                "the bus's"
                if alive
                else "No consumer of the group is alive to take them over: start its service"
            ),
            [_cli("XPENDING", stream.name, group.name, "-", "+", 10, dead[0].name), *([] if alive else [_START])],
        )


def idle_consumers(facts: Facts) -> Iterator[Finding]:
    """Names of consumers that are gone and left nothing."""
    for stream, group, consumers in _consumers(facts):
        idle = [
            consumer for consumer in consumers if not consumer.pending and consumer.idle > facts.limits.forgotten_after
        ]
        if idle:
            yield Finding(
                Severity.INFO,
                "idle-consumers",
                _of(stream.name, group.name),
                f"{_count(len(idle), 'consumer')} ({_some([consumer.name for consumer in idle])}) with nothing "
                "pending "
                f"{_verb(len(idle), 'was', 'were')} not seen for {_duration(min(item.idle for item in idle))} or "
                "longer. "
                "They only take up room; a consumer of the bus that runs forgets them",
                [_cli("XGROUP", "DELCONSUMER", stream.name, group.name, item.name) for item in idle[:3]],
            )


def missing_streams(facts: Facts) -> Iterator[Finding]:
    """Streams that were asked for and are not there."""
    for stream in facts.state.streams:
        wrong = any(wrong.key == stream.name for wrong in facts.wrong_types)
        if stream.name in facts.named and stream.exists is False and not wrong:
            yield Finding(
                Severity.WARNING,
                "missing-streams",
                stream.name,
                "there is no such stream: nothing was published to it yet, or it has another name or prefix",
                [f"redis-cli --scan --pattern {shlex.quote(f'*{stream.name}*')}"],
            )


def missing_groups(facts: Facts) -> Iterator[Finding]:
    """Groups that a stream should have."""
    refused = {refusal.key for refusal in facts.refused}
    for stream in facts.state.streams:
        for group in facts.expected:
            if stream.name not in refused and group not in {known.name for known in stream.groups}:
                yield Finding(
                    Severity.ERROR,
                    "missing-groups",
                    _of(stream.name, group),
                    "the group is not there, so its service has never run here or the group was destroyed. Started, "
                    "the "
                    "service makes it, at the beginning of the stream",
                    [_START, _cli("XGROUP", "CREATE", stream.name, group, 0, "MKSTREAM")],
                )


def orphaned_keys(facts: Facts) -> Iterator[Finding]:
    """Retries of a group that is not there."""
    for orphan in facts.orphans:
        group = orphan.side.group or ""
        yield Finding(
            Severity.ERROR,
            "orphaned-keys",
            _of(orphan.side.stream, group),
            f"{_count(orphan.size, 'message')} {_verb(orphan.size, 'waits', 'wait')} in {orphan.key} for another "
            "attempt, "
            "and the group is not on its stream: nobody will handle them. Started, its service makes the group "
            "again, at "
            "the beginning of the stream; make it at the end first where it is to handle nothing twice",
            [_cli("XGROUP", "CREATE", orphan.side.stream, group, "$", "MKSTREAM"), _START],
        )


def retry_without_group(facts: Facts) -> Iterator[Finding]:
    """Retry streams that their group cannot read."""
    for stream, group in _groups(facts):
        if group.retry_group is False:
            retry = Keys.of(stream.name, group.name).retry
            yield Finding(
                Severity.WARNING,
                "retry-without-group",
                _of(stream.name, group.name),
                f"{_count(group.retries or 0, 'message')} in {retry} cannot be read: the group is not on it. "
                "Started, its "
                "service makes it",
                [_cli("XGROUP", "CREATE", retry, group.name, 0)],
            )


def nobody_reads(facts: Facts) -> Iterator[Finding]:
    """Groups that messages wait for and no consumer reads for."""
    for stream, group, consumers in _consumers(facts):
        if _waits(group, facts.limits) and not _alive(consumers, facts.limits):
            yield Finding(
                Severity.ERROR,
                "nobody-reads",
                _of(stream.name, group.name),
                f"{_waiting(group)}, and no consumer of the group was seen for "
                f"{_duration(facts.limits.dead_after)}. Start its "
                "service, or destroy the group where nobody wants it any more: it keeps the stream from being "
                "trimmed",
                [_START, _cli("XINFO", "CONSUMERS", stream.name, group.name)],
            )


def falling_behind(facts: Facts) -> Iterator[Finding]:
    """Groups whose consumers run and do not keep up."""
    for stream, group, consumers in _consumers(facts):
        if _waits(group, facts.limits) and _alive(consumers, facts.limits):
            yield Finding(
                Severity.WARNING,
                "falling-behind",
                _of(stream.name, group.name),
                f"{_waiting(group)}, though {_count(len(_alive(consumers, facts.limits)), 'consumer')} "
                f"{_verb(len(_alive(consumers, facts.limits)), 'is', 'are')} alive: handlers are slow or hang, or "
                "there are too few",
                [_cli("XINFO", "CONSUMERS", stream.name, group.name)],
            )


def overdue(facts: Facts) -> Iterator[Finding]:
    """What is scheduled, due, and moved by nobody."""
    late: list[tuple[str, str, StreamState | GroupState]] = [
        (_of(stream.name, group.name), Keys.of(stream.name, group.name).due, group) for stream, group in _groups(facts)
    ]
    late += [(stream.name, side_key(stream.name, names.SUFFIX_DUE), stream) for stream in facts.state.streams]
    for subject, key, found in late:
        if found.overdue is not None and found.overdue > facts.limits.overdue_after:
            yield Finding(
                Severity.ERROR,
                "overdue",
                subject,
                f"{_count(found.due or 0, 'scheduled message')} in {key} {_verb(found.due or 0, 'is', 'are')} due, "
                "the first "
                f"for {_duration(found.overdue)}: no consumer is moving them. Start the service",
                [_START, _cli("ZRANGE", key, 0, 9, "WITHSCORES")],
            )


def dead_letters(facts: Facts) -> Iterator[Finding]:
    """Dead letters that wait for somebody to look."""
    for stream in facts.state.streams:
        if stream.dead_letters:
            oldest = (facts.oldest_dead or {}).get(stream.name)
            yield Finding(
                Severity.INFO,
                "dead-letters",
                stream.name,
                f"{_count(stream.dead_letters, 'dead letter')}"
                + (f", the oldest for {_duration(oldest)}" if oldest is not None else "")
                + ": no handler could take them",
                [f"quantum-bus dlq list {shlex.quote(stream.name)}"],
            )


def long_streams(facts: Facts) -> Iterator[Finding]:
    """Streams that are not trimmed, or cannot be."""
    for stream in facts.state.streams:
        if stream.length is not None and stream.length > facts.limits.length:
            means, commands = _why_long(stream)
            yield Finding(
                Severity.WARNING,
                "long-streams",
                stream.name,
                f"{stream.length:,} entries. {means}",
                commands,
            )


def _why_long(stream: StreamState) -> tuple[str, list[str]]:
    marks = [(_low_water(group), group.name) for group in stream.groups]
    known = [(low, name) for low, name in marks if low is not None]
    if not stream.groups:
        return "No group reads it, so Redis cannot tell what of it is still wanted", [
            _cli("XINFO", "STREAM", stream.name)
        ]
    if len(known) < len(marks) or stream.first_id is None:
        return "How far its groups are is not known", []
    low, holder = min(known)
    if low <= stream.first_id:
        return f"The group {holder} holds trimming back: it has handled nothing of it", []
    handled = f"Every group has handled what comes before {id_text(low)}, where {holder} stands"
    trim = _cli("XTRIM", stream.name, "MINID", id_text(low))
    return f"{handled}; a consumer that runs frees it, but for the newest `keep`", [trim]


def _low_water(group: GroupState) -> EntryId | None:
    """What the group has handled comes before this."""
    if group.pending is None or (group.pending_age is None and group.oldest_pending is None):
        return None
    return group.last_delivered if group.oldest_pending is None else min(group.oldest_pending, group.last_delivered)


# --- keys ----------------------------------------------------------------------------------------


def wrong_types(facts: Facts) -> Iterator[Finding]:
    """Keys that hold something else."""
    for wrong in facts.wrong_types:
        yield Finding(
            Severity.ERROR,
            "wrong-types",
            wrong.key,
            f"the key holds a {wrong.found}, and the bus needs a {wrong.expected} there: what goes through it is "
            "refused, and "
            "stays pending",
            [_cli("TYPE", wrong.key), _cli("RENAME", wrong.key, f"{wrong.key}.moved")],
        )


# --- the server ----------------------------------------------------------------------------------


def version(facts: Facts) -> Iterator[Finding]:
    """A Redis that is too old."""
    told = (facts.server or {}).get("redis_version", "")
    parts = [int(part) for part in told.split(".")[:2] if part.isdigit()]
    if len(parts) == 2 and tuple(parts) < OLDEST_REDIS:
        yield Finding(
            Severity.ERROR,
            "version",
            "Redis",
            f"this is Redis {told}; the bus needs {'.'.join(map(str, OLDEST_REDIS))} or later",
            [_cli("INFO", "server")],
        )


def replica(facts: Facts) -> Iterator[Finding]:
    """A replica, which takes no writes."""
    server = facts.server or {}
    if server.get("role") == "slave":
        host, port = server.get("master_host", "?"), server.get("master_port", "?")
        yield Finding(
            Severity.ERROR,
            "replica",
            "Redis",
            f"this is a replica of {host}:{port}: publishing and acknowledging are refused here (READONLY). Connect "
            "to the "
            "primary, or promote this one",
            [f"redis-cli -h {shlex.quote(host)} -p {shlex.quote(port)} PING"],
        )


def eviction(facts: Facts) -> Iterator[Finding]:
    """A policy that deletes keys when memory runs out."""
    server = facts.server or {}
    policy = server.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        every = policy.startswith("allkeys")
        what = "whole streams" if every else "the marks by which messages are handled or published once"
        limit = "" if server.get("maxmemory", "0") != "0" else ", once a maxmemory is set"
        yield Finding(
            Severity.ERROR if every and not limit else Severity.WARNING,
            "eviction",
            "Redis",
            f"maxmemory-policy is {policy}: when memory runs out, Redis deletes {what}{limit}",
            [_cli("CONFIG", "SET", "maxmemory-policy", "noeviction"), _cli("CONFIG", "REWRITE")],
        )


def memory(facts: Facts) -> Iterator[Finding]:
    """A Redis that is nearly full."""
    server = facts.server or {}
    used, most = int(server.get("used_memory", 0)), int(server.get("maxmemory", 0))
    if most and used >= MEMORY_NEAR * most:
        full = used >= most
        yield Finding(
            Severity.ERROR if full else Severity.WARNING,
            "memory",
            "Redis",
            f"{used / most:.0%} of maxmemory is used ({used:,} of {most:,} bytes); "
            + ("publishing is refused" if full else "at 100 % publishing is refused")
            + ", and so are retries and dead letters, whose messages stay pending",
            [_cli("MEMORY", "DOCTOR"), _cli("CONFIG", "SET", "maxmemory", most * 2)],
        )


def persistence(facts: Facts) -> Iterator[Finding]:
    """What a Redis that dies takes with it."""
    aof = (facts.server or {}).get("aof_enabled")
    fsync, save = facts.config.get("appendfsync"), facts.config.get("save")
    appendonly = [_cli("CONFIG", "SET", "appendonly", "yes"), _cli("CONFIG", "REWRITE")]
    if aof == "0" and save == "":
        yield Finding(
            Severity.WARNING,
            "persistence",
            "Redis",
            "nothing is written to disk: a Redis that ends, for whatever reason, takes every message with it",
            appendonly,
        )
    elif aof == "0" and save is not None:
        yield Finding(
            Severity.INFO,
            "persistence",
            "Redis",
            f"snapshots only (save {save}): a Redis that dies takes with it what came since the last one, minutes "
            "perhaps",
            appendonly,
        )
    elif aof == "1" and fsync == "no":
        yield Finding(
            Severity.WARNING,
            "persistence",
            "Redis",
            "appendfsync is no: a machine that fails takes with it what its kernel had not written, half a minute "
            "perhaps",
            [_cli("CONFIG", "SET", "appendfsync", "everysec"), _cli("CONFIG", "REWRITE")],
        )
    elif aof == "1" and fsync == "everysec":
        yield Finding(
            Severity.INFO,
            "persistence",
            "Redis",
            "appendfsync is everysec: a machine that fails takes up to a second's messages with it, those that "
            "publish had "
            "confirmed included. `always` closes that gap, for a disk write per publish",
            [_cli("CONFIG", "SET", "appendfsync", "always")],
        )


def failed_writes(facts: Facts) -> Iterator[Finding]:
    """A disk that does not take what Redis writes."""
    for field, what in (
        ("rdb_last_bgsave_status", "the last snapshot"),
        ("aof_last_write_status", "the last write to the append-only file"),
        ("aof_last_bgrewrite_status", "the last rewrite of the append-only file"),
    ):
        status = (facts.server or {}).get(field, "ok")
        if status != "ok":
            yield Finding(
                Severity.ERROR,
                "failed-writes",
                "Redis",
                f"{what} failed ({field} is {status}): Redis may refuse writes, and what it keeps on disk is old. "
                "Look at its "
                "log and at the disk",
                [_cli("INFO", "persistence"), _cli("CONFIG", "GET", "dir")],
            )


# --- what could not be looked at -----------------------------------------------------------------


def not_checked(facts: Facts) -> Iterator[Finding]:
    """What Redis refused to tell, so that nothing is passed in silence."""
    if facts.found.refused and not facts.named:
        yield Finding(
            Severity.WARNING,
            "not-checked",
            "Redis",
            f"not checked: any stream. This user may not SCAN ({facts.found.refused}); name streams, with --stream",
            [_cli("ACL", "WHOAMI")],
        )
    elif facts.found.refused or not facts.found.complete:
        why = facts.found.refused or "there are too many keys to look at them all"
        yield Finding(
            Severity.WARNING,
            "not-checked",
            "Redis",
            f"not checked: whether "
            f"{'groups that are gone' if facts.named else 'other streams, and groups that are gone,'} "
            f"have left messages behind ({why})",
            [_cli("DBSIZE"), _cli("ACL", "WHOAMI")],
        )
    for command, count in Counter(refusal.command for refusal in facts.refused).items():
        first = next(refusal for refusal in facts.refused if refusal.command == command)
        about = f" of {first.key}" + (f" and {count - 1} more" if count > 1 else "") if first.key else ""
        yield Finding(
            Severity.WARNING,
            "not-checked",
            "Redis",
            f"not checked: {_TOLD_BY.get(command, 'figures')}{about}. Redis refused {command}: {first.text}",
            [_cli("ACL", "WHOAMI")],
        )


_TOLD_BY: Final = {
    "INFO": "version, role, memory, eviction, persistence, failed writes",
    "CONFIG GET": "how Redis persists",
    "XINFO STREAM": "length and lag",
    "XINFO GROUPS": "groups",
    "XINFO CONSUMERS": "consumers",
    "XPENDING": "what is pending",
    "XRANGE": "ages, and whether what is pending is still there",
    "XLEN": "dead letters and retries",
    "ZCARD": "what is scheduled",
    "ZCOUNT": "what is due",
    "ZRANGE": "what is overdue",
    "TYPE": "types of keys",
    "EVALSHA": "the number of messages that wait",
}

CHECKS: Final[dict[str, Check]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        ghost_pending,
        dead_consumers,
        nobody_reads,
        overdue,
        missing_groups,
        orphaned_keys,
        retry_without_group,
        missing_streams,
        falling_behind,
        long_streams,
        dead_letters,
        idle_consumers,
        wrong_types,
        version,
        replica,
        eviction,
        memory,
        persistence,
        failed_writes,
        not_checked,
    )
}


# --- texts ---------------------------------------------------------------------------------------


def _groups(facts: Facts) -> Iterator[tuple[StreamState, GroupState]]:
    for stream in facts.state.streams:
        for group in stream.groups:
            yield stream, group


def _consumers(facts: Facts) -> Iterator[tuple[StreamState, GroupState, Sequence[ConsumerState]]]:
    """Groups whose consumers Redis has told of."""
    for stream, group in _groups(facts):
        if group.consumers is not None:
            yield stream, group, group.consumers


def _alive(consumers: Sequence[ConsumerState], limits: Limits) -> list[ConsumerState]:
    return [consumer for consumer in consumers if consumer.idle <= limits.dead_after]


def _waits(group: GroupState, limits: Limits) -> bool:
    if group.lag_age is None:  # ids that are no times
        return bool(group.lag)
    return group.lag_age > limits.dead_after


def _waiting(group: GroupState) -> str:
    lag = group.lag
    many = "messages wait" if lag is None else f"{_count(lag, 'message')} {_verb(lag, 'waits', 'wait')}"
    return many + (f", the oldest for {_duration(group.lag_age)}" if group.lag_age is not None else "")


def _of(stream: str, group: str) -> str:
    return f"{stream} / {group}"


def _cli(*words: object) -> str:
    return "redis-cli " + shlex.join(map(str, words))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
