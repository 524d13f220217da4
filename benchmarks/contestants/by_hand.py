"""The floor of what is traced: redis-py alone, and around it by hand what the bus makes of each message.

The same spans through OpenTelemetry's own API, the same durations, the same log line; no delivery, no guarantees: what
is read is acknowledged by the hundred, whatever becomes of it.
"""

from __future__ import annotations

import time
from typing import Any, Final

import orjson
import redis.asyncio
from opentelemetry import context, metrics, trace
from opentelemetry.trace import Link, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quantum_bus import names, setup_json_logging
from quantum_bus.jsonlog import close_logging

from .bus import handler
from .filling import entries_of_the_bus, fill, pending, stored
from .observed import Observed, lines_in
from .trial import BATCH, EVENT, GROUP, PAYLOAD, SERVICE, STREAM, Outcome, Tally, Trial, in_flight, main

COMMON: Final = {
    names.ATTR_SYSTEM: names.SYSTEM_REDIS,
    names.ATTR_DESTINATION: STREAM,
    names.ATTR_SERVER_ADDRESS: "127.0.0.1",
}
SENDING: Final = {
    **COMMON,
    names.ATTR_OPERATION_NAME: names.OPERATION_SEND,
    names.ATTR_OPERATION_TYPE: names.OPERATION_SEND,
}
PROCESSING: Final = {
    **COMMON,
    names.ATTR_OPERATION_NAME: names.OPERATION_PROCESS,
    names.ATTR_OPERATION_TYPE: names.OPERATION_PROCESS,
    names.ATTR_GROUP: GROUP,
}


async def publish_in_flight(trial: Trial) -> Outcome:
    fields = entries_of_the_bus(trial.url, 1)[0]
    observed = Observed(trial.level)
    log = setup_json_logging(SERVICE, path=trial.folder / "bench.jsonl", announce=False)
    tracer, propagator = trace.get_tracer(SERVICE), TraceContextTextMapPropagator()
    duration = metrics.get_meter(SERVICE).create_histogram(names.METRIC_OPERATION_DURATION, unit="s")
    async with redis.asyncio.Redis.from_url(trial.url) as client:

        async def publish(number: int) -> None:
            data = orjson.dumps(PAYLOAD)
            attributes = {**SENDING, names.ATTR_EVENT: EVENT, names.ATTR_BODY_SIZE: len(data)}
            with tracer.start_as_current_span(f"send {STREAM}", kind=SpanKind.PRODUCER, attributes=attributes):
                carried: dict[str, str] = {}
                propagator.inject(carried)
                started = time.perf_counter()
                entry = {**fields, b"data": data, b"traceparent": carried["traceparent"].encode()}
                await client.xadd(STREAM, entry)
                duration.record(time.perf_counter() - started, SENDING)
            log.info("Intent created", event=EVENT, symbol="BTCUSDT", number=number)

        rate = await in_flight(trial.count, publish)
    close_logging()
    return Outcome({"rate": rate}, observed.end() | stored(trial.url, STREAM) | {"lines": lines_in(trial.folder)})


async def consume(trial: Trial) -> Outcome:
    """A loop that reads a hundred, handles each in place, and acknowledges a hundred."""
    fill(trial.url, STREAM, entries_of_the_bus(trial.url), trial.count)
    observed = Observed(trial.level)
    log = setup_json_logging(SERVICE, path=trial.folder / "bench.jsonl", announce=False)
    tracer, propagator = trace.get_tracer(SERVICE), TraceContextTextMapPropagator()
    duration = metrics.get_meter(SERVICE).create_histogram(names.METRIC_PROCESS_DURATION, unit="s")
    tally = Tally(trial.count)
    handle = handler(tally, log)
    async with redis.asyncio.Redis.from_url(trial.url) as client:
        await client.xgroup_create(STREAM, GROUP, id="0")
        while tally.seen < trial.count:
            reply: Any = await client.xreadgroup(GROUP, "by hand", {STREAM: ">"}, count=BATCH)
            [(_, entries)] = reply
            for entry_id, fields in entries:
                carrier = {"traceparent": fields[b"traceparent"].decode()}
                sender = trace.get_current_span(propagator.extract(carrier)).get_span_context()
                attributes = {**PROCESSING, names.ATTR_ENTRY_ID: entry_id.decode(), names.ATTR_EVENT: EVENT}
                started = time.perf_counter()
                span = tracer.start_span(
                    f"process {STREAM}", None, SpanKind.CONSUMER, attributes=attributes, links=[Link(sender)]
                )
                token = context.attach(set_span_in_context(span))
                await handle(orjson.loads(fields[b"data"]))
                context.detach(token)
                duration.record(time.perf_counter() - started, PROCESSING)
                span.end()
            await client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
    close_logging()
    facts = {"handled": tally.seen, "pending": pending(trial.url, STREAM, GROUP), "lines": lines_in(trial.folder)}
    return Outcome({"rate": tally.per_second}, observed.end() | facts)


if __name__ == "__main__":
    main({"publish-in-flight": publish_in_flight, "consume": consume})
