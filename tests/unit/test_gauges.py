import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from quantum_bus import names
from quantum_bus.gauges import Collection, Gauge, gauges
from quantum_bus.otlp import OtlpSender
from quantum_bus.scraping import prometheus_name, serve
from quantum_bus.state import BusState, ConsumerState, GroupState, StreamState
from tests.otlp import Collector

GROUP = GroupState(
    name="g", last_delivered=(5, 0), lag=3, lag_age=1.5, pending=2, oldest_pending=(4, 0), pending_age=9.25,
    pending_idle=1.0, scheduled=4, due=1, overdue=2.0, retries=0, retry_group=None,
    consumers=[ConsumerState("c", 1.0, 2), ConsumerState("dead", 61.0, 0)],
)  # fmt: skip
STREAM = StreamState(
    name="s", exists=True, length=10, first_id=(1, 0), last_id=(9, 0), dead_letters=7, scheduled=6, due=5, overdue=1.0,
    groups=[GROUP],
)  # fmt: skip
SEEN = Collection(BusState(100.0, [STREAM]), 100.0)

OF_STREAM = {names.ATTR_DESTINATION: "s"}
OF_GROUP = {names.ATTR_DESTINATION: "s", names.ATTR_GROUP: "g"}


def points(seen: Collection) -> dict[str, list[tuple[dict[str, str], float]]]:
    return {gauge.name: [(dict(attributes), value) for attributes, value in gauge.points] for gauge in gauges(seen)}


def test_every_figure_has_its_name_and_says_whose_it_is() -> None:
    assert points(SEEN) == {
        names.METRIC_EXPORTER_UP: [({}, 1.0)],
        names.METRIC_EXPORTER_LAST_SUCCESS: [({}, 100.0)],
        names.METRIC_EXPORTER_LEFT_OUT: [({}, 0.0)],
        names.METRIC_EXPORTER_REFUSED: [({}, 0.0)],
        names.METRIC_STREAM_LENGTH: [(OF_STREAM, 10)],
        names.METRIC_DEAD_LETTER_SIZE: [(OF_STREAM, 7)],
        names.METRIC_LAG: [(OF_GROUP, 3)],
        names.METRIC_LAG_AGE: [(OF_GROUP, 1.5)],
        names.METRIC_PENDING: [(OF_GROUP, 2)],
        names.METRIC_PENDING_AGE: [(OF_GROUP, 9.25)],
        names.METRIC_CONSUMERS: [(OF_GROUP, 2)],
        names.METRIC_CONSUMERS_ALIVE: [(OF_GROUP, 1)],
        names.METRIC_SCHEDULED: [(OF_STREAM, 6), (OF_GROUP, 4)],
        names.METRIC_SCHEDULED_DUE: [(OF_STREAM, 5), (OF_GROUP, 1)],
    }


@pytest.mark.parametrize(
    ("field", "metrics"),
    [
        ("lag", {names.METRIC_LAG}),
        ("lag_age", {names.METRIC_LAG_AGE}),
        ("pending", {names.METRIC_PENDING}),
        ("pending_age", {names.METRIC_PENDING_AGE}),
        ("consumers", {names.METRIC_CONSUMERS, names.METRIC_CONSUMERS_ALIVE}),
    ],
)
def test_a_figure_that_is_not_known_has_no_point(field: str, metrics: set[str]) -> None:
    stream = replace(STREAM, groups=[replace(GROUP, **{field: None})])  # type: ignore[arg-type]
    found = points(Collection(BusState(100.0, [stream]), 100.0))
    assert set(points(SEEN)) - set(found) == metrics


def test_while_redis_is_away_nothing_is_said_of_any_stream() -> None:
    assert points(Collection(None, 90.0)) == {
        names.METRIC_EXPORTER_UP: [({}, 0.0)],
        names.METRIC_EXPORTER_LAST_SUCCESS: [({}, 90.0)],
    }
    assert points(Collection(None)) == {names.METRIC_EXPORTER_UP: [({}, 0.0)]}


def test_what_was_left_out_is_counted() -> None:
    found = points(Collection(BusState(100.0, [], groups_left_out=3), 100.0, streams_left_out=2))
    assert found[names.METRIC_EXPORTER_LEFT_OUT] == [({}, 5.0)]


# --- scraped -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        (names.METRIC_LAG, "{message}", "quantum_bus_lag"),
        (names.METRIC_LAG_AGE, "s", "quantum_bus_lag_age_seconds"),
        (names.METRIC_EXPORTER_UP, "", "quantum_bus_exporter_up"),
        (names.ATTR_DESTINATION, "", "messaging_destination_name"),
    ],
)
def test_names_are_those_that_prometheus_makes_of_them(name: str, unit: str, expected: str) -> None:
    assert prometheus_name(name, unit) == expected


@contextmanager
def serving(found: list[Gauge]) -> Iterator[str]:
    server = serve("127.0.0.1", 0, lambda: found)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def test_a_scrape_has_a_line_for_each_point() -> None:
    odd = Gauge("a.b", "", "Odd names.", [({"x.y": 'quote " and \n line'}, 1.0), ({"z": "ü"}, 2.0)])
    with serving([*gauges(SEEN), odd]) as url, urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    group = 'messaging_consumer_group_name="g",messaging_destination_name="s"'
    assert f"quantum_bus_lag{{{group}}} 3.0" in lines
    assert f"quantum_bus_lag_age_seconds{{{group}}} 1.5" in lines
    assert "# TYPE quantum_bus_lag gauge" in lines
    assert 'quantum_bus_scheduled{messaging_consumer_group_name="",messaging_destination_name="s"} 6.0' in lines
    assert f"quantum_bus_scheduled{{{group}}} 4.0" in lines
    assert "quantum_bus_exporter_up 1.0" in lines
    assert 'a_b{x_y="quote \\" and \\n line",z=""} 1.0' in lines
    assert 'a_b{x_y="",z="ü"} 2.0' in lines


# --- sent ----------------------------------------------------------------------------------------


def test_what_is_sent_over_otlp_has_the_same_names_units_and_values() -> None:
    collector = Collector()
    try:
        sender = OtlpSender(collector.url + "/", service="watch")
        assert sender.send(gauges(SEEN))
        sender.close()
    finally:
        collector.close()
    found = {metric.name: metric for metric in collector.metrics}
    assert set(found) == {gauge.name for gauge in gauges(SEEN)}
    lag = found[names.METRIC_LAG]
    assert (lag.unit, [point.as_int for point in lag.gauge.data_points]) == ("{message}", [3])
    [age] = found[names.METRIC_LAG_AGE].gauge.data_points
    assert age.as_double == 1.5
    assert {pair.key: pair.value.string_value for pair in age.attributes} == OF_GROUP
    assert collector.resources[0]["service.name"] == "watch"


def test_streams_that_come_and_go_never_run_into_a_limit() -> None:
    """With the SDK's own gauges, whatever came after 2,000 streams was one overflow point."""
    collector = Collector()
    try:
        sender = OtlpSender(collector.url, service="watch")
        for wave in range(3):
            streams = [replace(STREAM, name=f"s{wave}.{number}", groups=()) for number in range(1_000)]
            collector.metrics.clear()
            assert sender.send(gauges(Collection(BusState(100.0, streams), 100.0)))
        sender.close()
    finally:
        collector.close()
    [length] = [metric for metric in collector.metrics if metric.name == names.METRIC_STREAM_LENGTH]
    told = {point.attributes[0].value.string_value for point in length.gauge.data_points}
    assert told == {f"s2.{number}" for number in range(1_000)}
