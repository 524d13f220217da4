"""Messages are read ahead of handlers that are fast, and are nobody's loss where these slow down."""

import redis.asyncio

from tests.contract.conditions import Gate, eventually
from tests.contract.entries import pending
from tests.contract.twins import Buses

FAST, ALL, CONCURRENCY = 2_000, 3_000, 4


async def test_what_was_read_ahead_of_handlers_that_slow_down_is_handed_to_others(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Without the surplus that is given up, what was read ahead waited for the handlers that hang.
    slow, other = buses(), buses()
    gate = Gate()
    begun: list[int] = []
    handled: set[int] = set()

    @slow.subscriber(stream, concurrency=CONCURRENCY, ack_wait=2.0)
    async def handle(number: int) -> None:
        begun.append(number)
        if number >= FAST:
            await gate.passed()
        handled.add(number)

    @other.subscriber(stream, ack_wait=8.0)  # long enough that it takes nothing over from one that is merely held up
    async def handle_instead(number: int) -> None:
        handled.add(number)

    await buses().publish_many(stream, range(ALL))
    async with slow:
        await eventually(lambda: len(begun) == FAST + CONCURRENCY)
        async with other:
            await eventually(lambda: len(handled) == ALL - CONCURRENCY)
            assert len(begun) == FAST + CONCURRENCY
            assert len(await pending(redis_client, stream)) >= CONCURRENCY
            gate.open()
            await eventually(lambda: len(handled) == ALL)
    assert not await pending(redis_client, stream)
