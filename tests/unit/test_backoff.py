"""Pauses between tries."""

from hypothesis import given
from hypothesis import strategies as st

from quantum_bus.backoff import Backoff


@given(initial=st.floats(0.001, 10), factor=st.floats(1, 1000))
def test_each_pause_lies_in_the_upper_half_of_a_bound_that_doubles(initial: float, factor: float) -> None:
    maximum = initial * factor
    backoff = Backoff(initial, maximum)
    for number in range(20):
        bound = min(maximum, initial * 2**number)
        assert bound / 2 <= backoff.next() <= bound
    assert backoff.failures == 20


def test_pauses_differ() -> None:
    assert len({Backoff(1.0, 1.0).next() for _ in range(20)}) > 10, "a herd would come back at one moment"


def test_after_success_it_begins_anew() -> None:
    backoff = Backoff(0.1, 10.0)
    for _ in range(8):
        backoff.next()
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() <= 0.1


def test_it_never_ends_and_never_overflows() -> None:
    backoff = Backoff(0.05, 2.0)
    assert all(backoff.next() <= 2.0 for _ in range(5_000))
