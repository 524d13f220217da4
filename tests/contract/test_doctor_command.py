"""`quantum-bus doctor` and `quantum-bus lag`, as processes on real servers that are sick in known ways, or well."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quantum_bus.demo.redis_server import RedisProcess, RedisServer, start_redis
from quantum_bus.streams import Keys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    command = [sys.executable, "-m", "quantum_bus", *arguments]
    return subprocess.run(
        command, env={**env, "COLUMNS": "120"}, capture_output=True, text=True, timeout=40, check=False
    )


def doctor(url: str, *arguments: str, code: int) -> list[tuple[str, str, str]]:
    """Severity, check and subject of each finding."""
    ended = run("doctor", f"--url={url}", "--json", *arguments)
    assert ended.returncode == code, ended
    assert ended.stderr == ""
    told = json.loads(ended.stdout)
    assert told["healthy"] is (code == 0)
    assert sum(told["counts"].values()) == len(told["findings"])
    return sorted((found["check"], found["subject"], found["severity"]) for found in told["findings"])


def of(findings: list[tuple[str, str, str]], *checks: str) -> list[tuple[str, str, str]]:
    return [finding for finding in findings if finding[0] in checks]


@pytest.fixture
def durable(redis_binary: RedisServer) -> Iterator[RedisProcess]:
    """A Redis that is set up as a bus wants it."""
    options = {"appendonly": "yes", "appendfsync": "always", "maxmemory": "1gb"}
    with start_redis(redis_binary, options=options) as process:
        yield process


@pytest.fixture
def client(own_redis: RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_redis.url) as made:
        yield made


def now_ms(client: redis.Redis, ago: float = 0.0) -> int:
    return int((client.time()[0] - ago) * 1000)


def test_a_healthy_redis_has_no_finding(durable: RedisProcess) -> None:
    with redis.Redis.from_url(durable.url) as client:
        client.xadd("orders", {"n": 1})
        client.xgroup_create("orders", "pay", "0")
        client.xreadgroup("pay", "alive", {"orders": ">"})
    assert doctor(durable.url, "--stream=orders", "--group=pay", code=0) == []
    shown = run("doctor", f"--url={durable.url}")
    assert (shown.returncode, shown.stdout.strip()) == (0, "1 streams, 1 groups: 0 errors, 0 warnings, 0 notes")


def test_what_is_wrong_with_messages_is_found(client: redis.Redis, own_redis: RedisProcess) -> None:
    keys = Keys.of("orders", "pay")
    old = now_ms(client, 1_000)
    for number in range(1, 6):
        client.xadd("orders", {"n": number}, id=f"{old}-{number}")
    client.xgroup_create("orders", "pay", "0")
    client.xreadgroup("pay", "dead", {"orders": ">"}, count=3)
    for number in range(1, 4):
        client.xclaim("orders", "pay", "dead", 0, [f"{old}-{number}"], idle=900_000, justid=True)
    client.xdel("orders", f"{old}-1", f"{old}-2")
    client.xadd(keys.retry, {"n": 1})
    client.zadd(keys.due, {"1-1": now_ms(client, 100)})
    client.zadd(Keys.of("orders", "gone").due, {"1-1": now_ms(client)})
    client.xadd(Keys.of("orders", "lost").retry, {"n": 1})
    client.zadd("{orders}:due", {"a": now_ms(client, 10)})
    client.xadd(keys.dead, {"n": 1})
    client.set(keys.completed, "text")
    client.set(keys.lease, "somebody")
    client.set(keys.notes, "text")
    client.hset("{orders}:scheduled", "a", "b")

    # a consumer counts as dead after no time at all here: Redis lets nobody set the time it was last seen
    found = doctor(own_redis.url, "--dead-after=0s", "--cap=2", "--stream=orders", "--group=ship", code=1)
    assert [finding for finding in found if finding[1] != "Redis"] == [
        ("dead-consumers", "orders / pay", "error"),
        ("dead-letters", "orders", "info"),
        ("ghost-pending", "orders / pay", "error"),
        ("long-streams", "orders", "warning"),
        ("missing-groups", "orders / ship", "error"),
        ("nobody-reads", "orders / pay", "error"),
        ("orphaned-keys", "orders / gone", "error"),
        ("orphaned-keys", "orders / lost", "error"),
        ("overdue", "orders / pay", "error"),
        ("retry-without-group", "orders / pay", "warning"),
        ("wrong-types", "{orders}:completed", "error"),
        ("wrong-types", "{orders}:upkeep", "error"),
    ]
    without_name = doctor(own_redis.url, "--dead-after=0s", "--cap=2", code=1)
    assert [finding for finding in without_name if finding[0] != "missing-groups"] == [
        finding for finding in found if finding[0] != "missing-groups"
    ]


def test_ghosts_are_looked_for_among_the_oldest_only(client: redis.Redis, own_redis: RedisProcess) -> None:
    client.xgroup_create("orders", "pay", "0", mkstream=True)
    with client.pipeline(transaction=False) as together:
        for number in range(1_000):
            together.xadd("orders", {"n": number})
        together.execute()
    client.xreadgroup("pay", "c", {"orders": ">"}, count=1_000)
    client.xtrim("orders", maxlen=10, approximate=False)
    ended = run("doctor", f"--url={own_redis.url}", "--json")
    [ghosts] = [found for found in json.loads(ended.stdout)["findings"] if found["check"] == "ghost-pending"]
    assert ghosts["means"].startswith("at least 100 pending messages of the oldest 100 on orders were deleted")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("persistence", "Redis", "warning")),
        ({"save": "3600 1"}, ("persistence", "Redis", "info")),
        ({"appendonly": "yes", "appendfsync": "everysec"}, ("persistence", "Redis", "info")),
        ({"appendonly": "yes", "appendfsync": "no"}, ("persistence", "Redis", "warning")),
        ({"maxmemory-policy": "allkeys-lru", "maxmemory": "1gb"}, ("eviction", "Redis", "error")),
        ({"maxmemory-policy": "volatile-lru"}, ("eviction", "Redis", "warning")),
        ({"maxmemory": "500kb"}, ("memory", "Redis", "error")),
    ],
)
def test_what_is_wrong_with_the_server_is_found(
    client: redis.Redis, own_redis: RedisProcess, settings: dict[str, str], expected: tuple[str, str, str]
) -> None:
    for name, value in settings.items():
        client.config_set(name, value)
    found = doctor(own_redis.url, code=0 if expected[2] == "info" else 1)
    assert of(found, expected[0]) == [expected]


def test_a_replica_is_found(client: redis.Redis, own_redis: RedisProcess) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert of(doctor(own_redis.url, code=1), "replica") == [("replica", "Redis", "error")]


def test_a_snapshot_that_failed_is_found(client: redis.Redis, own_redis: RedisProcess) -> None:
    (own_redis.folder / "dump.rdb").mkdir()  # so that the finished snapshot cannot take its place
    client.set("a", "b")
    client.execute_command("BGSAVE")
    while (status := client.info("persistence"))["rdb_bgsave_in_progress"] or status["rdb_last_bgsave_status"] == "ok":
        pass
    assert of(doctor(own_redis.url, code=1), "failed-writes") == [("failed-writes", "Redis", "error")]


def test_what_an_acl_forbids_is_said_not_to_be_checked(client: redis.Redis, own_redis: RedisProcess) -> None:
    client.xadd("orders", {"n": 1})
    client.xgroup_create("orders", "pay", "0")
    client.execute_command(
        "ACL", "SETUSER", "looker", "on", ">pw", "~*", "+@all", "-config", "-info", "-xpending", "-scan"
    )
    url = own_redis.url.replace("redis://", "redis://looker:pw@")
    ended = run("doctor", f"--url={url}", "--json", "--stream=orders")
    told = [
        found["means"].split(". ")[0]
        for found in json.loads(ended.stdout)["findings"]
        if found["check"] == "not-checked"
    ]
    assert ended.returncode == 1
    assert "pw" not in ended.stdout
    assert [text.partition("(")[0].strip() for text in told] == [
        "not checked: whether groups that are gone have left messages behind",
        "not checked: what is pending of orders and 1 more",
        "not checked: version, role, memory, eviction, persistence, failed writes",
        "not checked: how Redis persists",
    ]


def test_the_documented_user_may_ask_everything(client: redis.Redis, own_redis: RedisProcess) -> None:
    client.xadd("orders", {"n": 1})
    client.xgroup_create("orders", "pay", "0")
    client.xreadgroup("pay", "c", {"orders": ">"})
    client.xadd("{orders}:dlq", {"n": 1})
    text = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    [rights] = re.findall(r"^ACL SETUSER exporter on >secret (.*)$", text, re.MULTILINE)
    [more] = re.findall(r"`quantum-bus doctor` wants `(.*?)`", text)
    client.execute_command("ACL", "SETUSER", "documented", "on", ">secret", *rights.split(), *more.split())
    found = doctor(own_redis.url.replace("redis://", "redis://documented:secret@"), code=1)
    assert [check for check, *_ in found] == ["dead-letters", "persistence"]


def test_fail_on_error_lets_warnings_pass(own_redis: RedisProcess) -> None:
    assert of(doctor(own_redis.url, code=1), "persistence")[0][2] == "warning"
    ended = run("doctor", f"--url={own_redis.url}", "--fail-on=error")
    assert ended.returncode == 0
    assert "persistence" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "0 streams, 0 groups: 0 errors, 1 warnings, 0 notes"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url=redis://127.0.0.1:1/0"], "redis://127.0.0.1:1/0 cannot be reached"),
        ([], "no Redis to talk to"),
        (["--url=redis://127.0.0.1:1/0", "--dead-after=soon"], "cannot be reached"),
        (["--url=redis://:secret@127.0.0.1:1/0"], "cannot be reached"),
    ],
)
def test_where_redis_cannot_be_asked_the_code_is_2(arguments: list[str], says: str) -> None:
    ended = run("doctor", *arguments)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
    assert says in ended.stderr
    assert "secret" not in ended.stderr


def test_a_group_without_a_stream_and_a_duration_that_is_none_are_refused(own_redis: RedisProcess) -> None:
    for arguments, says in ((["--group=g"], "name streams, too"), (["--dead-after=soon"], "is no duration")):
        ended = run("doctor", f"--url={own_redis.url}", *arguments)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
        assert says in ended.stderr


# --- lag -----------------------------------------------------------------------------------------


def lag(url: str, *arguments: str) -> dict[str, Any]:
    ended = run("lag", f"--url={url}", "--json", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_lag_shows_what_waits_and_what_is_pending(client: redis.Redis, own_redis: RedisProcess) -> None:
    for number in range(3):
        client.xadd("eu.orders", {"n": number})
    client.xadd("us.orders", {"n": 0})
    client.xgroup_create("eu.orders", "pay", "0")
    client.xreadgroup("pay", "c", {"eu.orders": ">"}, count=1)
    told = lag(own_redis.url, "--prefix=eu.")
    [stream] = told["streams"]
    [group] = stream["groups"]
    assert (stream["stream"], stream["length"], stream["dead_letters"]) == ("eu.orders", 3, 0)
    assert (group["group"], group["lag"], group["pending"], group["consumers"]) == ("pay", 2, 1, 1)
    assert [stream["stream"] for stream in lag(own_redis.url)["streams"]] == ["eu.orders", "us.orders"]
    assert [stream["stream"] for stream in lag(own_redis.url, "--prefix=eu.", "--stream=orders")["streams"]] == [
        "eu.orders"
    ]
    rows = run("lag", f"--url={own_redis.url}").stdout.splitlines()
    headings = rows[0].split()
    assert headings[:5] + headings[7:] == [
        "stream",
        "group",
        "length",
        "lag",
        "oldest",
        "scheduled",
        "consumers",
        "dead",
    ]
    assert rows[1].split()[:4] == ["eu.orders", "pay", "3", "2"]
    assert rows[2].split() == ["us.orders", "1", "-", "-", "-", "-", "0"]
