"""A replay of dead letters that is killed, refused or cut off: each message is in one place, and once."""

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from quantum_bus.demo.redis_server import RedisProcess
from tests.faults.forms import Form
from tests.faults.proxy import Proxy

STREAM = "orders"
DEAD = "{orders}:dlq"
RETRY = "{orders}:retry:g"
MANY = 2_000
KILLED_AT = (200, 500, 800, 1_100, 1_400, 1_700)


@pytest.fixture
def client(own_redis: RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_redis.url, decode_responses=True) as made:
        yield made


def bury(client: redis.Redis, count: int) -> None:
    client.xgroup_create(STREAM, "g", "0", mkstream=True)
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        said = {"stream": STREAM, "id": f"{number + 1}-0", "group": "g", "attempts": "5", "reason": "max_attempts"}
        fields = {"v": "1", "data": str(number), "message_id": f"m-{number}"}
        pipeline.xadd(DEAD, fields | {f"dlq.{name}": value for name, value in said.items()})
    pipeline.execute()


def start(url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quantum_bus", "dlq", "replay", STREAM, "--all", "--url", url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def replay(url: str, *arguments: str) -> tuple[int, list[str], list[str]]:
    process = start(url, *arguments)
    out, errors = process.communicate(timeout=100)
    return process.returncode, out.splitlines(), errors.splitlines()


def places(client: redis.Redis, target: str) -> tuple[Counter[str], int]:
    """How often each message is there, in both places together at one instant; and how many are at the target."""
    with client.pipeline(transaction=True) as together:
        dead, back = together.xrange(DEAD).xrange(target).execute()
    return Counter(fields["message_id"] for _, fields in [*dead, *back]), len(back)


@pytest.mark.parametrize("to", ["group", "stream"])
def test_a_replay_that_is_killed_neither_loses_nor_doubles_a_message_and_goes_on_when_run_again(
    own_redis: RedisProcess, client: redis.Redis, proxy: Proxy, form: Form, to: str
) -> None:
    """Killed with one message on its way: in turn Redis never sees it, and carries it out."""
    target = RETRY if to == "group" else STREAM
    bury(client, MANY)
    once = Counter(f"m-{number}" for number in range(MANY))
    back = 0
    for killed_at, drop in zip(form.of(KILLED_AT[::3], KILLED_AT), itertools.cycle([True, False])):
        held = proxy.hold("EVALSHA", after=killed_at - back)
        process = start(proxy.url, "--to", to)
        assert held.wait(100), "it was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        proxy.release(drop=drop)
        back = killed_at if drop else killed_at + 1
        deadline = time.monotonic() + 20
        while client.xlen(target) < back:
            assert time.monotonic() < deadline, "what was on its way has not arrived"
        assert places(client, target) == (once, back)
    code, out, errors = replay(own_redis.url, "--to", to)
    assert (code, errors) == (0, [])
    assert out == [f"replayed {MANY - back:,} dead letters: {MANY - back:,} → {target}"]
    assert places(client, target) == (once, MANY)


def test_at_maxmemory_every_message_stays_and_goes_when_there_is_room(
    own_redis: RedisProcess, client: redis.Redis
) -> None:
    bury(client, 3)
    ids = [entry_id for entry_id, _ in client.xrange(DEAD)]
    client.config_set("maxmemory", "1")
    code, out, errors = replay(own_redis.url)
    assert (code, out) == (1, ["replayed 0 dead letters; 3 left, see above"])
    for entry_id, line in zip(ids, errors, strict=True):
        assert f"{entry_id}: {RETRY}: Redis refused it, and it stays" in line
        assert "maxmemory" in line
    assert [entry_id for entry_id, _ in client.xrange(DEAD)] == ids
    client.config_set("maxmemory", "0")
    assert replay(own_redis.url)[0] == 0
    assert places(client, RETRY)[1] == 3


def test_a_reply_that_is_lost_ends_the_replay_and_doubles_nothing(
    own_redis: RedisProcess, client: redis.Redis, proxy: Proxy
) -> None:
    """With redis-py's own retries a message was reported as gone that this very replay had moved."""
    bury(client, 10)
    proxy.lose_reply("EVALSHA", after=4)  # the first of them is that the server does not know the script yet
    code, out, errors = replay(proxy.url)
    assert code == 1
    assert out == [f"replayed 4 dead letters: 4 → {RETRY}"]
    assert len(errors) == 1
    assert "broke" in errors[0]
    found, back = places(client, RETRY)
    assert set(found.values()) == {1}
    assert back == 5, "Redis carried out one more than was answered"
    assert replay(proxy.url)[0] == 0
    found, back = places(client, RETRY)
    assert set(found.values()) == {1}
    assert back == 10
