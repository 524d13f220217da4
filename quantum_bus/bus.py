"""The asyncio event bus: what users hold in their hands."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import redis.asyncio as redis
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.asyncio.retry import Retry as DriverRetry

from . import config as options
from . import driver, journal, names, readiness
from .backoff import Backoff
from .blocking_link import Link as BlockingLink
from .config import (
    STOP_IN_A_HANDLER,
    STOP_SIGNALS,
    Breaker,
    BusConfig,
    Retry,
    Start,
    State,
    SubscriberConfig,
    TraceMode,
    check_replicas,
    check_stop_timeout,
    check_timeout,
    masked_url,
)
from .consumer import Consumer, Process
from .envelope import Event, Outgoing, before_middleware, check_items, checked, prepare
from .errors import BusClosed, ConfigurationError, ConnectionLost, PublishError
from .from_thread import FromThread
from .heartbeat import Heartbeat, Lease, patience
from .link import Link
from .publisher import Publisher
from .readiness import Health
from .receipt import Receipt
from .stream_names import StreamNames
from .subscriptions import Subscriptions
from .telemetry import Telemetry

F = TypeVar("F", bound=Callable[..., Any])
CallNext = Callable[[Any], Awaitable[Any]]
Middleware = Callable[[Any, CallNext], Awaitable[Any]]
"""``async def m(message_or_event, call_next)``: sees an :class:`Event` around each publish and a :class:`Message` (with
``batch`` a list of them) around each handler run; goes on with ``return await call_next(message_or_event)``."""


_CLOSED: Final = State.CLOSED


class EventBus:
    """An event bus on Redis Streams.

    ::

        bus = EventBus("redis://localhost:6379/0", service="auto_executor")

        @bus.subscriber("orders")
        async def handle(order: Order) -> None: ...

        await bus.run()

    Publishing needs no start. A bus belongs to the event loop it is first used in, and is used once: after ``stop``
    make a new one.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; None reads ``QUANTUM_BUS_URL``.
        service: this service's name, on every message; None reads ``QUANTUM_BUS_SERVICE``, else ``OTEL_SERVICE_NAME``.
        client: a ``redis.asyncio.Redis`` to take connections from, instead of a url. It is never closed by the bus. The
            bus keeps one connection of its pool, and one more for each subscriber; leases are renewed over a connection
            of their own, made with the same options.
        prefix: put before every stream's name.
        middleware: around every publish and every handler run, the first one outermost.
        max_payload_bytes: longest payload, as JSON.
        sampled: the flag of a trace context that the bus has to make itself, where no OpenTelemetry SDK does.
        send_baggage: whether W3C baggage goes out with messages.
        connect_timeout: seconds to open a connection, and for ``start`` to reach Redis.
        reply_timeout: seconds Redis may take to answer before the connection counts as dead.
        block: seconds an idle read waits at the server before it is sent again.
        backoff_initial: longest first pause before Redis is tried again, seconds; doubled each time.
        backoff_maximum: longest of these pauses, seconds.
        busy_poll: seconds for which a publish that is alone looks for its reply, again and again, before the process
            sleeps for it; 0 sleeps at once. Where replies come later, it soon does without.
        completed: completion records to keep for each stream, about; each write of outcomes makes one. 0 keeps none.
        keep: handled messages to leave readable in each stream that this bus consumes, about; what is older is freed
            once every group has handled it. None frees nothing, 0 keeps none.
        cap: entries in a stream above which an error is logged; nothing is deleted for it.
        index: seconds for which ``quantum-bus trace`` finds what this bus publishes by its correlation id without
            reading streams, up to a week; noted in the step that adds the message. None notes nothing.
        tracer_provider: instead of OpenTelemetry's global one.
        meter_provider: instead of OpenTelemetry's global one.

    Raises:
        ConfigurationError: an option cannot work; the text says what would be right.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        service: str | None = None,
        client: redis.Redis | None = None,
        prefix: str = "",
        middleware: Iterable[Middleware] = (),
        max_payload_bytes: int = options.DEFAULT_MAX_PAYLOAD_BYTES,
        sampled: bool = True,
        send_baggage: bool = True,
        connect_timeout: float = options.DEFAULT_CONNECT_TIMEOUT,
        reply_timeout: float = options.DEFAULT_REPLY_TIMEOUT,
        block: float = options.DEFAULT_BLOCK,
        backoff_initial: float = options.DEFAULT_BACKOFF_INITIAL,
        backoff_maximum: float = options.DEFAULT_BACKOFF_MAXIMUM,
        busy_poll: float = options.DEFAULT_BUSY_POLL,
        completed: int = options.DEFAULT_COMPLETED,
        keep: int | None = options.DEFAULT_KEEP,
        cap: int = options.DEFAULT_CAP,
        index: float | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.config = BusConfig.resolve(
            url,
            service,
            has_client=client is not None,
            prefix=prefix,
            max_payload_bytes=max_payload_bytes,
            sampled=sampled,
            send_baggage=send_baggage,
            connect_timeout=connect_timeout,
            reply_timeout=reply_timeout,
            block=block,
            backoff_initial=backoff_initial,
            backoff_maximum=backoff_maximum,
            busy_poll=busy_poll,
            completed=completed,
            keep=keep,
            cap=cap,
            index=index,
        )
        driver.check_url(self.config, redis.ConnectionPool, DriverRetry)
        if client is not None and not (isinstance(client, redis.Redis) and hasattr(client, "connection_pool")):
            raise ConfigurationError(
                f"client={type(client).__name__}: give a redis.asyncio.Redis (quantum_bus.sync takes a redis.Redis)"
            )
        self._client = client
        self._owns_client = client is None
        self._names = StreamNames(self.config.prefix)
        self._middleware: list[Middleware] = []
        for item in middleware:
            self.add_middleware(item)
        self._providers = (tracer_provider, meter_provider)
        self._subscriptions = Subscriptions(self.config, threads=False)
        self._consumers: list[Consumer] = []
        self._paused: set[SubscriberConfig] = set()
        self._state = State.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: Link | None = None
        self._publisher: Publisher | None = None
        self._telemetry: Telemetry | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._begun = False
        self._stop_requested: asyncio.Event | None = None
        self._heartbeat: Heartbeat | None = None
        self._beating: asyncio.Task[None] | None = None
        self._counted = _Counted()
        self._closing: asyncio.Future[None] | None = None

    # --- what to do ------------------------------------------------------------------------------

    def add_middleware(self, middleware: Middleware) -> None:
        """Put one more middleware inside the ones there are."""
        if not callable(middleware):
            raise ConfigurationError(f"middleware={middleware!r}: give an async def m(message_or_event, call_next)")
        call = middleware if inspect.isroutine(middleware) else type(middleware).__call__
        if not inspect.iscoroutinefunction(call):
            raise ConfigurationError(
                f"middleware {middleware!r} is not async def; write async def m(message, call_next)"
            )
        self._middleware.append(middleware)

    def subscriber(
        self,
        stream: str,
        *streams: str,
        group: str | None = None,
        batch: int = 1,
        concurrency: int = 16,
        ack_wait: float = 30.0,
        timeout: float | None = None,
        retry: Retry | None = None,
        start: Start = "beginning",
        trace_mode: TraceMode = "continue",
        idempotent: float | None = None,
        breaker: Breaker | None = None,
        ordered: bool = False,
    ) -> Callable[[F], F]:
        """Have a function handle the messages of one or several streams.

        The function is ``async def``, or ``def`` and then runs in a worker thread. A parameter annotated ``Message``
        gets the message, the other one the payload as its annotation says: ``dict``, any JSON value, a dataclass, a
        ``TypedDict``, a pydantic model. It is returned unchanged.

        Args:
            stream: the stream's name, without the bus's prefix.
            streams: further streams for the same handler.
            group: the consumer group; by default the service. Each group gets every message, one of its consumers each.
            batch: above 1 the handler takes lists, of up to so many messages at once.
            concurrency: handler runs at once. No more messages are read than handlers can take.
            ack_wait: seconds after which a message of a dead consumer is given to another.
            timeout: seconds a run may take before it counts as failed; None: as long as it wants.
            retry: how often, and when, a failed handler runs again; None: as ``Retry()`` says.
            start: where a new group starts: at the ``"beginning"`` of the stream, or with ``"new"`` messages only.
            trace_mode: ``"continue"`` makes the handling a part of the message's trace, ``"link"`` a trace of its own.
            idempotent: seconds for which the group remembers each ``message_id`` that it has handled, for each stream:
                another entry under one of them is acknowledged and counted, not handled; while one is being handled,
                or waits for its next attempt, another waits. None remembers nothing.
            breaker: when to stop for an outage of what the handler needs, as ``Breaker()``; None: never.
            ordered: messages of one key are handled one after the other in the stream's order, retries included, by one
                consumer of the group at a time; the others stand by, and take over within ``ack_wait``. To be given to
                all of the group. See "Order" in the guarantees.

        Raises:
            ConfigurationError: an option or the signature cannot work, or this bus has a subscriber for the same stream
                and group.
        """
        if self._state is not State.NEW:
            raise ConfigurationError("subscribe before the bus is started")
        config = self._subscriptions.plan(
            stream,
            streams,
            group=group,
            batch=batch,
            concurrency=concurrency,
            ack_wait=ack_wait,
            timeout=timeout,
            retry=retry,
            start=start,
            trace_mode=trace_mode,
            idempotent=idempotent,
            breaker=breaker,
            ordered=ordered,
        )
        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None

        def decorate(function: F) -> F:
            self._subscriptions.add(config, function, dict(caller.f_locals) if caller is not None else {})
            return function

        return decorate

    def pause(self, *streams: str) -> None:
        """Take no more messages of these streams, without the bus's prefix, or of all, until :meth:`resume`.

        Handlers that run go on to their end; what was only prefetched is given up at once, for other consumers. An
        ordered subscriber keeps what it holds, and its lead. May be called before the start, and from any thread.
        Publishing goes on.

        Raises:
            ConfigurationError: this bus has no subscriber for one of the streams.
        """
        for config in self._subscriptions.named(streams):
            self._paused.add(config)
            for consumer in self._consumers:
                if consumer.config is config:
                    self._in_loop(consumer.pause)

    def resume(self, *streams: str) -> None:
        """Go on after :meth:`pause`, with these streams or with all. A circuit breaker that is open stays open.

        Raises:
            ConfigurationError: this bus has no subscriber for one of the streams.
        """
        for config in self._subscriptions.named(streams):
            self._paused.discard(config)
            for consumer in self._consumers:
                if consumer.config is config:
                    self._in_loop(consumer.resume)

    def _in_loop(self, call: Callable[[], None]) -> None:
        """Have it called in the bus's event loop: now, or from another thread as soon as it comes to it."""
        assert self._loop is not None
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    # --- publishing ------------------------------------------------------------------------------

    async def publish(
        self,
        stream: str,
        payload: Any,
        *,
        event: str | None = None,
        key: str | None = None,
        correlation_id: str | UUID | None = None,
        message_id: str | UUID | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        dedupe: float | None = None,
        wait_replicas: int | None = None,
        timeout: float = options.DEFAULT_PUBLISH_TIMEOUT,
    ) -> Receipt:
        """Add a message to a stream; returns when Redis has confirmed it.

        In a handler it belongs to the same flow by itself. Concurrent calls share round trips.

        Args:
            stream: the stream's name, without the bus's prefix.
            payload: anything JSON can say; also dataclasses, pydantic models, UUIDs and datetimes.
            event: the event's name, as ``"ORDER_FILLED"``.
            key: the ordering key.
            correlation_id: the flow's id; None takes the one in force, else the trace's. A malformed one is replaced.
            message_id: unique and stable over retries; None makes one.
            headers: the caller's own, str to str.
            delay: seconds until the message is added to the stream, by Redis's clock; None or 0 adds it at once. It
                waits in Redis until then, and whichever consumer of the stream comes first adds it, at most about a
                second late; where none runs, it waits on. Publishing a ``message_id`` that waits already changes
                nothing.
            dedupe: seconds within which a second publish of the same ``message_id`` to this stream adds nothing, and
                returns the first one's receipt. None adds each, also one whose reply was lost.
            wait_replicas: how many replicas must have the message, too, before it counts as published; they have what
                is left of ``timeout``. None waits for none. Such calls have connections of their own, 16 at the most.
            timeout: seconds within which Redis must confirm. A lost connection, and a refusal that passes by itself
                (a replica before its promotion, a Redis that is loading), is tried again until then.

        Raises:
            SerializationError: the payload cannot be JSON.
            PayloadTooLarge: its JSON is longer than ``max_payload_bytes``.
            ConfigurationError: another argument is at fault.
            PublishTimeout: not confirmed in time; the message may be stored.
            BackPressure: Redis is out of memory; not stored.
            NotDurable: stored, but confirmed by fewer than ``wait_replicas`` replicas.
            PublishError: Redis refused it otherwise, or each time until ``timeout``; not stored.
            BusClosed: the bus was stopped.
        """
        name = self._names.full(stream)
        if timeout is not options.DEFAULT_PUBLISH_TIMEOUT:
            check_timeout(timeout)
        if wait_replicas is not None:
            check_replicas(wait_replicas)
        given = (payload, event, key, correlation_id, message_id, headers)
        if self._middleware:
            publisher = self._open()
            return await self._wrapped(
                Event(*given, name, delay, dedupe),
                lambda outgoing: publisher.publish(outgoing, timeout=timeout, wait_replicas=wait_replicas),
            )
        publisher = self._open()
        outgoing = checked(name, *given, delay, dedupe, self.config.max_payload_bytes)
        with self._counted:
            return await publisher.publish(outgoing, timeout=timeout, wait_replicas=wait_replicas)

    async def publish_many(
        self,
        stream: str,
        items: Iterable[Any],
        *,
        wait_replicas: int | None = None,
        timeout: float = options.DEFAULT_PUBLISH_TIMEOUT,
    ) -> list[Receipt | PublishError]:
        """Add messages to a stream, in order, in as few round trips as can be.

        Args:
            stream: the stream's name, without the bus's prefix.
            items: payloads, or :class:`Event` for those that need more than a payload.
            wait_replicas: how many replicas must have them, too; see :meth:`publish`. Where fewer have, the items'
                results are :class:`NotDurable`.
            timeout: seconds within which Redis must confirm all.

        Returns:
            For each item, in order, its receipt, or the error that kept Redis from storing or confirming it.

        Raises:
            SerializationError, PayloadTooLarge, ConfigurationError: an item is at fault; nothing was sent, but for the
                items before it where there is middleware, which sees one after the other.
            BusClosed: the bus was stopped.
        """
        name = self._names.full(stream)
        check_items(items)
        check_timeout(timeout)
        check_replicas(wait_replicas)
        publisher = self._open()
        if not self._middleware:
            limit = self.config.max_payload_bytes
            outgoing = [
                prepare(item if isinstance(item, Event) else Event(item), max_payload_bytes=limit, stream=name)
                for item in items
            ]
            with self._counted:
                return await publisher.publish_many(name, outgoing, timeout=timeout, wait_replicas=wait_replicas)
        events = [replace(item, stream=name) if isinstance(item, Event) else Event(item, stream=name) for item in items]
        if not events:
            return []
        results: list[Receipt | PublishError] = []
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        with self._counted, publisher.together(name, [before_middleware(item, name) for item in events]) as sending:

            def publish(outgoing: Outgoing) -> Awaitable[Receipt]:
                left = max(0.001, deadline - clock())
                return publisher.publish_within(sending, outgoing, timeout=left, wait_replicas=wait_replicas)

            for item in events:  # one after the other: middleware may take its time, and the order is promised
                try:
                    results.append(await self._wrapped(item, publish))
                except PublishError as error:
                    results.append(error)
            sending.failed = sum(isinstance(result, PublishError) for result in results)
        return results

    async def _wrapped(self, event: Event, publish: Callable[[Outgoing], Awaitable[Receipt]]) -> Receipt:
        """Publish behind the middleware."""

        async def innermost(item: Event) -> Receipt:
            return await publish(prepare(item, max_payload_bytes=self.config.max_payload_bytes))

        with self._counted:
            receipt = await self._wrap(innermost)(event)
        if not isinstance(receipt, Receipt):
            raise ConfigurationError("a middleware did not return the receipt; write return await call_next(event)")
        return receipt

    async def _publishes_done(self, deadline: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._counted.none()

    def _wrap(self, innermost: Process) -> Process:
        """``innermost`` behind the middleware, the first one outermost."""
        process = innermost
        for middleware in reversed(self._middleware):
            process = _around(middleware, process)
        return process

    @property
    def from_thread(self) -> FromThread:
        """Publish from a ``def`` handler, or any other thread, through this bus; the calls block."""
        return FromThread(self.publish, self.publish_many, self._running_loop)

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect, make the groups, and begin to handle messages. No signal handlers: for FastAPI and tests.

        Raises:
            ConnectionLost: Redis cannot be reached within ``connect_timeout``.
            ConfigurationError: the credentials are refused, or a stream's key is not a stream.
            BusClosed: the bus was stopped.
        """
        self._open()
        if self._state is State.RUNNING:
            return
        self._state = State.RUNNING
        link = self._link
        telemetry = self._telemetry
        assert link is not None
        assert telemetry is not None
        try:
            assert self._client is not None
            driver.check_size(
                self._client.connection_pool,
                1 + len(self._subscriptions),
                "one, and one for each subscriber",
            )
            await self._reach(link)
            self._check_running()
            if any(not handler.is_async for _, handler in self._subscriptions):
                workers = sum(config.concurrency for config, handler in self._subscriptions if not handler.is_async)
                self._threads = ThreadPoolExecutor(workers, thread_name_prefix="quantum_bus handler")
            name = driver.consumer_name(self.config.service)
            for config, handler in self._subscriptions:
                consumer = Consumer(
                    config,
                    handler,
                    name=name,
                    bus=self.config,
                    commands=link,
                    reader=self._new_link(),
                    telemetry=telemetry,
                    wrap=self._wrap,
                    threads=self._threads,
                )
                self._consumers.append(consumer)
                if config in self._paused:
                    consumer.pause()
                await consumer.prepare()
                self._check_running()
            for consumer in self._consumers:  # where one of them cannot, none handles anything
                consumer.begin()
            self._keep_leases([consumer.lease() for consumer in self._consumers])
            self._begun = True
        except BaseException:
            await self._close()
            raise
        journal.started(self.config.service, len(self._consumers))

    def _keep_leases(self, leases: Sequence[Lease]) -> None:
        """Renew leases from a thread; for a client whose connections only it can make, from the event loop."""
        if not leases:
            return
        pool = driver.blocking_pool(self.config, self._client)
        if pool is not None:
            beating = BlockingLink(pool, timeout=patience(leases, self.config.reply_timeout), where="Redis")
            self._heartbeat = Heartbeat(beating, leases)
            self._heartbeat.start()
        else:
            self._beating = asyncio.create_task(self._beat(leases), name="quantum_bus heartbeat")

    async def _beat(self, leases: Sequence[Lease]) -> None:
        assert self._link is not None
        for lease in leases:
            lease.begin()
        while True:
            await asyncio.sleep(max(0.0, min(lease.due for lease in leases) - time.monotonic()))
            for lease in leases:
                if lease.due <= time.monotonic():
                    renewals = lease.commands()
                    well = not renewals
                    with contextlib.suppress(ConnectionLost, ConfigurationError):  # the readers meet it too, and say so
                        well = well or lease.answered(renewals, await self._link.execute(*renewals))
                    lease.beaten(well=well)

    def _check_running(self) -> None:
        """In the course of the start, behind every wait.

        Raises:
            BusClosed: it was stopped meanwhile.
        """
        if self._state is not State.RUNNING:
            raise BusClosed(f"the bus of {self.config.service} was stopped while it was started")

    async def _reach(self, link: Link) -> None:
        """The first round trip: retried for a Redis that is just coming up, until ``connect_timeout``."""
        backoff = Backoff(self.config.backoff_initial, self.config.backoff_maximum)
        loop = asyncio.get_running_loop()
        until = loop.time() + self.config.connect_timeout
        while True:
            self._check_running()
            missing: ConnectionLost | None
            try:
                missing = driver.not_ready(await link.execute_one(("PING",)), self._where)
            except ConnectionLost as error:
                missing = error
            if missing is None:
                return
            pause = backoff.next()
            if loop.time() + pause > until:
                raise missing
            await asyncio.sleep(pause)

    async def stop(self, timeout: float = options.DEFAULT_STOP_TIMEOUT) -> None:
        """Take no new messages, let running handlers end, and close.

        Args:
            timeout: seconds that running handlers and publishes have. What is not done then is cancelled; its messages
                stay pending in Redis.

        Raises:
            ConfigurationError: ``timeout`` is no finite number of 0 or more, or a handler of this bus calls, which
                would be waited for; nothing has changed.
        """
        check_stop_timeout(timeout)
        if any(consumer.runs_here() for consumer in self._consumers):
            raise ConfigurationError(STOP_IN_A_HANDLER)
        if self._state in (State.CLOSED, State.STOPPING):
            if self._closing is not None:  # whoever began that may have been cancelled
                await asyncio.shield(self._closing)
            return
        if self._link is None:
            self._state = State.CLOSED
            return
        self._state = State.STOPPING
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        journal.draining(self.config.service)
        try:
            await asyncio.gather(*(consumer.stop_reading(deadline) for consumer in self._consumers))
            left = await asyncio.gather(*(consumer.drain(deadline) for consumer in self._consumers))
            await self._publishes_done(deadline)
            if abandoned := sum(left):
                journal.abandoned(abandoned, timeout)
        finally:
            await self._close()
        journal.stopped(self.config.service)

    async def run(self, *, stop_timeout: float = options.DEFAULT_STOP_TIMEOUT, probes: str | None = None) -> None:
        """Start, handle messages until SIGTERM or SIGINT, then drain and stop. A second signal stops without draining.

        Args:
            stop_timeout: seconds that running handlers have after the signal.
            probes: ``HOST:PORT`` at which ``/livez`` and ``/readyz`` are answered over HTTP, from before the start
                until the bus is stopped; None: nowhere.

        Raises:
            ConfigurationError: ``probes`` is no address, or one that cannot be listened at; or ``stop_timeout`` is no
                finite number of 0 or more.
        """
        check_stop_timeout(stop_timeout)
        loop = asyncio.get_running_loop()
        requested = self._stop_requested = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        hurried = False

        def on_signal() -> None:
            nonlocal hurried
            if requested.is_set() and not hurried:
                hurried = True
                task.cancel()
            requested.set()

        with contextlib.ExitStack() as handlers:
            if probes is not None:
                from .probes import ProbeServer  # it loads http.server, which few need

                handlers.enter_context(ProbeServer(probes, lambda redis: self._health_from_thread(loop, redis)))
            for number in STOP_SIGNALS:
                loop.add_signal_handler(number, on_signal)
                handlers.callback(loop.remove_signal_handler, number)
            try:
                await self.start()
                await requested.wait()
                await self.stop(stop_timeout)
            except asyncio.CancelledError:
                if not hurried:
                    raise
                task.uncancel()
            finally:
                await self.stop(0.0)

    def request_stop(self) -> None:
        """Have :meth:`run` drain and return, as a signal would. To be called in the bus's event loop."""
        if self._stop_requested is not None:
            self._stop_requested.set()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._state is State.CLOSED:
            raise BusClosed(f"the bus of {self.config.service} is stopped; make a new EventBus")
        if self._loop is None:
            raise ConfigurationError("start the bus before threads publish through it")
        return self._loop

    # --- health ----------------------------------------------------------------------------------

    async def health(self, *, ask_redis: bool = True) -> Health:
        """What this bus knows of itself: whether it is live and ready, and what is wrong. For probes of one's own.

        May be awaited in another event loop than the bus's. Takes no longer than two seconds.

        Args:
            ask_redis: whether Redis is asked whether it answers.
        """
        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop():
            return await self._health(ask_redis=ask_redis)
        return await asyncio.to_thread(self._health_from_thread, loop, ask_redis)

    async def _health(self, *, ask_redis: bool) -> Health:
        fault = await self._redis_fault() if ask_redis else None
        beats = (self._heartbeat is None or self._heartbeat.alive) and (
            self._beating is None or not self._beating.done()
        )
        return Health(
            service=self.config.service,
            state=self._health_state(),
            redis=self._where,
            redis_fault=fault,
            ended=() if beats or self._state is not State.RUNNING else ("heartbeat",),
            subscribers=tuple(consumer.health() for consumer in self._consumers),
        )

    def _health_from_thread(self, loop: asyncio.AbstractEventLoop, ask_redis: bool) -> Health:
        """From any other thread; where the event loop does not come to it in time, that is the answer."""
        asking = self._health(ask_redis=ask_redis)
        try:
            future = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:
            asking.close()
            return self._stalled("the event loop is closed")
        try:
            return future.result(readiness.STALLED_SECONDS)
        except TimeoutError:
            future.cancel()
            return self._stalled(f"the event loop has not turned for {readiness.STALLED_SECONDS:g} s")

    def _stalled(self, reason: str) -> Health:
        return Health(service=self.config.service, state=self._health_state(), redis=self._where, stalled=reason)

    def _health_state(self) -> str:
        begun = self._begun and self._state is State.RUNNING
        return names.HEALTH_RUNNING if begun else readiness.STATES[self._state]

    async def _redis_fault(self) -> str | None:
        """Why Redis does not serve; None where it does, or the bus has no connection to ask over."""
        if self._link is None or self._state not in readiness.CONNECTED:
            return None
        try:
            async with asyncio.timeout(readiness.REDIS_SECONDS):
                fault = driver.not_ready(await self._link.execute_one(("PING",)), self._where)
        except TimeoutError:
            return f"Redis at {self._where} did not answer within {readiness.REDIS_SECONDS:g} s"
        except (ConnectionLost, ConfigurationError) as error:
            return str(error)
        return None if fault is None else str(fault)

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> Publisher:
        """The publisher; made on first use, because connections belong to the running loop."""
        if self._publisher is not None and self._state is not _CLOSED:
            if self._loop is not asyncio.get_running_loop():
                raise ConfigurationError(
                    "this bus belongs to another event loop; make one for each loop, or use bus.from_thread in threads"
                )
            return self._publisher
        if self._state is not State.NEW:
            raise BusClosed(f"the bus of {self.config.service} is stopped; make a new EventBus")
        self._loop = asyncio.get_running_loop()
        if self._client is None:
            assert self.config.url is not None
            self._client = redis.Redis.from_url(self.config.url, **driver.connection_options(self.config, DriverRetry))
        tracer_provider, meter_provider = self._providers
        self._telemetry = Telemetry(
            sampled=self.config.sampled,
            send_baggage=self.config.send_baggage,
            server=driver.server_address(self._client),
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
        )
        self._link = self._new_link()
        self._publisher = Publisher(self.config, self._link, self._new_waiting_link, self._telemetry)
        return self._publisher

    def _new_link(self) -> Link:
        assert self._client is not None
        return Link(
            self._client.connection_pool,
            timeout=self.config.reply_timeout,
            where=self._where,
            busy_poll=self.config.busy_poll,
        )

    @property
    def _where(self) -> str:
        return masked_url(self.config.url) if self.config.url else "the given client's address"

    def _new_waiting_link(self) -> Link:
        """For publishes that wait for replicas; ``quantum_bus.testing`` has its own."""
        return self._new_link()

    async def _close(self) -> None:
        """Give everything back: to the end, also where whoever asks for it is cancelled meanwhile."""
        self._state = State.CLOSED
        self._closing = asyncio.ensure_future(self._give_back())
        await asyncio.shield(self._closing)

    async def _give_back(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._beating is not None:
            self._beating.cancel()
        for consumer in self._consumers:
            await consumer.close()
        if self._publisher is not None:
            await self._publisher.close()
        if self._link is not None:
            await self._link.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._owns_client and self._client is not None:
            await self._client.aclose()


class _Counted:
    """Publishes under way, for :meth:`EventBus.stop` to wait for; each enters it for its time."""

    __slots__ = ("_count", "_none")

    def __init__(self) -> None:
        self._count = 0
        self._none: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count and self._none is not None:
            self._none.set()

    async def none(self) -> None:
        """Wait until none is under way."""
        if self._count:
            self._none = asyncio.Event()
            await self._none.wait()


def _around(middleware: Middleware, inner: Process) -> Process:
    async def process(item: Any) -> Any:
        return await middleware(item, inner)

    return process
