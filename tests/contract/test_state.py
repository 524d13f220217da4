"""How streams and groups stand, on real servers, against set-ups made by hand; no consumer of the bus is alive."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from quantum_bus import streams
from quantum_bus.blocking_link import Link
from quantum_bus.cli.connection import make_client, make_link
from quantum_bus.discovery import SideKey, discover
from quantum_bus.inquiry import answered
from quantum_bus.state import COUNT_LIMIT, GroupState, StreamState, observe
from quantum_bus.streams import Keys
from tests.contract.backends import Backend
from tests.servers import RedisPool, series_to_test


class Asked:
    """A link, and what went over it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.rounds = 0
        self.commands: list[streams.Command] = []
        self.bytes = 0

    def execute(self, *commands: streams.Command) -> list[Any]:
        self.rounds += 1
        self.commands += commands
        replies = self._link.execute(*commands)
        self.bytes += len(repr(replies))
        return replies

    def stream(self, name: str) -> StreamState:
        [found] = answered(observe([name]), self.execute).streams
        return found

    def group(self, name: str, group: str = "g") -> GroupState:
        return {found.name: found for found in self.stream(name).groups}[group]


@pytest.fixture
def client(real_backend: Backend) -> Iterator[redis.Redis]:
    with closing(make_client(real_backend.url)) as made:
        yield made


@pytest.fixture
def asked(client: redis.Redis, real_backend: Backend) -> Iterator[Asked]:
    with closing(make_link(client, real_backend.url)) as link:
        yield Asked(link)


def ago(client: redis.Redis, seconds: float, sequence: int = 0) -> str:
    """An entry id of so long ago, by the server's clock."""
    now, _ = client.time()
    return f"{int((now - seconds) * 1000)}-{sequence}"


def ids(client: redis.Redis, stream: str, count: int) -> list[bytes]:
    return [client.xadd(stream, {"n": number}) for number in range(count)]


def test_a_group_that_no_consumer_has_read_for_is_behind_by_the_whole_stream(
    client: redis.Redis, asked: Asked, stream: str
) -> None:
    client.xadd(stream, {"n": 0}, id=ago(client, 100))
    ids(client, stream, 4)
    client.xgroup_create(stream, "g", "0")
    found = asked.stream(stream)
    assert (found.exists, found.length, found.dead_letters, found.scheduled, found.due) == (True, 5, 0, 0, 0)
    [group] = found.groups
    assert (group.lag, group.pending, group.pending_age, group.pending_idle) == (5, 0, 0.0, 0.0)
    assert group.lag_age is not None
    assert 100 <= group.lag_age < 160
    assert group.consumers == []
    assert group.retry_group is None


def test_what_every_dead_consumer_holds_is_pending_with_the_age_of_its_oldest(
    client: redis.Redis, asked: Asked, stream: str
) -> None:
    client.xadd(stream, {"n": 0}, id=ago(client, 1000))
    ids(client, stream, 4)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "dead1", {stream: ">"}, count=2)
    client.xreadgroup("g", "dead2", {stream: ">"}, count=1)
    # as if it had been given an hour ago
    client.xclaim(stream, "g", "dead1", 0, [client.xrange(stream, count=1)[0][0]], idle=3_600_000, justid=True)
    group = asked.group(stream)
    assert (group.lag, group.pending) == (2, 3)
    assert group.pending_age is not None
    assert group.pending_idle is not None
    assert 1000 <= group.pending_age < 1060
    assert 3600 <= group.pending_idle < 3660
    assert [(consumer.name, consumer.pending) for consumer in group.consumers or ()] == [("dead1", 2), ("dead2", 1)]


def test_what_was_handled_is_no_lag_and_has_no_age(client: redis.Redis, asked: Asked, stream: str) -> None:
    made = ids(client, stream, 3)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "c", {stream: ">"})
    client.xack(stream, "g", *made)
    group = asked.group(stream)
    assert (group.lag, group.lag_age, group.pending, group.pending_age) == (0, 0.0, 0, 0.0)


def test_a_group_at_the_end_of_an_empty_stream_is_not_behind(client: redis.Redis, asked: Asked, stream: str) -> None:
    client.xgroup_create(stream, "g", "$", mkstream=True)
    assert (asked.group(stream).lag, asked.group(stream).lag_age) == (0, 0.0)


def test_entries_that_were_trimmed_are_not_waiting_any_more(client: redis.Redis, asked: Asked, stream: str) -> None:
    """Redis 7.0 itself says 7 here, where 5 entries are left: it counts what was trimmed."""
    ids(client, stream, 10)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "c", {stream: ">"}, count=3)
    client.xtrim(stream, maxlen=5, approximate=False)
    assert asked.group(stream).lag == 5


def test_where_entries_were_deleted_the_rest_is_counted(client: redis.Redis, asked: Asked, stream: str) -> None:
    made = ids(client, stream, 10)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "c", {stream: ">"}, count=3)
    client.xdel(stream, made[5], made[7])
    assert asked.group(stream).lag == 5


@pytest.mark.parametrize(("read", "lag"), [(10, 2 * COUNT_LIMIT), (2 * COUNT_LIMIT, 10)])
def test_a_lag_is_counted_from_the_nearer_end(
    client: redis.Redis, asked: Asked, stream: str, read: int, lag: int
) -> None:
    """A deleted entry makes 7.0 forget its own count, as 6.2 never has one."""
    made = _filled(client, stream, read + lag + 1)
    client.xgroup_create(stream, "g", made[read - 1])
    client.xdel(stream, made[-2])
    assert asked.group(stream).lag == lag


def test_a_lag_that_cannot_be_counted_within_bounds_is_absent_and_its_age_is_not(
    client: redis.Redis, asked: Asked, stream: str
) -> None:
    """Without the bound the script looked at every entry, however many there were."""
    made = _filled(client, stream, 2 * COUNT_LIMIT + 10)
    client.xgroup_create(stream, "g", made[COUNT_LIMIT + 2])
    client.xdel(stream, made[-2])
    group = asked.group(stream)
    assert group.lag is None
    assert group.lag_age is not None
    assert group.lag_age > 0


def _filled(client: redis.Redis, stream: str, count: int) -> list[str]:
    now, _ = client.time()
    made = [f"{now * 1000 - 60_000}-{number}" for number in range(1, count + 1)]
    with client.pipeline(transaction=False) as together:
        for entry_id in made:
            together.execute_command("XADD", stream, entry_id, "n", "1")
        together.execute()
    return made


def test_ids_that_are_no_times_have_no_age(client: redis.Redis, asked: Asked, stream: str) -> None:
    client.xadd(stream, {"n": 1}, id="1-1")
    client.xadd(stream, {"n": 1}, id="2-1")
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "c", {stream: ">"}, count=1)
    group = asked.group(stream)
    assert (group.lag, group.pending) == (1, 1)
    assert (group.lag_age, group.pending_age) == (None, None)


def test_retries_count_where_they_are(client: redis.Redis, asked: Asked, stream: str) -> None:
    """Readable ones as lag, those in a consumer's hands as pending, the others as scheduled or due."""
    keys = Keys.of(stream, "g")
    client.xgroup_create(stream, "g", "0", mkstream=True)
    client.xgroup_create(keys.retry, "g", "0", mkstream=True)
    client.xadd(keys.retry, {"n": 0}, id=ago(client, 300))
    ids(client, keys.retry, 3)
    client.xreadgroup("g", "c", {keys.retry: ">"}, count=1)
    [[_, [[given, _]]]] = [[keys.retry, client.xrange(keys.retry, count=1)]]
    group = asked.group(stream)
    assert (group.lag, group.pending, group.retries, group.retry_group) == (3, 1, 4, True)
    assert group.pending_age is not None
    assert 300 <= group.pending_age < 360
    assert group.lag_age is not None
    assert group.lag_age < 60
    client.xack(keys.retry, "g", given)
    client.xdel(keys.retry, given)
    assert (asked.group(stream).lag, asked.group(stream).pending) == (3, 0)


def test_a_retry_stream_without_its_group_is_readable_once_there_is_one(
    client: redis.Redis, asked: Asked, stream: str
) -> None:
    client.xgroup_create(stream, "g", "0", mkstream=True)
    client.xadd(Keys.of(stream, "g").retry, {"n": 0}, id=ago(client, 50))
    group = asked.group(stream)
    assert (group.lag, group.retry_group) == (1, False)
    assert group.lag_age is not None
    assert group.lag_age >= 50


def test_what_is_scheduled_and_what_is_overdue(client: redis.Redis, asked: Asked, stream: str) -> None:
    now, _ = client.time()
    client.xgroup_create(stream, "g", "0", mkstream=True)
    client.zadd(Keys.of(stream, "g").due, {"1-1": (now - 90) * 1000, "1-2": (now + 1000) * 1000})
    client.zadd(f"{{{stream}}}:due", {"a": (now - 30) * 1000, "b": (now - 10) * 1000, "c": (now + 1000) * 1000})
    found = asked.stream(stream)
    [group] = found.groups
    assert (group.scheduled, group.due, found.scheduled, found.due) == (2, 1, 3, 2)
    assert group.overdue is not None
    assert found.overdue is not None
    assert 90 <= group.overdue < 150
    assert 30 <= found.overdue < 90


def test_dead_letters_are_counted_even_where_their_stream_is_gone(
    client: redis.Redis, asked: Asked, stream: str, dlq: str
) -> None:
    client.xadd(dlq, {"n": 0})
    found = asked.stream(stream)
    assert (found.exists, found.length, found.dead_letters, list(found.groups)) == (False, None, 1, [])


def test_a_key_of_another_type_has_no_figure_and_is_told_of(client: redis.Redis, asked: Asked, stream: str) -> None:
    client.xadd(stream, {"n": 0})
    client.set(f"{{{stream}}}:dlq", "no stream")
    state = answered(observe([stream]), asked.execute)
    assert state.streams[0].dead_letters is None
    assert state.streams[0].length == 1
    [refusal] = state.refused
    assert (refusal.command, refusal.key, refusal.wrong_type) == ("XLEN", f"{{{stream}}}:dlq", True)


def test_what_an_acl_forbids_is_absent_and_told_of(client: redis.Redis, real_backend: Backend, stream: str) -> None:
    ids(client, stream, 2)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "c", {stream: ">"}, count=1)
    client.execute_command(
        "ACL", "SETUSER", "looker", "reset", "on", ">pw", "~*", "+@read", "+time", "-zcard", "-xpending"
    )
    assert real_backend.url is not None
    url = real_backend.url.replace("redis://", "redis://looker:pw@")
    try:
        with closing(make_client(url)) as own, closing(make_link(own, url)) as link:
            asked = Asked(link)
            [found] = answered(observe([stream]), asked.execute).streams
            refused = answered(observe([stream]), asked.execute).refused
    finally:
        client.execute_command("ACL", "DELUSER", "looker")
    [group] = found.groups
    assert (found.scheduled, group.scheduled, group.pending_age) == (None, None, None)
    assert (group.pending, group.lag_age is not None, len(group.consumers or ())) == (1, True, 1)
    assert {refusal.command for refusal in refused} >= {"ZCARD", "XPENDING"}


def test_the_documented_user_may_ask_everything(client: redis.Redis, real_backend: Backend, stream: str) -> None:
    """On 7.0, too, the lag has to be counted here: an entry between was deleted."""
    made = ids(client, stream, 4)
    client.xgroup_create(stream, "g", made[0])
    client.xdel(stream, made[2])
    text = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    [rights] = re.findall(r"^ACL SETUSER exporter on >secret (.*)$", text, re.MULTILINE)
    client.execute_command("ACL", "SETUSER", "documented", "reset", "on", ">secret", *rights.split())
    assert real_backend.url is not None
    url = real_backend.url.replace("redis://", "redis://documented:secret@")
    try:
        with closing(make_client(url)) as own, closing(make_link(own, url)) as link:
            assert stream in answered(discover(), link.execute).streams
            state = answered(observe([stream]), link.execute)
    finally:
        client.execute_command("ACL", "DELUSER", "documented")
    assert state.refused == []
    assert state.streams[0].groups[0].lag == 2


def test_a_long_pending_list_costs_no_more_than_a_short_one(client: redis.Redis, asked: Asked, stream: str) -> None:
    """As many commands, as many round trips, and replies as long."""
    asked_of_few = Asked(asked._link)
    few = f"{stream}:few"
    for name, count in ((few, 10), (stream, 100_000)):
        client.xgroup_create(name, "g", "0", mkstream=True)
        fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], ARGV[2] .. '-' .. i, 'n', '1') end"
        client.eval(fill, 1, name, count, ago(client, 100).split("-")[0])
        client.eval(
            "redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', ARGV[1], 'STREAMS', KEYS[1], '>')", 1, name, count
        )
    short = asked_of_few.group(few)
    long = asked.group(stream)
    assert (short.pending, long.pending) == (10, 100_000)
    assert long.pending_age is not None
    assert long.pending_age >= 100
    assert [command[0] for command in asked.commands] == [command[0] for command in asked_of_few.commands]
    assert asked.rounds == asked_of_few.rounds == 4
    assert asked.bytes < asked_of_few.bytes + 200
    client.delete(stream)


def test_groups_past_the_limit_are_not_asked_about(client: redis.Redis, asked: Asked, stream: str) -> None:
    for group in ("c", "a", "b"):
        client.xgroup_create(stream, group, "0", mkstream=True)
    state = answered(observe([stream], max_groups=2), asked.execute)
    assert [group.name for group in state.streams[0].groups] == ["a", "b"]
    assert state.groups_left_out == 1
    assert not [command for command in asked.commands if "c" in command]


@pytest.fixture
def names_in_redis(client: redis.Redis, unique: Callable[[str], str]) -> dict[str, str]:
    return {short: unique(short) for short in ("plain", "tagged{eu}", "gone", "late", "text")}


def test_streams_are_found_among_the_keys_and_side_keys_are_not_taken_for_streams(
    client: redis.Redis, asked: Asked, names_in_redis: dict[str, str]
) -> None:
    name = names_in_redis
    for stream in (name["plain"], name["tagged{eu}"]):
        client.xadd(stream, {"n": 0})
        for suffix in ("dlq", "completed", "retry:g:h"):
            client.xadd(streams.side_key(stream, suffix), {"n": 0})
    client.xadd(streams.side_key(name["gone"], "dlq"), {"n": 0})
    client.zadd(streams.side_key(name["late"], "due:g"), {"1-1": 1})
    client.set(name["text"], "no stream")
    found = answered(discover(), asked.execute)
    assert found.complete
    ours = set(name.values())
    assert ours & set(found.streams) == {name["plain"], name["tagged{eu}"], name["gone"]}
    assert not [key for key in found.streams if key.endswith((":dlq", ":completed")) or ":retry:" in key]
    assert SideKey(name["plain"], "retry", "g:h") in found.side_keys
    with_scheduled = answered(discover(types=("stream", "zset")), asked.execute)
    assert SideKey(name["late"], "due", "g") in with_scheduled.side_keys
    assert ours & set(with_scheduled.streams) == ours - {name["text"]}


def test_a_look_among_too_many_keys_ends_and_says_so(redis_pool: RedisPool) -> None:
    process = redis_pool.of(series_to_test()[0])
    with closing(make_client(process.url)) as client, closing(make_link(client, process.url)) as link:
        with client.pipeline(transaction=False) as together:
            for number in range(3_000):
                together.set(f"many:{number}", "1", ex=60)
            together.execute()
        asked = Asked(link)
        assert not answered(discover(pages=2), asked.execute).complete
        assert asked.rounds == 2
