"""`ordered=True`: messages of one key one after the other, retries included, by one consumer of the group at a time.

A comment in a test names the protection that it was seen to fail without.
"""

import asyncio
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import ConfigurationError, Event, Message, Receipt, Reject, Retry, names, streams
from quantum_bus.leadership import Leadership
from quantum_bus.streams import Keys, Script
from tests.contract.conditions import Gate, eventually, pause
from tests.contract.entries import all_acked, pending, scheduled, stored
from tests.contract.recording import Recorder
from tests.contract.twins import Buses, settled

AT_ONCE = Retry(initial=0.02, jitter="none", multiplier=1.0)
Unique = Callable[[str], str]


async def sent(buses: Buses, stream: str, *keys: str | None, first: int = 0) -> list[str]:
    """Publish one message for each key, numbered; their entry ids."""
    items = [Event({"n": number}, key=key) for number, key in enumerate(keys, first)]
    return [receipt.id for receipt in await buses().publish_many(stream, items)]  # type: ignore[union-attr]


async def leader(client: redis.asyncio.Redis, stream: str) -> str | None:
    name = await client.get(Keys.of(stream, "svc").lease)
    return name.decode() if name is not None else None


async def evaluated(client: redis.asyncio.Redis, script: Script, keys: list[str], *arguments: Any) -> Any:
    return await client.eval(script.text, len(keys), *keys, *arguments)  # type: ignore[misc]


def standing_by(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "event", "") == names.EVENT_BUS_STANDING_BY for record in caplog.records)


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quantum_bus")


# --- one after the other -----------------------------------------------------------------------------------------


async def test_messages_of_one_key_are_handled_in_order_retries_included(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without parking, keys were handled out of order.
    keys = [random.choice("abcde") for _ in range(100)]
    bus = buses()
    begun: defaultdict[str | None, list[tuple[int, int]]] = defaultdict(list)
    at_work: set[str | None] = set()
    overlaps: list[str | None] = []

    @bus.subscriber(stream, ordered=True, retry=AT_ONCE)
    async def handle(message: Message) -> None:
        if message.key in at_work:
            overlaps.append(message.key)
        at_work.add(message.key)
        number = message.data["n"]
        begun[message.key].append((number, message.attempt))
        await pause(random.uniform(0, 0.004))
        at_work.discard(message.key)
        if number % 7 == 0 and message.attempt < 3:
            raise ValueError("not yet")

    await sent(buses, stream, *keys)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert not overlaps
    assert sum(map(len, begun.values())) == 100 + 2 * 15
    for runs in begun.values():
        assert runs == sorted(runs)


async def test_a_key_that_waits_for_its_retry_holds_up_no_other(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, ordered=True, concurrency=2, retry=Retry(initial=600.0, maximum=600.0, jitter="none"))
    async def handle(message: Message) -> None:
        if message.key == "bad":
            raise ValueError("no")
        handled.append(message.data["n"])

    ids = await sent(buses, stream, *["bad"] * 20, "good", None, "good", None)
    async with bus:
        await eventually(lambda: sorted(handled) == [20, 21, 22, 23])
        await eventually(lambda: stored(redis_client, f"{{{stream}}}:completed"))
        assert await scheduled(redis_client, stream) == [], "a retry does not leave its stream"
        await eventually(lambda: all_pending(redis_client, stream, ids[:20]))
    assert await pending(redis_client, stream) == ids[:20], "and waits there for others, when the bus has stopped"


async def all_pending(client: redis.asyncio.Redis, stream: str, ids: list[str]) -> bool:
    return await pending(client, stream) == ids


async def test_a_key_goes_on_behind_what_is_dead_lettered(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    runs: list[tuple[int, int]] = []

    @bus.subscriber(stream, ordered=True, retry=Retry(max_attempts=2, initial=0.01, jitter="none"))
    async def handle(message: Message) -> None:
        runs.append((message.data["n"], message.attempt))
        if message.data["n"] == 0:
            raise ValueError("never")
        if message.data["n"] == 1:
            raise Reject("unwanted")

    await sent(buses, stream, "a", "a", "a")
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs == [(0, 1), (0, 2), (1, 1), (2, 1)]
    letters = await stored(redis_client, dlq)
    assert [(letter["dlq.attempts"], letter["dlq.reason"]) for letter in letters] == [
        ("2", "max_attempts"),
        ("1", "rejected"),
    ]
    assert letters[0]["dlq.first_failed_at"] < letters[0]["dlq.last_failed_at"]


async def test_nack_parks_its_key_for_the_delay_it_names(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    runs: list[tuple[int, int]] = []

    @bus.subscriber(stream, ordered=True, retry=Retry(initial=600.0, maximum=600.0, jitter="none"))
    async def handle(message: Message) -> None:
        runs.append((message.data["n"], message.attempt))
        if message.attempt == 1:
            await settled(message.nack(delay=0.05))

    await sent(buses, stream, "a", "a")
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs == [(0, 1), (0, 2), (1, 1), (1, 2)]


async def test_what_is_settled_by_hand_is_followed_when_its_handler_has_ended(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    steps: list[str] = []

    @bus.subscriber(stream, ordered=True)
    async def handle(message: Message) -> None:
        steps.append(f"begin {message.data['n']}")
        await settled(message.ack() if message.data["n"] else message.term("unwanted"))
        await pause(0.01)
        steps.append(f"end {message.data['n']}")

    await sent(buses, stream, "a", "a")
    async with bus:
        await eventually(lambda: len(steps) == 4)
    assert steps == ["begin 0", "end 0", "begin 1", "end 1"]


async def test_a_batch_holds_one_message_of_each_key(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    batches: list[list[tuple[str | None, int]]] = []
    failed: set[int] = set()

    @bus.subscriber(stream, ordered=True, batch=10, concurrency=2, retry=AT_ONCE)
    async def handle(messages: list[Message]) -> None:
        batches.append([(message.key, message.data["n"]) for message in messages])
        await pause(0.002)
        if (first := messages[0].data["n"]) not in failed:
            failed.add(first)
            raise ValueError("the first time")

    await sent(buses, stream, *"abcabcabc", None, None)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    for batch in batches:
        keys = [key for key, _ in batch if key is not None]
        assert len(set(keys)) == len(keys)
    for key in "abc":
        runs = [number for batch in batches for its, number in batch if its == key]
        assert runs == sorted(runs)
    assert any(len(batch) > 1 for batch in batches)


async def test_a_parked_retry_is_told_as_any_other_in_spans_metrics_and_completion_records(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    recorder = Recorder()
    bus = buses(**recorder.options)

    @bus.subscriber(stream, ordered=True, retry=AT_ONCE)
    async def handle(message: Message) -> None:
        if message.attempt < 3:
            raise KeyError("not yet")

    [message_id] = await sent(buses, stream, "a")
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    runs = recorder.named(f"process {stream}")
    assert [(span.attributes or {})[names.ATTR_OUTCOME] for span in runs] == ["retry", "retry", "ack"]
    for before, after in itertools.pairwise(runs):
        assert before.context in [link.context for link in after.links]
    assert recorder.value(names.METRIC_RETRIES, error__type="KeyError") == 2
    records = [
        json.loads(value)
        for entry in await stored(redis_client, f"{{{stream}}}:completed")
        for name, value in entry.pairs
        if name == message_id
    ]
    assert [(record["outcome"], record["attempt"]) for record in records] == [("retry", 1), ("retry", 2), ("ack", 3)]
    recorder.close()


async def test_with_idempotent_a_copy_is_skipped_in_its_place(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without parking what waits for another entry under its id, the copy under key b was scheduled, and lost its place.
    bus = buses()
    runs: list[tuple[int, int]] = []
    began, gate = Gate(), Gate()

    @bus.subscriber(stream, ordered=True, idempotent=60.0, retry=AT_ONCE)
    async def handle(message: Message) -> None:
        runs.append((message.data["n"], message.attempt))
        if runs == [(0, 1)]:
            began.open()
            await gate.passed()
            raise ValueError("not yet")

    copies = [("a", "same"), ("a", "same"), ("b", "same"), ("a", None), ("b", None)]
    items = [Event({"n": number}, key=key, message_id=its) for number, (key, its) in enumerate(copies)]
    async with bus:
        receipts = await bus.publish_many(stream, items[:1])
        await began.passed()
        receipts += await bus.publish_many(stream, items[1:])
        ids = [receipt.id for receipt in receipts if isinstance(receipt, Receipt)]
        await eventually(lambda: all_pending(redis_client, stream, ids))
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
        assert await scheduled(redis_client, stream) == []
    assert runs[:2] == [(0, 1), (0, 2)]
    assert sorted(runs[2:]) == [(3, 1), (4, 1)], "under two keys: in whichever order"


async def test_each_stream_of_a_subscriber_has_its_own_order(
    buses: Buses, redis_client: redis.asyncio.Redis, unique: Unique
) -> None:
    one, two = unique("one"), unique("two")
    bus = buses()
    handled: defaultdict[str, list[int]] = defaultdict(list)

    @bus.subscriber(one, two, ordered=True, retry=AT_ONCE)
    async def handle(message: Message) -> None:
        if message.data["n"] % 3 == 0 and message.attempt == 1:
            raise ValueError("not yet")
        handled[message.stream].append(message.data["n"])

    async with bus:
        for stream in (one, two):
            await sent(buses, stream, *"a" * 10)
        for stream in (one, two):
            await eventually(lambda stream=stream: all_acked(redis_client, stream))
        assert await leader(redis_client, one) == await leader(redis_client, two)
    assert handled == {one: list(range(10)), two: list(range(10))}


async def test_what_comes_while_all_is_quiet_is_handled(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, ordered=True)
    async def handle(message: Message) -> None:
        handled.append(message.data["n"])

    async with bus:
        for number in range(3):
            await sent(buses, stream, "a", first=number)
            await eventually(lambda number=number: handled == list(range(number + 1)))


# --- one at a time -----------------------------------------------------------------------------------------------


class Pair:
    """Two buses of one group, with what each has handled."""

    def __init__(self, buses: Buses, stream: str, *, gate: Gate | None = None, **options: Any) -> None:
        self.handled: list[tuple[int, int, int]] = []
        self.buses = [self._bus(buses(), number, stream, gate, options) for number in range(2)]

    def _bus(self, bus: Any, number: int, stream: str, gate: Gate | None, options: dict[str, Any]) -> Any:
        @bus.subscriber(stream, ordered=True, **options)
        async def handle(message: Message) -> None:
            self.handled.append((number, message.data["n"], message.attempt))
            if gate is not None:
                await gate.passed()

        return bus

    def by(self, number: int) -> list[int]:
        return [n for bus, n, _ in self.handled if bus == number]


async def test_one_consumer_handles_and_the_other_takes_over_when_it_stops(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Without resigning the other waited for the lease to run out.
    pair = Pair(buses, stream, ack_wait=40.0)
    first, second = pair.buses
    async with second:
        second_led = await eventually(lambda: leader(redis_client, stream))  # else either of the two may
        await first.start()
        await eventually(lambda: standing_by(caplog))
        await sent(buses, stream, *"ab" * 10)
        await eventually(lambda: all_acked(redis_client, stream))
        assert (len(pair.by(1)), pair.by(0)) == (20, [])
    await sent(buses, stream, *"ab" * 10, first=20)
    await eventually(lambda: all_acked(redis_client, stream), timeout=10.0)
    assert sorted(pair.by(0)) == list(range(20, 40))
    assert second_led != await leader(redis_client, stream) is not None
    await first.stop()


async def test_who_takes_over_handles_first_what_is_pending_in_order_and_keeps_the_attempts(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without inheriting first, message 4 was handled before the pending ones.
    await redis_client.xgroup_create(stream, "svc", "0", mkstream=True)
    ids = await sent(buses, stream, *"aaaa")
    await redis_client.xreadgroup("svc", "gone", {stream: ">"}, count=4)
    await redis_client.xclaim(stream, "svc", "gone", 0, ids[:1], retrycount=3, justid=True)  # its runs: one less
    await sent(buses, stream, "a", first=4)
    bus = buses()
    handled: list[tuple[int, int]] = []

    @bus.subscriber(stream, ordered=True, ack_wait=600.0)
    async def handle(message: Message) -> None:
        handled.append((message.data["n"], message.attempt))

    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [(0, 3), (1, 1), (2, 1), (3, 1), (4, 1)]


async def test_what_was_parked_runs_at_the_next_leader_with_its_attempts(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    retry = Retry(initial=600.0, maximum=600.0, jitter="none")
    runs: list[tuple[int, int]] = []
    failed = Gate()
    first, second = buses(), buses()

    @first.subscriber(stream, ordered=True, retry=retry)
    async def fail(message: Message) -> None:
        runs.append((message.data["n"], message.attempt))
        failed.open()
        raise ValueError("no")

    @second.subscriber(stream, ordered=True, retry=retry)
    async def handle(message: Message) -> None:
        runs.append((message.data["n"], message.attempt))

    await sent(buses, stream, "a", "a")
    async with first:
        await failed.passed()
    async with second:
        await eventually(lambda: all_acked(redis_client, stream))
    assert runs == [(0, 1), (0, 2), (1, 1)]


async def test_a_leader_whose_lease_ran_out_begins_nothing_more_and_the_other_takes_over(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the look at its own clock the first one went on with what it held.
    gate = Gate()
    pair = Pair(buses, stream, gate=gate, ack_wait=1.0, concurrency=2)
    first, second = pair.buses
    await first.start()
    ids = await sent(buses, stream, *"aaaa")
    await eventually(lambda: all_pending(redis_client, stream, ids))
    cut_off = await leader(redis_client, stream)
    commands = Leadership.commands
    # its renewals do not reach Redis any more
    monkeypatch.setattr(Leadership, "commands", lambda self: [] if self._consumer == cut_off else commands(self))
    await eventually(lambda: _is_free(redis_client, stream))
    gate.open()
    await eventually(lambda: all_pending(redis_client, stream, ids[1:]))
    await second.start()
    await eventually(lambda: all_acked(redis_client, stream))
    assert pair.handled == [(0, 0, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1)]


async def _is_free(client: redis.asyncio.Redis, stream: str) -> bool:
    return await leader(client, stream) is None


async def test_the_lease_is_looked_at_in_the_same_step_as_messages_are_given(
    redis_client: redis.asyncio.Redis, stream: str, buses: Buses
) -> None:
    # Without the looks in fetch.lua and inherit.lua both gave messages to one that does not lead.
    keys = Keys.of(stream, "svc")
    for key in (keys.stream, keys.retry):
        await redis_client.xgroup_create(key, "svc", "0", mkstream=True)
    await redis_client.set(keys.lease, "one")
    [first, _] = await sent(buses, stream, "a", "a")
    read = [keys.lease, keys.retry, keys.stream]
    assert await evaluated(redis_client, streams.FETCH, read, "svc", "other", 1) is None
    assert await evaluated(redis_client, streams.INHERIT, read[::2], "svc", "other", "0", 9) is None
    assert await pending(redis_client, stream) == []
    await evaluated(redis_client, streams.FETCH, read, "svc", "one", 1)
    assert await pending(redis_client, stream) == [first]
    assert await evaluated(redis_client, streams.INHERIT, read[::2], "svc", "other", "0", 9) is None
    await redis_client.set(keys.lease, "other")
    _, rows, _, others = await evaluated(redis_client, streams.INHERIT, read[::2], "svc", "other", "0", 9)
    assert ([row[0].decode() for row in rows], others) == ([first], 1)


async def test_a_lease_is_one_consumers_until_it_resigns_or_it_runs_out(
    redis_client: redis.asyncio.Redis, stream: str
) -> None:
    lease = [Keys.of(stream, "svc").lease]

    async def lead(name: str) -> Any:
        return await evaluated(redis_client, streams.LEAD, lease, name, 60_000)

    assert await lead("one") == [b"acquired"]
    assert 0 < await redis_client.pttl(lease[0]) <= 60_000
    assert await lead("one") == [b"renewed"]
    assert await lead("two") == [b"held", b"one"]
    assert await evaluated(redis_client, streams.RESIGN, lease, "two", 60_000) == 0
    assert await evaluated(redis_client, streams.RESIGN, lease, "one", 60_000) == 1
    # Without the mark a renewal that was on its way took the lease back for one that has stopped.
    assert await lead("one") == [b"held", b"one (resigned)"]
    assert await lead("two") == [b"acquired"]
    await redis_client.delete(lease[0])
    assert await lead("three") == [b"acquired"]


async def test_who_finds_what_it_holds_taken_over_leads_no_more_until_it_has_looked_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    gate = Gate()
    handled: list[tuple[int, int]] = []

    @bus.subscriber(stream, ordered=True, ack_wait=1.0, concurrency=2)
    async def handle(message: Message) -> None:
        handled.append((message.data["n"], message.attempt))
        if len(handled) == 1:
            await gate.passed()

    ids = await sent(buses, stream, *"aaa")
    async with bus:
        await eventually(lambda: all_pending(redis_client, stream, ids))
        await redis_client.xclaim(stream, "svc", "another", 0, [ids[1]], justid=True)
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
    assert [number for number, _ in handled] == [0, 1, 2]


async def test_a_group_that_vanishes_is_led_again_from_the_beginning(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, ordered=True, ack_wait=1.0)
    async def handle(message: Message) -> None:
        handled.append(message.data["n"])

    async with bus:
        await sent(buses, stream, "a")
        await eventually(lambda: handled == [0])
        keys = Keys.of(stream, "svc")
        await redis_client.delete(stream, keys.retry, keys.lease)
        await sent(buses, stream, "a", first=1)
        await eventually(lambda: handled == [0, 1])


async def test_ordered_is_yes_or_no(buses: Buses, stream: str) -> None:
    with pytest.raises(ConfigurationError, match="ordered='yes': give True or False"):
        buses().subscriber(stream, ordered="yes")


async def test_stopping_at_once_while_standing_by_and_while_waiting_returns(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair(buses, stream, ack_wait=600.0)
    for bus in pair.buses:
        await bus.start()
    await eventually(lambda: standing_by(caplog))
    async with asyncio.timeout(5.0):
        for bus in pair.buses:
            await bus.stop()
