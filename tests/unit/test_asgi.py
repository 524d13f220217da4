import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from quantum_bus import ConfigurationError, Health, get_correlation_id, names
from quantum_bus.asgi import CorrelationMiddleware, Probes
from quantum_bus.propagation import format_traceparent, parse_context
from quantum_bus.testing import TestBus

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UUID = "a1b2c3d4-e5f6-7890-abcd-ef1234567890"


async def tell(request: Request) -> Response:
    """What the request's handler sees of its flow."""
    current = trace.get_current_span().get_span_context()
    return JSONResponse(
        {
            "correlation_id": get_correlation_id(),
            "traceparent": format_traceparent(current),
            "tracestate": current.trace_state.to_header(),
            "baggage": dict(baggage.get_all()),
        }
    )


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def ask(headers: Any = None, **options: Any) -> tuple[dict[str, Any], httpx.Response]:
    app = CorrelationMiddleware(Starlette(routes=[Route("/", tell)]), **options)
    async with client_of(app) as client:
        response = await client.get("/", headers=headers)
    return response.json(), response


async def test_a_request_without_headers_begins_a_flow() -> None:
    seen, response = await ask()
    context = parse_context(seen["traceparent"])
    assert context is not None
    assert seen["correlation_id"] == f"{context.trace_id:032x}"
    assert response.headers["X-Correlation-ID"] == seen["correlation_id"]
    assert response.headers["traceparent"] == seen["traceparent"]
    assert get_correlation_id() is None
    assert not trace.get_current_span().get_span_context().is_valid


async def test_the_callers_trace_state_and_baggage_are_continued() -> None:
    seen, response = await ask({"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "tenant=eu%2C1"})
    assert seen["correlation_id"] == TRACE_ID
    assert seen["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert seen["traceparent"] != PARENT
    assert seen["tracestate"] == "vendor=1"
    assert seen["baggage"] == {"tenant": "eu,1"}
    assert response.headers["X-Correlation-ID"] == TRACE_ID


async def test_the_callers_correlation_id_counts_before_the_trace_id() -> None:
    seen, response = await ask({"X-Correlation-ID": UUID, "traceparent": PARENT})
    assert seen["correlation_id"] == UUID
    assert response.headers["X-Correlation-ID"] == UUID
    assert TRACE_ID in seen["traceparent"]


@pytest.mark.parametrize(
    "value", ["", "a" * 129, "two words", "a\x00b", "ünïcode", "<script>", "$(id)", "a,b", "{}", "'; drop table"]
)
async def test_a_malformed_correlation_id_is_replaced_by_the_trace_id(value: str) -> None:
    seen, response = await ask([(b"x-correlation-id", value.encode("latin-1")), (b"traceparent", PARENT.encode())])
    assert seen["correlation_id"] == TRACE_ID
    assert response.headers["X-Correlation-ID"] == TRACE_ID


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", b"\xff\xfe")],
        [(b"traceparent", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01")],
        [(b"traceparent", b"x" * 100_000)],
        [(b"traceparent", PARENT.encode()), (b"traceparent", PARENT.replace("0af7", "1af7").encode())],
        [(b"tracestate", b"," * 10_000), (b"baggage", b"a=b," * 10_000)],
        [(b"baggage", b"=;=;=" * 1_000)],
        [(b"baggage", b"key=%0d%0aSet-Cookie:x")],
        [(b"x-correlation-id", UUID.encode()), (b"x-correlation-id", b"other")],
    ],
)
async def test_hostile_headers_begin_a_new_flow_and_go_no_further(headers: list[tuple[bytes, bytes]]) -> None:
    seen, response = await ask(headers)
    assert response.status_code == 200
    assert parse_context(seen["traceparent"]) is not None
    assert TRACE_ID not in seen["traceparent"]
    assert seen["baggage"] == {}
    assert seen["correlation_id"] == seen["traceparent"].split("-")[1]


async def test_list_headers_in_pieces_are_joined() -> None:
    pieces = [(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    seen, _ = await ask([*pieces, (b"baggage", b"x=1"), (b"baggage", b"y=2")])
    assert seen["tracestate"] == "a=1,b=2"
    assert seen["baggage"] == {"x": "1", "y": "2"}


async def test_at_the_edge_nothing_of_the_callers_is_believed() -> None:
    seen, _ = await ask({"traceparent": PARENT, "X-Correlation-ID": UUID, "baggage": "a=b"}, trust_incoming=False)
    assert UUID != seen["correlation_id"] != TRACE_ID
    assert TRACE_ID not in seen["traceparent"]
    assert seen["baggage"] == {}


async def test_the_header_can_have_another_name() -> None:
    seen, response = await ask({"X-Request-ID": UUID}, header="X-Request-ID")
    assert seen["correlation_id"] == response.headers["X-Request-ID"] == UUID
    assert "X-Correlation-ID" not in response.headers


async def test_the_response_can_be_left_as_it_is() -> None:
    _, response = await ask({"X-Correlation-ID": UUID}, respond=False)
    assert "X-Correlation-ID" not in response.headers
    assert "traceparent" not in response.headers


async def test_what_the_app_itself_answers_is_not_sent_twice() -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"X-Correlation-ID": "mine"})

    async with client_of(CorrelationMiddleware(Starlette(routes=[Route("/", answer)]))) as client:
        response = await client.get("/")
    assert response.headers.get_list("X-Correlation-ID") == ["mine"]


@pytest.mark.parametrize("name", ["", "X Correlation", "Ünicode", "a\r\nb", 7])
def test_a_header_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="X-Correlation-ID"):
        CorrelationMiddleware(Starlette(), header=name)


async def test_streams_and_background_tasks_belong_to_the_flow() -> None:
    seen: list[str | None] = []

    async def body() -> AsyncIterator[str]:
        seen.append(get_correlation_id())
        yield "x"

    async def later() -> None:
        seen.append(get_correlation_id())

    async def answer(request: Request) -> Response:
        return StreamingResponse(body(), background=BackgroundTask(later))

    async with client_of(CorrelationMiddleware(Starlette(routes=[Route("/", answer)]))) as client:
        await client.get("/", headers={"X-Correlation-ID": UUID})
    assert seen == [UUID, UUID]


async def test_the_flow_is_left_when_the_app_raises() -> None:
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError

    async with client_of(CorrelationMiddleware(Starlette(routes=[Route("/", fail)]))) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/")
    assert get_correlation_id() is None
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_websockets_and_lifespan_pass_through_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send, get_correlation_id()))

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    scope = {"type": kind, "headers": [(b"x-correlation-id", UUID.encode())]}
    await CorrelationMiddleware(app)(scope, receive, send)
    assert seen == [(scope, receive, send, None)]


# --- with an SDK ---------------------------------------------------------------------------------


@pytest.fixture
def recorded() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def served(
    provider: TracerProvider, answer: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> httpx.Response:
    app = CorrelationMiddleware(Starlette(routes=[Route("/", answer, methods=[method])]), tracer_provider=provider)
    async with client_of(app) as client:
        return await client.request(method, "/", headers={"traceparent": PARENT})


async def test_a_request_has_a_server_span_in_the_callers_trace(
    recorded: tuple[TracerProvider, InMemorySpanExporter],
) -> None:
    provider, exporter = recorded
    response = await served(provider, tell, "POST")
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind.name) == ("POST", "SERVER")
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert response.json()["traceparent"] == format_traceparent(_context(span))
    assert span.attributes is not None
    assert span.attributes["http.request.method"] == "POST"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["messaging.message.conversation_id"] == TRACE_ID


def _context(span: ReadableSpan) -> trace.SpanContext:
    assert span.context is not None
    return span.context


async def test_a_server_error_is_one_on_the_span(recorded: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    async def answer(request: Request) -> Response:
        return Response(status_code=503)

    provider, exporter = recorded
    await served(provider, answer)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code.name == "ERROR"


async def test_an_instrumentation_around_it_keeps_its_span(
    recorded: tuple[TracerProvider, InMemorySpanExporter],
) -> None:
    provider, exporter = recorded
    with provider.get_tracer("outer").start_as_current_span("outer") as outer:
        seen, _ = await ask({"X-Correlation-ID": UUID})
    assert seen["traceparent"] == format_traceparent(outer.get_span_context())
    assert seen["correlation_id"] == UUID
    assert [span.name for span in exporter.get_finished_spans()] == ["outer"]


async def test_a_message_published_in_a_request_is_part_of_its_flow() -> None:
    async with TestBus() as bus:

        async def order(request: Request) -> Response:
            await bus.publish("orders", {"id": 7})
            logging.getLogger("shop").info("ordered")
            return Response()

        app = CorrelationMiddleware(Starlette(routes=[Route("/", order)]))
        async with client_of(app) as client:
            await client.get("/", headers={"X-Correlation-ID": UUID, "traceparent": PARENT, "baggage": "tenant=eu"})
        (entry,) = await bus.entries("orders")
        (line,) = [line for line in bus.logs if line["msg"] == "ordered"]
    assert entry.fields["correlation_id"] == UUID
    assert entry.fields["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert entry.fields["baggage"] == "tenant=eu"
    assert line["correlation_id"] == UUID


# --- probes ------------------------------------------------------------------------------------------------------


class Bus:
    """Of either kind, as the probes see it."""

    def __init__(self, health: Health) -> None:
        self.told = health
        self.asked: list[bool] = []


class AsyncioBus(Bus):
    async def health(self, *, ask_redis: bool = True) -> Health:
        self.asked.append(ask_redis)
        return self.told


class ThreadsBus(Bus):
    def health(self, *, ask_redis: bool = True) -> Health:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()  # a call that blocks is no matter of the event loop's
        self.asked.append(ask_redis)
        return self.told


HEALTH = Health(service="shop", state=names.HEALTH_RUNNING, redis="redis://***@localhost")


@pytest.mark.parametrize("kind", [AsyncioBus, ThreadsBus])
@pytest.mark.parametrize("mount", ["", "/health"])
async def test_probes_are_answered_under_any_path_and_only_readiness_asks_redis(kind: type[Bus], mount: str) -> None:
    bus = kind(HEALTH)
    async with client_of(Starlette(routes=[Mount(mount or "/", Probes(bus))])) as client:
        assert (await client.get(f"{mount}/livez")).json()["live"] is True
        ready = await client.get(f"{mount}/readyz?verbose=1")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert (ready.headers["content-type"], ready.headers["cache-control"]) == ("application/json", "no-store")
        assert bus.asked == [False, True]
        bus.told = replace(HEALTH, redis_fault="Redis is away")
        ready = await client.get(f"{mount}/readyz")
        assert (ready.status_code, ready.json()["faults"]) == (503, ["Redis is away"])
        assert (await client.get(f"{mount}/livez")).status_code == 200


async def test_probes_take_get_and_head_and_know_no_other_path() -> None:
    bus = AsyncioBus(HEALTH)
    async with client_of(Probes(bus)) as client:
        head = await client.head("/livez")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == len((await client.get("/livez")).content)
        refused = await client.post("/livez")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.get("/metrics")).status_code == 404
    assert bus.asked == [False, False]


async def test_probes_may_be_the_whole_application_and_take_no_websocket() -> None:
    sent: list[Any] = []
    stages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(stages)}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Probes(AsyncioBus(HEALTH))
    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket", "path": "/livez"}, receive, send)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"
    ]  # fmt: skip


async def test_probes_of_a_bus_that_runs_in_the_same_loop() -> None:
    async with TestBus() as bus:

        @bus.subscriber("orders")
        async def handle(order: dict[str, Any]) -> None: ...

        async with client_of(Probes(bus.bus)) as client:
            starting = await client.get("/readyz")
            assert (starting.status_code, starting.json()["state"]) == (503, "starting")
            await bus.start()
            while (ready := await client.get("/readyz")).status_code != 200:
                await bus.drained()  # its subscribers have begun, and will have read a moment later
            assert ready.json()["subscribers"] == [
                {"streams": ["orders"], "group": "test", "doing": "reading", "fault": None}
            ]


def test_probes_of_what_is_no_bus_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="give an EventBus"):
        Probes("bus")
