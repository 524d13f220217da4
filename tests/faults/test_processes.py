"""Processes are killed, stopped and ended at every point of their work, while others publish and handle."""

import asyncio
import signal

import pytest

from quantum_bus import names, streams
from quantum_bus.streams import Script
from tests.faults.holdings import last_delivered
from tests.faults.proxy import Proxy
from tests.faults.scenario import ACK_WAIT, GROUP, NEVER, STREAM, Scenario

POINTS = {
    "begin": streams.BEGIN,
    "ack": streams.ACK,
    "retry": streams.RETRY,
    "dead letter": streams.DEAD_LETTER,
    "due": streams.DUE,
    "recover": streams.RECOVER,
}


async def scripts_known(load: Scenario) -> None:
    """Else the reply that is lost would say that the server does not know the script."""
    for script in POINTS.values():
        await load.client.script_load(script.text)


async def killed_at(load: Scenario, net: Proxy, name: str, script: Script, *, drop: bool) -> None:
    victim = load.consumer(net.url)
    held = net.hold(f"EVALSHA {script.sha}")
    await load.until(held.is_set, f"a consumer comes to {name}")
    with load.fault(f"a consumer is killed {'before' if drop else 'after'} {name}"):
        victim.kill()
        net.release(drop=drop)


async def test_a_consumer_may_be_killed_before_and_after_everything_it_writes(load: Scenario, net: Proxy) -> None:
    await scripts_known(load)
    await load.begin(consumers=1)
    for _ in range(load.form.of(1, 2, 20)):
        for name, script in POINTS.items():
            for drop in (True, False):
                await killed_at(load, net, name, script, drop=drop)
    await load.over()


async def test_a_consumer_killed_at_random_is_replaced(load: Scenario) -> None:
    """Without taking over what the dead held, eleven messages were left."""
    await load.begin(mix={"ok": 3, "work": 3, "raise/ok": 1, "reject": 1, "raise": 1})
    for _ in range(load.form.of(3, 10, 200)):
        await asyncio.sleep(load.random.uniform(0.0, 0.5))  # the point at which it dies
        with load.fault("a consumer is killed"):
            load.random.choice(load.of("consumer")).kill()
        load.consumer()
    verdict = await load.over()
    assert verdict.figures["cut off"]


async def test_a_publisher_killed_at_random_leaves_nothing_half_done(load: Scenario) -> None:
    await load.begin()
    for _ in range(load.form.of(2, 5, 100)):
        await asyncio.sleep(load.random.uniform(0.0, 0.3))  # the point at which it dies
        with load.fault("the publisher is killed"):
            load.of("publisher")[0].kill()
        load.publisher()
        await load.progress(20, "published ok")
    await load.over()


async def test_consumers_stopped_past_their_leases_settle_nothing_that_others_took_over(load: Scenario) -> None:
    load.consumer()
    load.consumer()
    load.publisher(mix={"ok": 3, "work": 3, "work/ok": 1, "reject": 1, "raise/ok": 1}, pause=0.05)
    await load.progress()
    for _ in range(load.form.of(2, 4, 50)):
        victim = load.random.choice(load.of("consumer"))
        with load.fault("a consumer is stopped past its lease", stops=victim.process.pid):
            victim.send(signal.SIGSTOP)
            await asyncio.sleep(2 * ACK_WAIT)  # the fault
            victim.send(signal.SIGCONT)
        await load.progress(50)
    consumers = load.of("consumer")
    verdict = await load.over()
    assert verdict.figures["repeated"], "handlers that were stopped ended after others had run in their place"
    assert sum(consumer.events()[names.EVENT_BUS_LEASE_LOST] for consumer in consumers)


async def test_consumers_may_be_replaced_under_load_and_abandon_nothing(load: Scenario) -> None:
    """What is handed back is taken at once, by no lease's end. Without the release on stop six messages were left."""
    await load.begin(lease=NEVER)
    ended = []
    for _ in range(load.form.of(3, 6, 100)):
        leaving = load.of("consumer")[0]
        leaving.send(signal.SIGTERM)
        load.consumer(ack_wait=NEVER)
        await leaving.stopped()
        ended.append(leaving)
        await load.progress(50)
    verdict = await load.over(timeout=30.0)
    assert not any(consumer.events()[names.EVENT_BUS_ABANDONED] for consumer in ended)
    assert not verdict.figures["repeated"]
    assert not verdict.figures["cut off"]


async def test_twenty_consumers_may_start_at_once(load: Scenario) -> None:
    load.publisher(count=800, lanes=8, timeout=60.0)
    for _ in range(20):
        load.consumer(concurrency=2, ack_wait=NEVER)
    await load.until(lambda: not load.of("publisher"), "all is published")
    await load.until(lambda: load.count("begun") > 800, "all is begun")
    verdict = await load.over()
    assert verdict.figures["acknowledged"] == 800
    assert verdict.figures["repeated"] == 0
    assert await last_delivered(load.client, STREAM, GROUP) is not None
    errors = [event for worker in load.workers for event in worker.events() if "FAILED" in event]
    assert set(errors) <= {names.EVENT_BUS_HANDLER_FAILED}, "starting side by side is no error"


async def test_what_kills_its_process_each_time_is_dead_lettered_under_load(load: Scenario) -> None:
    """Without the note that a run begins, nobody counts its attempts, and it goes on killing."""
    load.publisher(count=200, lanes=2)
    load.publisher(count=2, lanes=2, mix={"die": 1})
    retry = {"max_attempts": 3, "initial": 0.02, "maximum": 0.1}

    async def supervised() -> bool:
        while len(load.of("consumer")) < 2:
            load.consumer(retry=retry)
        return not load.of("publisher") and not (await load.holdings()).waiting

    await load.until(supervised, "everything is handled or dead-lettered")
    verdict = await load.over()
    assert verdict.figures["cut off"] >= 3


@pytest.mark.timeout(1200)
async def test_reads_may_be_cancelled_ten_thousand_times(load: Scenario) -> None:
    """Consumers are started and cancelled, or stopped with no time to drain, all the time; one stays.

    Ten thousand in all the runs of the whole form together.
    """
    lanes, cancelled = 4, load.form.of(200, 3_600, 40_000)
    await load.begin(consumers=1, pause=0.05)
    with load.fault("reads are cancelled"):
        for _ in range(2):
            load.restless(cancelled // 2 // lanes, lanes)
        await load.until(lambda: not load.of("restless"), "all are cancelled", timeout=900.0)
    assert load.count("round") == cancelled
    broken = [worker.log for worker in load.workers if "Exception in thread" in worker.log.read_text(encoding="utf-8")]
    assert not broken, "where a link was closed under the thread that read from it, that thread died"
    await load.progress()
    await load.over()
