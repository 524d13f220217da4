"""Publish, read, crash, take over, retry and settle in any order, on a real Redis, against a model of sets.

The commands are built and their replies read by what consumers use themselves (`streams`, `Sources`, `Outbox`); only
the handlers, and all time, are the machine's. Every consumer's lease is of no length: whoever is asked to takes over
what the others hold, which are then as good as processes that were stopped, and go on.

After each step every message that was acknowledged is, for each group, in exactly one place, and in the one where the
model has it. To teach it a new act: a method that carries it out and moves the message in `self.places`, and a weight
in `act`. Trimming moves nothing: what it takes from the stream each group has handled, scheduled or dead-lettered.

It was seen to fail without the owner checks of ack.lua, move.lua, keep.lua and begin.lua, without the kept cursor of a
round, with a consumer's name forgotten that still holds something, where an outcome written twice is taken for a lost
lease, where the delivery count does not count runs, where a deduplicated message is added again, where a retry leaves
its entry pending, and where a copy that became readable stays scheduled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from quantum_bus import names, streams
from quantum_bus.blocking_link import Link
from quantum_bus.config import BusConfig, SubscriberConfig
from quantum_bus.delivery import Ack, Again, Bury, Failure, Outcome
from quantum_bus.demo.redis_server import RedisProcess
from quantum_bus.envelope import decode
from quantum_bus.errors import ConnectionLost
from quantum_bus.inbox import Held
from quantum_bus.outbox import DONE, LOST, Letter, Outbox
from quantum_bus.sources import Sources
from quantum_bus.streams import Delivery, Keys
from tests.faults.forms import Form
from tests.faults.holdings import unpacked

STREAM = "s"
GROUPS = ("one", "two")

UNDELIVERED = "undelivered"
PENDING = "pending"
SCHEDULED = "scheduled"
DUE = "scheduled and due"
RETRYING = "in the retry stream"
DEAD = "dead"
ACKED = "acked"

FAILURE = Failure("ValueError", "as told")
LATER = 1000.0
OUTCOMES: dict[str, Outcome] = {
    "ack": Ack(),
    "retry": Again(0.0, FAILURE),
    "retry later": Again(LATER, FAILURE),
    "dead letter": Bury(names.REASON_REJECTED, FAILURE),
}
PLACES = {"ack": ACKED, "retry": DUE, "retry later": SCHEDULED, "dead letter": DEAD}

Ref = tuple[str, str]
"""A group and the id of an entry in the stream."""


class Clock:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Consumer:
    """What a consumer knows, which may not be so any more."""

    group: str
    name: str
    clock: Clock
    sources: Sources
    outbox: Outbox
    held: dict[tuple[str, str], Held] = field(default_factory=dict)

    def take(self, delivery: Delivery) -> Held:
        """As the consumers do: what is held already stays as it is."""
        held = self.held.get((delivery.source, delivery.source_id))
        if held is None:
            held = Held(
                decode(delivery.entry),
                delivery.source,
                delivery.source_id,
                attempt=delivery.attempts,
                noted=delivery.noted,
                first_failed_at=delivery.first_failed_at,
            )
            self.held[held.key] = held
        return held


class Model(RuleBasedStateMachine):
    """`places`: where each message is; `owners`: who has what is pending, under which key; `runs`: attempts."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.pool = redis.ConnectionPool.from_url(url, protocol=2)
        self.link = Link(self.pool, timeout=5.0, where=url)
        self.config = BusConfig(url=url, service="model", block=0.001)
        self.places: dict[Ref, str] = {}
        self.owners: dict[Ref, tuple[str, str, str]] = {}
        self.runs: dict[Ref, int] = {}
        self.delayed: set[str] = set()
        self.consumers: list[Consumer] = []
        self.trimmed = 0
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        self.link.close()
        self.pool.disconnect()

    def do(self, *commands: streams.Command) -> list[Any]:
        replies = self.link.execute(*commands) if commands else []
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        assert not errors, errors
        return replies

    @initialize()
    def groups(self) -> None:
        self.do(("FLUSHALL",), ("CONFIG", "SET", "stream-node-max-entries", 1))  # what can be trimmed, is
        for group in GROUPS:
            for key in (STREAM, Keys.of(STREAM, group).retry):
                self.do(streams.create_group(key, group, streams.FIRST_ENTRY))
            self.start_in(group)
            self.start_in(group)
        for _ in range(6):
            self.publish_times(1)

    def one(self, data: st.DataObject, *, holding: bool = False) -> Consumer:
        """One of the consumers that live."""
        return data.draw(st.sampled_from([one for one in self.consumers if one.held or not holding]))

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """One rule for all, since Hypothesis leaves out some rules in each run, and here each needs the others."""
        possible = {  # what is first is drawn most often
            self.settle_late: 3 * bool(self.taken_over()),
            self.settle: 3 * any(one.held for one in self.consumers),
            self.begin: 2 * any(one.held for one in self.consumers),
            self.take_over: 2,
            self.read: 3,
            self.make_due: 2,
            self.keep: any(one.held for one in self.consumers),
            self.work_off: 1,
            self.trim: 2,
            self.recover_own: 1,
            self.publish: 2,
            self.publish_with_care: 1,
            self.start: len(self.consumers) < 6,
            self.crash: len(self.consumers) > 2,
            self.leave: len(self.consumers) > 2,
        }
        acts = [act for act, weight in possible.items() for _ in range(weight)]
        data.draw(st.sampled_from(acts), label="act")(data)

    # --- publishing ------------------------------------------------------------------------------

    def fields(self) -> tuple[str, list[bytes | str]]:
        message_id = f"m{next(self.numbers)}"
        return message_id, ["v", "1", "data", b"1", "message_id", message_id]

    def added(self, entry_id: str) -> None:
        for group in GROUPS:
            self.places[group, entry_id] = UNDELIVERED
            self.runs[group, entry_id] = 0

    def publish(self, data: st.DataObject) -> None:
        """Twice where the first reply was lost."""
        self.publish_times(data.draw(st.sampled_from([1, 1, 2])))

    def publish_times(self, times: int) -> None:
        _, fields = self.fields()
        for _ in range(times):
            (reply,) = self.do(streams.add(STREAM, fields))
            self.added(reply.decode())

    def publish_with_care(self, data: st.DataObject) -> None:
        delay_ms = data.draw(st.sampled_from([0, int(LATER * 1000)]))
        dedupe_ms = data.draw(st.sampled_from([0, 60_000]))
        again = data.draw(st.booleans())
        message_id, fields = self.fields()
        care = {"message_id": message_id, "correlation_id": "c", "delay_ms": delay_ms, "dedupe_ms": dedupe_ms}
        command = streams.add_with_care(STREAM, fields, **care)  # type: ignore[arg-type]
        (reply,) = self.do(command)
        if again:  # its reply was lost
            (second,) = self.do(command)
            if dedupe_ms:
                assert second == reply
            elif not delay_ms:
                self.added(streams.parse_added(second)[0])
        entry_id, _ = streams.parse_added(reply)
        assert bool(entry_id) == (not delay_ms)
        if entry_id:
            self.added(entry_id)
        else:
            self.delayed.add(message_id)

    # --- consumers come and go -------------------------------------------------------------------

    def start(self, data: st.DataObject) -> None:
        self.start_in(data.draw(st.sampled_from(GROUPS)))

    def start_in(self, group: str) -> Consumer:
        clock, name = Clock(), f"c{next(self.numbers)}"
        sources = Sources(
            SubscriberConfig(streams=(STREAM,), group=group, ack_wait=0.0001), name, self.config, clock=clock
        )
        outbox = Outbox(group=group, consumer=name, keys=sources.keys, config=self.config, clock=clock)
        self.consumers.append(Consumer(group, name, clock, sources, outbox))
        return self.consumers[-1]

    def crash(self, data: st.DataObject) -> None:
        """It is never heard of again; what it held stays where it is."""
        self.consumers.remove(self.one(data))

    def leave(self, data: st.DataObject) -> None:
        """It gives up what it holds; its name goes only if nothing is pending under it."""
        consumer = self.one(data)
        self.consumers.remove(consumer)
        self.do(*consumer.sources.release(list(consumer.held)))
        self.do(*consumer.sources.forget(leaving=True))

    # --- reading ---------------------------------------------------------------------------------

    def waiting(self, group: str, place: str) -> int:
        return sum(found == place for (of, _), found in self.places.items() if of == group)

    def given(self, consumer: Consumer, delivery: Delivery) -> Ref:
        """The delivery is this consumer's by now."""
        ref = (consumer.group, delivery.entry.id)
        assert delivery.attempts == self.runs[ref], "runs that were begun are known to whoever comes after"
        self.places[ref] = PENDING
        self.owners[ref] = (delivery.source, delivery.source_id, consumer.name)
        return ref

    def read(self, data: st.DataObject) -> None:
        """Where the reply is lost, the consumer does not know of it."""
        self.reads(self.one(data), data.draw(st.integers(1, 6)), lost=data.draw(st.booleans()))

    def reads(self, consumer: Consumer, room: int, *, lost: bool = False) -> None:
        expected = sum(min(room, self.waiting(consumer.group, place)) for place in (UNDELIVERED, RETRYING))
        command = consumer.sources.read(room)
        if "BLOCK" in command:  # where there is nothing to read, a run would mostly wait
            at = command.index("BLOCK")
            command = (*command[:at], *command[at + 2 :])
        (reply,) = self.do(command)
        found = consumer.sources.new(reply)
        assert not found.deleted
        assert len(found.deliveries) == expected
        for delivery in found.deliveries:
            place = UNDELIVERED if delivery.source == STREAM else RETRYING
            assert self.places[consumer.group, delivery.entry.id] == place
            self.given(consumer, delivery)
            if not lost:
                consumer.take(delivery)

    def recover_own(self, data: st.DataObject) -> None:
        """After a lost reply: all that is its own, and nothing else."""
        consumer = self.one(data)
        found = []
        for source in consumer.sources.names:
            after: str | None = None
            while True:
                page = consumer.sources.owned(self.do(consumer.sources.own(source, after))[0], source)
                found += [self.given(consumer, delivery) for delivery in page.deliveries]
                for delivery in page.deliveries:
                    consumer.take(delivery)
                if (after := page.cursor) is None:
                    break
        owned = [ref for ref, owner in self.owners.items() if owner[2] == consumer.name]
        assert sorted(found) == sorted(owned)

    def take_over(self, data: st.DataObject) -> None:
        """A whole round, page by page: it comes by everything that is pending, however small a page."""
        self.takes_over(self.one(data), data.draw(st.integers(1, 3)))

    def takes_over(self, consumer: Consumer, room: int) -> None:
        consumer.clock.now += 10.0
        found: list[Ref] = []
        for _ in range(1000):
            consumer.sources.read(room)  # is not sent: a page may only be asked for after a read
            if (command := consumer.sources.recover(room)) is None:
                break
            page = consumer.sources.recovered(self.do(command)[0])
            assert not page.deleted
            found += [self.given(consumer, delivery) for delivery in page.deliveries]
            for delivery in page.deliveries:
                consumer.take(delivery)
            if not consumer.sources._looking:
                break
        pending = [ref for ref, place in self.places.items() if ref[0] == consumer.group and place == PENDING]
        assert sorted(set(found)) == sorted(pending)

    def make_due(self, data: st.DataObject) -> None:
        consumer = self.one(data)
        replies = self.do(*consumer.sources.due())
        due = [ref for ref, place in self.places.items() if ref[0] == consumer.group and place == DUE]
        assert replies[0][0] == len(due)
        for ref in due:
            self.places[ref] = RETRYING

    def trim(self, data: st.DataObject) -> None:
        keys = Keys.of(STREAM, GROUPS[0])
        keep = data.draw(st.sampled_from([0, 0, 3]))
        ((freed, _, left, _),) = self.do(streams.UPKEEP.call([STREAM, keys.notes, keys.marks], keep, 1, 10, 5, 100, 60))
        self.trimmed += freed
        assert left >= keep or not freed

    # --- handling --------------------------------------------------------------------------------

    def owns(self, consumer: Consumer, held: Held) -> bool:
        return self.owners.get((consumer.group, held.incoming.id)) == (*held.key, consumer.name)

    def begin(self, data: st.DataObject) -> None:
        consumer = self.one(data, holding=True)
        held = consumer.held[data.draw(st.sampled_from(sorted(consumer.held)))]
        held.begin(0.0)
        commands = consumer.sources.begin([held])
        not_owned = consumer.sources.not_owned(commands, self.do(*commands))
        assert not not_owned.gone
        assert (held.key in not_owned.lost) == (not self.owns(consumer, held))
        if not not_owned.lost:
            self.runs[consumer.group, held.incoming.id] = held.attempt

    def keep(self, data: st.DataObject) -> None:
        consumer = self.one(data, holding=True)
        for (source, entry_id), held in consumer.held.items():
            ((lost, gone),) = self.do(streams.KEEP.call([source], consumer.group, consumer.name, entry_id))
            assert not gone
            assert bool(lost) == (not self.owns(consumer, held))

    def settle(self, data: st.DataObject) -> None:
        consumer = self.one(data, holding=True)
        self.settles(consumer, data.draw(st.sampled_from(sorted(consumer.held))), *self.ending(data))

    def settle_late(self, data: st.DataObject) -> None:
        """What another one has taken over, or has settled already."""
        self.settles(*data.draw(st.sampled_from(self.taken_over())), *self.ending(data))

    def ending(self, data: st.DataObject) -> tuple[str, bool]:
        return data.draw(st.sampled_from(sorted(OUTCOMES)), label="outcome"), data.draw(st.booleans(), label="lost")

    def taken_over(self) -> list[tuple[Consumer, tuple[str, str]]]:
        """What consumers hold and do not own any more."""
        return [
            (consumer, key)
            for consumer in self.consumers
            for key, held in consumer.held.items()
            if not self.owns(consumer, held)
        ]

    def work_off(self, data: st.DataObject) -> None:
        """Somebody handles all that is there, so that it can be trimmed."""
        for group in GROUPS:
            consumer = next((one for one in self.consumers if one.group == group), None) or self.start_in(group)
            self.takes_over(consumer, 3)
            self.reads(consumer, 100)
            for key in [key for key, held in consumer.held.items() if self.owns(consumer, held)]:
                self.settles(consumer, key, "ack")

    def settles(self, consumer: Consumer, key: tuple[str, str], kind: str, lost: bool = False) -> None:
        """Where the reply is lost, the outcome is written again, and counts once."""
        held = consumer.held.pop(key)
        owned = self.owns(consumer, held)
        consumer.outbox.post(held, OUTCOMES[kind])
        letter = self.written(consumer, lost=lost)
        if owned:
            assert letter.result == DONE
            ref = (consumer.group, held.incoming.id)
            self.places[ref] = PLACES[kind]
            del self.owners[ref]
            self.runs[ref] = held.attempt
        elif not lost:
            assert letter.result == LOST
        else:  # its first try may have been what took it off the pending list, for all that can be known
            assert letter.result in (LOST, DONE)

    def written(self, consumer: Consumer, *, lost: bool) -> Letter:
        replies = self.do(*consumer.outbox.take())
        if lost:
            assert not consumer.outbox.failed(ConnectionLost("as told")).settled
            consumer.clock.now += 100.0
            replies = self.do(*consumer.outbox.take())
        (letter,) = consumer.outbox.answered(replies).settled
        assert not len(consumer.outbox)
        return letter

    # --- where everything is ---------------------------------------------------------------------

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        for group in GROUPS:
            found: dict[str, str] = {}
            for entry_id, place in self.seen(group):
                assert entry_id not in found, f"{entry_id} is {found[entry_id]} and {place}"
                found[entry_id] = place
            expected = {entry_id: place for (of, entry_id), place in self.places.items() if of == group}
            assert found == {
                entry_id: SCHEDULED if place == DUE else place for entry_id, place in expected.items() if place != ACKED
            }

    @invariant()
    def every_delayed_message_is_kept(self) -> None:
        keys = Keys.of(STREAM, GROUPS[0])
        due, copies = self.do(("ZRANGE", keys.delayed_due, 0, -1), ("HKEYS", keys.delayed_copies))
        assert {member.decode() for member in due} == {member.decode() for member in copies} == self.delayed

    def seen(self, group: str) -> Iterator[tuple[str, str]]:
        """Each place and the id, in the stream, of each entry there."""
        keys = Keys.of(STREAM, group)
        for source, place in ((STREAM, UNDELIVERED), (keys.retry, RETRYING)):
            infos, entries, rows = self.do(
                ("XINFO", "GROUPS", source),
                ("XRANGE", source, "-", "+"),
                ("XPENDING", source, group, "-", "+", 10_000),
            )
            by_name = {info[1].decode(): dict(zip(info[::2], info[1::2], strict=True)) for info in infos}
            last = by_name[group][b"last-delivered-id"]
            original = {entry_id: entry_id if source == STREAM else _original(fields) for entry_id, fields in entries}
            for entry_id, owner, *_ in rows:
                ref = (group, original[entry_id].decode())
                assert self.owners.get(ref) == (source, entry_id.decode(), owner.decode())
                yield ref[1], PENDING
            yield from ((original[one].decode(), place) for one in original if _order(one) > _order(last))
        due, copies = self.do(("ZRANGE", keys.due, 0, -1), ("HGETALL", keys.copies))
        by_id = dict(zip(copies[::2], copies[1::2], strict=True))
        assert sorted(by_id) == sorted(due), "each copy has its time, and each time its copy"
        yield from ((_original(unpacked(by_id[member])).decode(), SCHEDULED) for member in due)
        for _, fields in self.do(("XRANGE", keys.dead, "-", "+"))[0]:
            told = dict(zip(fields[::2], fields[1::2], strict=True))
            if told[names.DLQ_GROUP.encode()] == group.encode():
                yield told[names.DLQ_ID.encode()].decode(), DEAD


def _original(fields: list[bytes]) -> bytes:
    return dict(zip(fields[::2], fields[1::2], strict=True))[names.RETRY_ID.encode()]


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))


def test_every_message_is_always_in_exactly_one_place(own_redis: RedisProcess, form: Form) -> None:
    steps = form.of(40, 60, 100)
    run_state_machine_as_test(
        seed(form.seed)(partial(Model, own_redis.url)),
        settings=settings(
            max_examples=form.of(100, 400, 20_000),
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
        _min_steps=steps // 2,  # else most runs end before anything is settled
    )
