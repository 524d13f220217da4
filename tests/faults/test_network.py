"""The network cuts, delays and forgets connections while processes publish and handle.

No process dies here, and no lease runs out: a consumer has to find again by itself what a lost reply left with it.
"""

import asyncio
from collections.abc import Iterator

from quantum_bus import streams
from tests.faults.proxy import REPLIES, REQUESTS, Proxy
from tests.faults.scenario import NEVER, Scenario


def offsets(load: Scenario, count: int) -> Iterator[tuple[str, int]]:
    """Where connections are to be cut: many in what they begin with, the others in the midst of work."""
    for _ in range(count):
        furthest = load.random.choice([50, 500, 5_000, 50_000])
        yield load.random.choice([REQUESTS, REPLIES]), load.random.randrange(1, furthest)


async def test_a_connection_may_be_cut_between_any_two_bytes(load: Scenario, net: Proxy) -> None:
    cuts = load.form.of(60, 200, 5_000)
    net.cut_between_bytes(offsets(load, cuts))
    load.consumer(net.url, ack_wait=NEVER)
    load.consumer(net.url, ack_wait=NEVER)
    load.publisher(net.url)
    await load.until(lambda: net.cuts >= cuts * 0.9, "as many cuts")
    await load.progress()
    await load.over()


async def test_bytes_may_come_one_by_one_and_half_a_second_late(load: Scenario, net: Proxy) -> None:
    """What was read ahead, and handed back with no answer in time, stayed with its consumer for ever."""
    slow = {"reply_timeout": 60.0, "ack_wait": NEVER}
    for _ in range(2):
        load.consumer(net.url, **slow)
    load.publisher(net.url, lanes=40, timeout=60.0)
    await load.progress()
    with load.fault("bytes one by one, and late"):
        net.slice(0.5)
        await load.progress(load.form.of(60, 150, 3_000))
        net.slice(0.0)
    verdict = await load.over()
    assert not verdict.figures["in doubt"]
    assert not verdict.figures["repeated"], "what is only slow runs once"


async def test_connections_that_a_router_forgot_are_given_up(load: Scenario, net: Proxy) -> None:
    """Without a deadline for replies nothing was handled any more."""
    await load.begin(net.url, lease=NEVER)
    for _ in range(load.form.of(1, 3, 20)):
        with load.fault("connections go dark"):
            net.go_dark()
            await load.progress()
    await load.over()


async def test_all_connections_may_be_killed_every_50_ms(load: Scenario) -> None:
    await load.begin(lease=NEVER)
    with load.fault("CLIENT KILL every 50 ms"):
        for _ in range(load.form.of(40, 100, 2_000)):
            await load.client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
    await load.progress()
    await load.over()


async def test_replies_of_every_kind_may_be_lost(load: Scenario, net: Proxy) -> None:
    """Without a look at its own entries after a read that broke, two messages were left with a consumer."""
    await load.begin(net.url, lease=NEVER)
    scripts = (streams.BEGIN, streams.ACK, streams.RETRY, streams.DEAD_LETTER, streams.DUE)
    lost = ["XADD", "XREADGROUP", *(f"EVALSHA {script.sha}" for script in scripts)]
    times = load.form.of(3, 10, 100)
    with load.fault("lost replies"):
        for command in lost:
            net.lose_reply(command, count=times, after=2)
            await load.until(lambda command=command: net.lost[command] >= times, f"{command} was lost {times} times")
    await load.over()
