"""The subscribers of one bus: their options and handlers, checked as they are added. Shared by both twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .config import Breaker, BusConfig, Retry, Start, SubscriberConfig, TraceMode, check_stream
from .errors import ConfigurationError
from .handlers import Handler, inspect_handler


class Subscriptions:
    """What a bus is to consume.

    Args:
        threads: the bus has no event loop, so handlers must not be ``async def``.
    """

    def __init__(self, bus: BusConfig, *, threads: bool) -> None:
        self._bus = bus
        self._threads = threads
        self._added: list[tuple[SubscriberConfig, Handler]] = []

    def __iter__(self) -> Iterator[tuple[SubscriberConfig, Handler]]:
        return iter(self._added)

    def __len__(self) -> int:
        return len(self._added)

    def plan(
        self,
        stream: str,
        streams: tuple[str, ...],
        *,
        group: str | None,
        batch: int,
        concurrency: int,
        ack_wait: float,
        timeout: float | None,
        retry: Retry | None,
        start: Start,
        trace_mode: TraceMode,
        idempotent: float | None,
        breaker: Breaker | None,
        ordered: bool,
    ) -> SubscriberConfig:
        """Check the options of a subscriber; stream names get the bus's prefix, the group defaults to the service.

        Raises:
            ConfigurationError: an option cannot work, or the group reads one of the streams in this bus already.
        """
        if callable(stream):
            raise ConfigurationError("name the stream: @bus.subscriber('orders')")
        for name in (stream, *streams):
            check_stream(name)
        config = SubscriberConfig(
            streams=tuple(self._bus.prefix + name for name in (stream, *streams)),
            group=self._bus.service if group is None else group,
            batch=batch,
            concurrency=concurrency,
            ack_wait=ack_wait,
            timeout=timeout,
            retry=Retry() if retry is None else retry,
            start=start,
            trace_mode=trace_mode,
            idempotent=idempotent,
            breaker=breaker,
            ordered=ordered,
        )
        self._refuse_double(config)
        return config

    def add(self, config: SubscriberConfig, function: Callable[..., Any], local_names: Mapping[str, Any]) -> None:
        """Check a handler and keep it.

        Raises:
            ConfigurationError: its signature does not fit, or the same options were used for another one.
        """
        self._refuse_double(config)
        handler = inspect_handler(function, batch=config.batch > 1, local_names=local_names, threads=self._threads)
        self._added.append((config, handler))

    def named(self, streams: Sequence[str]) -> tuple[SubscriberConfig, ...]:
        """Those that read one of these streams, named without the bus's prefix; all where none is named.

        Raises:
            ConfigurationError: nobody in this bus subscribes to one of them.
        """
        wanted = [self._bus.prefix + name for name in streams]
        for name, stream in zip(streams, wanted, strict=True):
            if not any(stream in config.streams for config, _ in self._added):
                raise ConfigurationError(f"{name!r}: this bus has no subscriber for it")
        return tuple(config for config, _ in self._added if not wanted or set(wanted) & set(config.streams))

    def _refuse_double(self, config: SubscriberConfig) -> None:
        for other, handler in self._added:
            if other.group == config.group and (both := set(other.streams) & set(config.streams)):
                raise ConfigurationError(
                    f"{handler.name} handles {min(both)!r} for group {other.group!r} in this bus already; give the "
                    "second subscriber a group of its own, or raise the first one's concurrency"
                )
