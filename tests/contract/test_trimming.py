"""What is freed of a stream, and what never is; on the script itself, and through a bus.

A comment in a test names the protection that it was seen to fail without.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import ConfigurationError, Message, names, streams, upkeep
from quantum_bus.streams import Keys
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked, delivered
from tests.contract.twins import Buses

NODE = 100
"""Entries that Redis frees together, as it is set by default."""

Look = Callable[..., Awaitable[Any]]


@pytest.fixture
def look(redis_client: redis.asyncio.Redis, stream: str) -> Look:
    """One step of the script: entries freed, whether more can be, how many are left, the slowest group."""
    keys = Keys.of(stream, "svc")

    async def step(
        keep: int, *, step: int = 1, most: int = 1_000, page: int = 500, limit: int = 10_000, vanished: int = 60
    ) -> Any:
        reply: Any = await redis_client.eval(
            streams.UPKEEP.text, 3, keys.stream, keys.notes, keys.marks, keep, step, most, page, limit, vanished
        )
        return reply[0], reply[1], reply[2], reply[3].decode()

    return step


async def add(client: redis.asyncio.Redis, stream: str, count: int) -> list[str]:
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        pipeline.xadd(stream, {"n": number})
    return [entry_id.decode() for entry_id in await pipeline.execute()]


async def read(client: redis.asyncio.Redis, stream: str, group: str, count: int) -> list[str]:
    found: Any = await client.xreadgroup(group, "c", {stream: ">"}, count=count)
    return [entry_id.decode() for _, entries in found for entry_id, _ in entries]


async def present(client: redis.asyncio.Redis, stream: str) -> set[str]:
    return {entry_id.decode() for entry_id, _ in await client.xrange(stream)}


async def freed_to_the_end(look: Look, keep: int, **options: int) -> int:
    freed = 0
    while True:
        step, more, _, _ = await look(keep, **options)
        freed += step
        if not more:
            return freed


async def test_with_no_group_nothing_is_freed(look: Look, redis_client: redis.asyncio.Redis, stream: str) -> None:
    await add(redis_client, stream, 3 * NODE)
    assert await look(0) == (0, 0, 3 * NODE, "")


async def test_of_what_all_groups_have_handled_the_newest_are_kept(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    for group in "ab":
        await redis_client.xgroup_create(stream, group, "0", mkstream=True)
    ids = await add(redis_client, stream, 20 * NODE)
    for group in "ab":
        await redis_client.xack(stream, group, *await read(redis_client, stream, group, len(ids)))
    await freed_to_the_end(look, 5 * NODE)
    left = await present(redis_client, stream)
    assert set(ids[-5 * NODE :]) <= left
    assert len(left) < 5 * NODE + upkeep.PAGE + NODE


async def test_what_a_group_has_pending_stays_and_all_behind_it(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Where only last-delivered ids counted, it was freed.
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    ids = await add(redis_client, stream, 10 * NODE)
    given = await read(redis_client, stream, "g", len(ids))
    held = given[4 * NODE + 50]
    await redis_client.xack(stream, "g", *(entry_id for entry_id in given if entry_id != held))
    await freed_to_the_end(look, 0, page=NODE)
    assert set(ids[ids.index(held) :]) <= await present(redis_client, stream)


async def test_the_slowest_group_decides_and_is_named(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    for group in ("fast", "slow"):
        await redis_client.xgroup_create(stream, group, "0", mkstream=True)
    ids = await add(redis_client, stream, 10 * NODE)
    await redis_client.xack(stream, "fast", *await read(redis_client, stream, "fast", len(ids)))
    await redis_client.xack(stream, "slow", *await read(redis_client, stream, "slow", 2 * NODE))
    for _ in range(3):
        *_, group = await look(0, page=NODE)
        assert group == "slow"
    assert set(ids[2 * NODE :]) <= await present(redis_client, stream)


async def test_what_a_group_that_vanished_had_not_handled_is_kept_for_it_for_a_while(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Where only the groups that are there counted, all but three nodes of it went, and it was made again behind them.
    for group in ("a", "b"):
        await redis_client.xgroup_create(stream, group, "0", mkstream=True)
    ids = await add(redis_client, stream, 10 * NODE)
    await redis_client.xack(stream, "a", *await read(redis_client, stream, "a", 3 * NODE))
    await look(0, page=NODE)
    await redis_client.xgroup_destroy(stream, "a")
    await redis_client.xack(stream, "b", *await read(redis_client, stream, "b", len(ids)))
    for _ in range(3):
        *_, slowest = await look(0, page=NODE)
        assert slowest == "a"
    assert set(ids[3 * NODE :]) <= await present(redis_client, stream)
    notes = Keys.of(stream, "a").notes
    assert await redis_client.hexists(notes, "gone:a")
    await redis_client.xgroup_create(stream, "a", ids[3 * NODE - 1])
    await look(0, page=NODE)
    assert not await redis_client.hexists(notes, "gone:a"), "it is back"
    await redis_client.xgroup_destroy(stream, "a")
    await look(0, page=NODE, vanished=60)
    await redis_client.hset(notes, "gone:a", 1)
    await freed_to_the_end(look, 0, page=NODE)
    await look(0, page=NODE)
    assert await redis_client.xlen(stream) <= NODE, "it was waited for long enough"
    assert not await redis_client.hexists(notes, "low:a")


async def test_a_stream_under_steady_load_stays_short(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """Marks tell what may go, without a look at entries."""
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    lengths = []
    for _ in range(30):
        await add(redis_client, stream, NODE)
        await redis_client.xack(stream, "g", *await read(redis_client, stream, "g", NODE))
        _, _, length, _ = await look(3 * NODE, step=30, page=1_000_000)
        lengths.append(length)
    assert max(lengths) <= 3 * NODE + 3 * NODE
    assert min(lengths[5:]) >= 3 * NODE


async def test_a_backlog_that_is_worked_off_is_freed_as_it_goes(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    for _ in range(10):
        await add(redis_client, stream, NODE)
        await look(NODE, step=10)
    for _ in range(5):
        await redis_client.xack(stream, "g", *await read(redis_client, stream, "g", NODE))
        await look(NODE, step=10)
    assert 6 * NODE <= await redis_client.xlen(stream) <= 8 * NODE


async def test_marks_stay_few(look: Look, redis_client: redis.asyncio.Redis, stream: str) -> None:
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    for _ in range(50):
        await add(redis_client, stream, 2)
        await look(0, most=10)
    assert await redis_client.zcard(Keys.of(stream, "g").marks) <= 10


@pytest.mark.parametrize("seed", range(6))
async def test_at_random_nothing_is_freed_that_a_group_has_not_handled(
    look: Look, redis_client: redis.asyncio.Redis, stream: str, seed: int
) -> None:
    """Also where entries are deleted by others, so that ranks are wrong."""
    chance = random.Random(seed)
    keep = chance.choice([0, 10, 150])
    added: list[str] = []
    handled: dict[str, set[str]] = {}
    given: dict[str, list[str]] = {}
    deleted: set[str] = set()
    for _ in range(120):
        match chance.choice(["add", "add", "read", "read", "ack", "ack", "group", "delete", "look", "look"]):
            case "add":
                added += await add(redis_client, stream, chance.choice([1, 40, 130]))
            case "group" if len(handled) < 3:
                group = f"g{len(handled)}"
                await redis_client.xgroup_create(stream, group, "0", mkstream=True)
                handled[group], given[group] = set(), []
                deleted |= set(added) - await present(redis_client, stream)  # what went before it came
            case "read" if handled:
                group = chance.choice(list(handled))
                given[group] += await read(redis_client, stream, group, chance.choice([1, 90, 200]))
            case "ack" if handled:
                group = chance.choice(list(handled))
                chance.shuffle(given[group])
                done = [given[group].pop() for _ in range(chance.randint(0, len(given[group])))]
                if done:
                    await redis_client.xack(stream, group, *done)
                    handled[group] |= set(done)
            case "delete" if added and chance.random() < 0.3:
                chosen = set(chance.sample(added, min(len(added), 20)))
                await redis_client.xdel(stream, *chosen)
                deleted |= chosen
            case "look":
                await look(keep, step=max(1, keep // 10), page=chance.choice([20, 100]))
                left = await present(redis_client, stream)
                for group, done in handled.items():
                    missing = set(added) - left - done - deleted
                    assert not missing, f"group {group} never handled {len(missing)} that were freed"


async def test_ids_compare_by_their_numbers(look: Look, redis_client: redis.asyncio.Redis, stream: str) -> None:
    # As text 9-0 is above 10-0: what was pending was freed.
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    ids = [*(f"9-{number}" for number in range(NODE)), "10-0"]
    for entry_id in ids:
        await redis_client.xadd(stream, {"n": 1}, id=entry_id)
    given = await read(redis_client, stream, "g", len(ids))
    await redis_client.xack(stream, "g", *given[1:])
    await look(0, page=1)
    assert await present(redis_client, stream) == set(ids)


async def test_ids_beyond_what_lua_can_count_are_told_apart(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    ids = [f"9007199254740992-{number}" for number in range(NODE)] + ["9007199254740993-0"]
    for entry_id in ids:
        await redis_client.xadd(stream, {"n": 1}, id=entry_id)
    given = await read(redis_client, stream, "g", len(ids))
    await redis_client.xack(stream, "g", *given[:50], *given[51:])
    await look(0, page=1)
    assert set(ids[50:]) <= await present(redis_client, stream)


async def test_where_others_delete_so_that_ranks_are_wrong_ids_decide(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without the look at the page's last id, a hundred entries went that nobody had been given.
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    old = await add(redis_client, stream, 3 * NODE)
    await redis_client.xack(stream, "g", *await read(redis_client, stream, "g", len(old)))
    await look(10 * NODE)
    await redis_client.xdel(stream, *old)
    new = await add(redis_client, stream, 3 * NODE)
    await look(0, page=NODE + 50)
    assert await present(redis_client, stream) == set(new)


async def test_marks_of_a_stream_that_was_deleted_free_nothing_of_its_successor(
    look: Look, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Its ids may be lower. Without the look at the mark's id, all of it went.
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    old = await add(redis_client, stream, 4 * NODE)
    await redis_client.xack(stream, "g", *await read(redis_client, stream, "g", len(old)))
    await look(100 * NODE)
    await redis_client.delete(stream)
    await redis_client.xgroup_create(stream, "g", "0", mkstream=True)
    added = iter(range(1, 10_000))

    async def more(count: int) -> None:
        for number, _ in zip(added, range(count), strict=False):
            await redis_client.xadd(stream, {"n": 1}, id=f"{number}-0")

    await more(4 * NODE)
    await look(100 * NODE)
    await more(40)
    await look(100 * NODE)
    await more(60)
    await redis_client.xack(stream, "g", *await read(redis_client, stream, "g", 4 * NODE + 50))
    await look(40, page=1_000_000)
    assert {f"{number}-0" for number in range(4 * NODE + 50, 5 * NODE)} <= await present(redis_client, stream)


# --- through a bus -------------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "EVERY", 0.02)


@pytest.mark.parametrize("option", [{"keep": -1}, {"keep": 1.5}, {"cap": 0}, {"cap": None}, {"cap": 10, "keep": 10}])
async def test_what_cannot_work_is_refused(buses: Buses, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(option))}=.*give (a whole number of [01] or )?more"):
        buses(**option)


@pytest.mark.usefixtures("often")
async def test_a_bus_frees_what_is_handled_and_keeps_what_it_is_told(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(keep=2 * NODE)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None: ...

    async with bus:
        await bus.publish_many(stream, [{}] * 30 * NODE)
        await eventually(lambda: all_acked(redis_client, stream))

        async def short() -> bool:
            return bool(await redis_client.xlen(stream) <= 2 * NODE + upkeep.PAGE + NODE)

        await eventually(short)
    assert await redis_client.xlen(stream) >= 2 * NODE


@pytest.mark.usefixtures("often")
async def test_none_frees_nothing(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses(keep=None)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None: ...

    async with bus:
        await bus.publish_many(stream, [{}] * 10 * NODE)
        await eventually(lambda: all_acked(redis_client, stream))
        last = await delivered(redis_client, stream)

        async def noted() -> bool:
            return await redis_client.hget(Keys.of(stream, "svc").notes, "low:svc") == last.encode()

        await eventually(noted)
    assert await redis_client.xlen(stream) == 10 * NODE


@pytest.mark.usefixtures("often")
async def test_a_stream_over_its_cap_is_said_and_left_alone(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quantum_bus")
    bus = buses(keep=0, cap=10)
    await redis_client.xgroup_create(stream, "nobody", "0", mkstream=True)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None: ...

    def said() -> list[Any]:
        return [record for record in caplog.records if getattr(record, "event", "") == names.EVENT_BUS_STREAM_LONG]

    async with bus:
        await bus.publish_many(stream, [{}] * 5 * NODE)
        [line] = await eventually(said)
    assert (line.stream, line.group) == (stream, "nobody")
    assert await redis_client.xlen(stream) == 5 * NODE


@pytest.mark.usefixtures("often")
async def test_a_group_that_vanished_goes_on_where_it_had_come_to(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Made again at 0, it handled all there was a second time.
    bus = buses(block=0.05)
    handled: list[str] = []
    gate = Gate()

    @bus.subscriber(stream, concurrency=2)
    async def handle(message: Message) -> None:
        if message.data == "held":
            await gate.passed()
        handled.append(message.id)

    done = [(await bus.publish(stream, number)).id for number in range(5)]
    held = (await bus.publish(stream, "held")).id
    async with bus:
        await eventually(lambda: len(handled) == 5)
        behind = (await bus.publish(stream, "behind")).id
        await eventually(lambda: behind in handled)

        async def noted() -> bool:
            low = await redis_client.hget(Keys.of(stream, "svc").notes, "low:svc")
            return bool(low == done[-1].encode())

        await eventually(noted)
        await redis_client.xgroup_destroy(stream, "svc")
        later = (await bus.publish(stream, "later")).id
        await eventually(lambda: later in handled)
        gate.open()
        await eventually(lambda: held in handled)
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled.count(behind) == 2, "it lay behind the mark, so it came again: at least once"
    assert [handled.count(entry_id) for entry_id in done] == [1] * 5


@pytest.mark.usefixtures("often")
async def test_what_is_noted_of_a_stream_that_was_deleted_does_not_count(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """Entries of a new stream under its name may have lower ids, where the clock was set back."""
    bus = buses(block=0.05)
    handled: list[str] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        handled.append(message.id)

    async with bus:
        last = (await bus.publish(stream, {})).id

        async def noted() -> bool:
            return await redis_client.hget(Keys.of(stream, "svc").notes, "low:svc") == last.encode()

        await eventually(noted)
        async with redis_client.pipeline(transaction=True) as together:
            await together.delete(stream).xadd(stream, {"data": "1"}, id="5-0").execute()
        await eventually(lambda: "5-0" in handled)
