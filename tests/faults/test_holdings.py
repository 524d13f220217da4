"""What the checker is told of Redis: that a look at it misses nothing while others are at work."""

import redis.asyncio

from quantum_bus import Retry
from tests.contract.twins import Buses
from tests.faults.holdings import holdings_of


async def test_a_message_that_is_moved_about_is_in_every_look(buses: Buses, redis_client: redis.asyncio.Redis) -> None:
    # fails without: a look at all places at once (it is moved from where one has not looked to where one has)
    runs = 0
    bus = buses()

    @bus.subscriber("s", group="g", retry=Retry(max_attempts=1_000_000, initial=0.001, maximum=0.001))
    async def handle(payload: int) -> None:
        nonlocal runs
        runs += 1
        raise ValueError(payload)

    await bus.start()
    await bus.publish("s", 1, message_id="m")
    while runs < 200:
        assert set((await holdings_of(redis_client, "s", "g")).waiting) == {"m"}
