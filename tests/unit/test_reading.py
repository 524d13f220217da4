from hypothesis import given
from hypothesis import strategies as st

from quantum_bus.reading import LAST, Interval, common, joined, without

IDS = st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 2, LAST[1] - 1, LAST[1]]))
INTERVALS = st.tuples(IDS, IDS).map(lambda pair: (min(pair), max(pair)))


def inside(of: tuple[int, int], intervals: list[Interval]) -> bool:
    return any(first <= of <= last for first, last in intervals)


@given(st.lists(INTERVALS), INTERVALS, IDS)
def test_what_is_left_of_a_window_is_what_was_not_read(
    read: list[Interval], window: Interval, of: tuple[int, int]
) -> None:
    noted: list[Interval] = []
    for interval in read:
        noted = joined(interval, noted)
    assert noted == sorted(noted)
    assert inside(of, noted) == inside(of, read)
    rest = list(without(window, noted))
    assert inside(of, rest) == (inside(of, [window]) and not inside(of, read))


@given(INTERVALS, INTERVALS, IDS)
def test_what_two_intervals_have_in_common(one: Interval, other: Interval, of: tuple[int, int]) -> None:
    both = common(one, other)
    assert (both is not None and inside(of, [both])) == (inside(of, [one]) and inside(of, [other]))
