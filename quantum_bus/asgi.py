"""The bus over HTTP: a middleware that lets the flow in with a request and out with its response, and the probes.

Pure ASGI, for Starlette, FastAPI, Litestar, Quart, Django and any other; nothing but the protocol is needed::

    app.add_middleware(CorrelationMiddleware)        # Starlette, FastAPI
    app = CorrelationMiddleware(app)                 # everything else
    app.mount("/health", Probes(bus))                # /health/livez, /health/readyz
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import ExitStack
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TracerProvider

from . import names, propagation, readiness
from .errors import ConfigurationError
from .readiness import Answer, Health

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TRACEPARENT: Final = names.HEADER_TRACEPARENT.encode()
_TRACESTATE: Final = names.HEADER_TRACESTATE.encode()
_BAGGAGE: Final = names.HEADER_BAGGAGE.encode()

# HTTP's own conventions for a server's span: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
_ATTR_METHOD: Final = "http.request.method"
_ATTR_STATUS: Final = "http.response.status_code"
_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER_METHOD: Final = "_OTHER"
_FIRST_SERVER_ERROR: Final = 500
# A WebSocket's closing code for what is not taken here: RFC 6455, 7.4.1.
_POLICY_VIOLATION: Final = 1008


class CorrelationMiddleware:
    """Runs each request in its flow: what it logs and publishes carries the caller's correlation id and trace.

    ``traceparent``, ``tracestate`` and ``baggage`` are continued; ``X-Correlation-ID`` is the flow's id where it is a
    valid one, else the trace id is. The response says both. A malformed, oversized or repeated header counts as
    absent. A request gets a span of its own, unless another instrumentation has made one. WebSockets and lifespan pass
    through untouched.

    Args:
        app: what handles the request.
        header: the header that carries the correlation id, both ways.
        trust_incoming: whether a caller may say which flow it belongs to. At the edge to the public, say False: each
            request then begins a flow.
        respond: whether the response carries the correlation id and ``traceparent``.
        tracer_provider: instead of OpenTelemetry's global one.
    """

    def __init__(
        self,
        app: App,
        *,
        header: str = names.HEADER_CORRELATION_ID,
        trust_incoming: bool = True,
        respond: bool = True,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        if not isinstance(header, str) or not header.isascii() or not header.replace("-", "").isalnum():
            raise ConfigurationError(f"header={header!r}: give a header's name, as {names.HEADER_CORRELATION_ID!r}")
        self.app = app
        self._header = header.lower().encode()
        self._trust = trust_incoming
        self._respond = respond
        self._tracer = trace.get_tracer(names.INSTRUMENTATION_NAME, tracer_provider=tracer_provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = self._read(scope.get("headers") or ())
        named = propagation.checked_correlation_id(found.get(self._header))
        current = trace.get_current_span().get_span_context()
        with ExitStack() as stack:
            span: Span | None = None
            if not current.is_valid:
                span, current = self._start(stack, scope, found, named)
            correlation_id = stack.enter_context(propagation.correlation_scope(named or f"{current.trace_id:032x}"))
            if span is not None:
                span.set_attribute(names.ATTR_CONVERSATION_ID, correlation_id)
            headers = (
                (self._header, correlation_id.encode()),
                (_TRACEPARENT, propagation.format_traceparent(current).encode()),
            )

            async def answer(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    if span is not None:
                        _note_status(span, message.get("status"))
                    if self._respond:
                        message = {**message, "headers": _with(message.get("headers") or (), headers)}
                await send(message)

            try:
                await self.app(scope, receive, answer)
            except Exception as error:
                if span is not None:
                    span.set_attribute(names.ATTR_ERROR_TYPE, type(error).__qualname__)
                    span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
                raise

    def _read(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
        """The headers that matter, as text. A list in pieces is joined; of any other header, two mean none."""
        found: dict[bytes, str] = {}
        if not self._trust:
            return found
        repeated = set()
        for name, value in headers:
            key = name.lower()
            if key not in (_TRACEPARENT, _TRACESTATE, _BAGGAGE, self._header):
                continue
            text = value.decode("latin-1")
            if key not in found:
                found[key] = text
            elif key in (_TRACESTATE, _BAGGAGE):
                found[key] = f"{found[key]},{text}"
            elif found[key] != text:
                repeated.add(key)
        return {key: text for key, text in found.items() if key not in repeated}

    def _start(
        self, stack: ExitStack, scope: Scope, found: dict[bytes, str], named: str | None
    ) -> tuple[Span | None, SpanContext]:
        """The request's span, current until the stack is left; where no SDK makes one, a context of our own."""
        remote, context = propagation.carrier(
            {key.decode(): text for key, text in found.items() if key != self._header}
        )
        if remote is not None:
            context = trace.set_span_in_context(NonRecordingSpan(remote), context)
        method = scope.get("method")
        known = method if method in _METHODS else _OTHER_METHOD
        span = self._tracer.start_span(
            "HTTP" if known == _OTHER_METHOD else known,
            context=context,
            kind=SpanKind.SERVER,
            attributes={_ATTR_METHOD: known},
        )
        own = span.get_span_context()
        made = own.is_valid and (remote is None or own.span_id != remote.span_id)
        if not made:
            own = propagation.mint(named) if remote is None else propagation.child_of(remote)
            _make_current(stack, trace.set_span_in_context(NonRecordingSpan(own), context))
            return None, own
        _make_current(stack, trace.set_span_in_context(span, context))
        stack.callback(span.end)
        return span, own


def _make_current(stack: ExitStack, context: Context) -> None:
    stack.callback(otel_context.detach, otel_context.attach(context))


def _with(headers: Iterable[tuple[bytes, bytes]], added: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The response's headers and ours, but for those it has set itself."""
    there = list(headers)
    taken = {name.lower() for name, _ in there}
    return there + [(name, value) for name, value in added if name not in taken]


def _note_status(span: Span, status: object) -> None:
    if not isinstance(status, int):
        return
    span.set_attribute(_ATTR_STATUS, status)
    if status >= _FIRST_SERVER_ERROR:
        span.set_attribute(names.ATTR_ERROR_TYPE, str(status))
        span.set_status(Status(StatusCode.ERROR))


class Probes:
    """Answers at ``/livez`` and ``/readyz``: whether the service is alive and ready, with what is wrong as JSON.

    An app to mount, under any path, beside a bus of either kind that the program starts and stops. It answers in the
    server's event loop: one that is blocked gives no answer, which orchestrators take for a no.

    Args:
        bus: a :class:`quantum_bus.EventBus` or a :class:`quantum_bus.sync.EventBus`.
    """

    def __init__(self, bus: Any) -> None:
        health = getattr(bus, "health", None)
        if not callable(health):
            raise ConfigurationError(f"Probes({type(bus).__name__}): give an EventBus")
        self._health: Callable[..., Any] = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] == "lifespan":  # where it is the whole application
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await _send(send, await self._answer(scope), body=scope["method"] != "HEAD")

    async def _answer(self, scope: Scope) -> Answer:
        path = "/" + scope["path"].rpartition("/")[2]
        if path not in (names.PATH_LIVE, names.PATH_READY):
            return readiness.no_such_path()
        if scope["method"] not in readiness.ALLOWED_METHODS:
            return readiness.no_such_method()
        ask_redis = path == names.PATH_READY
        health: Health
        if inspect.iscoroutinefunction(self._health):
            health = await self._health(ask_redis=ask_redis)
        else:
            health = await asyncio.to_thread(self._health, ask_redis=ask_redis)
        return readiness.answer(path, health)


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to start or to stop."""
    while True:
        stage = (await receive())["type"]
        await send({"type": f"{stage}.complete"})
        if stage == "lifespan.shutdown":
            return


async def _send(send: Send, answer: Answer, *, body: bool) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if body else b""})
