"""Processes that die, stop and hang at work: nothing is lost, and nothing is done that others do by now.

A comment in each test names the protection that it was seen to fail without.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import Message, Reject, Retry, names, streams
from quantum_bus.demo.redis_server import RedisProcess
from quantum_bus.heartbeat import BEATS, Heartbeat
from quantum_bus.streams import Keys, Script
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import Stored, all_acked, pending, scheduled, stored
from tests.contract.twins import Buses, settled
from tests.faults.proxy import Proxy
from tests.faults.victim import GO, NOTES

ROOT = Path(__file__).parents[2]
BEATS_OFTEN = 0.6
"""The lease of who is to renew: it does so every 0.2 s. When others take over, their own lease says."""


class Victim:
    """A consumer in a process of its own; see `tests.faults.victim`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    @property
    def died(self) -> bool:
        return self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def killed(self) -> None:
        self.send(signal.SIGKILL)
        await eventually(lambda: self.died)

    async def ended(self) -> Counter[str]:
        """Stop it gracefully; the events it has logged."""
        self.send(signal.SIGTERM)
        output, _ = await asyncio.to_thread(self.process.communicate, timeout=30)
        assert self.process.returncode == 0, output
        return Counter(json.loads(line)["event"] for line in output.splitlines() if line.startswith("{"))


Victims = Callable[..., Victim]


@pytest.fixture
def victims(twin: str, own_redis: RedisProcess) -> Iterator[Victims]:
    """Starts consumers in processes of their own; options as of a subscriber."""
    started: list[Victim] = []

    def start(**options: Any) -> Victim:
        command = [sys.executable, "-m", "tests.faults.victim", twin, own_redis.url, json.dumps(options)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(Victim(process))
        return started[-1]

    yield start
    for victim in started:
        victim.process.kill()
        victim.process.communicate()


Note = dict[str, Any]


async def notes(client: redis.asyncio.Redis, what: str = "begun", **of: Any) -> list[Note]:
    """What victims have noted, in order."""
    found: list[Note] = [json.loads(line) for line in await client.lrange(NOTES, 0, -1)]  # type: ignore[misc]
    return [note for note in found if note["what"] == what and all(note[key] == value for key, value in of.items())]


async def completed(client: redis.asyncio.Redis, stream: str = "s") -> list[tuple[str, str, int]]:
    """The completion records: entry id, outcome and attempt."""
    found = []
    for entry in await stored(client, f"{{{stream}}}:completed"):
        assert entry.names[:3] == ["group", "service", "consumer"]
        for entry_id, text in entry.pairs[3:]:
            record = json.loads(text)
            found.append((entry_id, record[names.RECORD_OUTCOME], record[names.RECORD_ATTEMPT]))
    return found


async def dead(client: redis.asyncio.Redis) -> list[Stored]:
    return await stored(client, "{s}:dlq")


async def owner(client: redis.asyncio.Redis) -> str:
    [row] = await client.xpending_range("s", "svc", "-", "+", 10)
    return str(row["consumer"].decode())


def does(number: int, *runs: list[str]) -> dict[str, Any]:
    return {"n": number, "runs": list(runs)}


# --- a process that dies -----------------------------------------------------------------------------------------


async def supervised(victims: Victims, done: Callable[[], Any], **options: Any) -> int:
    """Start a victim whenever the last one is dead, until all is done; how many it took."""
    victim, count = victims(**options), 1

    async def is_done() -> bool:
        nonlocal victim, count
        if victim.died:
            victim, count = victims(**options), count + 1
        return bool(await done())

    await eventually(is_done, timeout=60.0)
    await victim.ended()
    return count


async def test_what_kills_its_process_every_time_is_dead_lettered_and_its_neighbours_are_handled(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: suspects that run one at a time (neighbours are blamed, too); attempts looked at before a run
    killer = await buses().publish("s", does(0, ["sleep", "die"]))
    await buses().publish_many("s", [does(number, ["sleep", "sleep", "return"]) for number in range(1, 6)])

    async def done() -> bool:
        return bool(await dead(redis_client)) and await all_acked(redis_client, "s")

    processes = await supervised(victims, done, concurrency=4, ack_wait=0.6, retry={"max_attempts": 3})
    assert processes == 4, "three that were killed, and one that handles the rest"
    assert [note["attempt"] for note in await notes(redis_client, n=0)] == [1, 2, 3]
    [letter] = await dead(redis_client)
    assert (letter["dlq.id"], letter["dlq.attempts"], letter["dlq.reason"]) == (killer.id, "3", "max_attempts")
    assert {note["n"] for note in await notes(redis_client, "ended")} == {1, 2, 3, 4, 5}
    assert max(note["attempt"] for note in await notes(redis_client) if note["n"]) == 2, "none is blamed for another"


async def test_runs_are_counted_on_a_server_that_has_not_seen_the_scripts(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: a first note that is waited for (the server is never sent the script, and runs count as none)
    await buses().publish("s", does(0, ["die"]))

    async def done() -> bool:
        return bool(await dead(redis_client))

    assert await supervised(victims, done, ack_wait=0.4, retry={"max_attempts": 2}) == 3
    assert [note["attempt"] for note in await notes(redis_client)] == [1, 2]


async def test_what_a_killed_process_held_is_taken_over_and_only_what_ran_counts_as_an_attempt(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: RECOVER; heartbeats (it is taken before); BEGIN (attempt 1)
    ack_wait = 5.0
    for name in ("s", "t"):
        await buses().publish(name, does(0, ["wait", "return"]))
    victim = victims(streams=["s", "t"], concurrency=1, ack_wait=BEATS_OFTEN)
    await eventually(lambda: notes(redis_client))
    assert len(await pending(redis_client, "s")) == len(await pending(redis_client, "t")) == 1, "one is only prefetched"
    bus = buses()
    seen: dict[str, int] = {}

    @bus.subscriber("s", "t", ack_wait=ack_wait)
    async def handle(message: Message) -> None:
        seen[message.stream] = message.attempt

    async with bus:
        await asyncio.sleep(1.5 * ack_wait)
        assert not seen, "their process lives"
        await victim.killed()
        await eventually(lambda: len(seen) == 2)
        for name in ("s", "t"):
            await eventually(lambda name=name: all_acked(redis_client, name))
    assert seen == {"s": 2, "t": 1}


# --- a process that stops, or hangs ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["return", "raise", "reject"])
async def test_who_comes_back_past_its_lease_changes_nothing(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis, ending: str
) -> None:
    # fails without: the owner checks of keep.lua (it takes the message back) and of ack.lua, retry.lua, dead_letter.lua
    victims_lease = 6.0  # so long that it takes nothing over, however late this process is
    receipt = await buses().publish("s", does(0, ["wait", ending]))
    victim = victims(ack_wait=victims_lease)
    await eventually(lambda: notes(redis_client))
    victim.send(signal.SIGSTOP)
    bus = buses()
    gate = Gate()
    attempts: list[int] = []

    @bus.subscriber("s", ack_wait=0.6)
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        await gate.passed()

    async with bus:
        await eventually(lambda: attempts)
        by_now = await owner(redis_client)
        victim.send(signal.SIGCONT)
        beating_until = time.monotonic() + victims_lease / BEATS + 0.5
        while time.monotonic() < beating_until:
            assert await owner(redis_client) == by_now, "its heartbeat takes nothing back"
            await asyncio.sleep(0.01)
        await redis_client.set(GO, 1)
        await eventually(lambda: notes(redis_client, "ended"))
        assert (await victim.ended())[names.EVENT_BUS_LEASE_LOST] == 1, "and it says so"
        assert await owner(redis_client) == by_now
        assert await completed(redis_client) == []
        gate.open()
        await eventually(lambda: all_acked(redis_client, "s"))
    assert attempts == [2]
    assert await completed(redis_client) == [(receipt.id, names.OUTCOME_ACK, 2)]
    assert not await dead(redis_client)


async def test_a_handler_that_blocks_its_event_loop_keeps_its_lease(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: the heartbeat, and with one from the event loop (threads, whose reader goes on, only now and then)
    ack_wait = 5.0
    receipt = await buses().publish("s", does(0, ["block", "return"]))
    # One handler: with room for more, its own recovery would find what it holds, and renew that.
    victims(concurrency=1, ack_wait=BEATS_OFTEN, block_seconds=1.5 * ack_wait)
    await eventually(lambda: notes(redis_client))
    bus = buses()
    elsewhere: list[int] = []

    @bus.subscriber("s", ack_wait=ack_wait)
    async def handle(message: Message) -> None:
        elsewhere.append(message.attempt)

    async with bus:
        await eventually(lambda: all_acked(redis_client, "s"))
    assert elsewhere == []
    assert [note["attempt"] for note in await notes(redis_client, "ended")] == [1]
    assert await completed(redis_client) == [(receipt.id, names.OUTCOME_ACK, 1)]


async def test_a_consumer_whose_renewals_fail_takes_nothing_over_from_itself(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # fails without: what is held being left alone (it runs twice); and being left out of what is counted
    monkeypatch.setattr(Heartbeat, "_beat", lambda *_: True)
    bus = buses()
    gate = Gate()
    attempts: list[int] = []

    @bus.subscriber("s", ack_wait=0.2)
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        await gate.passed()

    async with bus:
        await bus.publish("s", 0)
        await eventually(lambda: attempts)
        await asyncio.sleep(0.8)  # its lease runs out again and again, and its own recovery finds it
        gate.open()
        await eventually(lambda: all_acked(redis_client, "s"))
    assert attempts == [1]
    assert names.EVENT_BUS_RECOVERED not in {getattr(record, "event", "") for record in caplog.records}


# --- a process that stops as it should ---------------------------------------------------------------------------


async def test_stopping_releases_at_once_what_was_only_prefetched(
    buses: Buses, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: RELEASE (it comes after ack_wait)
    leaving, staying = buses(), buses()
    began, gate, taken = Gate(), Gate(), Gate()
    attempts: list[int] = []

    @leaving.subscriber("s", "t", concurrency=1, ack_wait=30.0)
    async def handle(message: Message) -> None:
        began.open()
        await gate.passed()

    @staying.subscriber("s", "t", ack_wait=30.0)
    async def handle_instead(message: Message) -> None:
        attempts.append(message.attempt)
        taken.open()

    for name in ("s", "t"):
        await buses().publish(name, 0)
    async with leaving:
        await began.passed()
        await eventually(lambda: pending(redis_client, "t"))
        stopping = asyncio.ensure_future(leaving.stop())
        async with staying:
            await taken.passed()  # waits for less than a lease
            assert len(await pending(redis_client, "s")) == 1, "what runs is not given up"
            await eventually(lambda: all_acked(redis_client, "t"))
            gate.open()
            await stopping
            await eventually(lambda: all_acked(redis_client, "s"))
    assert attempts == [1]


# --- retries -----------------------------------------------------------------------------------------------------


async def test_a_scheduled_retry_survives_the_process_that_scheduled_it(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: DUE in every consumer (only that of the dead one knows of it)
    receipt = await buses().publish("s", does(0, ["raise"]))
    victim = victims(retry={"initial": 1000.0, "maximum": 1000.0, "jitter": "none"})
    await eventually(lambda: scheduled(redis_client, "s"))
    await victim.killed()
    assert await scheduled(redis_client, "s") == [receipt.id]
    bus = buses()
    seen: list[tuple[str, int]] = []

    @bus.subscriber("s")
    async def handle(message: Message) -> None:
        seen.append((message.id, message.attempt))

    async with bus:
        await redis_client.zadd(Keys.of("s", "svc").due, {receipt.id: 1}, xx=True)  # its time has come
        await eventually(lambda: all_acked(redis_client, "s"))
    assert seen == [(receipt.id, 2)]
    assert await completed(redis_client) == [
        (receipt.id, names.OUTCOME_RETRY, 1),
        (receipt.id, names.OUTCOME_ACK, 2),
    ]


async def test_a_retry_whose_process_dies_in_it_is_taken_over_as_the_next_attempt(
    buses: Buses, victims: Victims, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: recovery of the retry stream; noted attempts added to the delivery count
    ack_wait = 0.6
    receipt = await buses().publish("s", does(0, ["raise"], ["wait"]))
    victim = victims(ack_wait=ack_wait, retry={"initial": 0.0})
    await eventually(lambda: notes(redis_client, attempt=2))
    await victim.killed()
    bus = buses()
    seen: list[tuple[str, int]] = []

    @bus.subscriber("s", ack_wait=ack_wait)
    async def handle(message: Message) -> None:
        seen.append((message.id, message.attempt))

    async with bus:
        await eventually(lambda: all_acked(redis_client, "s"))
    assert seen == [(receipt.id, 3)]


async def test_a_failing_message_holds_up_no_other(buses: Buses, redis_client: redis.asyncio.Redis) -> None:
    # fails without: retries that leave their handler's place (waiting for the retry in it)
    bus = buses()
    handled: list[int] = []

    @bus.subscriber("s", concurrency=1, retry=Retry(initial=1000.0, maximum=1000.0, jitter="none"))
    async def handle(number: int) -> None:
        if number % 2 == 0:
            raise ValueError(number)
        handled.append(number)

    async with bus:
        await bus.publish_many("s", range(40))
        await eventually(lambda: len(handled) == 20)
        await eventually(lambda: _count(scheduled(redis_client, "s"), 20))
        await eventually(lambda: _count(pending(redis_client, "s"), 0))
    assert handled == list(range(1, 40, 2))


async def _count(found: Any, count: int) -> bool:
    return len(await found) == count


# --- lost replies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "does", "outcome"),
    [
        (streams.ACK, "return", names.OUTCOME_ACK),
        (streams.ACK, "ack", names.OUTCOME_ACK),
        (streams.RETRY, "raise", names.OUTCOME_RETRY),
        (streams.RETRY, "nack", names.OUTCOME_RETRY),
        (streams.DEAD_LETTER, "reject", names.OUTCOME_DEAD_LETTER),
        (streams.DEAD_LETTER, "term", names.OUTCOME_DEAD_LETTER),
    ],
    ids=["ack", "ack by hand", "retry", "nack", "dead letter", "term by hand"],
)
async def test_an_outcome_whose_reply_is_lost_is_written_again_and_is_no_lost_lease(
    buses: Buses,
    proxy: Proxy,
    redis_client: redis.asyncio.Redis,
    caplog: pytest.LogCaptureFixture,
    script: Script,
    does: str,
    outcome: str,
) -> None:
    # fails without: Letter.if_absent (a lost lease), and without writing it again
    bus = buses(url=proxy.url)
    errors: list[Exception] = []
    attempts: list[int] = []

    @bus.subscriber("s", retry=Retry(initial=0.01))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt > 1:
            return
        try:
            match does:
                case "ack":
                    await settled(message.ack())
                case "nack":
                    await settled(message.nack())
                case "term":
                    await settled(message.term("as told"))
        except Exception as error:
            errors.append(error)
        if does == "raise":
            raise ValueError
        if does == "reject":
            raise Reject("as told")

    async with bus:
        await redis_client.script_load(script.text)  # else the reply that is lost would say that it is not known
        lost = f"EVALSHA {script.sha}"
        proxy.lose_reply(lost)
        receipt = await buses().publish("s", 0)
        await eventually(lambda: proxy.commands[lost] == 2)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert proxy.lost[lost] == 1
    assert errors == []
    assert names.EVENT_BUS_LEASE_LOST not in {getattr(record, "event", "") for record in caplog.records}
    again = outcome == names.OUTCOME_RETRY
    assert attempts == ([1, 2] if again else [1])
    assert await completed(redis_client) == [
        (receipt.id, outcome, 1),
        *([(receipt.id, names.OUTCOME_ACK, 2)] if again else []),
    ]
    assert len(await dead(redis_client)) == (outcome == names.OUTCOME_DEAD_LETTER)
