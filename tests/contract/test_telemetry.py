"""Spans and metrics by OpenTelemetry's messaging conventions, and what goes out where there is no SDK."""

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio
from opentelemetry import trace
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from quantum_bus import (
    BackPressure,
    Event,
    Message,
    PublishError,
    Receipt,
    Reject,
    Retry,
    correlation_scope,
    get_correlation_id,
    set_correlation_id,
)
from tests.contract.backends import Backend
from tests.contract.conditions import Gate, eventually
from tests.contract.entries import all_acked, stored
from tests.contract.recording import Recorder, attributes_of, traceparent
from tests.contract.twins import Buses, blocking, settled

Unique = Callable[[str], str]


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


async def one_handled(bus: Any, client: redis.asyncio.Redis, stream: str, group: str = "svc") -> None:
    async with bus:
        await eventually(lambda: all_acked(client, stream, group))


# --- publish -----------------------------------------------------------------------------------------------------


async def test_a_publish_is_one_producer_span_whose_context_goes_onto_the_wire(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    receipt = await buses(**recorder.options).publish(stream, {"n": 1}, event="E")
    [span] = recorder.spans
    [entry] = await stored(redis_client, stream)
    assert (span.name, span.kind, span.parent, span.links) == (f"send {stream}", SpanKind.PRODUCER, None, ())
    assert entry["traceparent"].startswith(traceparent(span))
    assert receipt.correlation_id == traceparent(span).split("-")[1]
    attributes = attributes_of(span)
    server = {name: attributes.pop(name, None) for name in ("server.address", "server.port")}
    assert attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": stream,
        "messaging.message.id": receipt.message_id,
        "messaging.message.conversation_id": receipt.correlation_id,
        "messaging.message.body.size": 7,
        "quantum_bus.event": "E",
        "quantum_bus.entry.id": receipt.id,
    }
    if buses.backend.url:
        assert server == {"server.address": "127.0.0.1", "server.port": int(buses.backend.url.split(":")[2][:-2])}
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("how", ["ack", "term", "cut off"])
async def test_what_is_in_flight_is_told_at_its_end_where_nothing_is_written_then(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str, how: str
) -> None:
    # fails without: telling of it where a run ends with nothing to write; one was counted as in flight for ever
    bus = buses(**recorder.options)
    began, gate = Gate(), Gate()

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        began.open()
        if how == "cut off":
            await gate.passed()
        else:
            await settled(message.ack() if how == "ack" else message.term("why"))

    await bus.publish(stream, 1)
    await bus.start()
    if how == "cut off":
        await began.passed()
        await bus.stop(0.0)
        gate.open()
    await eventually(lambda: recorder.points("quantum_bus.in_flight"))
    await eventually(lambda: recorder.value("quantum_bus.in_flight", messaging__destination__name=stream) == 0)


@pytest.mark.parametrize("kind", ["publish", "many", "dedupe", "delay"])
async def test_span_processors_are_told_of_a_publish_before_redis_has_answered(
    buses: Buses, recorder: Recorder, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, kind: str
) -> None:
    # fails without: telling of it on each way; but for a plain publish, its span was told of when all was over
    started: list[str] = []

    class Watching(SpanProcessor):
        def on_start(self, span: Span, parent_context: Any = None) -> None:
            started.append(span.name)

    recorder.tracers.add_span_processor(Watching())
    bus = buses(**recorder.options)
    await bus.publish(stream, 0)
    started.clear()
    await redis_client.client_pause(60_000, all=False)  # type: ignore[no-untyped-call]
    call = {
        "publish": lambda: bus.publish(stream, 1),
        "many": lambda: bus.publish_many(stream, [1, 2]),
        "dedupe": lambda: bus.publish(stream, 1, dedupe=60),
        "delay": lambda: bus.publish(stream, 1, delay=0.001),
    }[kind]
    try:
        publishing = asyncio.ensure_future(call())
        await eventually(lambda: started)
        assert not publishing.done()
    finally:
        await redis_client.client_unpause()  # type: ignore[no-untyped-call]
    await publishing
    assert started == [f"send {stream}"]


@pytest.mark.parametrize("by", ["a scope", "set_correlation_id"])
async def test_a_trace_that_begins_in_a_flow_nobody_named_has_its_id(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str, by: str
) -> None:
    # fails without: an id generator that knows of the flow; correlation id and trace id had nothing to do with another
    bus = buses(**recorder.options)
    handled: list[str | None] = []

    @bus.subscriber(stream, trace_mode="link")
    async def handle(message: Message) -> None:
        handled.append(get_correlation_id())

    with correlation_scope() as of_scope:
        flow = of_scope if by == "a scope" else set_correlation_id()
        receipts = [await bus.publish(stream, {}), *await bus.publish_many(stream, [1, 2])]
        with correlation_scope("named"):
            await bus.publish(stream, {})
        await bus.start()  # what it handles is not of this flow by that
    await bus.publish(stream, {})
    await eventually(lambda: all_acked(redis_client, stream))
    await bus.stop()
    of_flow, many, named, none = recorder.named(f"send {stream}")
    assert {receipt.correlation_id for receipt in receipts if isinstance(receipt, Receipt)} == {flow}
    assert {f"{ids(span)[0]:032x}" for span in (of_flow, many)} == {flow}
    assert of_flow.context.trace_flags == 3, "sampled, and random"
    assert flow not in {f"{ids(span)[0]:032x}" for span in (named, none)}
    assert flow not in {f"{ids(span)[0]:032x}" for span in recorder.named(f"process {stream}")}
    assert handled.count(flow) == 3


async def test_a_publish_is_a_child_of_the_callers_span(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    with recorder.tracers.get_tracer("user").start_as_current_span("request") as request:
        receipt = await buses(**recorder.options).publish(stream, {})
    [span] = recorder.named(f"send {stream}")
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert receipt.correlation_id == f"{request.get_span_context().trace_id:032x}"


async def test_publish_many_is_one_span_whose_context_every_item_carries(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await buses(**recorder.options).publish_many(stream, [1, Event(2, event="E"), 3])
    [span] = recorder.spans
    assert (span.name, span.kind) == (f"send {stream}", SpanKind.PRODUCER)
    attributes = attributes_of(span)
    assert attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes
    for entry in await stored(redis_client, stream):
        assert entry["traceparent"].startswith(traceparent(span))
        assert entry["correlation_id"] == attributes["messaging.message.conversation_id"]


async def test_publish_many_of_several_flows_claims_none_of_them(buses: Buses, recorder: Recorder, stream: str) -> None:
    await buses(**recorder.options).publish_many(stream, [Event(n, correlation_id=f"flow-{n}") for n in range(2)])
    [span] = recorder.spans
    assert "messaging.message.conversation_id" not in attributes_of(span)


async def test_a_refused_publish_is_an_error_on_span_and_metrics(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)
    await redis_client.set(stream, "text")
    with pytest.raises(PublishError):
        await bus.publish(stream, {})
    [span] = recorder.spans
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == f"{PublishError.__module__}.PublishError"
    assert [event.name for event in span.events] == ["exception"]
    [point] = recorder.points("messaging.client.sent.messages")
    assert (point.value, point.attributes["error.type"]) == (1, attributes_of(span)["error.type"])
    assert BackPressure.__name__ not in str(attributes_of(span))


async def test_publish_many_counts_what_was_not_stored(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await redis_client.set(stream, "text")
    await buses(**recorder.options).publish_many(stream, [1, 2, 3])
    [span] = recorder.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "3 of 3 messages were not confirmed"
    [point] = recorder.points("messaging.client.sent.messages")
    assert point.value == 3
    assert "error.type" in point.attributes


# --- process -----------------------------------------------------------------------------------------------------


async def test_handling_a_message_is_one_consumer_span_in_its_trace_with_parent_and_link(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)
    current: list[Any] = []

    @bus.subscriber(stream, group="g")
    async def handle(message: Message) -> None:
        current.append(trace.get_current_span().get_span_context())

    receipt = await bus.publish(stream, {"n": 1}, event="E", correlation_id="flow-1")
    await one_handled(bus, redis_client, stream, "g")
    [sent] = recorder.named(f"send {stream}")
    [span] = recorder.named(f"process {stream}")
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (*ids(sent), True)
    assert linked(span) == [ids(sent)]
    assert (current[0].trace_id, current[0].span_id) == ids(span), "the handler runs inside it"
    attributes = dict(attributes_of(span))
    assert attributes.pop("messaging.client.id").startswith("svc@")
    assert {name: value for name, value in attributes.items() if not name.startswith("server.")} == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": stream,
        "messaging.consumer.group.name": "g",
        "messaging.message.id": receipt.message_id,
        "messaging.message.conversation_id": "flow-1",
        "messaging.message.body.size": 7,
        "quantum_bus.event": "E",
        "quantum_bus.entry.id": receipt.id,
        "quantum_bus.attempt": 1,
        "quantum_bus.outcome": "ack",
    }


async def test_with_trace_mode_link_the_handling_is_a_trace_of_its_own(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream, trace_mode="link")
    async def handle(message: Message) -> None:
        await bus.publish(unique("next"), {})

    receipt = await bus.publish(stream, {})
    await one_handled(bus, redis_client, stream)
    [sent] = recorder.named(f"send {stream}")
    [span] = recorder.named(f"process {stream}")
    [following] = recorder.named(f"send {unique('next')}")
    assert span.parent is None
    assert ids(span)[0] != ids(sent)[0]
    assert linked(span) == [ids(sent)]
    assert ids(following)[0] == ids(span)[0]
    assert attributes_of(span)["messaging.message.conversation_id"] == receipt.correlation_id
    [entry] = await stored(redis_client, unique("next"))
    assert entry["correlation_id"] == receipt.correlation_id, "the flow goes on over the border of the trace"


async def test_a_batch_is_one_span_with_a_link_to_each_message(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream, batch=10, concurrency=1)
    async def handle(messages: list[Message]) -> None: ...

    for number in range(3):
        await bus.publish(stream, number)
    await one_handled(bus, redis_client, stream)
    sent = recorder.named(f"send {stream}")
    [span] = recorder.named(f"process {stream}")
    assert span.parent is None
    assert linked(span) == [ids(item) for item in sent]
    assert attributes_of(span)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes_of(span)
    assert "messaging.message.conversation_id" not in attributes_of(span)


async def test_each_retry_is_a_span_of_its_own_with_a_link_to_the_one_before(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream, retry=Retry(initial=0, max_attempts=3))
    async def handle(message: Message) -> None:
        raise ValueError("no")

    await bus.publish(stream, {})
    await one_handled(bus, redis_client, stream)
    [sent] = recorder.named(f"send {stream}")
    runs = recorder.named(f"process {stream}")
    assert [attributes_of(run)["quantum_bus.attempt"] for run in runs] == [1, 2, 3]
    assert [attributes_of(run)["quantum_bus.outcome"] for run in runs] == ["retry", "retry", "dead_letter"]
    assert [linked(run) for run in runs] == [[ids(sent)], [ids(sent), ids(runs[0])], [ids(sent), ids(runs[1])]]
    assert all(run.parent is not None and run.parent.span_id == ids(sent)[1] for run in runs)


async def test_an_error_is_on_the_span_masked(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream, retry=Retry(max_attempts=1))
    async def handle(message: Message) -> None:
        raise ConnectionError("cannot reach redis://user:hunter2@db:6379/0")

    await bus.publish(stream, {})
    await one_handled(bus, redis_client, stream)
    [span] = recorder.named(f"process {stream}")
    assert span.status.status_code is StatusCode.ERROR
    assert "cannot reach" in str(span.status.description)
    assert attributes_of(span)["error.type"] == "ConnectionError"
    [event] = span.events
    assert event.name == "exception"
    assert dict(event.attributes or {})["exception.type"] == "ConnectionError"
    assert "raise ConnectionError" in str(dict(event.attributes or {})["exception.stacktrace"])
    assert "hunter2" not in span.to_json()


@pytest.mark.parametrize(
    ("how", "outcome", "status"),
    [("ack", "ack", StatusCode.UNSET), ("nack", "retry", StatusCode.ERROR), ("term", "dead_letter", StatusCode.ERROR)],
)
async def test_what_is_settled_by_hand_is_the_spans_outcome(
    buses: Buses,
    recorder: Recorder,
    redis_client: redis.asyncio.Redis,
    stream: str,
    how: str,
    outcome: str,
    status: StatusCode,
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        if message.attempt == 1:
            await settled(
                {"ack": message.ack, "nack": lambda: message.nack(0), "term": lambda: message.term("no")}[how]()
            )

    await bus.publish(stream, {})
    await one_handled(bus, redis_client, stream)
    span = recorder.named(f"process {stream}")[0]
    assert attributes_of(span)["quantum_bus.outcome"] == outcome
    assert span.status.status_code is status


async def test_the_users_spans_land_under_the_handlers(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        with recorder.tracers.get_tracer("user").start_as_current_span("work"):
            await bus.publish(unique("next"), {})

    await bus.publish(stream, {})
    await one_handled(bus, redis_client, stream)
    [span], [work], [following] = (
        recorder.named(name) for name in (f"process {stream}", "work", f"send {unique('next')}")
    )
    assert work.parent is not None
    assert following.parent is not None
    assert work.parent.span_id == ids(span)[1]
    assert following.parent.span_id == ids(work)[1]


async def test_a_message_that_reaches_no_handler_has_no_span(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)

    @bus.subscriber(stream)
    async def handle(payload: dict[str, int]) -> None: ...

    await bus.publish(stream, "misfit")
    await one_handled(bus, redis_client, stream)
    assert not recorder.named(f"process {stream}")
    assert recorder.value("quantum_bus.dead_letters", error__type="invalid_payload") == 1


# --- metrics -----------------------------------------------------------------------------------------------------


async def test_metrics_count_and_time_what_was_sent_and_handled(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses(**recorder.options)
    began, gate = Gate(), Gate()

    @bus.subscriber(stream, retry=Retry(initial=0, max_attempts=2))
    async def handle(number: int) -> None:
        if number == 0:
            began.open()
            await gate.passed()
        if number == 1:
            raise ValueError
        if number == 2:
            raise Reject

    async with bus:
        await bus.publish(stream, 0)
        await bus.publish_many(stream, [1, 2, 3])
        await began.passed()
        await eventually(lambda: recorder.value("quantum_bus.in_flight", messaging__destination__name=stream) >= 1)
        gate.open()
        await eventually(lambda: all_acked(redis_client, stream))
    assert recorder.value("messaging.client.sent.messages", messaging__destination__name=stream) == 4
    handled = {"messaging__destination__name": stream, "messaging__consumer__group__name": "svc"}
    assert recorder.value("messaging.client.consumed.messages", **handled) == 5, "a retry is a delivery of its own"
    assert recorder.value("messaging.client.consumed.messages", **handled, error__type="ValueError") == 2
    assert recorder.value("quantum_bus.retries", **handled) == 1
    assert recorder.value("quantum_bus.dead_letters", **handled, error__type="max_attempts") == 1
    assert recorder.value("quantum_bus.dead_letters", **handled, error__type="rejected") == 1
    assert recorder.value("quantum_bus.in_flight", **handled) == 0
    durations = recorder.points("messaging.process.duration")
    assert sum(point.count for point in durations) == 5
    assert durations[0].explicit_bounds == (
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    )  # fmt: skip
    assert sum(point.count for point in recorder.points("messaging.client.operation.duration")) == 2
    for point in (*durations, *recorder.points("messaging.client.sent.messages")):
        assert not {"messaging.message.id", "messaging.message.conversation_id"} & set(point.attributes)


async def test_a_retry_is_counted_with_the_error_it_is_for(buses: Buses, recorder: Recorder, stream: str) -> None:
    bus = buses(**recorder.options)
    attempts: list[int] = []

    @bus.subscriber(stream, retry=Retry(max_attempts=3, initial=0.001, jitter="none"))
    async def handle(data: dict[str, Any], message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise KeyError(data["n"])
        if message.attempt == 2:
            await settled(message.nack(0))

    async with bus:
        await bus.publish(stream, {"n": 1})
        await eventually(lambda: len(attempts) == 3)
    assert recorder.value("quantum_bus.retries", error__type="KeyError", messaging__destination__name=stream) == 1
    assert recorder.value("quantum_bus.retries", error__type="nack", messaging__destination__name=stream) == 1


async def test_what_comes_again_because_its_last_run_never_settled_is_counted(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    """One message was being handled when its consumer died, one had only been given to it."""
    await redis_client.xgroup_create(stream, "svc", "0", mkstream=True)
    for number in range(2):
        await redis_client.xadd(stream, {"data": str(number)})
    [[_, [[begun, _], [given, _]]]] = await redis_client.xreadgroup("svc", "dead", {stream: ">"})
    await redis_client.xclaim(stream, "svc", "dead", 0, [begun], idle=60_000, retrycount=2, justid=True)
    await redis_client.xclaim(stream, "svc", "dead", 0, [given], idle=60_000, retrycount=1, justid=True)
    bus = buses(**recorder.options)
    attempts: dict[bytes, int] = {}

    @bus.subscriber(stream)
    async def handle(data: int, message: Message) -> None:
        attempts[message.id.encode()] = message.attempt

    async with bus:
        await eventually(lambda: len(attempts) == 2)
    assert attempts == {begun: 2, given: 1}
    assert recorder.value("quantum_bus.recovered") == 2
    assert recorder.value("quantum_bus.redelivered", messaging__destination__name=stream) == 1


# --- no SDK, and those who did not sample ------------------------------------------------------------------------


async def test_without_an_sdk_a_valid_sampled_traceparent_goes_out(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    bus = buses()
    await bus.publish(stream, 1)
    await bus.publish_many(stream, [2, 3])
    entries = await stored(redis_client, stream)
    for entry in entries:
        assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01", entry["traceparent"])
    assert len({entry["traceparent"] for entry in entries}) == 2


async def test_the_flag_of_a_context_of_the_buss_own_can_be_set(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await buses(sampled=False).publish(stream, 1)
    [entry] = await stored(redis_client, stream)
    assert entry["traceparent"].endswith("-00")


async def test_a_flow_that_is_a_trace_id_becomes_the_trace(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    await buses().publish(stream, 1, correlation_id="0af7651916cd43dd8448eb211c80319c")
    [entry] = await stored(redis_client, stream)
    assert entry["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"


async def test_a_service_downstream_with_an_sdk_joins_the_trace_of_one_without(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    receipt = await buses(service="bare").publish(stream, {})
    bus = buses(**recorder.options)

    @bus.subscriber(stream)
    async def handle(message: Message) -> None: ...

    await one_handled(bus, redis_client, stream)
    [entry] = await stored(redis_client, stream)
    [span] = recorder.spans
    assert span.parent is not None
    assert entry["traceparent"] == f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01"
    assert receipt.correlation_id == f"{ids(span)[0]:032x}"


async def test_a_service_without_an_sdk_in_the_middle_hands_the_trace_on(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str, unique: Unique
) -> None:
    first, middle, last = buses(**recorder.options), buses(service="middle"), buses(service="last", **recorder.options)

    @middle.subscriber(stream)
    async def pass_on(message: Message) -> None:
        await middle.publish(unique("next"), {})

    @last.subscriber(unique("next"))
    async def handle(message: Message) -> None: ...

    await first.publish(stream, {})
    async with middle, last:
        await eventually(lambda: recorder.named(f"process {unique('next')}"))
    [sent], [span] = recorder.named(f"send {stream}"), recorder.named(f"process {unique('next')}")
    assert ids(sent)[0] == ids(span)[0]


async def test_a_parent_that_was_not_sampled_stays_so_and_its_flow_is_whole(
    buses: Buses, recorder: Recorder, redis_client: redis.asyncio.Redis, stream: str
) -> None:
    silent = Recorder(ParentBased(ALWAYS_OFF))
    receipt = await buses(**silent.options).publish(stream, {})
    bus = buses(**recorder.options)
    found: list[str] = []

    @bus.subscriber(stream)
    async def handle(message: Message) -> None:
        found.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")

    await one_handled(bus, redis_client, stream)
    [entry] = await stored(redis_client, stream)
    assert entry["traceparent"].endswith("-00") or entry["traceparent"].endswith("-02")
    assert entry["traceparent"].split("-")[1] == receipt.correlation_id == found[0]
    assert not recorder.spans
    assert not silent.spans
    assert recorder.value("messaging.client.consumed.messages", messaging__destination__name=stream) == 1
    silent.close()


# --- beside opentelemetry-instrumentation-redis ------------------------------------------------------------------


@pytest.fixture
def instrumented(recorder: Recorder) -> Iterator[Recorder]:
    RedisInstrumentor().instrument(tracer_provider=recorder.tracers)
    yield recorder
    RedisInstrumentor().uninstrument()


async def test_the_instrumentation_of_redis_makes_no_span_for_the_bus_and_still_traces_the_user(
    buses: Buses,
    real_backend: Backend,
    instrumented: Recorder,
    redis_client: redis.asyncio.Redis,
    stream: str,
    unique: Unique,
) -> None:
    bus = buses(block=0.02, **instrumented.options)
    mine = buses.client()

    @bus.subscriber(stream, retry=Retry(initial=0, max_attempts=2))
    async def handle(number: int, message: Message) -> None:
        if isinstance(mine, redis.asyncio.Redis):
            await mine.set(unique("key"), "value")
        else:
            await blocking(mine.set, unique("key"), "value")
        await bus.publish(unique("next"), number)
        await settled(message.in_progress())
        if number == 2:
            raise ValueError

    async with bus:
        for _ in range(3):  # some idle reads
            before = await _calls(real_backend, "xreadgroup")
            await eventually(lambda before=before: _more_calls(real_backend, before))
        assert not instrumented.spans, "no span of starting and idle polling"
        await bus.publish(stream, 1)
        await bus.publish_many(stream, [2])
        await eventually(lambda: len(instrumented.named(f"process {stream}")) == 3)
        await eventually(lambda: _handled(real_backend, stream))
    assert {span.name for span in instrumented.spans} == {
        f"send {stream}", f"process {stream}", f"send {unique('next')}", "SET",
    }  # fmt: skip
    runs = {ids(span) for span in instrumented.named(f"process {stream}")}
    sets = instrumented.named("SET")
    assert len(sets) == len(runs) == 3
    assert {(span.parent.trace_id, span.parent.span_id) for span in sets if span.parent} == runs
    await buses.close(mine)


async def _calls(backend: Backend, command: str) -> int:
    with _uninstrumented():
        client = backend.threads_client()
        calls = client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)
        client.close()
    return int(calls)


async def _more_calls(backend: Backend, before: int) -> bool:
    return await _calls(backend, "xreadgroup") > before


async def _handled(backend: Backend, stream: str) -> bool:
    with _uninstrumented():
        client = backend.asyncio_client()
        done = await all_acked(client, stream)
        await client.aclose()
    return done


def _uninstrumented() -> Any:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    return suppress_instrumentation()
