"""An ordered subscriber whose leader dies, or stops for longer than its lease, under load.

A comment in each test names the protection that it was seen to fail without.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import Event, Message, Retry, names, streams
from quantum_bus.demo.redis_server import RedisProcess
from quantum_bus.streams import Keys, Script
from tests.contract.conditions import eventually
from tests.contract.entries import all_acked, delivered, pending
from tests.contract.twins import Buses
from tests.faults.proxy import Proxy
from tests.faults.victim import GO, NOTES

ROOT = Path(__file__).parents[2]
ACK_WAIT = 4.0
KEYS = "abcdef"

Note = dict[str, Any]


class Consumers:
    """Ordered consumers of one group, each in a process of its own; see `tests.faults.victim`."""

    def __init__(self, twin: str, url: str) -> None:
        self._command = [sys.executable, "-m", "tests.faults.victim", twin, url]
        self.started: list[subprocess.Popen[str]] = []

    def start(self, **options: Any) -> int:
        """Start one; its pid."""
        command = [*self._command, json.dumps({"ordered": True, "ack_wait": ACK_WAIT, **options})]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started.append(process)
        return process.pid

    def send(self, pid: int, number: signal.Signals) -> None:
        next(process for process in self.started if process.pid == pid).send_signal(number)

    async def logged(self, pid: int) -> list[str]:
        """Stop one gracefully; the events it has logged."""
        process = next(process for process in self.started if process.pid == pid)
        self.send(pid, signal.SIGTERM)
        output, _ = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0, output
        return [json.loads(line)["event"] for line in output.splitlines() if line.startswith("{")]


@pytest.fixture
def consumers(twin: str, own_redis: RedisProcess) -> Iterator[Consumers]:
    made = Consumers(twin, own_redis.url)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


async def notes(client: redis.asyncio.Redis, what: str = "begun", **of: Any) -> list[Note]:
    """What consumers have noted, in order."""
    found: list[Note] = [json.loads(line) for line in await client.lrange(NOTES, 0, -1)]  # type: ignore[misc]
    return [note for note in found if note["what"] == what and all(note[key] == value for key, value in of.items())]


async def leading_pid(client: redis.asyncio.Redis) -> int | None:
    """The process that leads; None while none does."""
    name = await client.get(Keys.of("s", "svc").lease)
    return None if name is None or name.endswith(b")") else int(name.decode().rsplit(":", 2)[1])


def first_handlings(noted: list[Note]) -> dict[str, list[int]]:
    """By key, the messages in the order in which each was first begun."""
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for note in noted:
        key = KEYS[note["n"] % len(KEYS)]
        if note["n"] not in seen[key]:
            seen[key].append(note["n"])
    return seen


async def publish(buses: Buses, count: int, **runs: list[list[str]]) -> None:
    """Messages of six keys in turn; a third of them fail at first. `runs` says what others do, as `n3=[["wait"]]`."""
    items = []
    for number in range(count):
        usual = [["raise"], ["sleep"]] if number % 3 == 0 else [["sleep" if number % 5 == 0 else "return"]]
        key = KEYS[number % len(KEYS)]
        items.append(Event({"n": number, "runs": runs.get(f"n{number}", usual)}, key=key))
    await buses().publish_many("s", items)


async def two_consumers(consumers: Consumers, client: redis.asyncio.Redis, **options: Any) -> tuple[int, int]:
    """The leader's pid, and the standby's."""
    for _ in range(2):
        consumers.start(retry={"initial": 0.05, "jitter": "none"}, **options)
        await eventually(lambda: leading_pid(client))
    leader = await leading_pid(client)
    assert leader is not None
    [standby] = [process.pid for process in consumers.started if process.pid != leader]
    return leader, standby


async def test_when_the_leader_is_killed_under_load_the_standby_goes_on_in_order_and_nothing_is_lost(
    buses: Buses, consumers: Consumers, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: what is pending being inherited before anything new is read; parking
    count = 240
    leader, standby = await two_consumers(consumers, redis_client, concurrency=4)
    await publish(buses, count)

    async def midway() -> bool:
        return len(await notes(redis_client, "ended")) >= 60

    await eventually(midway)
    consumers.send(leader, signal.SIGKILL)
    await eventually(lambda: all_acked(redis_client, "s"), timeout=60.0)
    begun = await notes(redis_client)
    order = first_handlings(begun)
    assert {number for numbers in order.values() for number in numbers} == set(range(count)), "nothing is lost"
    assert all(numbers == sorted(numbers) for numbers in order.values())
    for key in KEYS:  # what is run again, for a failure or a death, is run before what comes after it
        runs = [note["n"] for note in begun if KEYS[note["n"] % len(KEYS)] == key]
        assert runs == sorted(runs)
    assert {note["pid"] for note in begun} == {leader, standby}
    taken_over = [index for index, note in enumerate(begun) if note["pid"] == standby]
    assert all(note["pid"] == standby for note in begun[taken_over[0] :])


async def test_a_leader_that_was_stopped_past_its_lease_changes_nothing_and_stands_by(
    buses: Buses, consumers: Consumers, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: the owner check of ack.lua
    count = 30
    leader, standby = await two_consumers(consumers, redis_client, concurrency=4)
    await publish(buses, count, n1=[["wait"]])
    await eventually(lambda: notes(redis_client, pid=leader, n=1))
    behind = [number for number in range(count) if KEYS[number % len(KEYS)] == KEYS[1]]

    async def only_its_key_waits() -> bool:  # a run that was about to begin would begin on waking
        last = (await redis_client.xrevrange("s", count=1))[0][0].decode()
        return await delivered(redis_client, "s") == last and len(await pending(redis_client, "s")) == len(behind)

    await eventually(only_its_key_waits)
    consumers.send(leader, signal.SIGSTOP)
    await eventually(lambda: notes(redis_client, pid=standby, n=1, attempt=2))
    before = len(await notes(redis_client))
    await redis_client.set(GO, 1)
    consumers.send(leader, signal.SIGCONT)
    await eventually(lambda: notes(redis_client, "ended", pid=leader, n=1))
    await eventually(lambda: all_acked(redis_client, "s"))
    begun = await notes(redis_client)
    assert not [note for note in begun[before:] if note["pid"] == leader], "it begins nothing any more"
    assert await leading_pid(redis_client) == standby
    order = first_handlings(begun)
    assert {number for numbers in order.values() for number in numbers} == set(range(count))
    assert all(numbers == sorted(numbers) for numbers in order.values())
    events = await consumers.logged(leader)
    assert names.EVENT_BUS_LEASE_LOST in events, "its ack was refused"
    assert names.EVENT_BUS_STANDING_BY in events


@pytest.mark.parametrize(
    ("lost", "after"),
    [(streams.FETCH, 2), (streams.INHERIT, 1), (streams.PARK, 1)],
    ids=["fetch", "inherit", "park"],
)
async def test_a_lost_reply_leaves_nothing_behind_and_keeps_the_order(
    buses: Buses, redis_client: redis.asyncio.Redis, proxy: Proxy, lost: Script, after: int
) -> None:
    # fails without (fetch): what is pending being looked through again before anything new is read
    begun: defaultdict[str | None, list[int]] = defaultdict(list)
    bus = buses(url=proxy.url)

    @bus.subscriber("s", ordered=True, ack_wait=2.0, retry=Retry(initial=0.01, jitter="none"))
    async def handle(message: Message) -> None:
        begun[message.key].append(message.data["n"])
        if message.data["n"] % 5 == 0 and message.attempt == 1:
            raise ValueError("not yet")

    await redis_client.script_load(lost.text)
    proxy.lose_reply(f"EVALSHA {lost.sha}", count=3, after=after)
    items = [Event({"n": number}, key=KEYS[number % len(KEYS)]) for number in range(60)]
    await buses().publish_many("s", items[:12])
    await redis_client.xgroup_create("s", "svc", "0")
    await redis_client.xreadgroup("svc", "gone", {"s": ">"})
    async with bus:
        for start in range(12, 60, 12):
            await buses().publish_many("s", items[start : start + 12])
            await eventually(lambda: all_acked(redis_client, "s"))
    assert proxy.lost[f"EVALSHA {lost.sha}"] >= 1
    for numbers in begun.values():
        assert numbers == sorted(numbers)
    assert sorted({number for numbers in begun.values() for number in numbers}) == list(range(60))
