"""The asyncio bus and the threads' bus behind one interface, so that each behaviour is written down once.

A test is a coroutine and so is each handler and middleware in it. The asyncio bus gets them as they are. For the
threads' bus they become plain functions: in a handler's thread nothing they await ever suspends, because what the
adapters here (and `conditions`) do there blocks instead. What a test awaits itself runs in a thread of its own, so that
a blocking bus does not hold up the test.
"""

import asyncio
import contextvars
import functools
import inspect
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import quantum_bus
import quantum_bus.sync
from quantum_bus import PublishError, Receipt
from tests.contract.backends import Backend
from tests.contract.conditions import in_event_loop

ASYNCIO = "asyncio"
THREADS = "threads"
TWINS = (ASYNCIO, THREADS)

FAILED_STOP = 0.5
"""Seconds a bus is given to stop when its test has failed: a gate may never be opened any more."""

AsyncMiddleware = Callable[[Any, Callable[[Any], Awaitable[Any]]], Coroutine[Any, Any, Any]]

_threads = ThreadPoolExecutor(64, thread_name_prefix="test caller")


class Bus(Protocol):
    """`quantum_bus.EventBus`, as the tests see it."""

    raw: Any

    def subscriber(self, stream: Any, *streams: Any, **options: Any) -> Callable[[Any], Any]: ...
    def add_middleware(self, middleware: AsyncMiddleware) -> None: ...
    async def publish(self, stream: str, payload: Any, **arguments: Any) -> Receipt: ...
    async def publish_many(
        self, stream: str, items: Iterable[Any], **arguments: Any
    ) -> list[Receipt | PublishError]: ...
    async def start(self) -> None: ...
    async def stop(self, timeout: float = 30.0) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...


async def settled(result: Any) -> None:
    """`await settled(message.ack())`: an asyncio message's methods are awaited, a thread's have done it already."""
    if inspect.isawaitable(result):
        await result


async def blocking(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call something that blocks: at once in a handler's thread, in a thread of its own from the event loop."""
    if not in_event_loop():
        return function(*arguments, **options)
    context = contextvars.copy_context()
    call = functools.partial(context.run, function, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def driven(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends, in a thread without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("a handler's thread would have to wait for an event loop it does not have")


class AsyncioBus:
    def __init__(self, raw: quantum_bus.EventBus) -> None:
        self.raw = raw
        self.subscriber = raw.subscriber
        self.add_middleware = raw.add_middleware
        self.publish = raw.publish
        self.publish_many = raw.publish_many
        self.start = raw.start
        self.stop = raw.stop

    async def __aenter__(self) -> Self:
        await self.raw.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if exc[0] is not None:
            await self.stop(FAILED_STOP)
        await self.raw.__aexit__(*exc)


class ThreadsBus:
    def __init__(self, raw: quantum_bus.sync.EventBus) -> None:
        self.raw = raw

    def subscriber(self, stream: Any, *streams: Any, **options: Any) -> Callable[[Any], Any]:
        decorate = self.raw.subscriber(stream, *streams, **options)

        def subscribe(handler: Any) -> Any:
            decorate(_plain(handler) if inspect.iscoroutinefunction(handler) else handler)
            return handler

        return subscribe

    def add_middleware(self, middleware: AsyncMiddleware) -> None:
        self.raw.add_middleware(_plain_middleware(middleware))

    async def publish(self, stream: str, payload: Any, **arguments: Any) -> Any:
        return await blocking(self.raw.publish, stream, payload, **arguments)

    async def publish_many(self, stream: str, items: Iterable[Any], **arguments: Any) -> Any:
        return await blocking(self.raw.publish_many, stream, items, **arguments)

    async def start(self) -> None:
        await blocking(self.raw.start)

    async def stop(self, timeout: float = 30.0) -> None:
        await blocking(self.raw.stop, timeout)

    async def __aenter__(self) -> Self:
        await blocking(self.raw.__enter__)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if exc[0] is not None:
            await self.stop(FAILED_STOP)
        await blocking(self.raw.__exit__, *exc)


def _plain(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def plain(*arguments: Any, **options: Any) -> Any:
        return driven(handler(*arguments, **options))

    return plain


def _plain_middleware(middleware: AsyncMiddleware) -> Callable[[Any, Callable[[Any], Any]], Any]:
    def plain(item: Any, call_next: Callable[[Any], Any]) -> Any:
        async def awaitable(changed: Any) -> Any:
            return call_next(changed)

        # around publish it may run in the test's own thread, around a handler in the handler's: neither has a loop
        return driven(middleware(item, awaitable))

    return plain


class Buses:
    """Makes buses of one twin on one backend, and stops them when the test is over."""

    def __init__(self, twin: str, backend: Backend) -> None:
        self.twin = twin
        self.backend = backend
        self._made: list[Bus] = []
        self._clients: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def __call__(self, *, service: str = "svc", url: str | None = None, client: Any = None, **options: Any) -> Bus:
        """A bus, not started. Middleware is given as `async def`, for either twin."""
        options.setdefault("block", self.backend.block)
        middleware = options.pop("middleware", ())
        own = None
        if client is None and url is None:
            url = self.backend.url
            if url is None:
                client = own = self.client()
        given = {"url": url} if client is None else {"client": client}
        bus: Bus
        if self.twin == ASYNCIO:
            bus = AsyncioBus(quantum_bus.EventBus(service=service, middleware=middleware, **given, **options))
        else:
            plain = [_plain_middleware(item) if inspect.iscoroutinefunction(item) else item for item in middleware]
            bus = ThreadsBus(quantum_bus.sync.EventBus(service=service, middleware=plain, **given, **options))
        self._made.append(bus)
        if own is not None:
            self._clients[bus] = own
        return bus

    def client(self, **options: Any) -> Any:
        """A redis-py client of the kind that this twin takes."""
        if self.twin == ASYNCIO:
            return self.backend.asyncio_client(**options)
        return self.backend.threads_client(**options)

    async def close(self, client: Any) -> None:
        """Close a client of :meth:`client`."""
        if self.twin == ASYNCIO:
            await client.aclose()
        else:
            client.close()

    async def stop(self) -> None:
        for bus in self._made:
            await bus.stop(timeout=1.0)
            if (client := self._clients.get(bus)) is not None:
                await self.close(client)
