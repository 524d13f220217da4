"""What `trace` finds of flows that buses have made, on every Redis at hand: through the same inquiry as the command."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from quantum_bus import Event, Retry, correlation_scope
from quantum_bus.assembly import build
from quantum_bus.blocking_link import Link
from quantum_bus.cli.connection import make_client, make_link
from quantum_bus.flow import Flow, Hop, Message, Outcome, walk
from quantum_bus.flow_index import HOUR_MS, MOST_BYTES
from quantum_bus.found import Bounds, Found
from quantum_bus.inquiry import answered
from quantum_bus.search import BESIDE_INDEX, Search
from quantum_bus.streams import side_key
from quantum_bus.wanted import Wanted
from tests.contract.backends import Backend
from tests.contract.conditions import eventually
from tests.contract.terminals import Terminals
from tests.contract.twins import Buses

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Asked:
    """A search in some streams of a Redis, and what it cost."""

    def __init__(self, url: str) -> None:
        self.client = make_client(url)
        self.link: Link = make_link(self.client, url)
        self.commands: list[tuple[Any, ...]] = []
        self.trips = 0

    def execute(self, *commands: Any) -> list[Any]:
        self.trips += 1
        self.commands += commands
        return self.link.execute(*commands)

    def search(self, wanted: str, streams: Sequence[str], bounds: Bounds | None = None) -> Found:
        return answered(Search(Wanted.of(wanted), streams, bounds or Bounds()).run(), self.execute)

    def flow(self, wanted: str, streams: Sequence[str], bounds: Bounds | None = None) -> Flow:
        found = self.search(wanted, streams, bounds)
        return build(found.sightings, found.runs, found.standings, matched=found.matched)


@pytest.fixture
def asked(real_backend: Backend) -> Any:
    assert real_backend.url is not None
    made = Asked(real_backend.url)
    yield made
    made.link.close()
    made.client.close()


def hops(flow: Flow) -> dict[tuple[str, str | None], Hop]:
    return {(hop.service, hop.group): hop for _, hop in walk(flow.roots)}


def published(hop: Hop) -> list[Message]:
    return [step for step in hop.steps if isinstance(step, Message)]


async def test_a_flow_is_put_together_over_services_with_runs_outcomes_and_what_waits(
    buses: Buses, asked: Asked, unique: Callable[[str], str], redis_client: Any
) -> None:
    orders, payments, later = unique("orders"), unique("payments"), unique("later")
    shop, risk, gate = buses(service="shop"), buses(service="risk"), buses(service="gate")

    @shop.subscriber(orders)
    async def order(data: dict[str, Any]) -> None:
        await shop.publish(payments, {"order_id": "order-4711"}, event="PAY")
        await shop.publish(later, {"n": 1}, event="REMIND", delay=600)

    @risk.subscriber(orders, retry=Retry(max_attempts=2, initial=0))
    async def check(data: dict[str, Any]) -> None:
        raise ValueError("too much")

    for bus in (shop, risk):
        await bus.start()
    await redis_client.xgroup_create(payments, "pay", "0", mkstream=True)
    with correlation_scope("flow-1"):
        receipt = await gate.publish(orders, {"symbol": "BTCUSDT"}, event="ORDER")
    streams = [orders, payments, later]

    async def whole() -> bool:
        dead = await redis_client.xlen(side_key(orders, "dlq"))
        return bool(dead and await redis_client.xlen(payments) and await redis_client.zcard(side_key(later, "due")))

    await eventually(whole)
    await eventually(lambda: len(asked.search("flow-1", streams).runs) == 3)
    paid = (await redis_client.xrange(payments))[0]
    for wanted in ("flow-1", receipt.message_id, receipt.id, "order-4711", paid[1][b"message_id"].decode()):
        flow = asked.flow(wanted, streams)
        assert list(flow.correlation_ids) == ["flow-1"]
        assert len(flow.messages) == 3
        [root] = flow.roots
        assert (root.service, root.group) == ("gate", None)
        [first] = published(root)
        assert (first.entry_id, first.event) == (receipt.id, "ORDER")
        found = hops(flow)
        assert found["shop", "shop"].outcome is Outcome.HANDLED
        assert found["shop", "shop"].waited is not None
        assert [(run.attempt, run.outcome) for run in found["risk", "risk"].runs] == [(1, "retry"), (2, "dead_letter")]
        assert found["risk", "risk"].outcome is Outcome.DEAD
        assert found["risk", "risk"].error == "ValueError: too much"
        pay, remind = published(found["shop", "shop"])
        assert [(hop.group, hop.outcome) for hop in pay.hops] == [("pay", Outcome.WAITING)]
        assert (remind.entry_id, remind.event) == ("", "REMIND")
        assert remind.due is not None
        assert remind.due > time.time() + 300
    assert [message.matched for message in asked.flow("order-4711", streams).messages] == [False, True, False]
    await redis_client.xreadgroup("pay", "someone", {payments: ">"})
    assert hops(asked.flow("flow-1", streams))["pay", "pay"].outcome is Outcome.PENDING


async def test_foreign_entries_are_found_by_the_ids_that_derive_from_them(
    real_backend: Backend, asked: Asked, stream: str
) -> None:
    entry_id = asked.client.xadd(stream, {"symbol": "BTCUSDT", "qty": "0.5"}).decode()
    [message] = asked.flow(entry_id, [stream]).messages
    again = asked.flow(message.correlation_id, [stream])
    assert [found.entry_id for found in again.messages] == [entry_id]
    asked.client.xadd(stream, {"data": "{}", "traceparent": TRACEPARENT, "correlation_id": "a-flow-of-its-own"})
    for wanted in (TRACEPARENT, TRACEPARENT.split("-")[1], "a-flow-of-its-own"):
        assert list(asked.flow(wanted, [stream]).correlation_ids) == ["a-flow-of-its-own"]


async def test_an_id_that_is_a_value_in_one_flow_and_another_flows_own_shows_both(
    real_backend: Backend, asked: Asked, stream: str
) -> None:
    own = {"v": "1", "data": "{}", "correlation_id": "order-1", "message_id": "m-1"}
    asked.client.xadd(stream, own)
    for _ in range(300):  # more than the first page: the other one is met alone
        asked.client.xadd(stream, {"v": "1", "data": "{}", "correlation_id": "others"})
    asked.client.xadd(stream, {"v": "1", "data": '{"about":"order-1"}', "correlation_id": "audit", "message_id": "m-2"})
    flow = asked.flow("order-1", [stream])
    assert set(flow.correlation_ids) == {"order-1", "audit"}
    assert list(asked.search("audit", [stream]).correlation_ids) == ["audit"]
    assert list(asked.search("nobody", [stream]).correlation_ids) == []


@pytest.fixture
def old_entries(asked: Asked, stream: str) -> int:
    """A stream of a day: an entry every 20 s, one flow each, the last one a second ago."""
    count, now = 4_320, int(time.time() * 1000)
    pipe = asked.client.pipeline(transaction=False)
    for number in range(count):
        at = now - 1_000 - (count - 1 - number) * 20_000
        flow = f"flow-{number}"
        pipe.xadd(
            stream, {"v": "1", "data": json.dumps({"order": f"o-{number}"}), "correlation_id": flow}, id=f"{at}-0"
        )
    pipe.execute()
    return count


async def test_of_a_long_stream_only_what_it_must_is_read_and_the_rest_is_told(
    asked: Asked, stream: str, old_entries: int
) -> None:
    recent = asked.search(f"flow-{old_entries - 1}", [stream])
    [looked] = recent.looked
    assert len(recent.sightings) == 1
    assert looked.length == old_entries
    assert looked.entries < 20
    assert looked.read[0][0] is not None, "it says from when on"
    pages = [command[-1] for command in asked.commands if command[:2] == ("XREVRANGE", stream)]
    assert sum(pages) <= 700, "it stops where it has found it"
    old = asked.search("o-2000", [stream])
    assert len(old.sightings) == 1
    assert old.looked[0].entries < 20, "around it; what was passed over on the way is not counted as looked at for it"
    before = sum(command[0] == "XREVRANGE" for command in asked.commands)
    now = int(time.time() * 1000)
    bounded = asked.search("o-2000", [stream], Bounds(since_ms=now - 600_000))
    assert not bounded.sightings
    assert bounded.looked[0].entries < 40
    assert sum(command[0] == "XREVRANGE" for command in asked.commands) - before <= 4
    whole = asked.search("flow-1", [stream], Bounds(everything=True))
    assert whole.looked[0].entries == old_entries


async def test_a_page_of_large_entries_has_few_of_them(asked: Asked, stream: str) -> None:
    for number in range(250):
        asked.client.xadd(stream, {"v": "1", "data": json.dumps("x" * 50_000), "correlation_id": f"flow-{number}"})
    assert len(asked.search("nobody", [stream]).sightings) == 0
    counts = [command[-1] for command in asked.commands if command[0] == "XREVRANGE" and command[1] == stream]
    assert counts[0] == 100
    assert all(count <= 25 for count in counts[1:])


# --- the index -----------------------------------------------------------------------------------


async def test_with_an_index_a_flow_is_found_without_reading_the_stream(
    buses: Buses, asked: Asked, stream: str, old_entries: int
) -> None:
    bus = buses(service="shop", index=3600)
    await bus.publish(stream, {"n": 1}, correlation_id="mine")
    many = await bus.publish_many(stream, [Event({"n": n}, correlation_id="mine") for n in range(3)])
    await bus.publish(stream, {"n": 5}, correlation_id="mine", dedupe=60, message_id="once")
    await bus.publish(stream, {"n": 5}, correlation_id="mine", dedupe=60, message_id="once")
    delayed = await bus.publish(stream, {"n": 6}, correlation_id="mine", delay=600)
    assert delayed.id == ""
    asked.commands.clear()
    found = asked.search("mine", [stream])
    assert found.indexed
    assert len(found.sightings) == 6
    assert {receipt.id for receipt in many} <= {seen.entry_id for seen in found.sightings}
    assert found.looked[0].entries < 20
    reads = [command for command in asked.commands if command[0] == "XREVRANGE"]
    assert all(command[3] != "0-0" for command in reads if command[1] == stream), "never from its beginning"
    assert BESIDE_INDEX < 100_000


async def test_the_index_is_bounded_and_expires(buses: Buses, asked: Asked, stream: str, redis_client: Any) -> None:
    bus = buses(service="shop", index=60)
    await bus.publish_many(stream, [Event(n, correlation_id="mine") for n in range(MOST_BYTES // 10)])
    [key] = [key async for key in redis_client.scan_iter(match=f"*{stream.rpartition(':')[0][-12:]}*flows*")]
    assert 0 < await redis_client.pttl(key) <= 60_000 + HOUR_MS
    noted = await redis_client.hget(key, "mine")
    assert MOST_BYTES <= len(noted) < MOST_BYTES + 64
    assert noted.endswith(b" ...")
    found = asked.search("mine", [stream])
    assert not found.indexed, "what it left out is looked for"
    assert len(found.sightings) == MOST_BYTES // 10


async def test_without_an_index_a_publish_is_a_plain_xadd(buses: Buses, stream: str, redis_client: Any) -> None:
    await buses(service="shop").publish(stream, 1, correlation_id="mine")
    assert not [key async for key in redis_client.scan_iter(match=f"*{stream.rpartition(':')[0][-12:]}*flows*")]


async def test_a_key_of_another_type_in_the_indexs_place_undoes_no_publish(
    buses: Buses, stream: str, redis_client: Any
) -> None:
    from quantum_bus import flow_index

    now = int(time.time() * 1000)
    for hour in (now, now + HOUR_MS):
        await redis_client.set(flow_index.key(stream, "mine", hour), "something else", ex=60)
    assert (await buses(service="shop", index=60).publish(stream, 1, correlation_id="mine")).id
    assert await redis_client.xlen(stream) == 1


# --- following -----------------------------------------------------------------------------------


async def test_following_shows_what_comes_and_what_becomes_of_it(
    buses: Buses, asked: Asked, stream: str, redis_client: Any
) -> None:
    await redis_client.xadd(stream, {"v": "1", "data": "0", "correlation_id": "another"})
    search = Search(Wanted.of("mine"), [stream], Bounds())
    assert not answered(search.run(), asked.execute).sightings
    await redis_client.xgroup_create(stream, "g", "$")
    await buses(service="shop").publish(stream, {"n": 1}, correlation_id="mine", event="E")
    [reply] = asked.execute(search.next_read(count=100, block_ms=2_000))
    assert search.take(reply)
    found = answered(search.refresh(), asked.execute)
    flow = build(found.sightings, found.runs, found.standings)
    assert [(message.event, message.hops[0].outcome) for message in flow.messages] == [("E", Outcome.WAITING)]
    await redis_client.xreadgroup("g", "c", {stream: ">"})
    found = answered(search.refresh(), asked.execute)
    [message] = build(found.sightings, found.runs, found.standings).messages
    assert message.hops[0].outcome is Outcome.PENDING


# --- the command ---------------------------------------------------------------------------------


async def test_log_lines_of_files_and_standard_input_are_put_into_the_flow(
    real_backend: Backend, asked: Asked, stream: str, tmp_path: Any
) -> None:
    assert real_backend.url is not None
    asked.client.xadd(
        stream,
        {"v": "1", "data": "1", "correlation_id": "mine", "service": "shop", "ts": "2026-01-03T10:15:23.100000Z"},
    )

    def line(micros: int, msg: str, correlation_id: str = "mine") -> str:
        ts = f"2026-01-03T10:15:23.{micros:06d}Z"
        return json.dumps({"ts": ts, "service": "shop", "event": "E", "correlation_id": correlation_id, "msg": msg})

    file = tmp_path / "shop.jsonl"
    file.write_text("\n".join([line(50_000, "before"), "half a li", line(60_000, "another's", "other")]))
    terminals = Terminals()
    try:
        options = ("--stream", stream, "--url", real_backend.url, "--logs", str(file), "-")
        ended = terminals.run("trace", "mine", *options, stdin=line(200_000, "behind \x1b[31m"))
        refused = terminals.run("trace", "mine", *options[:4], "--logs", str(tmp_path / "none"))
        nobody = terminals.run("trace", "mine", *options[:4], "--loki", "http://u:secret@127.0.0.1:1")
    finally:
        terminals.close()
    steps = [text for text in ended.lines if " ms  " in text]
    assert ["before" in steps[0], f"→ {stream}" in steps[1], "behind \\u001b[31m" in steps[2]] == [True] * 3
    assert "another's" not in ended.out
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "name a file of JSON lines" in refused.err
    assert nobody.code == 2
    assert "Loki at http://u:***@127.0.0.1:1 cannot be asked" in nobody.err


def test_status_asks_a_bounded_number_of_questions(real_backend: Backend, asked: Asked, stream: str) -> None:
    from quantum_bus.cli.status import look

    groups = 300
    pipe = asked.client.pipeline(transaction=False)
    for number in range(groups):
        pipe.xgroup_create(stream, f"g{number}", "0", mkstream=True)
    pipe.xadd(stream, {"data": "1"})
    pipe.execute()
    state, rates = answered(look([stream]), asked.execute)
    assert len(state.streams[0].groups) == groups
    assert rates[stream].written is not None
    assert len(asked.commands) <= 9 + 12 * groups
    assert asked.trips <= 5 + len(asked.commands) // 500
