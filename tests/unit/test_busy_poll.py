"""How long a reply is looked for, and when that is not tried."""

from quantum_bus.busy_poll import MOST_SKIPPED, BusyPoll


def skipped(poll: BusyPoll) -> int:
    """How many replies are slept for at once."""
    return next(number for number in range(MOST_SKIPPED + 1) if poll.seconds())


def tries(*, late_every: int) -> int:
    """How many of 10,000 replies are looked for, of which every so-manieth comes late."""
    poll = BusyPoll(0.0001)
    tried = 0
    for _ in range(10_000):
        if poll.seconds():
            tried += 1
            poll.ended(came=tried % late_every != 0)
    return tried


def test_each_reply_is_looked_for_as_long_as_they_come_in_time() -> None:
    poll = BusyPoll(0.0001)
    for _ in range(100):
        assert poll.seconds() == 0.0001
        poll.ended(came=True)


def test_in_vain_it_is_tried_more_and_more_seldom() -> None:
    poll = BusyPoll(0.0001)
    pauses = []
    for _ in range(9):
        assert poll.seconds()
        poll.ended(came=False)
        pauses.append(skipped(poll))
    assert pauses == [8, 24, 56, 120, 248, 504, 1_016, 1_024, 1_024]


def test_replies_that_come_in_time_end_that() -> None:
    poll = BusyPoll(0.0001)
    for _ in range(9):
        poll.ended(came=False)
    for _ in range(MOST_SKIPPED):
        poll.ended(came=True)
    poll.ended(came=False)
    assert skipped(poll) == 8


def test_where_every_second_one_is_late_it_is_hardly_tried() -> None:
    assert tries(late_every=2) < 50


def test_where_one_in_twenty_is_late_it_goes_on() -> None:
    assert tries(late_every=20) > 6_000


def test_for_no_time_it_never_looks() -> None:
    assert not BusyPoll(0).seconds()
