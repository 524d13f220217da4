"""What a publisher and a consumer do in processes of their own (`tests.faults.nursery`).

Both write down what they do (`tests.faults.history`), and stop gracefully at SIGTERM; then they say `over`.

A publisher's options: `stream`; `seed`; `lanes`, how many publish at once; `count`, after which it ends by itself, else
at SIGTERM; `pause` between two of a lane, seconds; `timeout` of a publish; `mix`, how often which payload comes. Half
of the messages name a correlation id of their own, and some a delay.

A consumer's options: `stream`, `block`, `reply_timeout`, `backoff_maximum`, and the subscriber's, `retry` as an object.
The payload says what its handler does, for each attempt in turn, the last one for all further ones:

    ok, raise, reject    ends so
    die                  SIGKILLs its process
    work                 takes a while, then returns
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import quantum_bus.sync
from quantum_bus import (
    ConnectionLost,
    EventBus,
    Message,
    PublishError,
    PublishTimeout,
    Reject,
    Retry,
    get_correlation_id,
    setup_json_logging,
)
from tests.contract.twins import ASYNCIO
from tests.faults.history import FAILED, OK, RAISE, REJECT, RETURN, UNKNOWN, Recorder

WORK = 0.3
"""Seconds that `work` takes."""
DELAYED = 0.1
"""The share of messages that are published with a delay."""
LONGEST_STAY = 0.01
"""Seconds after which a restless consumer has gone."""
SPARE = 0.2
"""Seconds that a publisher waits after a refusal: it is not to fill its history with them."""

Options = dict[str, Any]


class Flow:
    """The messages of one lane, with ids that are known before they are published."""

    def __init__(self, seed: str, mix: dict[str, int]) -> None:
        self._random = random.Random(seed)
        self._kinds = list(mix)
        self._weights = list(mix.values())
        self._prefix = uuid.uuid4().hex[:8]
        self._number = 0

    def next(self) -> tuple[list[str], str, str | None, SpanContext, float | None]:
        """Payload, message id, correlation id if it has one of its own, its trace, and a delay or none."""
        self._number += 1
        kind = self._random.choices(self._kinds, self._weights)[0]
        message_id = f"{self._prefix}-{self._number}"
        context = SpanContext(
            self._random.getrandbits(127) + 1,
            self._random.getrandbits(63) + 1,
            is_remote=True,
            trace_flags=TraceFlags(1),
        )
        correlation_id = f"flow-{message_id}" if self._number % 2 else None
        delay = self._random.uniform(0.0, 0.3) if self._random.random() < DELAYED else None
        return kind.split("/"), message_id, correlation_id, context, delay


def outcome_of(error: PublishError) -> str:
    """A timeout promises nothing; every other error means that Redis said no."""
    return UNKNOWN if isinstance(error, PublishTimeout) else FAILED


class Publisher:
    """What both twins' publishers do around the call."""

    def __init__(self, recorder: Recorder, options: Options) -> None:
        self.recorder = recorder
        self.stream: str = options["stream"]
        self.count: int | None = options.get("count")
        self.pause: float = options.get("pause", 0.002)
        self.timeout: float = options.get("timeout", 2.0)
        self.stopping = threading.Event()
        seed = options.get("seed", 0)
        self.flows = [Flow(f"{seed}-{lane}", options.get("mix", {"ok": 1})) for lane in range(options.get("lanes", 8))]

    def publishes(self, flow: Flow) -> Iterator[dict[str, Any]]:
        """The arguments of each publish. What it is sent back is its receipt, or its error."""
        left = None if self.count is None else self.count // len(self.flows)
        while not self.stopping.is_set() and left != 0:
            payload, message_id, correlation_id, context, delay = flow.next()
            trace_id = f"{context.trace_id:032x}"
            self.recorder.publish(message_id, correlation_id or trace_id, trace_id)
            with trace.use_span(NonRecordingSpan(context)):
                result = yield {
                    "payload": payload,
                    "message_id": message_id,
                    "correlation_id": correlation_id,
                    "timeout": self.timeout,
                    "delay": delay,
                }
            if isinstance(result, PublishError):
                self.recorder.published(message_id, outcome_of(result), error=repr(result))
            else:
                self.recorder.published(message_id, OK, result.id)
                assert (result.message_id, result.correlation_id) == (message_id, correlation_id or trace_id)
            left = left and left - 1


async def publish_asyncio(url: str, publisher: Publisher) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, publisher.stopping.set)

    async def lane(flow: Flow) -> None:
        publishes = publisher.publishes(flow)
        arguments = next(publishes, None)
        while arguments is not None:
            try:
                result: Any = await bus.publish(publisher.stream, **arguments)
            except PublishError as error:
                result = error
                await asyncio.sleep(SPARE)
            await asyncio.sleep(publisher.pause)
            arguments = following(publishes, result)

    async with EventBus(url, service="publisher", reply_timeout=publisher.timeout) as bus:
        await asyncio.gather(*map(lane, publisher.flows))


def publish_threads(url: str, publisher: Publisher) -> None:
    signal.signal(signal.SIGTERM, lambda *_: publisher.stopping.set())

    def lane(flow: Flow) -> None:
        publishes = publisher.publishes(flow)
        arguments = next(publishes, None)
        while arguments is not None:
            try:
                result: Any = bus.publish(publisher.stream, **arguments)
            except PublishError as error:
                result = error
                time.sleep(SPARE)
            time.sleep(publisher.pause)
            arguments = following(publishes, result)

    with quantum_bus.sync.EventBus(url, service="publisher", reply_timeout=publisher.timeout) as bus:
        lanes = [threading.Thread(target=lane, args=(flow,)) for flow in publisher.flows]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()


def following(publishes: Any, result: Any) -> Any:
    try:
        return publishes.send(result)
    except StopIteration:
        return None


class Handling:
    """What both twins' handlers do around their waits."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def steps(self, message: Message) -> Iterator[float]:
        """Carry out what the payload says; gives the seconds to wait."""
        assert message.traceparent is not None
        run = self._recorder.begun(
            message_id=message.message_id,
            entry_id=message.id,
            stream=message.stream,
            group=message.group,
            correlation_id=message.correlation_id,
            trace_id=message.traceparent.split("-")[1],
            context_id=get_correlation_id(),
            attempt=message.attempt,
        )
        kinds = message.data
        kind = kinds[min(message.attempt, len(kinds)) - 1]
        match kind:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                self._recorder.ended(run, RAISE)
                raise ValueError("as told")
            case "reject":
                self._recorder.ended(run, REJECT)
                raise Reject("as told")
            case "work":
                yield WORK
        self._recorder.ended(run, RETURN)


def consumer_on(twin: str, url: str, handling: Handling, options: Options) -> Any:
    """A bus with its subscriber, not started."""
    own = dict(options)
    stream, retry = own.pop("stream"), Retry(**own.pop("retry", {}))
    of_bus = {name: own.pop(name) for name in ("block", "reply_timeout", "backoff_maximum") if name in own}
    if twin == ASYNCIO:
        bus = EventBus(url, service="consumer", **of_bus)

        @bus.subscriber(stream, retry=retry, **own)
        async def handle(message: Message) -> None:
            for seconds in handling.steps(message):
                await asyncio.sleep(seconds)

        return bus
    threads_bus = quantum_bus.sync.EventBus(url, service="consumer", **of_bus)

    @threads_bus.subscriber(stream, retry=retry, **own)
    def handle_in_thread(message: Message) -> None:
        for seconds in handling.steps(message):
            time.sleep(seconds)

    return threads_bus


def consume(twin: str, url: str, recorder: Recorder, options: Options) -> None:
    bus = consumer_on(twin, url, Handling(recorder), options)
    if twin == ASYNCIO:
        asyncio.run(bus.run())
    else:
        bus.run()


def restless(twin: str, url: str, recorder: Recorder, options: Options) -> None:
    """Consumers that are started, and cancelled or stopped a moment later, `rounds` times on each of `lanes`."""
    rounds, lanes, dice = options.pop("rounds"), options.pop("lanes"), random.Random(options.pop("seed"))
    handling = Handling(recorder)

    async def lane() -> None:
        for _ in range(rounds):
            await stopped_early(consumer_on(twin, url, handling, options), dice)
            recorder.write("round")

    async def all_lanes() -> None:
        await asyncio.gather(*(lane() for _ in range(lanes)))

    def lane_in_thread() -> None:
        for _ in range(rounds):
            bus = consumer_on(twin, url, handling, options)
            with contextlib.suppress(ConnectionLost):  # the machine is that busy
                bus.start()
                time.sleep(dice.uniform(0.0, LONGEST_STAY))
            bus.stop(0.0)
            recorder.write("round")

    if twin == ASYNCIO:
        asyncio.run(all_lanes())
        return
    threads = [threading.Thread(target=lane_in_thread) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def stopped_early(bus: EventBus, dice: random.Random) -> None:
    """Cancelled wherever it is, starting, reading, handling, settling; or stopped with no time to drain."""

    async def run() -> None:
        async with bus:
            await asyncio.sleep(3600)

    stay = dice.uniform(0.0, LONGEST_STAY)
    if dice.random() < 0.5:
        running = asyncio.create_task(run())
        await asyncio.sleep(stay)
        running.cancel()
        await asyncio.wait([running])
    else:
        with contextlib.suppress(ConnectionLost):
            await bus.start()
            await asyncio.sleep(stay)
        await bus.stop(0.0)


def main(role: str, twin: str, url: str, history: str, options: Options) -> None:
    setup_json_logging(role, "INFO")
    recorder = Recorder(Path(history))
    if role == "consumer":
        consume(twin, url, recorder, options)
    elif role == "restless":
        restless(twin, url, recorder, options)
    elif twin == ASYNCIO:
        asyncio.run(publish_asyncio(url, Publisher(recorder, options)))
    else:
        publish_threads(url, Publisher(recorder, options))
    recorder.write("over")
