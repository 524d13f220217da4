"""When a subscriber stops for what its handlers need, and how it goes on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus import Breaker, ConfigurationError, Reject
from quantum_bus.breaker import FRESH_FIRST, MOST_SPARED, SLOTS, Circuit, CircuitState
from tests.unit.clock import Clock

CLOSED, HALF_OPEN, OPEN = CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(clock: Clock, **options: Any) -> Circuit:
    return Circuit(Breaker(**({"minimum": 4, "window": 10.0, "pause": 5.0, "maximum": 15.0} | options)), clock=clock)


def run(circuit: Circuit, failed: bool) -> bool:
    assert circuit.lets_run()
    return circuit.ended(failed, probe=circuit.began())


def opened(clock: Clock, **options: Any) -> Circuit:
    circuit = made(clock, **options)
    while circuit.state is CLOSED:
        run(circuit, failed=True)
    return circuit


def test_without_a_breaker_nothing_opens(clock: Clock) -> None:
    circuit = Circuit(None, clock=clock)
    assert not any(run(circuit, failed=True) for _ in range(1_000))
    assert (circuit.state, circuit.room(7), circuit.wait()) == (CLOSED, 7, None)
    assert not circuit.counts(ValueError())


def test_it_opens_at_the_failure_rate_and_not_before_there_are_enough_runs(clock: Clock) -> None:
    circuit = made(clock, failure_rate=0.5)
    assert [run(circuit, failed=failed) for failed in (True, True, True, True)] == [False, False, False, True]
    assert (circuit.state, circuit.room(7), circuit.lets_run(), circuit.wait()) == (OPEN, 0, False, 5.0)
    assert circuit.rests


def test_below_the_rate_it_stays_closed(clock: Clock) -> None:
    circuit = made(clock, failure_rate=0.5)
    for number in range(100):
        assert not run(circuit, failed=number % 3 == 2), "a third"
        clock.now += 0.01


def test_what_is_past_the_window_does_not_count(clock: Clock) -> None:
    circuit = made(clock)
    for _ in range(50):
        assert not run(circuit, failed=True)
        clock.now += 4.0
    clock.now += 10.1
    for _ in range(3):
        assert not run(circuit, failed=True)
    assert run(circuit, failed=True)


def test_after_the_pause_one_run_probes_and_closes_it(clock: Clock) -> None:
    circuit = opened(clock)
    clock.now += 4.9
    assert (circuit.room(7), circuit.wait()) == (0, pytest.approx(0.1))
    clock.now += 0.1
    assert (circuit.room(7), circuit.wait()) == (1, 0)
    assert circuit.began()
    assert (circuit.state, circuit.lets_run(), circuit.wait()) == (HALF_OPEN, False, None), "one at a time"
    assert circuit.ended(False, probe=True)
    assert (circuit.state, circuit.room(7)) == (CLOSED, 7)
    assert not run(circuit, failed=True), "and counts anew"


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest(clock: Clock) -> None:
    circuit = opened(clock)
    for pause in (5.0, 10.0, 15.0, 15.0):
        assert circuit.wait() == pause
        clock.now += pause
        assert run(circuit, failed=True)
    clock.now += 15.0
    run(circuit, failed=False)
    while circuit.state is CLOSED:
        run(circuit, failed=True)
    assert circuit.wait() == 5.0, "from the first one again"


def test_runs_under_way_when_it_opened_change_nothing(clock: Clock) -> None:
    circuit = made(clock)
    under_way = [circuit.began() for _ in range(10)]
    assert [circuit.ended(True, probe=probe) for probe in under_way[:4]] == [False, False, False, True]
    assert [circuit.ended(failed, probe=False) for failed in (True, False, True)] == [False] * 3
    assert (circuit.state, circuit.wait()) == (OPEN, 5.0)


def test_a_probe_that_did_not_run_leaves_room_for_another(clock: Clock) -> None:
    circuit = opened(clock)
    clock.now += 5.0
    assert circuit.began()
    circuit.void()
    assert circuit.lets_run()


def test_a_message_is_spared_only_so_often_until_the_circuit_closes(clock: Clock) -> None:
    circuit = opened(clock)
    assert [circuit.spares(["a", "b"]) for _ in range(MOST_SPARED + 1)] == [True] * MOST_SPARED + [False]
    assert circuit.spares(["c"])
    assert not circuit.spares(["a"])
    clock.now += 5.0
    run(circuit, failed=False)
    assert circuit.spares(["a"])


def test_what_was_tried_before_gives_way_to_what_can_be_read(clock: Clock) -> None:
    circuit = opened(clock)
    clock.now += 5.0
    assert (circuit.lets_run(), circuit.lets_parked_run()) == (True, False)
    clock.now += FRESH_FIRST
    assert circuit.lets_parked_run()
    run(circuit, failed=False)
    assert circuit.lets_parked_run()


def test_a_reader_without_room_does_not_wait_for_a_breaker_that_lets_run(clock: Clock) -> None:
    # It asked again and again, as fast as it could, while a probe was due and there was no room for it.
    circuit = opened(clock)
    assert circuit.patience() == 5.0
    clock.now += 5.0
    assert (circuit.wait(), circuit.patience()) == (0, None)


def test_by_hand_it_is_paused_in_every_state(clock: Clock) -> None:
    circuit = made(clock)
    circuit.paused = True
    assert (circuit.room(7), circuit.lets_run(), circuit.wait()) == (0, False, None)
    circuit.paused = False
    assert circuit.room(7) == 7
    circuit = opened(clock)
    circuit.paused = True
    clock.now += 60.0
    assert (circuit.room(7), circuit.wait()) == (0, None)
    circuit.paused = False
    assert circuit.room(7) == 1


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (None, False),
        (OSError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
        (ConnectionRefusedError(), False),
        (Reject("spoilt"), False),
    ],
)
def test_which_errors_speak_against_what_handlers_need(clock: Clock, error: Exception | None, counts: bool) -> None:
    assert made(clock, trip_on=OSError, ignore=ConnectionRefusedError).counts(error) is counts


def test_a_message_that_was_rejected_never_does(clock: Clock) -> None:
    assert not made(clock, trip_on=Exception).counts(Reject("spoilt"))


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_it_opens_exactly_when_the_window_says_so(runs: list[tuple[bool, float]]) -> None:
    """Against a list of all runs; the window's oldest step may count in part."""
    clock = Clock()
    circuit = made(clock, minimum=5, failure_rate=0.6)
    seen: list[tuple[float, bool]] = []
    for failed, pause in runs:
        clock.now += pause
        changed = run(circuit, failed)
        seen.append((clock.now, failed))
        surely = [failure for at, failure in seen if at > clock.now - 10.0 + 10.0 / SLOTS]
        perhaps = [failure for at, failure in seen if at > clock.now - 10.0 - 10.0 / SLOTS]
        if changed:
            assert len(perhaps) >= 5
            return
        if len(surely) == len(perhaps) >= 5:
            assert sum(surely) < 0.6 * len(surely)


@pytest.mark.parametrize(
    "options",
    [
        {"failure_rate": 0},
        {"failure_rate": 1.1},
        {"failure_rate": "half"},
        {"window": 0},
        {"minimum": 0},
        {"minimum": 2.5},
        {"pause": 0},
        {"pause": 10.0, "maximum": 5.0},
        {"trip_on": "OSError"},
        {"ignore": (OSError, 1)},
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(reversed(options))):
        Breaker(**options)
