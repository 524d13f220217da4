"""Redis in trouble: full, read-only, loading, unable to save, of another type, out of connections, half open.

What must hold at each place: a typed error that says what would be right, or tries with pauses that are said once; and
when the trouble is over, everything is handled, as often as it should be.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions

import quantum_bus
from quantum_bus import (
    BackPressure,
    ConfigurationError,
    ConnectionLost,
    Message,
    PublishError,
    PublishTimeout,
    Receipt,
    Reject,
    Retry,
    confirmation,
    streams,
)
from quantum_bus.demo.redis_server import RedisProcess, RedisServer, start_redis
from quantum_bus.streams import Keys
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked, stored
from tests.contract.twins import ASYNCIO, Bus, Buses
from tests.faults.proxy import Proxy

HOUR = 3600.0
SOON = 0.5
"""Seconds that a publish is given which cannot succeed."""
NOWHERE = ("127.0.0.1", 1)
"""A master that never answers."""

SAVED = "saved.rdb"

Trouble = Callable[[RedisProcess, redis.asyncio.Redis], AbstractAsyncContextManager[None]]


# --- real trouble ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def read_only(_: RedisProcess, client: redis.asyncio.Redis) -> AsyncIterator[None]:
    """It is made a replica, and is promoted again."""
    await client.replicaof(*NOWHERE)
    yield
    await client.replicaof("NO", "ONE")


@asynccontextmanager
async def full(_: RedisProcess, client: redis.asyncio.Redis) -> AsyncIterator[None]:
    await client.config_set("maxmemory", "1")
    yield
    await client.config_set("maxmemory", "0")


@asynccontextmanager
async def unable_to_save(server: RedisProcess, client: redis.asyncio.Redis) -> AsyncIterator[None]:
    """In the place of its file stands a folder."""

    async def saved(status: str) -> bool:
        found = await client.info("persistence")
        return found["rdb_last_bgsave_status"] == status and not found["rdb_bgsave_in_progress"]

    folder = server.folder / SAVED
    folder.mkdir()
    await client.config_set("save", "3600 1")
    await client.bgsave()
    await eventually(lambda: saved("err"))
    yield
    folder.rmdir()
    await client.bgsave()
    await eventually(lambda: saved("ok"))


@asynccontextmanager
async def of_another_type(_: RedisProcess, client: redis.asyncio.Redis) -> AsyncIterator[None]:
    """The stream's name is taken by a text, and given back."""
    await client.rename("s", "aside")
    await client.set("s", "text")
    yield
    await client.rename("aside", "s")


@asynccontextmanager
async def loading(server: RedisProcess, client: redis.asyncio.Redis) -> AsyncIterator[None]:
    """It is killed, and loads what it has saved for six seconds: far longer than is looked at it."""
    for number in range(40):  # it answers after 2 MB each: between any two of them
        await client.set(f"ballast {number}", "x" * 2_100_000)
    await client.save()
    server.kill()
    starting = asyncio.create_task(asyncio.to_thread(server.start, timeout=60.0))

    async def loads() -> bool:
        try:
            await client.ping()
        except redis.exceptions.BusyLoadingError:
            return True
        except redis.exceptions.ConnectionError:
            return False
        raise AssertionError("it has loaded too fast")

    await eventually(loads)
    yield
    await starting


TROUBLES = [read_only, full, unable_to_save, of_another_type, loading]
SLOW = {"dbfilename": SAVED, "key-load-delay": "150000", "rdbcompression": "no"}
"""Loads slowly: 150 ms a key."""


@pytest.fixture
def own_redis(redis_binary: RedisServer) -> Iterator[RedisProcess]:
    with start_redis(redis_binary, options=SLOW) as process:
        yield process


@pytest.fixture
async def redis_client(own_redis: RedisProcess) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(own_redis.url, retry=None) as client:
        yield client


# --- publishing --------------------------------------------------------------------------------------------------

PASSING = {
    "READONLY You can't write against a read only replica.": "read-only replica",
    "LOADING Redis is loading the dataset in memory": "loading its data",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "lost its master",
    "CLUSTERDOWN The cluster is down": "CLUSTER INFO",
    "TRYAGAIN Multiple keys request during rehashing of slot": "being moved",
    "NOREPLICAS Not enough good replicas to write.": "min-replicas-to-write",
}


@pytest.mark.parametrize("options", [{}, {"dedupe": HOUR}], ids=["plain", "dedupe"])
async def test_what_every_try_has_refused_is_known_not_to_be_stored(
    buses: Buses,
    proxy: Proxy,
    redis_client: redis.asyncio.Redis,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """It was a timeout that said it may be stored. MASTERDOWN, CLUSTERDOWN and TRYAGAIN were not tried again, because
    redis-py strips them from the text, and LOADING broke the connection each time."""
    bus = buses(url=proxy.url)
    await bus.publish("warm", 0, **options)
    # It is tried again for three seconds, and the last try has all the others for its answer.
    patience, spare = 20.0, 17.0
    monkeypatch.setattr(confirmation, "ANSWER_SHARE", spare / patience)
    monkeypatch.setattr(confirmation, "ANSWER_MARGIN", spare)
    for error, advice in PASSING.items():
        proxy.refuse_commands(error)
        tries = proxy.refused.total()
        refused, [result] = await asyncio.gather(
            bus.publish("s", 1, timeout=patience, **options),
            bus.publish_many("s", [quantum_bus.Event(1, **options)], timeout=patience),
            return_exceptions=True,
        )
        assert type(refused) is PublishError, error
        assert "it is not stored" in str(refused)
        assert advice in str(refused)
        assert isinstance(refused.__cause__, redis.exceptions.RedisError)
        assert type(result) is PublishError, error
        assert 4 <= proxy.refused.total() - tries <= 60, "with pauses: 0.05 s at first, doubled each time"
    proxy.refuse_commands("")
    assert not await stored(redis_client, "s")
    assert (await bus.publish("s", 2, **options)).id
    assert proxy.connections == 1, "a refusal breaks no connection"


async def test_a_reply_that_was_lost_between_refusals_leaves_it_open(buses: Buses, proxy: Proxy) -> None:
    """Judged by the last refusal it was 'not stored', and stood in the stream."""
    bus = buses(url=proxy.url, backoff_initial=0.5, backoff_maximum=0.5)
    await bus.publish("warm", 0)
    proxy.lose_reply("XADD")
    publishing = asyncio.ensure_future(bus.publish("s", 1, timeout=5.0))
    await eventually(lambda: proxy.lost["XADD"] == 1)
    proxy.refuse_commands(next(iter(PASSING)))
    with pytest.raises(PublishTimeout, match="may be stored"):
        await publishing
    assert proxy.refused["XADD"]


@pytest.mark.parametrize("trouble", [read_only, loading], ids=lambda trouble: trouble.__name__)
async def test_a_publish_waits_for_what_passes_by_itself(
    buses: Buses, own_redis: RedisProcess, redis_client: redis.asyncio.Redis, trouble: Trouble
) -> None:
    bus = buses()
    await bus.publish("warm", 0)
    async with trouble(own_redis, redis_client):
        publishing = asyncio.ensure_future(bus.publish("s", 1, timeout=20.0))
        many = asyncio.ensure_future(bus.publish_many("s", [2, 3], timeout=20.0))
        with pytest.raises(PublishError, match=r"it is not stored|may be stored"):
            await bus.publish("s", 0, timeout=SOON)  # so long the others have tried
        assert not publishing.done()
    receipts = [await publishing, *await many]
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert sorted(entry["data"] for entry in await stored(redis_client, "s")) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("trouble", "kind", "advice"),
    [
        (full, BackPressure, "more memory"),
        (unable_to_save, PublishError, r"it is not stored: .*disk.* full.*rdb_last_bgsave_status.*AOF"),
        (of_another_type, PublishError, "not a stream"),
    ],
    ids=["full", "unable_to_save", "of_another_type"],
)
@pytest.mark.parametrize("options", [{}, {"dedupe": HOUR}], ids=["plain", "dedupe"])
async def test_what_will_not_pass_within_a_timeout_is_refused_at_once(
    buses: Buses,
    proxy: Proxy,
    own_redis: RedisProcess,
    redis_client: redis.asyncio.Redis,
    trouble: Trouble,
    kind: type[PublishError],
    advice: str,
    options: dict[str, Any],
) -> None:
    bus = buses(url=proxy.url)
    await bus.publish("s", 0, **options)
    before = proxy.commands.total()
    async with trouble(own_redis, redis_client):
        with pytest.raises(PublishError, match=advice) as refused:
            await bus.publish("s", 1, timeout=HOUR, **options)
        results = await bus.publish_many("s", [quantum_bus.Event(n, **options) for n in (1, 2)], timeout=HOUR)
        assert {type(refused.value), *map(type, results)} == {kind}
        assert proxy.commands.total() - before <= 6, "once each; a script is counted by two names"
    assert (await bus.publish("s", 2, **options)).id
    assert [entry["data"] for entry in await stored(redis_client, "s")] == ["0", "2"]


# --- starting ----------------------------------------------------------------------------------------------------


def listening(buses: Buses, handled: list[int], **options: Any) -> Bus:
    bus = buses(block=0.3, **options)

    @bus.subscriber("s")
    async def handle(number: int) -> None:
        handled.append(number)

    return bus


@pytest.mark.parametrize(
    ("trouble", "kind", "advice"),
    [
        (read_only, ConnectionLost, "cannot be made now: .*read-only replica; give the master"),
        (full, ConnectionLost, "cannot be made now: .*maxmemory"),
        (unable_to_save, ConnectionLost, "cannot be made now: .*rdb_last_bgsave_status"),
        (of_another_type, ConfigurationError, "not a stream"),
        (loading, ConnectionLost, "does not serve yet: it is loading"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_starting_in_trouble_is_a_typed_error_that_says_what_to_look_at(
    buses: Buses,
    own_redis: RedisProcess,
    redis_client: redis.asyncio.Redis,
    trouble: Trouble,
    kind: type[Exception],
    advice: str,
) -> None:
    await redis_client.xadd("s", {"v": "1", "data": "0"})
    async with trouble(own_redis, redis_client):
        with pytest.raises(kind, match=advice):
            await listening(buses, [], connect_timeout=SOON).start()
    assert not await redis_client.xinfo_groups("s")


async def test_a_start_waits_for_a_redis_that_is_loading(
    buses: Buses, own_redis: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    handled: list[int] = []
    await redis_client.xadd("s", {"v": "1", "data": "0"})
    async with loading(own_redis, redis_client):
        bus = listening(buses, handled, connect_timeout=60.0)
        await bus.start()
    await eventually(lambda: handled == [0])


@pytest.mark.parametrize("trouble", [read_only, full, unable_to_save], ids=lambda trouble: trouble.__name__)
async def test_where_the_group_is_there_a_bus_starts_in_trouble_and_works_when_it_is_over(
    buses: Buses, own_redis: RedisProcess, redis_client: redis.asyncio.Redis, trouble: Trouble
) -> None:
    handled: list[int] = []
    async with listening(buses, []):
        pass
    await redis_client.xadd("s", {"v": "1", "data": "0"})
    async with trouble(own_redis, redis_client):
        await listening(buses, handled).start()
    await eventually(lambda: handled == [0])
    await eventually(lambda: all_acked(redis_client, "s"))


async def test_a_user_that_may_not_make_the_group_is_told_what_to_grant(
    buses: Buses, own_redis: RedisProcess, redis_client: redis.asyncio.Redis
) -> None:
    await redis_client.execute_command("ACL", "SETUSER", "some", "on", ">secret", "~*", "+@all", "-xgroup")
    url = own_redis.url.replace("redis://", "redis://some:secret@")
    with pytest.raises(ConfigurationError, match=r"\+xgroup .*~s"):
        await listening(buses, [], url=url).start()
    await redis_client.execute_command("ACL", "SETUSER", "some", "-xadd")
    with pytest.raises(PublishError, match=r"\+xadd ~s"):
        await buses(url=url).publish("s", 1, timeout=HOUR)


# --- consuming ---------------------------------------------------------------------------------------------------

FIRST = 0.1
LONGEST = 0.4
LASTS = 1.5
"""Seconds that trouble lasts once it is noticed: where something spins, thousands of commands."""


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_consumers_in_trouble_ask_with_pauses_say_it_once_and_then_handle_everything(
    buses: Buses,
    proxy: Proxy,
    own_redis: RedisProcess,
    redis_client: redis.asyncio.Redis,
    caplog: pytest.LogCaptureFixture,
    trouble: Trouble,
) -> None:
    """Two groups with handlers at work and outcomes of every kind to write: the plain one, and one that handles once.

    Each refused outcome had a line of its own. Without pauses there were thousands of commands.
    """
    groups = ("plain", "once")
    bus = buses(url=proxy.url, block=0.2, backoff_initial=FIRST, backoff_maximum=LONGEST)
    gate = Gate()
    began: Counter[str] = Counter()
    runs: Counter[tuple[str, int]] = Counter()

    async def handle(message: Message) -> None:
        began[message.group] += 1
        await gate.passed()
        runs[message.group, message.data] += 1
        if message.data % 3 == 1 and message.attempt == 1:
            raise ValueError
        if message.data % 3 == 2:
            raise Reject

    once = Retry(initial=0.05, jitter="none")
    bus.subscriber("s", group="plain", concurrency=6, retry=once)(handle)
    bus.subscriber("s", group="once", concurrency=6, retry=once, idempotent=HOUR)(handle)
    async with bus:
        await bus.publish_many("s", range(30))
        await eventually(lambda: began == dict.fromkeys(groups, 6))
        async with trouble(own_redis, redis_client):
            caplog.clear()
            gate.open()
            await eventually(lambda: said(caplog))
            before, connections, busy = proxy.commands.total(), proxy.connections, time.process_time()
            await asyncio.sleep(LASTS)  # the trouble
            asked, spent = proxy.commands.total() - before, time.process_time() - busy
            reconnected = proxy.connections - connections
            lines = said(caplog)
        await bus.publish_many("s", range(30, 36), timeout=20.0)
        for group in groups:
            await eventually(lambda group=group: all_acked(redis_client, "s", group))
    assert runs == {(group, n): 2 if n % 3 == 1 else 1 for group in groups for n in range(36)}
    dead = sorted(int(entry["data"]) for entry in await stored(redis_client, "{s}:dlq"))
    assert dead == sorted(n for n in range(36) if n % 3 == 2 for _ in groups)
    # What asks: two readers, and as many outcomes as are held, each by a script that counts twice; a tick besides.
    tries = LASTS / (LONGEST / 2)
    assert asked <= 3 * tries * (2 + 2 * 2 * 6) + 60, proxy.commands
    assert reconnected <= 2 * tries
    assert spent < LASTS / 2
    per_group = {"BUS_READ_FAILED": 1, "BUS_CONNECTION_LOST": 1, "BUS_SETTLE_FAILED": 2, "BUS_DEAD_LETTER_FAILED": 1}
    per_group["BUS_SCHEDULE_FAILED"] = 1
    assert all(count <= per_group[event] * len(groups) for event, count in lines.items()), lines


def said(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    records = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    events = Counter(getattr(record, "event", record.getMessage()) for record in records)
    del events["BUS_HANDLER_FAILED"], events["BUS_DEAD_LETTERED"]
    return +events


async def test_what_is_due_in_a_full_redis_waits_and_that_is_said_once(
    buses: Buses, redis_client: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was said: reading goes on there."""
    handled: list[int] = []
    async with listening(buses, handled) as bus:
        await bus.publish("s", 1, delay=HOUR, message_id="m")
        async with redis_client.pipeline(transaction=True) as together:
            together.zadd(Keys.of("s", "any").delayed_due, {"m": 1}, xx=True)
            await together.config_set("maxmemory", "1").execute()
        await eventually(lambda: said(caplog)["BUS_SCHEDULE_FAILED"])
        before = (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        await asyncio.sleep(LASTS)  # the trouble
        after = (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert after - before < 30
        await redis_client.config_set("maxmemory", "0")
        await eventually(lambda: handled == [1])
        assert said(caplog)["BUS_SCHEDULE_FAILED"] == 1


async def test_what_a_lost_read_brought_is_taken_once_a_redis_that_refuses_then_serves_again(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    """One refusal, and it was left until its lease had run out."""
    handled: list[int] = []
    bus = buses(url=proxy.url, block=0.3, backoff_initial=FIRST, backoff_maximum=LONGEST)

    @bus.subscriber("s", ack_wait=HOUR)
    async def handle(number: int) -> None:
        handled.append(number)

    async with bus:
        own = f"EVALSHA {streams.OWN.sha}"
        proxy.refuse_commands("LOADING Redis is loading the dataset in memory", own)
        proxy.lose_reply("XREADGROUP")
        await redis_client.xadd("s", {"v": "1", "data": "1"})
        await eventually(lambda: proxy.refused[own] >= 2)
        proxy.refuse_commands("")
        await eventually(lambda: handled == [1])


# --- connections that there are none of ----------------------------------------------------------------------------


def client_with(buses: Buses, connections: int, *, waits: bool) -> Any:
    """A client whose pool gives so many connections, and has who wants more wait for ever, or refuses."""
    library: Any = redis.asyncio if buses.twin == ASYNCIO else redis
    kind = library.BlockingConnectionPool if waits else library.ConnectionPool
    options = {"timeout": None} if waits else {}
    pool = kind.from_url(buses.backend.url, max_connections=connections, retry=None, **options)
    return library.Redis(connection_pool=pool)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "refuses"])
async def test_a_pool_that_is_too_small_for_the_subscribers_says_how_many_they_need(buses: Buses, waits: bool) -> None:
    """With a pool that has callers wait, `start` never returned."""
    needed = 2 if buses.twin == ASYNCIO else 3
    client = client_with(buses, needed - 1, waits=waits)
    with pytest.raises(ConfigurationError, match=rf"max_connections={needed - 1}: .* keeps {needed} connections"):
        await listening(buses, [], client=client).start()
    await buses.close(client)
    handled: list[int] = []
    client = client_with(buses, needed, waits=waits)
    async with listening(buses, handled, client=client) as bus:
        await bus.publish("s", 1)
        await eventually(lambda: handled == [1])
    await buses.close(client)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "refuses"])
async def test_a_publish_for_which_no_connection_is_free_ends_in_time_and_says_so(buses: Buses, waits: bool) -> None:
    """A pool that has callers wait held a thread's publish up for as long as the pool liked."""
    client = client_with(buses, 1, waits=waits)
    bus = buses(client=client)
    pool = client.connection_pool
    taken = await pool.get_connection() if buses.twin == ASYNCIO else pool.get_connection()
    async with asyncio.timeout(15):
        with pytest.raises(PublishTimeout, match=r"all connections .* are taken; give it a larger max_connections"):
            await bus.publish("s", 1, timeout=SOON)
        with pytest.raises(ConnectionLost, match="max_connections"):
            await buses(client=client, connect_timeout=SOON).start()
    publishing = asyncio.ensure_future(bus.publish("s", 2, timeout=20.0))
    released = pool.release(taken)
    if buses.twin == ASYNCIO:
        await released
    assert (await publishing).id
    await bus.stop()
    await buses.close(client)


# --- connections that are half open ----------------------------------------------------------------------------------


async def test_connections_that_go_dark_are_given_up_and_made_anew(
    buses: Buses, proxy: Proxy, redis_client: redis.asyncio.Redis
) -> None:
    """No FIN, no reset: only that nothing answers tells. A lease is renewed over a new connection in time: with the
    reply timeout as its measure another consumer ran the message again."""
    runs: Counter[int] = Counter()
    gate = Gate()

    async def handle(number: int) -> None:
        runs[number] += 1
        await gate.passed()

    dark = buses(url=proxy.url, block=0.3, reply_timeout=11.0)
    dark.subscriber("s", ack_wait=2.4)(handle)  # renews often; when it is taken over, the other's lease says
    other = buses(block=0.3)
    other.subscriber("s", ack_wait=6.5)(handle)
    keep = f"EVALSHA {streams.KEEP.sha}"
    async with dark:
        await dark.publish("s", 1)
        await eventually(lambda: proxy.commands[keep] >= 1 and runs == {1: 1})
        async with other:
            connections = proxy.connections
            proxy.go_dark()
            with pytest.raises(PublishTimeout):
                await dark.publish("s", 2, timeout=SOON)
            beats = proxy.commands[keep]
            await eventually(lambda: proxy.connections >= connections + 3, timeout=30)  # reader, publisher, heartbeat
            await eventually(lambda: proxy.commands[keep] >= beats + 4)
            assert runs == {1: 1}
            gate.open()
            await dark.publish("s", 3, timeout=20.0)
            await eventually(lambda: all_acked(redis_client, "s"))
    assert runs == {1: 1, 3: 1}
