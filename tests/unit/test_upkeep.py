"""When a consumer looks after its streams, and what it makes of the answers."""

import pytest

from quantum_bus import streams, upkeep
from quantum_bus.config import BusConfig
from quantum_bus.streams import Keys
from quantum_bus.upkeep import EVERY, MARKS_IN_KEEP, SOON, Alarm, Upkeep
from tests.unit.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep.random, "uniform", lambda low, high: (low + high) / 2)


def made(clock: Clock, *names: str, keep: int | None = 50, cap: int = 100) -> Upkeep:
    config = BusConfig(url=None, service="svc", keep=keep, cap=cap)
    return Upkeep([Keys.of(name, "g") for name in names or ("s",)], config, clock=clock)


def test_each_stream_is_looked_after_soon_and_then_from_time_to_time(clock: Clock) -> None:
    plan = made(clock, "s", "t")
    assert 0 < plan.pause() < EVERY
    clock.now += plan.pause()
    assert plan.pause() == 0
    assert [command[3:6] for command in plan.commands()] == [
        ("s", "{s}:upkeep", "{s}:marks"),
        ("t", "{t}:upkeep", "{t}:marks"),
    ]
    plan.answered([[0, 0, 5, b"g"], [0, 0, 5, b"g"]])
    assert plan.pause() == pytest.approx(EVERY)


def test_where_there_is_more_to_free_it_goes_on_soon(clock: Clock) -> None:
    plan = made(clock, "s", "t")
    plan.answered([[500, 1, 5, b"g"], [0, 0, 5, b"g"]])
    assert plan.pause() == pytest.approx(SOON)


@pytest.mark.parametrize(("keep", "told", "step"), [(1_000, 1_000, 1_000 // MARKS_IN_KEEP), (3, 3, 1), (0, 0, 1)])
def test_what_is_kept_is_counted_finely_enough(clock: Clock, keep: int, told: int, step: int) -> None:
    [command] = made(clock, keep=keep, cap=10_000).commands()
    assert command[:2] == ("EVALSHA", streams.UPKEEP.sha)
    assert command[6:8] == (told, step)


def test_where_nothing_is_to_be_freed_low_water_marks_are_noted_all_the_same(clock: Clock) -> None:
    [command] = made(clock, keep=None).commands()
    assert command[6] == -1


def test_a_long_stream_is_said_once_until_it_was_shorter(clock: Clock) -> None:
    plan = made(clock, cap=100)
    assert plan.answered([[0, 0, 100, b"slow"]]) == []
    assert plan.answered([[0, 0, 101, b"slow"]]) == [Alarm("s", 101, "slow")]
    assert plan.answered([[0, 0, 500, b"slow"]]) == []
    assert plan.answered([[0, 0, 95, b"slow"]]) == [], "near it is not below it"
    assert plan.answered([[0, 0, 101, b"slow"]]) == []
    assert plan.answered([[0, 0, 89, b"slow"]]) == []
    assert plan.answered([[0, 0, 101, b""]]) == [Alarm("s", 101, "")]


def test_where_redis_does_not_answer_it_asks_again_later(clock: Clock) -> None:
    plan = made(clock, "s", "t")
    assert plan.answered([]) == []
    assert plan.pause() == pytest.approx(EVERY)
    assert plan.answered([ConnectionError("away"), [0, 0, 101, b"g"]]) == [Alarm("t", 101, "g")]
