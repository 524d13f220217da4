"""Connections that break and servers that go: publishers learn it in time, consumers come back by themselves."""

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import (
    BusClosed,
    ConnectionLost,
    Message,
    MessageAlreadySettled,
    PublishError,
    PublishTimeout,
    Receipt,
    Retry,
    upkeep,
)
from quantum_bus.config import State
from quantum_bus.demo.redis_server import RedisProcess, RedisServer, start_redis
from tests.contract.backends import Backend
from tests.contract.conditions import PATIENCE, Gate, eventually, pause
from tests.contract.entries import all_acked, pending, stored
from tests.contract.twins import ASYNCIO, Bus, Buses, settled
from tests.faults.proxy import Proxy

LONG = 60.0
"""Seconds for which a reply is waited where something else has to end that: who waits so long is seen to hang."""


@pytest.fixture
def server(own_redis: RedisProcess) -> RedisProcess:
    return own_redis


def events(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    return Counter(getattr(record, "event", "") for record in caplog.records)


# --- lost replies ------------------------------------------------------------------------------------------------


async def test_a_lost_read_reply_is_recovered_from_the_consumers_own_history(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    proxy.lose_reply("XREADGROUP")
    async with bus:
        await buses().publish_many("s", range(5))
        await eventually(lambda: proxy.lost["XREADGROUP"] == 1)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert sorted(handled) == list(range(5))


async def test_recovering_runs_nothing_twice_that_is_in_flight(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    gate = Gate()
    runs: Counter[int] = Counter()

    @bus.subscriber("s", concurrency=20, retry=Retry(initial=1000, maximum=1000, jitter="none"))
    async def handle(number: int) -> None:
        runs[number] += 1
        if number == 2:
            raise ValueError  # is scheduled for its next attempt
        await gate.passed()

    async with bus:
        await buses().publish_many("s", range(5))
        await eventually(lambda: len(runs) == 5)
        proxy.lose_reply("XREADGROUP", count=2)
        for number in range(5, 10):
            await buses().publish("s", number)
        await eventually(lambda: len(runs) == 10)
        assert proxy.lost["XREADGROUP"] >= 1
        before = proxy.commands["XREADGROUP"]
        await buses().publish("s", 10)
        await eventually(lambda: proxy.commands["XREADGROUP"] > before and len(runs) == 11)
        gate.open()
        await eventually(lambda: _pending_count(redis_client, 0))
    assert runs == Counter(range(11))


async def _pending_count(client: redis.asyncio.Redis, count: int) -> bool:
    return len(await pending(client, "s")) == count


async def test_a_long_history_is_recovered_whole(buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis) -> None:
    bus = buses(url=proxy.url)
    handled: list[int] = []

    @bus.subscriber("s", concurrency=16, batch=20)  # several pages of history
    async def handle(numbers: list[int]) -> None:
        handled.extend(numbers)

    await buses().publish_many("s", range(320))
    proxy.lose_reply("XREADGROUP")
    async with bus:
        await eventually(lambda: all_acked(redis_client, "s"))
    assert proxy.lost["XREADGROUP"] == 1
    assert sorted(handled) == list(range(320))


async def test_a_lost_reply_to_a_publish_is_tried_again_under_the_same_message_id(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    await bus.publish("s", "first")
    proxy.lose_reply("XADD")
    receipt = await bus.publish("s", "second")
    entries = await stored(redis_client, "s")
    assert [entry["data"] for entry in entries] == ['"first"', '"second"', '"second"']
    assert entries[1]["message_id"] == entries[2]["message_id"] == receipt.message_id
    assert receipt.id == entries[2].id
    assert {entry["traceparent"] for entry in entries[1:]} == {entries[1]["traceparent"]}


async def test_of_many_only_what_had_no_reply_is_published_again(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    await bus.publish("other", 0)
    proxy.lose_reply("XADD", after=10)
    results = await bus.publish_many("s", range(15))
    assert all(isinstance(result, Receipt) for result in results)
    counts = Counter(entry["data"] for entry in await stored(redis_client, "s"))
    assert [counts[str(number)] for number in range(10)] == [1] * 10, "what was confirmed is not sent again"
    assert [counts[str(number)] for number in range(10, 15)] == [2] * 5


async def test_a_lost_reply_to_an_ack_leaves_nothing_pending_and_runs_nothing_twice(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await buses().publish("s", 0)  # the script is known to the server behind it
        await eventually(lambda: all_acked(redis_client, "s"))
        proxy.lose_reply("EVALSHA")
        await buses().publish_many("s", range(1, 6))
        await eventually(lambda: proxy.lost["EVALSHA"] == 1)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert sorted(handled) == list(range(6))


async def test_a_lost_reply_to_a_dead_letter_makes_no_second_one(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)

    @bus.subscriber("s", retry=Retry(max_attempts=1))
    async def handle(number: int) -> None:
        raise ValueError

    async with bus:
        await buses().publish("s", 0)
        await eventually(lambda: all_acked(redis_client, "s"))
        proxy.lose_reply("EVALSHA")
        await buses().publish("s", 1)
        await eventually(lambda: proxy.lost["EVALSHA"] == 1)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert [entry["data"] for entry in await stored(redis_client, "{s}:dlq")] == ["0", "1"]


async def test_an_ack_by_hand_survives_a_lost_reply(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    outcomes: list[str] = []

    @bus.subscriber("s")
    async def handle(message: Message) -> None:
        if message.data == 1:
            proxy.lose_reply("EVALSHA")
        try:
            await settled(message.ack())
            outcomes.append("acked")
        except Exception as error:
            outcomes.append(type(error).__name__)

    async with bus:
        await buses().publish("s", 0)
        await eventually(lambda: len(outcomes) == 1)
        await buses().publish("s", 1)
        await eventually(lambda: len(outcomes) == 2)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert outcomes[0] == "acked"
    assert outcomes[1] in ("acked", "LeaseLost"), "the first ack was carried out, the second one finds nothing to ack"


async def test_what_a_read_brings_while_the_bus_is_stopping_is_left_to_the_next_at_once(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    handled: list[int] = []

    def consumer(url: str | None) -> Bus:
        bus = buses(url=url, block=0.3)

        @bus.subscriber("s", ack_wait=1000.0)
        async def handle(number: int) -> None:
            handled.append(number)

        return bus

    async with consumer(proxy.url) as bus:
        await buses().publish("s", 0)
        await eventually(lambda: handled == [0])
        held = proxy.hold("XREADGROUP")
        await eventually(held.is_set)  # a read is on its way, and not there
        stopping = asyncio.ensure_future(bus.stop())
        await eventually(lambda: bus.raw._state.value == "stopping")
        await buses().publish_many("s", [1, 2])
        proxy.release()
        await stopping
    async with consumer(None):
        await eventually(lambda: sorted(handled) == [0, 1, 2], timeout=10)
        await eventually(lambda: all_acked(redis_client, "s"))


# --- connections that break --------------------------------------------------------------------------------------


async def test_killed_connections_are_opened_again_and_nothing_is_lost(
    buses: Buses, redis_client: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses()
    handled: Counter[int] = Counter()

    @bus.subscriber("s", concurrency=4)
    async def handle(number: int) -> None:
        await pause(0.002)
        handled[number] += 1

    async with bus:
        for number in range(200):
            if number % 50 == 25:
                await redis_client.client_kill_filter(_type="normal", skipme=True)
            assert (await bus.publish("s", number)).id
        await eventually(lambda: all_acked(redis_client, "s"))
    assert set(handled) == set(range(200))
    assert max(handled.values()) <= 2, "an entry may be there twice after a lost reply, under one message id"
    assert 1 <= events(caplog)["BUS_CONNECTION_LOST"] <= 4
    assert events(caplog)["BUS_RECONNECTED"] == events(caplog)["BUS_CONNECTION_LOST"]


async def test_a_redis_that_hangs_is_a_timeout_within_the_deadline_and_then_all_goes_on(
    buses: Buses, server: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(reply_timeout=LONG, block=0.5)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await bus.publish("s", 0)
        await eventually(lambda: handled == [0])
        server.suspend()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(PublishTimeout, match="may be stored"):
                await bus.publish("s", 1, timeout=0.3)
            results = await bus.publish_many("s", [2, 3], timeout=0.3)
        assert [type(result) for result in results] == [PublishTimeout] * 2
        server.resume()
        await bus.publish("s", 4)
        await eventually(lambda: 4 in handled)
        await eventually(lambda: all_acked(redis_client, "s"))


async def test_a_connection_that_is_taken_and_never_answered_is_given_up(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url, reply_timeout=0.5, block=0.3)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await bus.publish("s", 0)
        await eventually(lambda: handled == [0])
        before = proxy.connections
        proxy.swallow()
        with pytest.raises(PublishTimeout):
            await bus.publish("s", 1, timeout=0.3)
        await eventually(lambda: proxy.connections >= before + 2)
        proxy.accept()
        await bus.publish("s", 2, timeout=20.0)
        await eventually(lambda: 2 in handled)


async def test_stopping_while_redis_hangs_ends_soon_after_its_deadline(buses: Buses, server: RedisProcess) -> None:
    bus = buses(reply_timeout=LONG, block=0.5)

    @bus.subscriber("s")
    async def handle(number: int) -> None: ...

    await bus.start()
    server.suspend()
    async with asyncio.timeout(PATIENCE):
        await bus.stop(timeout=0.2)
    server.resume()


async def test_stopping_while_redis_is_away_is_prompt(buses: Buses, server: RedisProcess) -> None:
    bus = buses(reply_timeout=LONG)
    began, gate = Gate(), Gate()

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        began.open()
        await gate.passed()

    await bus.start()
    await bus.publish("s", 1)
    await began.passed()
    server.kill()
    gate.open()
    async with asyncio.timeout(PATIENCE):
        await bus.stop(timeout=0.5)


async def test_a_bus_that_is_stopped_while_it_starts_handles_nothing(
    buses: Buses, server: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: a look at the state behind every wait of the start; the stopped bus went on to read and to handle
    alone = len(await redis_client.client_list())
    server.suspend()
    bus = buses(connect_timeout=LONG, reply_timeout=LONG)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    starting = asyncio.create_task(bus.start())
    await asyncio.sleep(0.3)  # it has begun, and cannot have ended
    async with asyncio.timeout(PATIENCE):
        await bus.stop(timeout=0.1)
        server.resume()
        with pytest.raises((BusClosed, ConnectionLost)):
            await starting
    await redis_client.xadd("s", {"data": "1"})
    await eventually(lambda: _so_many_clients(redis_client, alone))
    assert not handled


async def _so_many_clients(client: redis.asyncio.Redis, wanted: int) -> bool:
    return len(await client.client_list()) == wanted


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_publish_under_way_when_the_bus_is_closed_opens_no_other_connection(
    buses: Buses, server: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: a link that stays closed; the message went out behind stop(), over a connection nobody closed
    alone = len(await redis_client.client_list())
    bus = buses()
    await bus.publish("s", 0)
    server.suspend()
    publishing = asyncio.create_task(bus.publish("s", 1, timeout=3.0))
    await asyncio.sleep(0.1)  # it is under way
    await bus.stop(timeout=0.1)
    server.resume()
    with pytest.raises(PublishError):
        await publishing
    await eventually(lambda: _so_many_clients(redis_client, alone))


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_stop_that_is_cancelled_while_it_closes_closes_all_the_same(
    buses: Buses, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: closing in a task of its own; its connections stayed open, and a second stop() did nothing
    alone = len(await redis_client.client_list())
    bus = buses()
    gate = Gate()

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        for _ in range(3):  # it clings to its place
            with contextlib.suppress(asyncio.CancelledError):
                await gate.passed()

    await bus.start()
    await bus.publish("s", 1)
    await eventually(lambda: pending(redis_client, "s"))
    stopping = asyncio.create_task(bus.stop(timeout=0.0))
    await eventually(lambda: bus.raw._state is State.CLOSED)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await bus.stop()
    await eventually(lambda: _so_many_clients(redis_client, alone))  # Redis notices each in its own time
    gate.open()


@pytest.mark.parametrize("twin", [ASYNCIO])  # a thread that waits for nothing does not notice
@pytest.mark.parametrize("options", [None, {"dedupe": 60}], ids=["publish_many", "dedupe"])
async def test_a_refusal_over_a_connection_that_was_closed_meanwhile_is_known_not_to_be_stored(
    buses: Buses, redis_client: redis.asyncio.Redis, options: dict[str, Any] | None
) -> None:
    # fails without: leaving aside what nobody had written; it was a timeout: it may be stored
    await redis_client.set("s", "no stream")
    bus = buses()
    await bus.publish("other", 1)
    await redis_client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.2)  # it is noticed while nobody uses it
    if options is None:
        [error] = await bus.publish_many("s", [1])
    else:
        with pytest.raises(PublishError) as raised:
            await bus.publish("s", 1, **options)
        error = raised.value
    assert isinstance(error, PublishError)
    assert not isinstance(error, PublishTimeout)


async def test_a_reply_that_takes_longer_than_its_timeout_to_arrive_is_received(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    # fails without: counting what came of a reply; over asyncio it was asked for ever, and nothing was handled
    bus = buses(url=proxy.url, reply_timeout=0.5, block=0.2)
    handled: set[int] = set()

    @bus.subscriber("s", concurrency=20, ack_wait=LONG)
    async def handle(message: Message) -> None:
        handled.add(message.data["n"])

    for number in range(20):
        await redis_client.xadd("s", {"data": f'{{"n":{number},"of":"{"x" * 50_000}"}}'})
    proxy.throttle(150_000)  # of a million: longer than a read may block, and a reply may take
    await bus.start()
    await eventually(lambda: len(handled) == 20, timeout=60.0)
    proxy.throttle(0)


@pytest.mark.parametrize("how", ["ack", "term", "ack behind the end"])
async def test_a_thread_that_settles_while_redis_is_away_is_told_when_the_bus_has_stopped(
    buses: Buses, server: RedisProcess, how: str
) -> None:
    # fails without: telling those that wait when the outbox is closed, or come later; they were blocked for ever
    bus = buses(reply_timeout=LONG)
    began, gate = Gate(), Gate()
    errors: list[Exception] = []

    @bus.subscriber("s")
    def handle(message: Message) -> None:
        began.open()
        asyncio.run(gate.passed())
        try:
            message.term("why") if how == "term" else message.ack()
        except (ConnectionLost, MessageAlreadySettled) as error:  # the latter where its run counts as over
            errors.append(error)

    await bus.start()
    await bus.publish("s", 1)
    await began.passed()
    server.kill()
    if how != "ack behind the end":
        gate.open()
    async with asyncio.timeout(PATIENCE):
        await bus.stop(timeout=0.5)
    gate.open()
    await eventually(lambda: errors)
    assert how == "ack behind the end" or "may come again" in str(errors[0])


async def test_with_no_redis_a_publish_is_a_timeout_within_its_deadline(buses: Buses, server: RedisProcess) -> None:
    bus = buses(reply_timeout=LONG)
    server.kill()
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        # fails without: knowing what was written; it said that the message may be stored
        with pytest.raises(PublishTimeout, match="never sent, and is not stored") as late:
            await bus.publish("s", 1, timeout=0.5)
    assert time.monotonic() - began > 0.4
    assert isinstance(late.value.__cause__, ConnectionLost)
    assert isinstance(late.value, TimeoutError)


# --- a server that goes and returns ------------------------------------------------------------------------------


async def test_a_consumer_works_again_soon_after_redis_is_back(
    buses: Buses, server: RedisProcess, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses(url=proxy.url)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await bus.publish("s", 0)
        await eventually(lambda: handled == [0])
        server.kill()
        await eventually(lambda: events(caplog)["BUS_CONNECTION_LOST"] == 1)
        tries = proxy.connections
        await eventually(lambda: proxy.connections > tries + 7)  # by then the pauses have grown
        server.start()
        await bus.publish("s", 1, timeout=20.0)  # into a Redis that came back empty
        await eventually(lambda: 1 in handled)
    assert events(caplog)["BUS_CONNECTION_LOST"] == 1, "an outage is logged once, not once a try"
    assert events(caplog)["BUS_GROUP_RECREATED"] == 2, "the stream's and the retry stream's, once each"


@pytest.fixture(scope="module", params=[True, False], ids=["stopped", "killed"])
def graceful(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_what_was_confirmed_is_handled_though_redis_goes_and_returns_under_load(
    redis_binary: RedisServer, twin: str, graceful: bool
) -> None:
    """Redis writes each command to disk before it answers; then a receipt holds even over a SIGKILL."""
    with start_redis(redis_binary, options={"appendonly": "yes", "appendfsync": "always"}) as server:
        buses = Buses(twin, Backend(server.server.series, server.url))
        publisher, consumer = buses(service="publisher"), buses(service="consumer")
        handled: Counter[str] = Counter()
        confirmed: list[str] = []
        errors: list[BaseException] = []
        done = False

        @consumer.subscriber("s", concurrency=8)
        async def handle(message: Message) -> None:
            handled[message.message_id] += 1
            await pause(0.001)

        async def publish_on(lane: int) -> None:
            number = 0
            while not done:
                number += 1
                try:
                    confirmed.append((await publisher.publish("s", f"{lane}-{number}", timeout=1.0)).message_id)
                except PublishError as error:
                    errors.append(error)
                await asyncio.sleep(0.001)

        async with consumer:
            lanes = [asyncio.ensure_future(publish_on(lane)) for lane in range(8)]
            await eventually(lambda: len(handled) > 200)
            for _ in range(2):
                await asyncio.to_thread(server.stop if graceful else server.kill)
                so_far = len(errors)
                await eventually(lambda so_far=so_far: len(errors) > so_far)
                await asyncio.to_thread(server.start)
                before = len(handled)
                await eventually(lambda before=before: len(handled) > before)
                count = len(confirmed)
                await eventually(lambda count=count: len(confirmed) > count + 100)
            done = True
            await asyncio.gather(*lanes)
            client = redis.asyncio.Redis.from_url(server.url)
            await eventually(lambda: all_acked(client, "s", "consumer"))
            await client.aclose()
        await buses.stop()
    lost = set(confirmed) - set(handled)
    print(  # noqa: T201 - the figures are worth reading
        f"{len(confirmed)} confirmed, {len(errors)} refused, {sum(handled.values())} handled"
    )
    assert not lost
    assert {type(error) for error in errors} <= {PublishTimeout}


async def test_a_server_that_merely_drops_connections_loses_nothing(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    publisher, consumer = buses(url=proxy.url), buses(url=proxy.url)
    handled: Counter[str] = Counter()

    @consumer.subscriber("s", concurrency=8)
    async def handle(message: Message) -> None:
        await pause(0.001)
        handled[message.message_id] += 1

    confirmed: list[str] = []
    async with consumer:
        for number in range(300):
            if number % 40 == 20:
                proxy.cut()
            if number == 150:
                proxy.refuse()
                with pytest.raises(PublishTimeout):
                    await publisher.publish("s", number, timeout=0.2)
                proxy.accept()
            confirmed.append((await publisher.publish("s", number)).message_id)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert set(confirmed) <= set(handled)
    entries = Counter(entry["message_id"] for entry in await stored(redis_client, "s"))
    assert handled == entries, "each entry is handled once, also where a message has two"


# --- groups that vanish ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["FLUSHALL", "XGROUP DESTROY", "DEL"])
async def test_a_group_that_vanishes_is_made_again_from_the_beginning(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(upkeep, "EVERY", 3600.0)  # else it may have noted where a group is made again
    bus = buses(block=0.3)
    handled: list[int] = []

    @bus.subscriber("s", start="new")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await bus.publish("s", 0)
        await eventually(lambda: handled == [0])
        await eventually(lambda: all_acked(redis_client, "s"))
        command = {"FLUSHALL": ("FLUSHALL",), "XGROUP DESTROY": ("XGROUP", "DESTROY", "s", "svc"), "DEL": ("DEL", "s")}
        await redis_client.execute_command(*command[how])
        await redis_client.xadd("s", {"v": "1", "data": "1"})  # before the group is there again
        await eventually(lambda: 1 in handled)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert handled == ([0, 0, 1] if how == "XGROUP DESTROY" else [0, 1])
    assert events(caplog)["BUS_GROUP_RECREATED"] == (2 if how == "FLUSHALL" else 1), "each that was gone, once"


async def test_a_group_that_cannot_be_made_again_is_asked_for_with_pauses_and_logged_once(
    buses: Buses, redis_client: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses(block=0.3)
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        await redis_client.set("s", "text")
        await eventually(lambda: events(caplog)["BUS_READ_FAILED"] == 1)
        before = await _calls(redis_client)
        await asyncio.sleep(1.0)  # the measured time: what a hot loop would fill with thousands of calls
        assert await _calls(redis_client) - before < 30
        assert events(caplog)["BUS_READ_FAILED"] == 1
        await redis_client.delete("s")
        await redis_client.xadd("s", {"v": "1", "data": "1"})
        await eventually(lambda: handled == [1])


async def _calls(client: redis.asyncio.Redis) -> int:
    stats = await client.info("commandstats")
    return sum(value["calls"] for name, value in stats.items() if "xreadgroup" in name or "xgroup" in name)


async def test_what_was_in_hand_when_everything_was_flushed_ends_quietly(
    buses: Buses, redis_client: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses(block=0.3)
    gate = Gate()
    began: list[int] = []
    handled: list[int] = []

    @bus.subscriber("s", retry=Retry(max_attempts=1))
    async def handle(number: int) -> None:
        if number < 2:
            began.append(number)
            await gate.passed()
        handled.append(number)
        if number == 1:
            raise ValueError

    async with bus:
        await bus.publish_many("s", [0, 1])
        await eventually(lambda: len(began) == 2)
        await redis_client.flushall()
        gate.open()
        await eventually(lambda: sorted(handled) == [0, 1])
        await bus.publish("s", 2)
        await eventually(lambda: 2 in handled)
        await eventually(lambda: all_acked(redis_client, "s"))
    assert sorted(handled) == [0, 1, 2]
    assert not await stored(redis_client, "{s}:dlq")


async def test_scripts_that_the_server_has_forgotten_are_sent_again(
    buses: Buses, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        for number in range(3):
            await redis_client.script_flush()
            await bus.publish("s", number)
            await eventually(lambda: all_acked(redis_client, "s"))
    assert handled == [0, 1, 2]


# --- memory that is full -----------------------------------------------------------------------------------------


async def test_at_maxmemory_reading_and_acking_go_on_and_dead_letters_wait(
    buses: Buses, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(backoff_maximum=0.1)
    handled: list[int] = []

    @bus.subscriber("s", concurrency=2, retry=Retry(max_attempts=1))
    async def handle(number: int) -> None:
        handled.append(number)
        if number == 3:
            raise ValueError

    await bus.publish_many("s", range(10))
    await redis_client.xgroup_create("s", "svc", "0")
    await redis_client.config_set("maxmemory", "1")
    async with bus:
        await eventually(lambda: sorted(handled) == list(range(10)))
        await eventually(lambda: _pending_count(redis_client, 1))
        assert not await stored(redis_client, "{s}:dlq")
        await redis_client.config_set("maxmemory", "0")
        await eventually(lambda: stored(redis_client, "{s}:dlq"))
        await eventually(lambda: all_acked(redis_client, "s"))


# --- the proxy itself --------------------------------------------------------------------------------------------


async def test_the_proxy_passes_on_loses_holds_and_refuses(proxy: Proxy, redis_client: redis.asyncio.Redis) -> None:
    client = redis.asyncio.Redis.from_url(proxy.url, retry=None, retry_on_error=None)
    big = "x" * 300_000
    await client.set("k", big)
    assert await client.get("k") == big.encode()
    assert (proxy.commands["SET"], proxy.commands["GET"]) == (1, 1)
    proxy.lose_reply("SET")
    with contextlib.suppress(redis.exceptions.ConnectionError):
        await client.set("k", "lost")
    assert proxy.lost["SET"] == 1
    assert await redis_client.get("k") == b"lost", "carried out all the same"
    held = proxy.hold("GET")
    call = asyncio.ensure_future(client.get("k"))
    await eventually(held.is_set)
    assert not call.done()
    proxy.release()
    assert await call == b"lost"
    proxy.refuse()
    await client.aclose()
    other = redis.asyncio.Redis.from_url(proxy.url, retry=None, retry_on_error=None)
    with pytest.raises(redis.exceptions.ConnectionError):
        await other.ping()
    proxy.accept()
    assert await other.ping()
    await other.aclose()
