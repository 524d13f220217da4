"""The short way to a duration: what is exported is the same as through OpenTelemetry's API, however it is set up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from quantum_bus import names, recording
from quantum_bus.recording import recorder
from quantum_bus.spans import Attributes

SETS: list[Attributes] = [
    {"messaging.destination.name": "a", "server.port": 6379},
    {"messaging.destination.name": "b", "server.port": 6379},
    {"messaging.destination.name": "a", "server.port": 6379, names.ATTR_ERROR_TYPE: "ValueError"},
    {},
]
VIEWS: dict[str, list[View]] = {
    "none": [],
    "fewer attributes": [View(instrument_name="d", attribute_keys={"server.port"})],
    "two": [
        View(instrument_name="d", name="all"),
        View(instrument_name="d", name="port", attribute_keys={"server.port"}),
    ],
    "dropped": [View(instrument_name="d", aggregation=DropAggregation())],
    "exponential": [View(instrument_name="d", aggregation=ExponentialBucketHistogramAggregation())],
}
READERS = {
    "cumulative": [AggregationTemporality.CUMULATIVE],
    "delta": [AggregationTemporality.DELTA],
    "both": [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE],
    "none": [],
}


def context(trace_id: int, flags: int) -> Context:
    if not trace_id:
        return Context()
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, 1, False, TraceFlags(flags))), Context())


def exported(reader: InMemoryMetricReader) -> list[Any]:
    """All but when it was."""
    data: Any = reader.get_metrics_data()
    seen = []
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    one = {name: getattr(point, name) for name in vars(point) if not name.endswith("nano")}
                    one["attributes"] = dict(point.attributes)
                    one["exemplars"] = [(item.value, item.trace_id, item.span_id) for item in point.exemplars]
                    seen.append((metric.name, metric.unit, repr(one)))
    return sorted(seen)


@given(
    views=st.sampled_from(sorted(VIEWS)),
    temporality=st.sampled_from(sorted(READERS)),
    records=st.lists(
        st.tuples(
            st.floats(0, 100), st.integers(0, len(SETS) - 1), st.integers(0, 3), st.integers(0, 1), st.booleans()
        ),
        max_size=30,
    ),
)
def test_what_is_exported_is_that_of_the_api(
    views: str, temporality: str, records: list[tuple[float, int, int, int, bool]]
) -> None:
    seen = []
    for way in (lambda histogram: histogram.record, recorder):
        readers = [InMemoryMetricReader(preferred_temporality={Histogram: kind}) for kind in READERS[temporality]]
        provider = MeterProvider(readers, views=VIEWS[views], shutdown_on_exit=False)
        record = way(provider.get_meter("quantum_bus").create_histogram("d", unit="s"))
        collected = []
        for seconds, number, trace_id, flags, collect in records:
            record(seconds, SETS[number], context(trace_id, flags))
            if collect:
                collected += [exported(reader) for reader in readers]
        seen.append([*collected, *(exported(reader) for reader in readers)])
    assert seen[0] == seen[1]


def a_histogram(reader: InMemoryMetricReader) -> Any:
    return MeterProvider([reader], shutdown_on_exit=False).get_meter("quantum_bus").create_histogram("d", unit="s")


def points(reader: InMemoryMetricReader) -> int:
    data: Any = reader.get_metrics_data()
    return sum(point.count for point in data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points)


def test_with_the_sdk_that_is_installed_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    histogram = a_histogram(reader)
    record = recorder(histogram)
    record(1.0, SETS[0], Context())  # the SDK makes what these are added up in
    monkeypatch.setattr(type(histogram), "record", lambda *_: pytest.fail("through the API"))
    record(2.0, SETS[0], Context())
    assert points(reader) == 2


@pytest.fixture
def _looked_again() -> Any:
    recording._comes_out_the_same.cache_clear()
    yield
    recording._comes_out_the_same.cache_clear()


@pytest.mark.usefixtures("_looked_again")
def test_with_an_sdk_that_exports_something_else_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = recording._facts, []

    def facts(reader: Any) -> list[Any]:
        seen.append(reader)
        return [*whole(reader), len(seen)]

    monkeypatch.setattr(recording, "_facts", facts)
    histogram = a_histogram(InMemoryMetricReader())
    assert recorder(histogram) == histogram.record


@pytest.mark.usefixtures("_looked_again")
def test_with_an_sdk_that_lacks_what_is_taken_the_api_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> list[Any]:
        raise AttributeError("_attributes_aggregation")

    monkeypatch.setattr(recording, "_aggregations", lacking)
    histogram = a_histogram(InMemoryMetricReader())
    assert recorder(histogram) == histogram.record


def test_a_meter_that_is_switched_off_adds_nothing_up() -> None:
    reader = InMemoryMetricReader()
    histogram = a_histogram(reader)
    histogram._is_enabled = lambda: False
    record = recorder(histogram)
    assert record != histogram.record
    for _ in range(2):
        record(1.0, SETS[0], Context())
    assert exported(reader) == []


def test_without_an_sdk_the_api_is_used() -> None:
    histogram = NoOpMeterProvider().get_meter("quantum_bus").create_histogram("d")
    assert recorder(histogram) == histogram.record


def test_sets_of_failures_and_more_than_the_bus_has_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Attributes] = []

    def noted(histogram: Any, readers: Any, attributes: Attributes) -> list[Any]:
        kept.append(attributes)
        return []

    monkeypatch.setattr(recording, "_MOST_SETS", 2)
    record = recorder(a_histogram(InMemoryMetricReader()))
    monkeypatch.setattr(recording, "_aggregations", noted)
    for attributes in (SETS[2], *({"a": number} for number in range(4))):
        record(1.0, attributes, Context())
    assert kept == [{"a": 0}, {"a": 1}]


def test_more_sets_than_the_sdk_tells_apart_are_added_up_as_it_does() -> None:
    sets: list[Attributes] = [{"a": number} for number in range(2_010)]
    reader = InMemoryMetricReader()
    record = recorder(a_histogram(reader))
    for _ in range(2):
        for attributes in sets:
            record(1.0, attributes, Context())
    seen = exported(reader)
    assert len(seen) == 2_001
    assert sum("'count': 20" in point for _, _, point in seen) == 1, "those that came when there was no more room"


def test_a_reader_that_comes_later_sees_what_is_recorded_then() -> None:
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    provider: Any = MeterProvider([first], shutdown_on_exit=False)
    record = recorder(provider.get_meter("quantum_bus").create_histogram("d"))
    record(1.0, SETS[0], Context())
    record(1.0, SETS[0], Context())
    provider.add_metric_reader(second)
    record(1.0, SETS[0], Context())
    record(1.0, SETS[0], Context())
    assert (points(first), points(second)) == (4, 2)
