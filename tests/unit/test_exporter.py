"""The exporter's looks, over a link that says what the test wants."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from quantum_bus import names
from quantum_bus.errors import ConnectionLost
from quantum_bus.exporter import Exporter
from quantum_bus.gauges import Gauge
from quantum_bus.streams import Command
from tests.unit.clock import Clock

STREAMS = [b"a", b"b", b"{b}:dlq", b"c"]


class FakeLink:
    """A Redis with some streams that each have the groups `g` and `h`."""

    def __init__(self) -> None:
        self.keys = STREAMS
        self.away: Exception | None = None
        self.refuses = ""
        self.asked: list[Command] = []

    def execute(self, *commands: Command) -> list[Any]:
        if self.away is not None:
            raise self.away
        self.asked += commands
        return [self._reply(command) for command in commands]

    def _reply(self, command: Command) -> Any:
        match command:
            case (word, *_) if word == self.refuses:
                return NoPermissionError(f"no {word}")
            case ("TIME",):
                return [b"1795000000", b"0"]
            case ("SCAN", *_):
                return [b"0", self.keys]
            case ("TYPE", _):
                return b"stream"
            case ("XINFO", "STREAM", _):
                return [b"length", 4, b"first-entry", None, b"last-entry", None]
            case ("XINFO", "GROUPS", stream) if not str(stream).startswith("{"):
                return [[b"name", name, b"pending", 0, b"last-delivered-id", b"0-0"] for name in (b"g", b"h")]
            case ("XLEN" | "ZCARD" | "ZCOUNT", *_):
                return 0
        return []


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(link: FakeLink, clock: Clock) -> Callable[..., Exporter]:
    return lambda **options: Exporter(link, clock=clock, **options)  # type: ignore[arg-type]


def values(found: list[Gauge], metric: str) -> dict[str | None, float]:
    return {
        attributes.get(names.ATTR_DESTINATION): value
        for gauge in found
        if gauge.name == metric
        for attributes, value in gauge.points
    }


def test_before_the_first_look_nothing_is_up(watch: Callable[..., Exporter]) -> None:
    assert [(gauge.name, gauge.points[0][1]) for gauge in watch().gauges()] == [(names.METRIC_EXPORTER_UP, 0.0)]


def test_a_look_finds_the_streams_and_waits_an_interval(watch: Callable[..., Exporter], link: FakeLink) -> None:
    exporter = watch(interval=7.0)
    assert exporter.look() == 7.0
    assert values(exporter.gauges(), names.METRIC_STREAM_LENGTH) == {"a": 4, "b": 4, "c": 4}
    assert values(exporter.gauges(), names.METRIC_EXPORTER_UP) == {None: 1.0}


def test_named_streams_are_looked_at_and_none_is_looked_for(watch: Callable[..., Exporter], link: FakeLink) -> None:
    exporter = watch(streams=["c", "c"])
    exporter.look()
    assert values(exporter.gauges(), names.METRIC_STREAM_LENGTH) == {"c": 4}
    assert not [command for command in link.asked if command[0] == "SCAN"]


def test_a_prefix_leaves_other_streams_out(watch: Callable[..., Exporter], link: FakeLink) -> None:
    link.keys = [b"eu.a", b"us.a"]
    exporter = watch(prefix="eu.")
    exporter.look()
    assert values(exporter.gauges(), names.METRIC_STREAM_LENGTH) == {"eu.a": 4}


def test_streams_are_looked_for_once_a_minute(watch: Callable[..., Exporter], link: FakeLink, clock: Clock) -> None:
    exporter = watch()
    exporter.look()
    link.keys = [b"new"]
    clock.now += 59
    exporter.look()
    assert set(values(exporter.gauges(), names.METRIC_STREAM_LENGTH)) == {"a", "b", "c"}
    clock.now += 2
    exporter.look()
    assert set(values(exporter.gauges(), names.METRIC_STREAM_LENGTH)) == {"new"}


def test_while_redis_is_away_no_old_figure_is_shown_and_it_is_said_once(
    watch: Callable[..., Exporter], link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    exporter = watch(interval=10.0)
    exporter.look()
    link.away = ConnectionLost("gone")
    pauses = [exporter.look() for _ in range(8)]
    assert all(0 < pause <= 10.0 for pause in pauses)
    assert pauses[0] <= 0.5
    found = exporter.gauges()
    assert {gauge.name for gauge in found} == {names.METRIC_EXPORTER_UP, names.METRIC_EXPORTER_LAST_SUCCESS}
    assert values(found, names.METRIC_EXPORTER_UP) == {None: 0.0}
    link.away = None
    exporter.look()
    assert values(exporter.gauges(), names.METRIC_EXPORTER_UP) == {None: 1.0}
    events = [record.__dict__["event"] for record in caplog.records]
    assert events == [names.EVENT_BUS_CONNECTION_LOST, names.EVENT_BUS_RECONNECTED]


def test_what_was_seen_is_not_shown_for_ever_when_a_look_hangs(watch: Callable[..., Exporter], clock: Clock) -> None:
    exporter = watch(interval=10.0)
    exporter.look()
    clock.now += 39
    assert values(exporter.gauges(), names.METRIC_EXPORTER_UP) == {None: 1.0}
    clock.now += 2
    assert values(exporter.gauges(), names.METRIC_EXPORTER_UP) == {None: 0.0}
    assert values(exporter.gauges(), names.METRIC_STREAM_LENGTH) == {}


def test_what_is_past_the_limits_is_counted_and_said_once(
    watch: Callable[..., Exporter], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = watch(max_streams=2, max_groups=3)
    exporter.look()
    exporter.look()
    found = exporter.gauges()
    assert set(values(found, names.METRIC_STREAM_LENGTH)) == {"a", "b"}
    assert sum(len(gauge.points) for gauge in found if gauge.name == names.METRIC_LAG) == 3
    assert values(found, names.METRIC_EXPORTER_LEFT_OUT) == {None: 2.0}
    assert [record.getMessage() for record in caplog.records] == [
        "1 streams past the limit of 2 have no figures",
        "1 groups past the limit of 3 have no figures",
    ]


def test_what_redis_refuses_is_counted_and_said_once(
    watch: Callable[..., Exporter], link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.refuses = "ZCARD"
    exporter = watch(streams=["a"])
    exporter.look()
    exporter.look()
    assert values(exporter.gauges(), names.METRIC_EXPORTER_REFUSED) == {None: 3.0}
    [record] = caplog.records
    assert "Redis refused 3 questions" in record.getMessage()


def test_a_user_that_may_not_scan_is_told_to_name_the_streams(
    watch: Callable[..., Exporter], link: FakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.refuses = "SCAN"
    exporter = watch()
    exporter.look()
    assert values(exporter.gauges(), names.METRIC_EXPORTER_UP) == {None: 1.0}
    [record] = caplog.records
    assert "name them" in record.getMessage()
