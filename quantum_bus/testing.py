"""A bus for tests: on a Redis in memory, with everything it says caught.

Needs fakeredis and the OpenTelemetry SDK: ``pip install 'quantum-bus[otel]' 'fakeredis[lua]'``. No server, no global
provider and no other test's state is touched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from . import names
from .bus import EventBus
from .config import State
from .errors import ConfigurationError, PublishError
from .flow_ids import FlowIdGenerator
from .jsonlog import CaptureSink, capture_logs
from .link import Link, Reply
from .receipt import Receipt
from .streams import Command, Keys, side_key

try:
    import fakeredis
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
except ImportError as error:
    raise ImportError(
        f"quantum_bus.testing needs fakeredis and the OpenTelemetry SDK ({error}); install them: "
        "pip install 'quantum-bus[otel]' 'fakeredis[lua]'"
    ) from error

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_SERVICE: Final = "test"
DEFAULT_DRAIN_SECONDS: Final = 5.0
STOP_SECONDS: Final = 1.0
# An idle read returns so soon, seconds: nothing in a test waits for longer.
BLOCK_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.002
SPAN_LINK_LIMIT: Final = 1024
REDIS_VERSION: Final = (7, 0)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of a stream, fields as text, in the order they stand there."""

    id: str
    fields: Mapping[str, str]


class TestBus:
    """An :class:`~quantum_bus.EventBus` on a Redis in memory, to be entered with ``async with``.

    ::

        async with TestBus() as bus:
            @bus.subscriber("orders")
            async def handle(order: Order) -> None: ...

            await bus.publish("orders", {"id": 7})
            await bus.drained()
            assert [span.name for span in bus.spans] == ["send orders", "process orders"]

    Or the program's own bus, with the subscribers it has, for the length of the block::

        async with TestBus(app.bus) as bus:
            await bus.publish("orders", {"id": 7})
            await bus.drained()

    Args:
        bus: one that is not started; None makes one.
        service: of a bus that is made here.
        replicas: how many replicas confirm a publish with ``wait_replicas``, at once; the Redis in memory has none
            of its own. None: as many as are asked for. With 0 each such publish is stored and raises ``NotDurable``.
        options: further options of a bus that is made here, as ``prefix=``.

    Attributes:
        bus: the EventBus itself, for code that wants one.
        redis: a client of the Redis in memory, answers as text.
    """

    __test__ = False  # pytest takes every class of such a name for a test

    def __init__(
        self,
        bus: EventBus | None = None,
        *,
        service: str | None = None,
        replicas: int | None = None,
        **options: Any,
    ) -> None:
        if bus is not None and (service is not None or options):
            raise ConfigurationError("give either a bus or the options of one")
        if bus is not None and not isinstance(bus, EventBus):
            raise ConfigurationError(
                f"bus is a {type(bus).__name__}: give an EventBus over asyncio; one of threads cannot be lent"
            )
        server = fakeredis.FakeServer(version=REDIS_VERSION)
        self._client = fakeredis.FakeAsyncRedis(server=server)
        self.redis = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self._given = bus
        resource = Resource({})  # the environment's says nothing about a test
        self._tracer_provider = TracerProvider(
            resource=resource,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=SPAN_LINK_LIMIT),
            id_generator=FlowIdGenerator(),
        )
        self._tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meter_provider = MeterProvider(metric_readers=[self._reader], resource=resource, shutdown_on_exit=False)
        self.bus = bus or EventBus(
            client=self._client,
            service=service or DEFAULT_SERVICE,
            tracer_provider=self._tracer_provider,
            meter_provider=self._meter_provider,
            **{"block": BLOCK_SECONDS, **options},
        )
        self._replicas = replicas
        if bus is None:
            vars(self.bus)["_new_waiting_link"] = self._new_waiting_link
        self._captured = CaptureSink()
        self._stack = ExitStack()

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._given is not None:
            self._stack.enter_context(self._standing_in(self._given))
        self._captured = self._stack.enter_context(capture_logs(self.bus.config.service, level="INFO"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        try:
            await self.bus.stop(timeout=STOP_SECONDS)
        finally:
            self._stack.close()
            self._tracer_provider.shutdown()
            self._meter_provider.shutdown()
            await self._client.aclose()
            await self.redis.aclose()

    async def start(self) -> None:
        """Begin to handle messages; the first ``publish`` or ``drained`` does it, too. Subscribe before."""
        await self.bus.start()

    @contextmanager
    def _standing_in(self, bus: EventBus) -> Iterator[None]:
        """Lend a bus our Redis and providers; behind the block it is as it was, and may be lent again."""
        inside = vars(bus)
        if inside["_state"] is not State.NEW:
            raise ConfigurationError("give a bus that is not started yet")
        former = dict(inside)
        subscriptions = copy(inside["_subscriptions"])
        subscriptions._added = list(subscriptions._added)  # noqa: SLF001 - what a test subscribes stays in the test
        inside.update(
            _client=self._client,
            _owns_client=False,
            _providers=(self._tracer_provider, self._meter_provider),
            _subscriptions=subscriptions,
            _middleware=list(inside["_middleware"]),
            _consumers=[],
            _new_waiting_link=self._new_waiting_link,
        )
        try:
            yield
        finally:
            inside.clear()
            inside.update(former)

    def _new_waiting_link(self) -> _WaitingLink:
        return _WaitingLink(self.bus._new_link(), self._replicas)  # noqa: SLF001 - see there

    # --- what a bus does -------------------------------------------------------------------------

    @property
    def subscriber(self) -> Callable[..., Callable[[F], F]]:
        """:meth:`EventBus.subscriber <quantum_bus.EventBus.subscriber>`."""
        return self.bus.subscriber  # itself, not a function around it: it looks at its caller's local names

    async def publish(self, stream: str, payload: Any, **options: Any) -> Receipt:
        """:meth:`EventBus.publish <quantum_bus.EventBus.publish>`, starting the bus where it is not started."""
        await self.start()
        return await self.bus.publish(stream, payload, **options)

    async def publish_many(self, stream: str, items: Iterable[Any], **options: Any) -> list[Receipt | PublishError]:
        """As :meth:`publish`, for :meth:`EventBus.publish_many <quantum_bus.EventBus.publish_many>`."""
        await self.start()
        return await self.bus.publish_many(stream, items, **options)

    async def drained(self, timeout: float = DEFAULT_DRAIN_SECONDS) -> None:
        """Wait until every message is handled and settled, those included that handlers have published.

        Args:
            timeout: seconds; a message that waits for a retry counts as not handled, and so does one published with a
                delay that ends before the timeout.

        Raises:
            TimeoutError: naming the groups that still have something to do.
        """
        await self.start()
        deadline = asyncio.get_running_loop().time() + timeout
        due_by = (time.time() + timeout) * 1000
        before: dict[tuple[str, str], _Progress] = {}
        while True:
            now = await self._progress(due_by)
            # Twice the same, and all done: then it was all done at one moment, whatever was handled in between.
            if now == before and all(progress.done for progress in now.values()):
                return
            if asyncio.get_running_loop().time() > deadline:
                waiting = [f"{group} on {stream}" for (stream, group), progress in now.items() if not progress.done]
                raise TimeoutError(f"not drained within {timeout:g} s: {', '.join(waiting) or 'messages keep coming'}")
            before = now
            await asyncio.sleep(POLL_SECONDS)

    async def _progress(self, due_by: float) -> dict[tuple[str, str], _Progress]:
        found = {}
        for config, _ in self.bus._subscriptions:  # noqa: SLF001 - a window into the bus is what this module is
            for stream in config.streams:
                groups = {group["name"]: group for group in await self.redis.xinfo_groups(stream)}
                newest: Any = await self.redis.xrevrange(stream, count=1)
                group = groups[config.group]
                keys = Keys.of(stream, config.group)
                # in one step: a retry that becomes due meanwhile would be seen in neither
                async with self.redis.pipeline(transaction=True) as together:
                    together.zcard(keys.due)
                    together.xlen(keys.retry)
                    together.zcount(keys.delayed_due, "-inf", due_by)
                    ahead = await together.execute()
                found[stream, config.group] = _Progress(
                    newest=newest[0][0] if newest else None,
                    delivered=group["last-delivered-id"],
                    pending=group["pending"],
                    ahead=sum(ahead),
                )
        return found

    # --- what was caught -------------------------------------------------------------------------

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans that have ended, in the order they did."""
        return self._exporter.get_finished_spans()

    def metrics(self) -> dict[str, list[Any]]:
        """The metrics so far: by name, the data points of OpenTelemetry's SDK, one for each set of attributes."""
        data = self._reader.get_metrics_data()
        found: dict[str, list[Any]] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found.setdefault(metric.name, []).extend(metric.data.data_points)
        return found

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The log records of the block, by whatever logger, as they would stand in a service's log file."""
        return self._captured.records

    async def entries(self, stream: str) -> list[StoredEntry]:
        """What a stream holds, oldest first; its name is without the bus's prefix."""
        return await self._stored(self.bus.config.prefix + stream)

    async def dead_letters(self, stream: str) -> list[StoredEntry]:
        """What was dead-lettered of a stream, oldest first."""
        return await self._stored(side_key(self.bus.config.prefix + stream, names.SUFFIX_DLQ))

    async def _stored(self, key: str) -> list[StoredEntry]:
        found: Any = await self.redis.xrange(key)
        return [StoredEntry(entry_id, fields) for entry_id, fields in found]


class _WaitingLink:
    """A connection to the Redis in memory whose WAITs are answered here: fakeredis does not know that command."""

    def __init__(self, link: Link, replicas: int | None) -> None:
        self._link = link
        self._replicas = replicas

    async def execute(self, *commands: Command, timeout: float | None = None, anew: bool = False) -> list[Reply]:
        *written, (_, wanted, _) = commands
        confirmed = wanted if self._replicas is None else self._replicas
        return [*await self._link.execute(*written, timeout=timeout, anew=anew), confirmed]

    async def close(self) -> None:
        await self._link.close()


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a group has come with a stream; ``ahead`` are retries, scheduled, due or running, and what is delayed."""

    newest: str | None
    delivered: str
    pending: int
    ahead: int

    @property
    def done(self) -> bool:
        if self.pending or self.ahead:
            return False
        return self.newest is None or _number(self.delivered) >= _number(self.newest)


def _number(entry_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split("-"))
