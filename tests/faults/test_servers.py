"""The server dies, hangs, forgets, fills up, and lives in another time, while processes publish and handle."""

import asyncio

import pytest
from redis.exceptions import ResponseError

from quantum_bus.demo.redis_server import RedisProcess
from tests.faults import checker
from tests.faults.conftest import PERSISTENT
from tests.faults.scenario import GROUP, STREAM, Scenario
from tests.faults.small_disk import SmallDisk
from tests.faults.wall_clock import WallClock


async def killed_and_restarted(load: Scenario, server: RedisProcess, times: int) -> None:
    await load.begin()
    for _ in range(times):
        await load.progress(50)
        await load.progress(1, "ended reject")
        with load.fault("the server is killed"):
            server.kill()
        server.start()
    await load.progress(50)


@pytest.mark.parametrize("server_options", [PERSISTENT], ids=["persistent"])
async def test_a_persistent_redis_that_is_killed_again_and_again_loses_nothing(
    load: Scenario, server: RedisProcess
) -> None:
    await killed_and_restarted(load, server, load.form.of(2, 5, 20))
    verdict = await load.over()
    assert verdict.figures["acknowledged"] > 100


async def test_the_checker_says_which_messages_a_redis_without_persistence_loses(
    load: Scenario, server: RedisProcess
) -> None:
    """The suite's own control: the same kills and the same load, and a checker that finds nothing would be blind."""
    await killed_and_restarted(load, server, load.form.of(1, 5, 20))
    verdict = await load.verdict()
    assert verdict.of(checker.LOST)
    assert {violation.rule for violation in verdict.violations} <= {checker.LOST, checker.ATTEMPTS}


async def test_a_redis_that_hangs_is_waited_for(load: Scenario, server: RedisProcess) -> None:
    """This is also where another correlation id in the dead letters was seen: 149 times, by message id."""
    await load.begin()
    with load.fault("the server is stopped"):
        server.suspend()
        await asyncio.sleep(load.form.of(3.0, 30.0))  # the fault
        server.resume()
    await load.progress()
    await load.over()


async def test_what_is_flushed_or_destroyed_under_load_and_at_rest_is_made_again(load: Scenario) -> None:
    """With groups made again at the stream's end, 29 messages were lost."""
    await load.begin()
    for _ in range(load.form.of(1, 3, 30)):
        with load.fault("FLUSHALL", loses=True, forgets=True):
            await load.client.flushall()
        await load.progress()
        with load.fault("XGROUP DESTROY", forgets=True):
            await load.client.xgroup_destroy(STREAM, GROUP)
        await load.progress()
        await load.stopped(load.of("publisher"))
        await load.drained()  # now the consumers block
        with load.fault("FLUSHALL at rest", loses=True, forgets=True):
            await load.client.flushall()
        with load.fault("XGROUP DESTROY at rest", forgets=True):
            async with load.client.pipeline(transaction=True) as together:  # else a consumer may be given it
                await together.xadd(STREAM, {"v": "1"}, nomkstream=True).delete(STREAM).execute()
        load.publisher()
        await load.progress()
    await load.over()


async def test_a_redis_that_is_full_says_so_and_goes_on_when_it_is_given_more(load: Scenario) -> None:
    await load.begin(pause=0.002)
    for _ in range(load.form.of(1, 3, 30)):
        used = (await load.client.info("memory"))["used_memory"]
        with load.fault("maxmemory is reached"):
            await load.client.config_set("maxmemory", used + 200_000)
            await load.progress(10, "published failed")
        await load.client.config_set("maxmemory", 0)
        await load.progress(100, "published ok")
    verdict = await load.over()
    assert verdict.figures["refused"] >= 10, "back pressure, of which the checker knows that it was true"


@pytest.mark.parametrize("server_options", [{"appendonly": "yes", "appendfsync": "everysec"}], ids=["aof"])
async def test_a_disk_that_is_full_stops_nothing_for_good(
    load: Scenario, server: RedisProcess, small_disk: SmallDisk
) -> None:
    """`always` would end the server at once; with `everysec` it answers MISCONF to every write until it can write."""
    pid = server.pid
    assert pid is not None
    await load.begin()
    for _ in range(load.form.of(1, 2, 10)):
        with load.fault("the disk is full"):
            small_disk.fill(pid)
            await load.until(lambda: refused(load), "the server refuses writes")
            small_disk.empty(pid)
        await load.progress(100, "published ok")
    await load.stopped(load.of("publisher"))
    await load.drained()
    server.stop()
    server.start()  # what it has written meanwhile is whole
    load.publisher()
    await load.progress()
    await load.over()


async def refused(load: Scenario) -> bool:
    try:
        await load.client.set("probe", 1)
    except ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


HOUR = 3600.0


async def test_a_clock_that_jumps_an_hour_ahead_and_back_loses_nothing(
    load: Scenario, clock: WallClock, server: RedisProcess
) -> None:
    """Ahead all leases have run out, and what runs may run twice; back, what is scheduled or a dead one's waits."""
    await load.begin()
    for number in range(load.form.of(1, 2, 10)):
        before = await load.client.time()
        with load.fault("an hour ahead", expires=True):
            clock.set((number + 1) * HOUR)
            await load.until(lambda before=before: ahead(load, before), "the server's clock has jumped")
            await load.progress()
            load.of("consumer")[0].kill()
            load.consumer()
        with load.fault("an hour back"):
            clock.set(number * HOUR)
            await load.progress(50)  # what is new is handled
        with load.fault("the hour has come at which leases end that were given then", expires=True):
            clock.set((number + 1) * HOUR)
            await load.progress()
    await load.over()


async def ahead(load: Scenario, before: tuple[int, int]) -> bool:
    return bool((await load.client.time())[0] > before[0] + HOUR - 60)
