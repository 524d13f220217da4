"""Counters that are read when metrics are collected: nothing is lost, whoever shares a provider."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import _internal as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.util._once import Once

from quantum_bus import tally

NAME = "messages"


class Collected:
    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)

    def points(self) -> dict[str, int]:
        data = self.reader.get_metrics_data()
        found: dict[str, int] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name != NAME:
                        continue
                    for point in metric.data.data_points:
                        key = str(dict(point.attributes or {}))
                        assert key not in found, "one point for each set of attributes"
                        found[key] = point.value  # type: ignore[union-attr]  # of a sum
        return found

    def durations(self) -> list[tuple[int, float]]:
        """How many, and what they add up to, for each set of attributes."""
        data = self.reader.get_metrics_data()
        return [
            (point.count, point.sum)  # type: ignore[union-attr]  # of a histogram
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "seconds"
            for point in metric.data.data_points
        ]


def counts(provider: MeterProvider | None) -> tally.Counts:
    return instruments(provider)[0]


def instruments(provider: MeterProvider | None) -> tuple[tally.Counts, tally.Durations]:
    return tally.instruments(provider, sums=(NAME, "How many."), durations=("seconds", "How long."))


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which no provider was set yet."""
    monkeypatch.setattr(api, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(api, "_METER_PROVIDER", None)
    monkeypatch.setattr(api, "_PROXY_METER_PROVIDER", api._ProxyMeterProvider())
    monkeypatch.setattr(tally, "_told_directly", set())


def test_several_that_count_for_one_provider_are_added_up() -> None:
    collected = Collected()
    first, second = counts(collected.provider), counts(collected.provider)
    first.of({"stream": "a"}).add(2)
    second.of({"stream": "a"}).add(3)
    second.of({"stream": "b"}).add(1)
    assert collected.points() == {"{'stream': 'a'}": 5, "{'stream': 'b'}": 1}


def test_the_sum_goes_on_over_collections_and_is_as_new_as_can_be() -> None:
    collected = Collected()
    count = counts(collected.provider).of({})
    for total in (1, 2, 3):
        count.add(1)
        assert collected.points() == {"{}": total}


def test_what_was_never_counted_is_no_point() -> None:
    collected = Collected()
    counts(collected.provider).of({"stream": "a"})
    assert collected.points() == {}


def test_threads_lose_nothing() -> None:
    collected = Collected()
    count = counts(collected.provider).of({})
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(lambda: [count.add(1) for _ in range(5_000)])
    assert collected.points() == {"{}": 40_000}


def test_more_sets_of_attributes_than_the_sdk_tells_apart_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_SETS", 3)
    collected = Collected()
    for number in range(10):
        counts(collected.provider).of({"stream": f"s{number}"}).add(1)
    points = collected.points()
    assert len(points) == 4
    assert points["{'otel.metric.overflow': True}"] == 7


def test_a_provider_that_is_gone_is_not_kept() -> None:
    collected = Collected()
    sums, durations = instruments(collected.provider)
    sums.of({}).add(1)
    durations.record(1.0, {}, Context())
    gone = weakref.ref(collected.provider)
    del collected, sums, durations
    gc.collect()
    assert gone() is None


def test_durations_are_in_the_collection_that_follows_however_few_and_whoever_recorded_them() -> None:
    collected = Collected()
    (_, first), (_, second) = instruments(collected.provider), instruments(collected.provider)
    first.record(1.0, {}, Context())
    assert collected.durations() == [(1, 1.0)]
    second.record(2.0, {}, Context())
    first.record(3.0, {}, Context())
    assert collected.durations() == [(3, 6.0)]


def test_no_more_durations_are_kept_than_the_bound() -> None:
    told: list[float] = []

    class Told:
        def record(self, seconds: float, attributes: object, context: object) -> None:
            told.append(seconds)

    kept: Any = tally._Kept(Told())  # type: ignore[arg-type]  # all of a histogram that is used
    for number in range(tally.MOST_KEPT + 1):
        kept.record(float(number), {}, Context())
    assert told == [float(number) for number in range(tally.MOST_KEPT)]


def test_kept_durations_are_told_when_there_is_time() -> None:
    collected = Collected()
    _, durations = instruments(collected.provider)
    kept: Any = durations
    kept.record(1.0, {}, Context())
    assert kept._pending
    kept.tell()
    assert not kept._pending
    assert collected.durations() == [(1, 1.0)]


def test_threads_lose_no_duration() -> None:
    collected = Collected()
    _, durations = instruments(collected.provider)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(lambda: [durations.record(1.0, {}, Context()) for _ in range(2_000)])
    assert collected.durations() == [(16_000, 16_000.0)]


def test_a_duration_is_an_example_of_the_trace_it_was_in() -> None:
    collected = Collected()
    _, durations = instruments(collected.provider)
    span = NonRecordingSpan(SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(1)))
    durations.record(1.0, {}, set_span_in_context(span))
    data: Any = collected.reader.get_metrics_data()
    [point] = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [(exemplar.trace_id, exemplar.span_id) for exemplar in point.exemplars] == [(7, 8)]


@pytest.mark.usefixtures("no_sdk")
def test_what_counts_before_an_sdk_is_set_up_counts_for_it_as_soon_as_it_is() -> None:
    early = [counts(None), counts(None)]
    kept = [item.of({"stream": "a"}) for item in early]
    collected = Collected()
    metrics.set_meter_provider(collected.provider)
    late: list[Any] = [counts(None), counts(collected.provider)]
    for count in (*kept, *(item.of({"stream": "a"}) for item in late)):
        count.add(1)
    assert collected.points() == {"{'stream': 'a'}": 4}


@pytest.mark.usefixtures("no_sdk")
def test_an_sdk_that_is_there_first_is_counted_for_once() -> None:
    collected = Collected()
    metrics.set_meter_provider(collected.provider)
    counts(None).of({}).add(1)
    counts(collected.provider).of({}).add(1)
    assert collected.points() == {"{}": 2}
