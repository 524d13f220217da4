"""Each check, on facts that it finds something in and on facts that it does not."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from quantum_bus.checkup import Facts, Ghosts, Orphan, WrongType
from quantum_bus.discovery import Found, SideKey
from quantum_bus.findings import CHECKS, Finding, Severity, diagnose
from quantum_bus.inquiry import Refusal
from quantum_bus.state import BusState, ConsumerState, GroupState, StreamState

E, W, I = Severity.ERROR, Severity.WARNING, Severity.INFO  # noqa: E741

ALIVE = ConsumerState("live", 2.0, 1)
DEAD = ConsumerState("dead", 1_000.0, 3)
LEFT_OVER = ConsumerState("old", 90_000.0, 0)
GROUP = GroupState(
    name="g", last_delivered=(500, 0), lag=3, lag_age=1.5, pending=2, oldest_pending=(400, 0), pending_age=9.25,
    pending_idle=1.0, scheduled=4, due=1, overdue=2.0, retries=0, retry_group=None, consumers=[ALIVE],
)  # fmt: skip
STREAM = StreamState(
    name="s", exists=True, length=10, first_id=(100, 0), last_id=(900, 0), dead_letters=0, scheduled=6, due=5,
    overdue=1.0, groups=[GROUP],
)  # fmt: skip
SERVER = {
    "redis_version": "6.2.14", "role": "master", "maxmemory_policy": "noeviction", "maxmemory": "1000",
    "used_memory": "899", "aof_enabled": "1", "rdb_last_bgsave_status": "ok", "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
}  # fmt: skip
CONFIG = {"appendfsync": "always", "save": ""}
HEALTHY = Facts(
    named=(), expected=["g"], state=BusState(1_000_000.0, [STREAM]), found=Found(["s"], (), complete=True),
    server=SERVER, config=CONFIG,
)  # fmt: skip


def facts(**changed: Any) -> Facts:
    """Healthy ones, but for: fields of the facts, and `group`, `stream`, `server`, `config` as far as they differ."""
    group = replace(GROUP, **changed.pop("group", {}))
    stream = replace(STREAM, **{"groups": [group], **changed.pop("stream", {})})
    server = changed.pop("server", {})
    return replace(
        HEALTHY,
        state=BusState(1_000_000.0, [stream]),
        server=None if server is None else SERVER | server,
        config=CONFIG | changed.pop("config", {}),
        **changed,
    )


def found(check: str, given: Facts) -> list[Finding]:
    """What a check finds; no other check that the test does not mean may hide it."""
    findings = list(CHECKS[check](given))
    assert all(finding.check == check for finding in findings)
    return findings


def ghosts(pending: int) -> list[Ghosts]:
    return [Ghosts("s", "g", "{s}:retry:g", ["1-0", "2-0"], 100, pending)]


FOUND: list[tuple[str, dict[str, Any], Severity, str]] = [
    ("ghost-pending", {"ghosts": ghosts(5_000)}, E, "at least 2 pending messages of the oldest 100 on {s}:retry:g"),
    ("ghost-pending", {"ghosts": ghosts(100)}, E, "2 pending messages of 100 on {s}:retry:g"),
    ("dead-consumers", {"group": {"consumers": [DEAD]}}, E, "1 consumer (dead), last seen 16 min ago"),
    ("dead-consumers", {"group": {"consumers": [DEAD, ALIVE]}}, W, "Another consumer is alive"),
    ("dead-consumers", {"group": {"consumers": [replace(DEAD, name=n) for n in "abcde"]}}, E, "(a, b, c and 2 more)"),
    ("idle-consumers", {"group": {"consumers": [LEFT_OVER]}}, I, "1 consumer (old) with nothing pending"),
    ("missing-streams", {"named": ["s"], "stream": {"exists": False}}, W, "there is no such stream"),
    ("missing-groups", {"expected": ["g", "h"]}, E, "the group is not there"),
    ("orphaned-keys", {"orphans": [Orphan("{s}:due:h", SideKey("s", "due", "h"), 4)]}, E, "4 messages wait in"),
    ("retry-without-group", {"group": {"retry_group": False, "retries": 2}}, W, "2 messages in {s}:retry:g"),
    ("nobody-reads", {"group": {"lag_age": 400.0, "consumers": []}}, E, "3 messages wait, the oldest for 6 min"),
    ("nobody-reads", {"group": {"lag_age": 400.0, "consumers": [DEAD]}}, E, "was seen for 5 min"),
    ("nobody-reads", {"group": {"lag_age": None, "consumers": []}}, E, "3 messages wait, and no consumer"),
    ("nobody-reads", {"group": {"lag": None, "lag_age": 400.0, "consumers": []}}, E, "messages wait, the oldest for"),
    ("falling-behind", {"group": {"lag_age": 400.0}}, W, "though 1 consumer is alive"),
    ("overdue", {"group": {"overdue": 61.0}}, E, "{s}:due:g is due, the first for 61 s"),
    ("overdue", {"stream": {"overdue": 7_500.0}}, E, "5 scheduled messages in {s}:due are due, the first for 2 h"),
    ("dead-letters", {"stream": {"dead_letters": 1}, "oldest_dead": {"s": 200_000.0}}, I, "letter, the oldest for 2 d"),
    ("dead-letters", {"stream": {"dead_letters": 2}}, I, "2 dead letters: no handler"),
    ("long-streams", {"stream": {"length": 1_000_001}}, W, "before 400-0, where g stands"),
    ("long-streams", {"stream": {"length": 1_000_001, "groups": []}}, W, "No group reads it"),
    ("long-streams", {"stream": {"length": 1_000_001}, "group": {"oldest_pending": (9, 0)}}, W, "g holds trimming"),
    ("long-streams", {"stream": {"length": 1_000_001}, "group": {"pending": None}}, W, "is not known"),
    ("wrong-types", {"wrong_types": [WrongType("{s}:dlq", "string", "stream")]}, E, "holds a string"),
    ("version", {"server": {"redis_version": "6.0.16"}}, E, "this is Redis 6.0.16; the bus needs 6.2"),
    ("version", {"server": {"redis_version": "5.0.1"}}, E, "6.2 or later"),
    ("replica", {"server": {"role": "slave", "master_host": "h", "master_port": "1"}}, E, "a replica of h:1"),
    ("eviction", {"server": {"maxmemory_policy": "allkeys-lru"}}, E, "deletes whole streams"),
    ("eviction", {"server": {"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}}, W, "once a maxmemory is set"),
    ("eviction", {"server": {"maxmemory_policy": "volatile-ttl"}}, W, "handled or published once"),
    ("memory", {"server": {"used_memory": "900"}}, W, "90% of maxmemory is used"),
    ("memory", {"server": {"used_memory": "1001"}}, E, "publishing is refused"),
    ("persistence", {"server": {"aof_enabled": "0"}}, W, "nothing is written to disk"),
    ("persistence", {"server": {"aof_enabled": "0"}, "config": {"save": "3600 1"}}, I, "snapshots only (save 3600 1)"),
    ("persistence", {"config": {"appendfsync": "no"}}, W, "appendfsync is no"),
    ("persistence", {"config": {"appendfsync": "everysec"}}, I, "up to a second's messages"),
    ("failed-writes", {"server": {"rdb_last_bgsave_status": "err"}}, E, "the last snapshot failed"),
    ("failed-writes", {"server": {"aof_last_write_status": "err"}}, E, "append-only file failed"),
    ("not-checked", {"refused": [Refusal("INFO", "", "NOPERM")]}, W, "not checked: version, role, memory"),
    ("not-checked", {"refused": [Refusal("CONFIG GET", "", "NOPERM")] * 2}, W, "not checked: how Redis persists."),
    ("not-checked", {"refused": [Refusal("XPENDING", k, "NOPERM") for k in "ab"]}, W, "pending of a and 1 more"),
    ("not-checked", {"found": Found((), (), complete=False, refused="NOPERM")}, W, "any stream. This user"),
    ("not-checked", {"found": Found((), (), complete=False), "named": ["s"]}, W, "too many keys"),
]  # fmt: skip

NOT_FOUND: list[tuple[str, dict[str, Any]]] = [
    ("ghost-pending", {}),
    ("dead-consumers", {"group": {"consumers": [replace(DEAD, idle=299.0)]}}),
    ("dead-consumers", {"group": {"consumers": [replace(DEAD, pending=0)]}}),
    ("dead-consumers", {"group": {"consumers": None}}),
    ("idle-consumers", {"group": {"consumers": [replace(LEFT_OVER, pending=1)]}}),
    ("idle-consumers", {"group": {"consumers": [replace(LEFT_OVER, idle=3_600.0)]}}),
    ("missing-streams", {"named": ["s"]}),
    ("missing-streams", {"stream": {"exists": False}}),
    ("missing-streams", {"named": ["s"], "stream": {"exists": None}}),
    ("missing-streams", {"named": ["s"], "stream": {"exists": False}, "wrong_types": [WrongType("s", "set", "")]}),
    ("missing-groups", {}),
    ("missing-groups", {"expected": ["h"], "refused": [Refusal("XINFO GROUPS", "s", "NOPERM")]}),
    ("orphaned-keys", {}),
    ("retry-without-group", {"group": {"retry_group": True, "retries": 2}}),
    ("retry-without-group", {"group": {"retry_group": None}}),
    ("nobody-reads", {"group": {"lag_age": 400.0}}),
    ("nobody-reads", {"group": {"lag_age": 299.0, "consumers": []}}),
    ("nobody-reads", {"group": {"lag": 0, "lag_age": 0.0, "consumers": []}}),
    ("nobody-reads", {"group": {"lag_age": 400.0, "consumers": None}}),
    ("falling-behind", {}),
    ("falling-behind", {"group": {"lag_age": 400.0, "consumers": [DEAD]}}),
    ("overdue", {"group": {"overdue": 59.0}, "stream": {"overdue": None}}),
    ("dead-letters", {}),
    ("dead-letters", {"stream": {"dead_letters": None}}),
    ("long-streams", {"stream": {"length": 1_000_000}}),
    ("long-streams", {"stream": {"length": None}}),
    ("wrong-types", {}),
    ("version", {}),
    ("version", {"server": {"redis_version": "7.0.15"}}),
    ("version", {"server": {"redis_version": "10.0.0"}}),
    ("version", {"server": None}),
    ("replica", {}),
    ("eviction", {}),
    ("memory", {}),
    ("memory", {"server": {"maxmemory": "0"}}),
    ("persistence", {}),
    ("persistence", {"server": None}),
    ("failed-writes", {}),
    ("not-checked", {}),
]  # fmt: skip


@pytest.mark.parametrize(("check", "changed", "severity", "says"), FOUND)
def test_a_check_finds_what_it_is_for(check: str, changed: dict[str, Any], severity: Severity, says: str) -> None:
    [finding] = found(check, facts(**changed))
    assert (finding.severity, says in finding.means) == (severity, True), finding.means


@pytest.mark.parametrize(("check", "changed"), NOT_FOUND)
def test_a_check_finds_nothing_where_all_is_well(check: str, changed: dict[str, Any]) -> None:
    assert found(check, facts(**changed)) == []


def test_every_check_is_tried_both_ways() -> None:
    assert {check for check, *_ in FOUND} == {check for check, _ in NOT_FOUND} == set(CHECKS)


def test_facts_in_which_all_is_well_have_no_finding() -> None:
    assert diagnose(HEALTHY) == []


def test_the_worst_comes_first() -> None:
    given = facts(
        stream={"dead_letters": 1},
        config={"appendfsync": "no"},
        wrong_types=[WrongType("{s}:dlq", "string", "stream")],
    )
    assert [finding.severity for finding in diagnose(given)] == [E, W, I]


@pytest.mark.parametrize(("check", "changed", "severity", "says"), FOUND)
def test_what_to_type_is_a_command_that_a_shell_takes(
    check: str, changed: dict[str, Any], severity: Severity, says: str
) -> None:
    for finding in found(check, facts(**changed)):
        for command in finding.commands:
            assert shlex.split(command)[0] in ("redis-cli", "quantum-bus"), command


def test_names_are_quoted_for_the_shell() -> None:
    stream = replace(STREAM, name="s; rm -rf", groups=[replace(GROUP, name="g'", lag_age=400.0, consumers=[])])
    [finding] = found("nobody-reads", replace(HEALTHY, state=BusState(1.0, [stream])))
    assert shlex.split(finding.commands[1]) == ["redis-cli", "XINFO", "CONSUMERS", "s; rm -rf", "g'"]


def test_a_stream_is_never_trimmed_past_what_a_group_has_still_to_do() -> None:
    """The group that stands furthest back decides: by its oldest pending entry, or by what it was given last."""
    groups = [
        replace(GROUP, name="ahead", oldest_pending=None, pending=0, last_delivered=(800, 0)),
        replace(GROUP, name="behind", oldest_pending=None, pending=0, last_delivered=(300, 5)),
        replace(GROUP, name="holding", oldest_pending=(301, 0), last_delivered=(900, 0)),
    ]
    [finding] = found("long-streams", facts(stream={"length": 2_000_000, "groups": groups}))
    assert finding.commands == ["redis-cli XTRIM s MINID 300-5"]
