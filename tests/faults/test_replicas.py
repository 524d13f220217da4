"""Publishing that waits for replicas: what is confirmed is on them, and what is not says so, and is stored."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from quantum_bus import Event, NotDurable, PublishError, PublishTimeout, Receipt, confirmation
from quantum_bus.confirmation import LANES
from quantum_bus.demo.redis_server import RedisProcess, start_redis
from quantum_bus.streams import Keys
from tests.contract.conditions import eventually
from tests.contract.entries import stored
from tests.contract.twins import ASYNCIO, Buses
from tests.faults.proxy import Proxy

HOUR = 3600.0
SOON = 20.0
"""Seconds that a publish is given whose replica will not answer: with `soon`, WAIT lasts one of them."""
AMPLE = 120.0
"""Seconds that one is given there whose replica will answer."""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all the time is left for the answer to WAIT: it is there in time on a machine that is busy, too."""
    monkeypatch.setattr(confirmation, "ANSWER_SHARE", 0.95)
    monkeypatch.setattr(confirmation, "ANSWER_MARGIN", SOON - 1)


@pytest.fixture
def replica(own_redis: RedisProcess) -> Iterator[RedisProcess]:
    """A replica of the test's own Redis, in step with it."""
    with start_redis(own_redis.server) as process:
        with redis.Redis.from_url(own_redis.url) as master, redis.Redis.from_url(process.url) as client:
            master.config_set("repl-diskless-sync", "yes")
            master.config_set("repl-diskless-sync-delay", "0")
            client.replicaof("127.0.0.1", own_redis.port)
            for _ in range(200):
                master.set("sync", "1")
                if master.wait(1, 100):
                    break
            else:
                pytest.fail(f"the replica did not get in step: {client.info('replication')}")
        yield process


async def on_replica(replica: RedisProcess, stream: str) -> list[str]:
    """The entries' ids that the replica has now."""
    async with redis.asyncio.Redis.from_url(replica.url) as client:
        return [entry.id for entry in await stored(client, stream)]


async def not_durable(call: Any) -> NotDurable:
    with pytest.raises(NotDurable) as failed:
        await call
    return failed.value


async def test_what_is_confirmed_is_on_the_replica(buses: Buses, replica: RedisProcess) -> None:
    bus = buses()
    for options in ({}, {"dedupe": HOUR}):
        for n in range(20):
            receipt = await bus.publish("s", n, wait_replicas=1, **options)
            assert (await on_replica(replica, "s"))[-1] == receipt.id
    receipt = await bus.publish("s", 1, wait_replicas=1, delay=HOUR, message_id="m")
    assert receipt.id == ""
    async with redis.asyncio.Redis.from_url(replica.url) as client:
        assert await client.zrange(Keys.of("s", "any").delayed_due, 0, -1) == [b"m"]


@pytest.mark.usefixtures("soon")
async def test_a_replica_that_hangs_makes_a_publish_not_durable_and_it_is_stored(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    """Without looking at the count that WAIT returns it was confirmed."""
    bus = buses()
    await bus.publish("s", 0, wait_replicas=1, timeout=AMPLE)
    replica.suspend()
    error = await not_durable(bus.publish("s", 1, wait_replicas=1, timeout=SOON, message_id="m"))
    entry = (await stored(redis_client, "s"))[1]
    assert error.receipt == Receipt(entry.id, "m", entry["correlation_id"], "s")
    assert (error.wanted, error.confirmed, entry["data"]) == (1, 0, "1")
    assert "confirmed by 0 of the 1 replicas" in str(error)
    replica.resume()
    assert (await bus.publish("s", 2, wait_replicas=1, timeout=AMPLE)).id in await on_replica(replica, "s")


@pytest.mark.usefixtures("soon")
async def test_fewer_replicas_than_asked_for_are_counted(buses: Buses, replica: RedisProcess) -> None:
    # So much longer that the one replica has the time to confirm.
    error = await not_durable(buses().publish("s", 1, wait_replicas=2, timeout=SOON + 3.0))
    assert (error.wanted, error.confirmed) == (2, 1)
    assert error.receipt.id in await on_replica(replica, "s")


@pytest.mark.usefixtures("soon")
async def test_without_any_replica_nothing_is_durable(buses: Buses, redis_client: redis.asyncio.Redis) -> None:
    error = await not_durable(buses().publish("s", 1, wait_replicas=1, timeout=SOON))
    assert error.confirmed == 0
    assert [entry.id for entry in await stored(redis_client, "s")] == [error.receipt.id]


@pytest.mark.usefixtures("soon")
async def test_each_of_many_says_whether_it_is_durable(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses()
    items = [Event(n, dedupe=HOUR if n % 3 == 0 else None) for n in range(1_100)]  # three requests' worth
    results = await bus.publish_many("s", items, wait_replicas=1, timeout=AMPLE)
    assert [result.id for result in results if isinstance(result, Receipt)] == await on_replica(replica, "s")
    assert len(results) == 1_100
    replica.suspend()
    results = await bus.publish_many("s", range(1_100), wait_replicas=1, timeout=SOON)
    errors = [result for result in results if isinstance(result, NotDurable)]
    assert len(errors) == 1_100, "the first request leaves time to the others"
    entries = (await stored(redis_client, "s"))[1_100:]
    assert [error.receipt.id for error in errors] == [entry.id for entry in entries]
    assert [entry["data"] for entry in entries] == [str(n) for n in range(1_100)]


@pytest.mark.usefixtures("soon")
async def test_what_is_refused_is_refused_whatever_the_replicas_say(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    await redis_client.set("text", "text")
    bus = buses()
    replica.suspend()
    with pytest.raises(PublishError, match="is not a stream") as refused:
        await bus.publish("text", 1, wait_replicas=1, timeout=SOON)
    assert type(refused.value) is PublishError
    [result] = await bus.publish_many("text", [Event(1, dedupe=HOUR)], wait_replicas=1, timeout=SOON)
    assert type(result) is PublishError


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("options", [{"dedupe": HOUR}, {"delay": HOUR}, {"delay": HOUR, "dedupe": HOUR}], ids=str)
async def test_repeating_what_is_stored_confirms_it_only_when_the_replica_has_it(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis, options: dict[str, float]
) -> None:
    replica.suspend()
    first = await not_durable(buses().publish("s", 1, wait_replicas=1, timeout=SOON, message_id="m", **options))
    second = await not_durable(buses().publish("s", 1, wait_replicas=1, timeout=SOON, message_id="m", **options))
    assert second.receipt.id == first.receipt.id
    replica.resume()
    receipt = await buses().publish("s", 1, wait_replicas=1, timeout=AMPLE, message_id="m", **options)
    assert receipt.id == first.receipt.id
    assert await redis_client.xlen("s") + await redis_client.zcard(Keys.of("s", "any").delayed_due) == 1


@pytest.mark.parametrize("options", [{"dedupe": HOUR}, {"delay": HOUR}], ids=str)
async def test_repeating_what_is_stored_is_itself_written_to_the_replicas(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis, options: dict[str, float]
) -> None:
    """Servers may let a WAIT go by for which its connection has written nothing."""
    bus = buses()
    await bus.publish("s", 1, message_id="m", **options)

    async def offset() -> int:
        return int((await redis_client.info("replication"))["master_repl_offset"])

    await redis_client.config_set("repl-ping-replica-period", 3600)
    before = await offset()
    assert await offset() == before, "nothing else is written"
    await bus.publish("s", 1, message_id="m", **options)
    assert await offset() > before


async def test_waiting_holds_up_no_other_publish(
    buses: Buses, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    """On the shared connection the plain publish came back only after the WAIT. One behind the other on a connection of
    their own, all but the first were added only when the replica had answered."""
    bus = buses()
    await bus.publish("s", 0)
    replica.suspend()
    waiting = [asyncio.ensure_future(bus.publish("s", n, wait_replicas=1, timeout=60.0)) for n in range(1, 6)]

    async def all_added() -> bool:
        return await redis_client.xlen("s") == 6

    await eventually(all_added)
    await bus.publish("s", 6)
    assert not any(call.done() for call in waiting)
    replica.resume()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Receipt] * 5


async def test_its_connections_are_bounded_and_closed_with_the_bus(
    buses: Buses, proxy: Proxy, replica: RedisProcess
) -> None:
    bus = buses(url=proxy.url)
    receipts = await asyncio.gather(*(bus.publish("s", n, wait_replicas=1, timeout=30.0) for n in range(300)))
    assert {receipt.id for receipt in receipts} == set(await on_replica(replica, "s"))
    assert 1 <= proxy.connections <= LANES
    await bus.stop()
    await eventually(lambda: proxy.open_connections == 0)


@pytest.mark.parametrize("command", ["XADD", "WAIT"])
async def test_a_lost_reply_is_tried_again_and_what_is_confirmed_then_is_on_the_replica(
    buses: Buses, proxy: Proxy, replica: RedisProcess, redis_client: redis.asyncio.Redis, command: str
) -> None:
    bus = buses(url=proxy.url)
    proxy.lose_reply(command, count=2)
    receipt = await bus.publish("s", 1, wait_replicas=1)
    assert proxy.lost[command] == 2
    entries = await stored(redis_client, "s")
    assert [entry["message_id"] for entry in entries] == [receipt.message_id] * 3
    assert receipt.id == entries[-1].id
    assert receipt.id in await on_replica(replica, "s")


@pytest.mark.parametrize("command", ["EVAL", "WAIT"])
async def test_a_lost_reply_with_a_window_leaves_one_message_and_its_first_receipt(
    buses: Buses, proxy: Proxy, replica: RedisProcess, redis_client: redis.asyncio.Redis, command: str
) -> None:
    bus = buses(url=proxy.url)
    proxy.lose_reply(command, count=3)
    receipt = await bus.publish("s", 1, wait_replicas=1, dedupe=HOUR)
    assert proxy.lost[command] == 3
    assert [entry.id for entry in await stored(redis_client, "s")] == [receipt.id]
    assert await on_replica(replica, "s") == [receipt.id]


async def test_a_connection_that_never_comes_back_behind_a_stored_message_is_not_durable(
    buses: Buses, proxy: Proxy, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    """Without keeping the reply to the XADD it was a timeout that says it may be stored."""
    bus = buses(url=proxy.url)
    proxy.lose_reply("WAIT", count=1_000)
    error = await not_durable(bus.publish("s", 1, wait_replicas=1, timeout=5.0))
    assert error.confirmed == 0
    assert error.receipt.id in [entry.id for entry in await stored(redis_client, "s")]


async def test_a_master_that_is_demoted_while_it_waits_confirms_nothing(
    buses: Buses, own_redis: RedisProcess, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses()
    replica.suspend()
    call = asyncio.ensure_future(bus.publish("s", 1, wait_replicas=1, timeout=3.0))

    async def added() -> bool:
        return await redis_client.xlen("s") == 1

    await eventually(added)
    await redis_client.replicaof("127.0.0.1", replica.port)
    error = await not_durable(call)
    assert error.confirmed == 0


async def test_cancelled_or_timed_out_waits_leave_a_bus_that_works(
    buses: Buses, twin: str, proxy: Proxy, replica: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    bus = buses(url=proxy.url)
    chance = random.Random(7)
    results: list[Any] = []
    for _ in range(10):
        if twin == ASYNCIO:
            calls = [asyncio.ensure_future(bus.publish("s", n, wait_replicas=1)) for n in range(50)]
            for call in calls:
                if chance.random() < 0.2:
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    call.cancel()
        else:
            limits = [chance.choice((0.0005, 0.005, 30.0)) for _ in range(50)]
            calls = [asyncio.ensure_future(bus.publish("s", 1, wait_replicas=1, timeout=limit)) for limit in limits]
        results += await asyncio.gather(*calls, return_exceptions=True)
        # The proxy sees only a moment later that what was cancelled is closed.
        await eventually(lambda: proxy.open_connections <= LANES + 1)
    receipts = [result for result in results if isinstance(result, Receipt)]
    assert receipts
    others = {type(result) for result in results} - {Receipt}
    assert others <= {asyncio.CancelledError, PublishTimeout, NotDurable}
    assert others
    assert {receipt.id for receipt in receipts} <= set(await on_replica(replica, "s"))
    assert (await bus.publish("s", "last", wait_replicas=1)).id == (await stored(redis_client, "s"))[-1].id
