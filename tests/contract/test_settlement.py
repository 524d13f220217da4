"""Settling by hand, and how often a message is tried."""

import asyncio
import time
from typing import Any

import pytest
import redis.asyncio

from quantum_bus import ConfigurationError, LeaseLost, Message, MessageAlreadySettled, Reject, Retry
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked, pending, scheduled, stored
from tests.contract.twins import ASYNCIO, Buses, settled


async def owner(client: redis.asyncio.Redis, stream: str) -> tuple[str, int]:
    """Who has the only pending entry, and how often it was delivered."""
    [entry] = await client.xpending_range(stream, "svc", "-", "+", 2)
    return entry["consumer"].decode(), entry["times_delivered"]


async def taken_over(client: redis.asyncio.Redis, stream: str, entry_id: str) -> None:
    assert await client.xclaim(stream, "svc", "another", 0, [entry_id])


# --- by hand -----------------------------------------------------------------------------------------------------


async def test_ack_returns_when_redis_has_acked(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus = buses()
    acked, gate = Gate(), Gate()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        await settled(message.ack())
        assert message.settled
        acked.open()
        await gate.passed()

    await bus.publish(stream, {})
    async with bus:
        await acked.passed()
        assert await all_acked(redis_client, stream)
        gate.open()


async def test_nack_runs_the_handler_again_after_the_delay_it_names(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    runs: list[tuple[int, float]] = []
    delays = iter([0, 0.15, 0])

    @bus.subscriber(stream, retry=Retry(initial=1000, maximum=1000, jitter="none"))
    async def handle(message: Message) -> None:
        runs.append((message.attempt, time.monotonic()))
        if message.attempt < 4:
            await settled(message.nack(delay=next(delays)))

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert [attempt for attempt, _ in runs] == [1, 2, 3, 4]
    assert runs[2][1] - runs[1][1] >= 0.149, "Redis counts whole milliseconds"


async def test_nack_on_the_last_attempt_dead_letters(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=2, initial=0))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        await settled(message.nack())

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert attempts == [1, 2]
    assert (dead["dlq.reason"], dead["dlq.attempts"]) == ("max_attempts", "2")


async def test_term_dead_letters_with_its_reason(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        await settled(message.term("symbol is delisted"))

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert (dead["dlq.reason"], dead["dlq.error_message"]) == ("rejected", "symbol is delisted")


async def test_in_progress_renews_the_lease_and_counts_no_delivery(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    begun, renew, renewed, gate = Gate(), Gate(), Gate(), Gate()

    @bus.subscriber(stream, ack_wait=7_200.0)
    async def handle(message: Message) -> None:
        begun.open()
        await renew.passed()
        await settled(message.in_progress())
        renewed.open()
        await gate.passed()

    async def idle() -> int:
        [entry] = await redis_client.xpending_range(stream, "svc", "-", "+", 1)
        return int(entry["time_since_delivered"])

    await bus.publish(stream, {})
    async with bus:
        await begun.passed()
        [entry_id] = await pending(redis_client, stream)
        holder, _ = await owner(redis_client, stream)
        await redis_client.xclaim(stream, "svc", holder, 0, [entry_id], idle=3_600_000, justid=True)
        assert await idle() >= 3_600_000
        renew.open()
        await renewed.passed()
        assert await idle() < 60_000
        assert (await owner(redis_client, stream))[1] == 2, "one for the read and one for the run, none for the lease"
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))


@pytest.mark.parametrize("first", ["ack", "nack", "term"])
@pytest.mark.parametrize("second", ["ack", "nack", "term", "in_progress"])
async def test_settling_twice_is_an_error_that_names_the_first(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, first: str, second: str
) -> None:
    bus = buses()
    errors: list[Exception] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(message: Message) -> None:
        await settled(_settle(message, first))
        try:
            await settled(_settle(message, second))
        except MessageAlreadySettled as error:
            errors.append(error)

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(errors) == 1
    assert first in str(errors[0])


def _settle(message: Message, how: str) -> Any:
    return message.term("reason") if how == "term" else getattr(message, how)()


async def test_a_message_kept_beyond_its_handler_can_no_longer_be_settled(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    kept: list[Message] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        kept.append(message)

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
        with pytest.raises(MessageAlreadySettled):
            await settled(kept[0].ack())


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan")])
async def test_a_delay_that_never_ends_is_refused(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, delay: float
) -> None:
    bus = buses()
    errors: list[Exception] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        try:
            await settled(message.nack(delay))
        except ConfigurationError as error:
            errors.append(error)

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: errors)
        await eventually(lambda: all_acked(redis_client, stream))


@pytest.mark.parametrize("reason", [None, 7, b"bytes"])
async def test_a_reason_that_is_no_text_is_refused_and_the_message_is_settled_otherwise(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, reason: Any
) -> None:
    bus = buses()

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(message: Message) -> None:
        await settled(message.term(reason))

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        await eventually(lambda: all_acked(redis_client, stream))
    assert dead["dlq.error_type"] == "quantum_bus.errors.ConfigurationError"


@pytest.mark.parametrize("twin", [ASYNCIO])
@pytest.mark.parametrize("how", ["ack", "term"])
async def test_a_forgotten_await_is_warned_of_and_the_message_is_settled_all_the_same(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, how: str
) -> None:
    bus = buses()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        _settle(message, how)

    await bus.publish(stream, {})
    with pytest.warns(RuntimeWarning, match="never awaited"):
        async with bus:
            await eventually(lambda: all_acked(redis_client, stream))


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_def_handler_may_settle_from_an_event_loop_of_its_own(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    def handle(message: Message) -> None:
        async def settle() -> None:
            await message.in_progress()
            await message.ack()

        asyncio.run(settle())

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert not await stored(redis_client, dlq)


# --- a lease that is lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ack", "nack", "term", "in_progress"])
async def test_settling_what_another_consumer_has_taken_over_is_lease_lost_and_changes_nothing(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, how: str
) -> None:
    bus = buses()
    began, gate = Gate(), Gate()
    errors: list[Exception] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        began.open()
        await gate.passed()
        try:
            await settled(_settle(message, how))
        except LeaseLost as error:
            errors.append(error)

    receipt = await bus.publish(stream, {})
    async with bus:
        await began.passed()
        await taken_over(redis_client, stream, receipt.id)
        gate.open()
        await eventually(lambda: errors)
    assert await owner(redis_client, stream) == ("another", 3)  # one for the read, one for the run, one for the claim
    assert not await stored(redis_client, dlq)


@pytest.mark.parametrize("error", [None, Reject("no"), ValueError("last attempt")])
async def test_the_end_of_a_handler_changes_nothing_about_what_another_consumer_has_taken_over(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    dlq: str,
    error: Exception | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = buses()
    began, gate = Gate(), Gate()

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(message: Message) -> None:
        began.open()
        await gate.passed()
        if error is not None:
            raise error

    receipt = await bus.publish(stream, {})
    async with bus:
        await began.passed()
        await taken_over(redis_client, stream, receipt.id)
        gate.open()
        await eventually(lambda: "BUS_LEASE_LOST" in [getattr(record, "event", "") for record in caplog.records])
    assert await owner(redis_client, stream) == ("another", 3)  # one for the read, one for the run, one for the claim
    assert not await stored(redis_client, dlq)


# --- retry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_failing_handler_runs_max_attempts_times_and_counts_from_one(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, max_attempts: int
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=max_attempts, initial=0))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: stored(redis_client, dlq))
    assert attempts == list(range(1, max_attempts + 1))


async def test_the_default_is_five_attempts() -> None:
    assert Retry().max_attempts == 5


async def test_a_handler_that_succeeds_in_the_end_leaves_no_dead_letter(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=Retry(initial=0))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt < 5:
            raise ValueError

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert attempts == [1, 2, 3, 4, 5]
    assert not await stored(redis_client, dlq)


@pytest.mark.parametrize(
    ("retry", "runs"),
    [
        (Retry(initial=0, max_attempts=3, give_up_on=KeyError), 1),
        (Retry(initial=0, max_attempts=3, give_up_on=LookupError), 1),
        (Retry(initial=0, max_attempts=3, retry_on=ValueError), 1),
        (Retry(initial=0, max_attempts=3, retry_on=(ValueError, LookupError), give_up_on=()), 3),
        (Retry(initial=0, max_attempts=3, retry_on=LookupError, give_up_on=KeyError), 1),
    ],
)
async def test_retry_says_which_errors_are_tried_again(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, retry: Retry, runs: int
) -> None:
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=retry)
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        raise KeyError("BTC")

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
    assert len(attempts) == runs
    assert dead["dlq.reason"] == ("gave_up" if runs == 1 else "max_attempts")


async def test_a_run_that_takes_longer_than_its_timeout_has_failed(
    buses: Buses, twin: str, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    gate = Gate()
    attempts: list[int] = []

    @bus.subscriber(stream, timeout=0.05, retry=Retry(max_attempts=2, initial=0))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        await gate.passed()

    await bus.publish(stream, {})
    async with bus:
        [dead] = await eventually(lambda: stored(redis_client, dlq))
        gate.open()
    assert attempts == [1, 2]
    assert dead["dlq.error_type"] == "TimeoutError"


async def test_a_message_waiting_for_its_next_attempt_takes_up_no_handler(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, concurrency=2, retry=Retry(initial=1000, maximum=1000, jitter="none"))
    async def handle(number: int) -> None:
        if number == 0:
            raise ValueError
        handled.append(number)

    await bus.publish_many(stream, range(10))
    async with bus:
        await eventually(lambda: sorted(handled) == list(range(1, 10)))
        await eventually(lambda: _one_scheduled(redis_client, stream))
        await eventually(lambda: _none_pending(redis_client, stream))


async def _none_pending(client: redis.asyncio.Redis, stream: str) -> bool:
    return not await pending(client, stream)


async def _one_scheduled(client: redis.asyncio.Redis, stream: str) -> bool:
    return len(await scheduled(client, stream)) == 1


@pytest.mark.parametrize("twin", [ASYNCIO])
async def test_a_handler_that_cancels_itself_has_failed_and_the_next_message_is_handled(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    handled: list[int] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=1, retry_on=BaseException))
    async def handle(number: int) -> None:
        if number == 0:
            raise asyncio.CancelledError
        handled.append(number)

    await bus.publish_many(stream, [0, 1])
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [1]
    assert len(await stored(redis_client, dlq)) == 1
