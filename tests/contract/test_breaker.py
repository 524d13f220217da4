"""A subscriber that stops for what its handlers need, or because somebody said so, and goes on.

A comment in a test names the protection that it was seen to fail without.
"""

from typing import Any

import pytest
import redis.asyncio

import quantum_bus.breaker
from quantum_bus import Breaker, ConfigurationError, Event, EventBus, Message, Reject, Retry, names
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked, pending, stored
from tests.contract.recording import Recorder
from tests.contract.twins import Bus, Buses, blocking, settled

QUICK = Breaker(minimum=4, window=60.0, pause=0.1, maximum=0.2)
LONG = Breaker(minimum=2, pause=600.0, maximum=600.0)
FIRM = Retry(max_attempts=2, initial=0.01, maximum=0.05)


class Down(Exception):
    """What the handler needs does not answer."""


def events(caplog: pytest.LogCaptureFixture, *wanted: str) -> list[str]:
    found = (getattr(record, "event", "") for record in caplog.records)
    return [event for event in found if event in wanted]


async def pending_are(client: redis.asyncio.Redis, stream: str, count: int) -> bool:
    return len(await pending(client, stream)) == count


async def paused(bus: Bus, *streams: str) -> None:
    if isinstance(bus.raw, EventBus):
        bus.raw.pause(*streams)
    else:
        await blocking(bus.raw.pause, *streams)


async def resumed(bus: Bus, *streams: str) -> None:
    if isinstance(bus.raw, EventBus):
        bus.raw.resume(*streams)
    else:
        await blocking(bus.raw.resume, *streams)


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quantum_bus")


async def test_an_outage_does_not_turn_a_stream_into_dead_letters(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Without the breaker all forty were dead-lettered.
    recorder = Recorder()
    bus = buses(**recorder.options)
    is_down = True
    failed: list[str] = []
    handled: set[str] = set()

    all_four = Gate()

    # The first four runs are to open it, and none of them is to be a second one: they fail together.
    later = Retry(max_attempts=2, initial=2.0, jitter="none")

    @bus.subscriber(stream, concurrency=4, retry=later, breaker=QUICK)
    async def handle(message: Message) -> None:
        if is_down:
            failed.append(message.id)
            if len(failed) == 4:
                all_four.open()
            await all_four.passed()
            raise Down
        handled.add(message.id)

    await bus.publish_many(stream, [{}] * 40)
    async with bus:
        assert recorder.points(names.METRIC_BREAKER_STATE), "from the start"
        await eventually(lambda: len(failed) >= 12)  # several probes, over several pauses
        assert recorder.value(names.METRIC_BREAKER_STATE, messaging__destination__name=stream) > 0
        is_down = False
        await eventually(lambda: len(handled) == 40)
        await eventually(lambda: all_acked(redis_client, stream))
        assert recorder.value(names.METRIC_BREAKER_STATE, messaging__destination__name=stream) == 0
    assert await stored(redis_client, dlq) == []
    said = events(caplog, names.EVENT_BUS_BREAKER_OPENED, names.EVENT_BUS_BREAKER_CLOSED)
    assert said[0] == names.EVENT_BUS_BREAKER_OPENED
    assert said[-1] == names.EVENT_BUS_BREAKER_CLOSED
    recorder.close()


async def test_a_probe_that_fails_uses_up_no_attempt(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    # Where it did, the message was dead-lettered at the second probe.
    bus = buses()
    attempts: list[int] = []

    @bus.subscriber(stream, retry=FIRM, breaker=Breaker(minimum=1, pause=0.02, maximum=0.02))
    async def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if len(attempts) < 6:
            raise Down

    await bus.publish(stream, {})
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert attempts == [1, 2, 2, 2, 2, 2]
    assert await stored(redis_client, dlq) == []


async def test_while_it_is_open_nothing_runs_and_what_was_prefetched_is_free_for_others(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Where it was kept, the other consumer waited for the end of the pause.
    broken, sound = buses(), buses()
    failed: list[str] = []
    handled: set[str] = set()

    @broken.subscriber(stream, concurrency=4, ack_wait=60.0, retry=FIRM, breaker=LONG)
    async def fail(message: Message) -> None:
        failed.append(message.id)
        raise Down

    @sound.subscriber(stream, concurrency=4, ack_wait=60.0, retry=FIRM)
    async def handle(message: Message) -> None:
        handled.add(message.id)

    await broken.publish_many(stream, [{}] * 20)
    async with broken:
        await eventually(lambda: len(failed) >= 2)
        async with sound:
            await eventually(lambda: len(handled) == 20)
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(failed) <= 8


async def test_the_messages_own_faults_do_not_open_it(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses()

    patient = Breaker(minimum=2, pause=600.0, maximum=600.0, ignore=ValueError)

    @bus.subscriber(stream, retry=Retry(give_up_on=ValueError), breaker=patient)
    async def handle(message: Message) -> None:
        if message.data % 2:
            raise Reject("spoilt")
        raise ValueError

    await bus.publish_many(stream, list(range(10)))
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(await stored(redis_client, dlq)) == 10
    assert events(caplog, names.EVENT_BUS_BREAKER_OPENED) == []


async def test_a_probe_that_rejects_its_message_dead_letters_it_all_the_same(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    runs: list[str] = []

    @bus.subscriber(stream, concurrency=1, retry=FIRM, breaker=Breaker(minimum=2, pause=0.05, maximum=0.05))
    async def handle(message: Message) -> None:
        runs.append(message.id)
        if len(runs) <= 2:
            raise Down
        raise Reject("spoilt")

    await bus.publish_many(stream, [{}] * 3)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(await stored(redis_client, dlq)) == 3


async def test_what_is_bad_in_itself_holds_up_no_other_and_is_dead_lettered(
    buses: Buses,
    redis_client: redis.asyncio.Redis,
    stream: str,
    dlq: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Where what was parked was probed first, the good ones were never read; without a bound the bad ones had no end.
    monkeypatch.setattr(quantum_bus.breaker, "MOST_SPARED", 1)
    for ordered in (False, True):
        caplog.clear()
        name = f"{stream}-{ordered}"
        bus = buses()
        handled: list[Any] = []

        @bus.subscriber(name, ordered=ordered, retry=Retry(max_attempts=3, initial=0.01, maximum=0.02), breaker=QUICK)
        async def handle(message: Message, handled: list[Any] = handled) -> None:
            if str(message.key).startswith("bad"):
                raise ValueError
            handled.append(message.data)

        await bus.publish_many(name, [Event(number, key=f"bad-{number}") for number in range(4)])
        async with bus:
            await eventually(lambda: events(caplog, names.EVENT_BUS_BREAKER_OPENED))
            await bus.publish_many(name, [Event(number, key=f"good-{number}") for number in range(6)])
            await eventually(lambda handled=handled: len(handled) == 6)
            await eventually(lambda name=name: all_acked(redis_client, name))
        assert len(await stored(redis_client, dlq.replace(stream, name))) == 4


async def test_asking_for_another_attempt_is_no_failure(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses()

    @bus.subscriber(stream, retry=Retry(max_attempts=3), breaker=LONG)
    async def handle(message: Message) -> None:
        await settled(message.nack(delay=0.0))

    await bus.publish_many(stream, [{}] * 10)
    async with bus:
        await eventually(lambda: all_acked(redis_client, stream))
    assert events(caplog, names.EVENT_BUS_BREAKER_OPENED) == []


@pytest.mark.parametrize("breaker", [True, 5, "on", Breaker])
async def test_a_breaker_is_a_breaker(buses: Buses, breaker: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"breaker=.*give a Breaker, as Breaker\(\)"):
        buses().subscriber("orders", breaker=breaker)


# --- by hand -------------------------------------------------------------------------------------------------------


async def test_paused_it_takes_nothing_and_resumed_it_goes_on(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = buses()
    handled: list[Any] = []
    other = f"{stream}-other"

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        handled.append(message.data)

    @bus.subscriber(other)
    async def handle_other(message: Message) -> None:
        handled.append(message.data)

    async with bus:
        await bus.publish(stream, "before")
        await eventually(lambda: handled == ["before"])
        await paused(bus, stream)
        await bus.publish(stream, "paused")
        await bus.publish(other, "other")
        await eventually(lambda: handled == ["before", "other"])
        await resumed(bus, stream)
        await eventually(lambda: handled == ["before", "other", "paused"])
        await eventually(lambda: all_acked(redis_client, stream))
    assert events(caplog, names.EVENT_BUS_PAUSED, names.EVENT_BUS_RESUMED) == [
        names.EVENT_BUS_PAUSED,
        names.EVENT_BUS_RESUMED,
    ]


async def test_a_pause_lets_what_runs_end_and_frees_the_rest_for_others(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # What had been begun by a consumer that died runs one after the other: three wait here. Kept, the other consumer
    # got them when their lease was over.
    bus, other = buses(), buses()
    gate = Gate()
    began: list[str] = []
    handled: set[str] = set()
    await redis_client.xgroup_create(stream, "svc", "0", mkstream=True)
    ids = [(await bus.publish(stream, {})).id for _ in range(4)]
    await redis_client.xreadgroup("svc", "dead", {stream: ">"})
    await redis_client.xclaim(stream, "svc", "dead", 0, ids, idle=3_600_000, retrycount=2, justid=True)

    @bus.subscriber(stream, concurrency=4, ack_wait=60.0)
    async def hold(message: Message) -> None:
        began.append(message.id)
        await gate.passed()

    @other.subscriber(stream, ack_wait=60.0)
    async def handle(message: Message) -> None:
        handled.add(message.id)

    async with bus:
        await eventually(lambda: len(began) == 1)
        await paused(bus)
        async with other:
            await eventually(lambda: handled == set(ids) - set(began))
            gate.open()
            await eventually(lambda: all_acked(redis_client, stream))
    assert len(began) == 1


async def test_an_outage_of_an_ordered_subscriber_keeps_the_order_and_makes_no_dead_letters(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, dlq: str
) -> None:
    bus = buses()
    is_down = True
    all_four = Gate()
    begun: list[Any] = []
    failed: list[Any] = []
    handled: list[tuple[str | None, Any]] = []

    # The first four runs are to open it, and none of them is to be a second one: they fail together.
    later = Retry(max_attempts=2, initial=1.0, jitter="none")

    @bus.subscriber(stream, ordered=True, concurrency=4, retry=later, breaker=QUICK)
    async def handle(message: Message) -> None:
        if is_down:
            begun.append(message.data)
            if len(begun) == 4:
                all_four.open()
            await all_four.passed()
            failed.append(message.data)
            raise Down
        handled.append((message.key, message.data))

    await bus.publish_many(stream, [Event(number, key=key) for number in range(5) for key in "abcd"])
    async with bus:
        await eventually(lambda: len(failed) >= 12)
        is_down = False
        await eventually(lambda: all_acked(redis_client, stream))
    for key in "abcd":
        assert [number for of, number in handled if of == key] == list(range(5))
    assert await stored(redis_client, dlq) == []


async def test_what_waits_in_order_stays_and_does_not_run_while_paused(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    # Where only reading stopped, what was held ran on.
    bus, other = buses(), buses(service="other")
    gate = Gate()
    handled: list[Any] = []

    @bus.subscriber(stream, ordered=True)
    async def handle(message: Message) -> None:
        handled.append(message.data)
        if message.data == 0:
            await gate.passed()

    @other.subscriber(stream)
    async def handle_other(message: Message) -> None: ...

    async with bus:
        await bus.publish_many(stream, [Event(number, key="k") for number in range(3)])
        await eventually(lambda: handled == [0])
        await eventually(lambda: pending_are(redis_client, stream, 3))
        await paused(bus)
        gate.open()
        await eventually(lambda: pending_are(redis_client, stream, 2))
        async with other:
            await eventually(lambda: all_acked(redis_client, stream, "other"))
        assert handled == [0]
        await resumed(bus)
        await eventually(lambda: all_acked(redis_client, stream))
    assert handled == [0, 1, 2]


async def test_paused_before_the_start_it_starts_paused(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus, other = buses(), buses(service="other")
    handled: list[str] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        handled.append(message.id)

    @other.subscriber(stream)
    async def handle_other(message: Message) -> None: ...

    await paused(bus, stream)
    await bus.publish(stream, {})
    async with bus, other:
        await eventually(lambda: all_acked(redis_client, stream, "other"))
        assert await pending(redis_client, stream) == []
        assert handled == []
        await resumed(bus)
        await eventually(lambda: handled)


async def test_a_paused_bus_stops(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    bus, other = buses(), buses()
    handled: list[str] = []

    @bus.subscriber(stream)
    async def hold(message: Message) -> None:
        raise AssertionError("it was paused")

    @other.subscriber(stream)
    async def handle(message: Message) -> None:
        handled.append(message.id)

    async with bus:
        await paused(bus)
        await bus.publish(stream, {})
    async with other:
        await eventually(lambda: all_acked(redis_client, stream))
    assert len(handled) == 1


async def test_only_what_is_subscribed_can_be_paused(buses: Buses, stream: str) -> None:
    bus = buses(prefix="p:")

    @bus.subscriber(stream)
    async def handle(message: Message) -> None: ...

    for call in (paused, resumed):
        with pytest.raises(ConfigurationError, match=r"'nothing'.*no subscriber"):
            await call(bus, "nothing")
        await call(bus, stream)
