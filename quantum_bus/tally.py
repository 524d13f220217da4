"""Metrics of what happens with every message, told to the SDK in bulk; what is exported is the same.

Sums are asked for when metrics are collected, instead of added to with every message: 0.2 µs for 6 to 10. Durations are
kept until whoever records them waits for Redis anyway, until there are some, or until metrics are collected: so many
calls as ever, but nobody waits for them, or they follow on one another with the SDK's code and data at hand.

An SDK takes one callback for each name, and several buses may use one provider: they share what is kept for it, so this
module keeps that for each provider. Where no SDK is set up when a bus is first used, one may come later, and then each
bus's own instruments come to life by themselves: such buses, and whoever shares their provider, tell it directly.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

from . import names
from .recording import recorder
from .spans import Attributes

# Durations that are kept at most; and how many are worth telling of where there is time: one behind the other they take
# less than each alone.
MOST_KEPT: Final = 100
WORTH_TELLING: Final = 16
# Sets of attributes of one counter: as many as OpenTelemetry's SDK tells apart. What is more shares one.
MOST_SETS: Final = 2000
_OVERFLOW: Final[Attributes] = {"otel.metric.overflow": True}


class Count(Protocol):
    """The count of one set of attributes."""

    def add(self, amount: int, /) -> None:
        """Count so many more, from any thread."""


class Counts(Protocol):
    """A counter."""

    def of(self, attributes: Attributes) -> Count:
        """The count of these attributes; to be kept where it is needed often."""


class _Sum:
    __slots__ = ("_lock", "attributes", "value")

    def __init__(self, attributes: Attributes) -> None:
        self._lock = threading.RLock()  # a signal handler or finalizer may publish, too
        self.attributes = attributes
        self.value = 0

    def add(self, amount: int, /) -> None:
        with self._lock:
            self.value += amount


class Durations(Protocol):
    """A histogram of seconds."""

    def record(self, seconds: float, attributes: Attributes, context: Context, /) -> None:
        """One more, from any thread.

        Args:
            context: what it happened in.
        """

    def tell(self, least: int = 1) -> None:
        """Have the SDK told of all, if they are as many as ``least``; called where there is time."""


class _Kept:
    """Durations that the SDK has not been told of."""

    __slots__ = ("_pending", "_record")

    def __init__(self, histogram: Histogram) -> None:
        self._record = recorder(histogram)
        self._pending: deque[tuple[float, Attributes, Context]] = deque()

    def record(self, seconds: float, attributes: Attributes, context: Context, /) -> None:
        self._pending.append((seconds, attributes, context))
        if len(self._pending) >= MOST_KEPT:
            self.tell()

    def tell(self, least: int = 1) -> None:
        """Tell the SDK; two threads at once share the work."""
        record, pending = self._record, self._pending
        if len(pending) < least:
            return
        with suppress(IndexError):  # all are told
            while True:
                record(*pending.popleft())


class _Immediate:
    """Durations that the SDK is told of at once."""

    def __init__(self, histogram: Histogram) -> None:
        self.record = histogram.record

    def tell(self, least: int = 1) -> None:
        """Nothing is kept."""


class Tally:
    """Counts of one counter, for an observable instrument to read."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler or finalizer may publish, too
        self._sums: dict[frozenset[tuple[str, Any]], _Sum] = {}

    def of(self, attributes: Attributes) -> _Sum:
        """The count of these attributes."""
        with self._lock:
            key = frozenset(attributes.items())
            if key not in self._sums and len(self._sums) >= MOST_SETS:
                attributes, key = _OVERFLOW, frozenset(_OVERFLOW.items())
            return self._sums.setdefault(key, _Sum(attributes))

    def observe(self, _: CallbackOptions) -> Iterable[Observation]:
        """All that was counted."""
        with self._lock:
            sums = list(self._sums.values())
        return [Observation(item.value, item.attributes) for item in sums if item.value]


class _Direct:
    """Counts through an instrument of the API, which is, or may become, an SDK's."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def of(self, attributes: Attributes) -> Count:
        return _DirectCount(self._counter, attributes)


class _DirectCount:
    __slots__ = ("_attributes", "_counter")

    def __init__(self, counter: Counter, attributes: Attributes) -> None:
        self._counter = counter
        self._attributes = attributes

    def add(self, amount: int, /) -> None:
        self._counter.add(amount, self._attributes)


class _Provided:
    """What is kept for one provider."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}
        self._kept: dict[str, _Kept] = {}

    def tally(self, name: str, description: str, meter: Meter) -> Tally:
        if name not in self._tallies:
            tally = self._tallies[name] = Tally()

            def observe(options: CallbackOptions) -> Iterable[Observation]:
                self.tell()  # callbacks come first in a collection: what is told now is in it
                return tally.observe(options)

            meter.create_observable_counter(name, [observe], unit="{message}", description=description)
        return self._tallies[name]

    def kept(self, name: str, description: str, meter: Meter) -> _Kept:
        if name not in self._kept:
            self._kept[name] = _Kept(_histogram(name, description, meter))
        return self._kept[name]

    def tell(self) -> None:
        for kept in tuple(self._kept.values()):
            kept.tell()


_lock: Final = threading.Lock()
_provided: Final[WeakKeyDictionary[MeterProvider, _Provided]] = WeakKeyDictionary()
_told_directly: Final[set[bool]] = set()  # holds something once the global provider's SDK is told directly


def instruments(
    provider: MeterProvider | None, sums: tuple[str, str], durations: tuple[str, str]
) -> tuple[Counts, Durations]:
    """A counter of messages and a histogram of seconds, each given as its name and description.

    Args:
        provider: whose they are; None for the global one.
    """
    own = metrics.get_meter_provider() if provider is None else provider
    meter = metrics.get_meter(names.INSTRUMENTATION_NAME, meter_provider=provider)
    with _lock:
        is_global = own is metrics.get_meter_provider()
        ready = not type(own).__module__.startswith("opentelemetry.metrics")  # the API's own wait for an SDK
        if is_global and not ready:
            _told_directly.add(True)
        if not ready or (is_global and _told_directly):
            name, description = sums
            counter = meter.create_counter(name, unit="{message}", description=description)
            return _Direct(counter), _Immediate(_histogram(*durations, meter))
        shared = _provided.setdefault(own, _Provided())
        return shared.tally(*sums, meter), shared.kept(*durations, meter)


def _histogram(name: str, description: str, meter: Meter) -> Histogram:
    return meter.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=list(names.DURATION_BUCKETS)
    )
