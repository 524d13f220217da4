"""The event bus for threads: asyncio's, with the same names and without ``await``."""

from __future__ import annotations

import contextlib
import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import redis
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.retry import Retry as DriverRetry

from quantum_bus import config as options
from quantum_bus import driver, forks, journal, names, readiness, streams
from quantum_bus.backoff import Backoff
from quantum_bus.blocking_link import Link
from quantum_bus.config import (
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
from quantum_bus.envelope import Event, Outgoing, before_middleware, check_items, checked, prepare
from quantum_bus.errors import BusClosed, ConfigurationError, ConnectionLost, PublishError
from quantum_bus.heartbeat import Heartbeat, patience
from quantum_bus.readiness import Health
from quantum_bus.receipt import Receipt
from quantum_bus.stopping import StopRequest, slices
from quantum_bus.stream_names import StreamNames
from quantum_bus.subscriptions import Subscriptions
from quantum_bus.telemetry import Telemetry

from .consumer import Consumer, Process
from .publisher import Publisher

F = TypeVar("F", bound=Callable[..., Any])
CallNext = Callable[[Any], Any]
Middleware = Callable[[Any, CallNext], Any]
"""``def m(message_or_event, call_next)``; as asyncio's, without ``await``."""


class EventBus:
    """An event bus on Redis Streams, for threads.

    ::

        bus = EventBus("redis://localhost:6379/0", service="auto_executor")

        @bus.subscriber("orders")
        def handle(order: Order) -> None: ...

        bus.run()

    Everything is as in :class:`quantum_bus.EventBus`, which documents the arguments, but for this: handlers are ``def``
    and run in ``concurrency`` threads of their subscriber, middleware is ``def``, and calls block. All methods may be
    called from any thread. A ``client`` is a ``redis.Redis``.
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
        if client is not None and not isinstance(client, redis.Redis):
            raise ConfigurationError(
                f"client={type(client).__name__}: give a redis.Redis (quantum_bus.EventBus takes a redis.asyncio.Redis)"
            )
        self._owns_client = client is None
        self._client = self._connect_later() if client is None else client
        self._names = StreamNames(self.config.prefix)
        self._middleware: list[Middleware] = []
        for item in middleware:
            self.add_middleware(item)
        self._telemetry = Telemetry(
            sampled=sampled,
            send_baggage=send_baggage,
            server=driver.server_address(self._client),
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
        )
        self._link = self._new_link(reply_timeout)
        self._publisher = Publisher(self.config, self._link, self._new_waiting_link, self._telemetry)
        self._subscriptions = Subscriptions(self.config, threads=True)
        self._consumers: list[Consumer] = []
        self._paused: set[SubscriberConfig] = set()
        self._state = State.NEW
        self._changing = threading.RLock()
        self._counted = _Counted(self.config.service)
        self._heartbeat: Heartbeat | None = None
        self._begun = False
        self._stop_requested = StopRequest()

    # --- what to do ------------------------------------------------------------------------------

    def add_middleware(self, middleware: Middleware) -> None:
        """Put one more middleware inside the ones there are."""
        if not callable(middleware):
            raise ConfigurationError(f"middleware={middleware!r}: give a def m(message_or_event, call_next)")
        call = middleware if inspect.isroutine(middleware) else type(middleware).__call__
        if inspect.iscoroutinefunction(call):
            raise ConfigurationError(f"middleware {middleware!r} is async def, and quantum_bus.sync has no event loop")
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
        """Have a function handle the messages of one or several streams; see :meth:`quantum_bus.EventBus.subscriber`.

        A handler that runs longer than ``timeout`` counts as failed; its thread cannot be stopped and is left behind.
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
        ordered subscriber keeps what it holds, and its lead. May be called before the start. Publishing goes on.

        Raises:
            ConfigurationError: this bus has no subscriber for one of the streams.
        """
        for config in self._subscriptions.named(streams):
            self._paused.add(config)
            for consumer in self._consumers:
                if consumer.config is config:
                    consumer.pause()

    def resume(self, *streams: str) -> None:
        """Go on after :meth:`pause`, with these streams or with all. A circuit breaker that is open stays open.

        Raises:
            ConfigurationError: this bus has no subscriber for one of the streams.
        """
        for config in self._subscriptions.named(streams):
            self._paused.discard(config)
            for consumer in self._consumers:
                if consumer.config is config:
                    consumer.resume()

    # --- publishing ------------------------------------------------------------------------------

    def publish(
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
        """Add a message to a stream; returns when Redis has confirmed it. See :meth:`quantum_bus.EventBus.publish`."""
        name = self._names.full(stream)
        if timeout is not options.DEFAULT_PUBLISH_TIMEOUT:
            check_timeout(timeout)
        if wait_replicas is not None:
            check_replicas(wait_replicas)
        given = (payload, event, key, correlation_id, message_id, headers)
        if self._middleware:
            return self._wrapped(
                Event(*given, name, delay, dedupe),
                lambda outgoing: self._publisher.publish(outgoing, timeout=timeout, wait_replicas=wait_replicas),
            )
        with self._counted:
            outgoing = checked(name, *given, delay, dedupe, self.config.max_payload_bytes)
            return self._publisher.publish(outgoing, timeout=timeout, wait_replicas=wait_replicas)

    def publish_many(
        self,
        stream: str,
        items: Iterable[Any],
        *,
        wait_replicas: int | None = None,
        timeout: float = options.DEFAULT_PUBLISH_TIMEOUT,
    ) -> list[Receipt | PublishError]:
        """Add messages to a stream, in order; see :meth:`quantum_bus.EventBus.publish_many`."""
        name = self._names.full(stream)
        check_items(items)
        check_timeout(timeout)
        check_replicas(wait_replicas)
        if not self._middleware:
            limit = self.config.max_payload_bytes
            with self._counted:
                outgoing = [
                    prepare(item if isinstance(item, Event) else Event(item), max_payload_bytes=limit, stream=name)
                    for item in items
                ]
                return self._publisher.publish_many(name, outgoing, timeout=timeout, wait_replicas=wait_replicas)
        events = [replace(item, stream=name) if isinstance(item, Event) else Event(item, stream=name) for item in items]
        if not events:
            return []
        results: list[Receipt | PublishError] = []
        deadline = time.monotonic() + timeout
        publisher = self._publisher
        with self._counted, publisher.together(name, [before_middleware(item, name) for item in events]) as sending:

            def publish(outgoing: Outgoing) -> Receipt:
                left = max(0.001, deadline - time.monotonic())
                return publisher.publish_within(sending, outgoing, timeout=left, wait_replicas=wait_replicas)

            for item in events:
                try:
                    results.append(self._wrapped(item, publish))
                except PublishError as error:
                    results.append(error)
            sending.failed = sum(isinstance(result, PublishError) for result in results)
        return results

    def _wrapped(self, event: Event, publish: Callable[[Outgoing], Receipt]) -> Receipt:
        """Publish behind the middleware."""

        def innermost(item: Event) -> Receipt:
            return publish(prepare(item, max_payload_bytes=self.config.max_payload_bytes))

        with self._counted:
            receipt = self._wrap(innermost)(event)
        if not isinstance(receipt, Receipt):
            raise ConfigurationError("a middleware did not return the receipt; write return call_next(event)")
        return receipt

    def _wrap(self, innermost: Process) -> Process:
        """``innermost`` behind the middleware, the first one outermost."""
        process = innermost
        for middleware in reversed(self._middleware):
            process = _around(middleware, process)
        return process

    @property
    def from_thread(self) -> Self:
        """The bus itself: every thread may publish through it."""
        return self

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Connect, make the groups, and begin to handle messages. No signal handlers."""
        with self._changing:
            if self._state is State.RUNNING:
                return
            if self._state is not State.NEW:
                raise BusClosed(f"the bus of {self.config.service} is stopped; make a new EventBus")
            self._state = State.RUNNING
        try:
            subscribers = len(self._subscriptions)
            driver.check_size(
                self._client.connection_pool,
                1 + subscribers + bool(subscribers),
                "one, one for each subscriber, and one to renew leases",
            )
            self._reach()
            self._check_running()
            name = driver.consumer_name(self.config.service)
            for config, handler in self._subscriptions:
                consumer = Consumer(
                    config,
                    handler,
                    name=name,
                    bus=self.config,
                    commands=self._link,
                    reader=self._new_link(self.config.block + streams.BLOCK_MARGIN),
                    telemetry=self._telemetry,
                    wrap=self._wrap,
                )
                self._consumers.append(consumer)
                if config in self._paused:
                    consumer.pause()
                consumer.prepare()
                self._check_running()
            for consumer in self._consumers:  # where one of them cannot, none handles anything
                consumer.begin()
            if self._consumers:
                leases = [consumer.lease() for consumer in self._consumers]
                link = self._new_link(patience(leases, self.config.reply_timeout))
                self._heartbeat = Heartbeat(link, leases)
                self._heartbeat.start()
            self._begun = True
        except BaseException:
            self._close()
            raise
        journal.started(self.config.service, len(self._consumers))

    def _check_running(self) -> None:
        """As over asyncio."""
        if self._state is not State.RUNNING:
            raise BusClosed(f"the bus of {self.config.service} was stopped while it was started")

    def _reach(self) -> None:
        """The first round trip: retried for a Redis that is just coming up, until ``connect_timeout``."""
        backoff = Backoff(self.config.backoff_initial, self.config.backoff_maximum)
        until = time.monotonic() + self.config.connect_timeout
        while True:
            self._check_running()
            missing: ConnectionLost | None
            try:
                missing = driver.not_ready(self._link.execute_one(("PING",)), self._where)
            except ConnectionLost as error:
                missing = error
            if missing is None:
                return
            pause = backoff.next()
            if time.monotonic() + pause > until:
                raise missing
            time.sleep(pause)

    def stop(self, timeout: float = options.DEFAULT_STOP_TIMEOUT) -> None:
        """Take no new messages, let running handlers end, and close.

        Args:
            timeout: seconds that running handlers and publishes have. Threads cannot be stopped: a handler that is not
                done then is left behind, and its messages stay pending in Redis.

        Raises:
            ConfigurationError: ``timeout`` is no finite number of 0 or more, or a handler of this bus calls, which
                would be waited for; nothing has changed.
        """
        check_stop_timeout(timeout)
        if any(consumer.runs_here() for consumer in self._consumers):
            raise ConfigurationError(STOP_IN_A_HANDLER)
        with self._changing:
            if self._state in (State.CLOSED, State.STOPPING):
                return
            self._state = State.STOPPING
        deadline = time.monotonic() + timeout
        journal.draining(self.config.service)
        try:
            for consumer in self._consumers:
                consumer.stop_reading(deadline)
            abandoned = sum(consumer.drain(deadline) for consumer in self._consumers)
            self._counted.wait(deadline)
            if abandoned:
                journal.abandoned(abandoned, timeout)
        finally:
            self._close()
        journal.stopped(self.config.service)

    def run(self, *, stop_timeout: float = options.DEFAULT_STOP_TIMEOUT, probes: str | None = None) -> None:
        """Start, handle messages until SIGTERM or SIGINT, then drain and stop. A second signal stops without draining.

        Args:
            stop_timeout: seconds that running handlers have after the signal.
            probes: ``HOST:PORT`` at which ``/livez`` and ``/readyz`` are answered over HTTP, from before the start
                until the bus is stopped; None: nowhere.

        Raises:
            ConfigurationError: ``probes`` is no address, or one that cannot be listened at; ``stop_timeout`` is no
                finite number of 0 or more; or called outside of the main thread, which is the only one to get signals.
        """
        check_stop_timeout(stop_timeout)
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("run() needs the main thread, for its signals; elsewhere use start() and stop()")

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self._stop_requested.is_set():
                raise _Hurried
            self._stop_requested.set()

        with contextlib.ExitStack() as handlers:
            if probes is not None:
                from quantum_bus.probes import ProbeServer  # it loads http.server, which few need

                handlers.enter_context(ProbeServer(probes, lambda redis: self.health(ask_redis=redis)))
            for number in STOP_SIGNALS:
                handlers.callback(signal.signal, number, signal.signal(number, on_signal))
            try:
                self.start()
                self._stop_requested.wait()
                self.stop(stop_timeout)
            except _Hurried:
                journal.log.debug("Stopped without draining")
            finally:
                self.stop(0.0)

    def request_stop(self) -> None:
        """Have :meth:`run` drain and return, as a signal would; from any thread."""
        self._stop_requested.set()

    # --- health ----------------------------------------------------------------------------------

    def health(self, *, ask_redis: bool = True) -> Health:
        """What this bus knows of itself; see :meth:`quantum_bus.EventBus.health`."""
        fault = self._redis_fault() if ask_redis else None
        with self._changing:
            state, begun = self._state, self._begun
        beats = self._heartbeat is None or self._heartbeat.alive or state is not State.RUNNING
        return Health(
            service=self.config.service,
            state=names.HEALTH_RUNNING if begun and state is State.RUNNING else readiness.STATES[state],
            redis=self._where,
            redis_fault=fault,
            ended=() if beats else ("heartbeat",),
            subscribers=tuple(consumer.health() for consumer in self._consumers),
        )

    def _redis_fault(self) -> str | None:
        """Why Redis does not serve; None where it does, or the bus has no connection to ask over."""
        if self._state not in readiness.CONNECTED:
            return None
        try:
            reply = self._link.execute_one(("PING",), timeout=readiness.REDIS_SECONDS)
        except (ConnectionLost, ConfigurationError) as error:
            return str(error)
        fault = driver.not_ready(reply, self._where)
        return None if fault is None else str(fault)

    # --- inside ----------------------------------------------------------------------------------

    def _connect_later(self) -> redis.Redis:
        """A client; it opens no connection before it is used."""
        assert self.config.url is not None
        return redis.Redis.from_url(self.config.url, **driver.connection_options(self.config, DriverRetry))

    def _new_link(self, timeout: float) -> Link:
        return Link(self._client.connection_pool, timeout=timeout, where=self._where, busy_poll=self.config.busy_poll)

    @property
    def _where(self) -> str:
        return masked_url(self.config.url) if self.config.url else "the given client's address"

    def _new_waiting_link(self) -> Link:
        """For publishes that wait for replicas: as long as their caller says."""
        return self._new_link(math.inf)

    def _close(self) -> None:
        with self._changing:
            self._state = State.CLOSED
        self._counted.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        for consumer in self._consumers:
            consumer.close()
        self._publisher.close()
        self._link.close()
        if self._owns_client:
            self._client.close()


class _Counted:
    """Publishes under way, for :meth:`EventBus.stop` to wait for; each enters it for its time."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False
        self._awaited = False
        forks.mind(self)

    def __enter__(self) -> None:
        with self._changed:
            if self._closed:
                raise BusClosed(f"the bus of {self._service} is stopped; make a new EventBus")
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            if self._awaited:
                self._changed.notify_all()

    def wait(self, deadline: float) -> None:
        """Wait until none is under way, or until ``deadline`` on the monotonic clock."""
        with self._changed:
            self._awaited = True
            for patience in slices(deadline):
                if not self._count:
                    break
                self._changed.wait(patience)

    def after_fork(self) -> None:
        """None of the parent's publishes is under way here, and none of its threads lets the lock go."""
        self._changed = threading.Condition()
        self._count = 0

    def close(self) -> None:
        """Let no more in."""
        with self._changed:
            self._closed = True


class _Hurried(BaseException):
    """The second signal: leave whatever is being waited for."""


def _around(middleware: Middleware, inner: Process) -> Process:
    return lambda item: middleware(item, inner)
