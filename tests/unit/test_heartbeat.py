"""What is asked to be kept alive, and what the answers mean; the thread that asks is told of in the faults' tests."""

from redis.exceptions import ResponseError

from quantum_bus import ConnectionLost, streams
from quantum_bus.heartbeat import KEEP_TOGETHER, Lease
from quantum_bus.sources import Key, NotOwned


class Holder:
    """A consumer, as the heartbeat sees it."""

    def __init__(self, *held: Key) -> None:
        self.held = held
        self.told: list[NotOwned] = []

    def lease(self) -> Lease:
        return Lease("g", "c", 3.0, lambda: self.held, self.told.append)


def test_everything_held_is_renewed_each_key_on_its_own() -> None:
    holder = Holder(("s", "1-0"), ("{s}:retry:g", "77-0"), ("s", "2-0"))
    assert holder.lease().commands() == [
        streams.KEEP.call(["s"], "g", "c", "1-0", "2-0"),
        streams.KEEP.call(["{s}:retry:g"], "g", "c", "77-0"),
    ]


def test_what_is_held_is_asked_for_anew_each_time() -> None:
    holder = Holder(("s", "1-0"))
    lease = holder.lease()
    lease.commands()
    holder.held = (("s", "2-0"),)
    assert lease.commands() == [streams.KEEP.call(["s"], "g", "c", "2-0")]


def test_nothing_held_needs_no_command() -> None:
    assert Holder().lease().commands() == []


def test_one_command_renews_no_more_than_so_many() -> None:
    held = [("s", f"{number}-0") for number in range(KEEP_TOGETHER + 1)]
    commands = Holder(*held).lease().commands()
    assert [len(command) - 6 for command in commands] == [KEEP_TOGETHER, 1]
    assert [("s", entry_id) for command in commands for entry_id in command[6:]] == held


def test_the_consumer_is_told_what_is_not_its_own_any_more() -> None:
    holder = Holder(("s", "1-0"), ("s", "2-0"), ("{s}:retry:g", "77-0"))
    lease = holder.lease()
    assert lease.answered(lease.commands(), [[[b"1-0"], [b"2-0"]], [[b"77-0"], []]])
    assert holder.told == [NotOwned([("s", "1-0"), ("{s}:retry:g", "77-0")], [("s", "2-0")])]


def test_the_consumer_hears_nothing_while_all_is_its_own() -> None:
    holder = Holder(("s", "1-0"))
    lease = holder.lease()
    assert lease.answered(lease.commands(), [[[], []]])
    assert holder.told == []


def test_a_refusal_or_a_broken_connection_is_no_renewal_and_no_loss() -> None:
    holder = Holder(("s", "1-0"), ("t", "2-0"))
    lease = holder.lease()
    for failure in (ResponseError("ERR something else"), ConnectionLost("away")):
        assert not lease.answered(lease.commands(), [[[], []], failure])
    assert holder.told == []


def test_with_a_group_all_that_was_held_of_it_is_lost() -> None:
    holder = Holder(("s", "1-0"), ("t", "2-0"), ("t", "3-0"))
    lease = holder.lease()
    assert not lease.answered(lease.commands(), [[[], []], ResponseError("NOGROUP no such group")])
    assert holder.told == [NotOwned([("t", "2-0"), ("t", "3-0")], [])]


def test_what_was_answered_beside_a_failure_counts() -> None:
    holder = Holder(("s", "1-0"), ("t", "2-0"))
    lease = holder.lease()
    assert not lease.answered(lease.commands(), [[[b"1-0"], []], ConnectionLost("away")])
    assert holder.told == [NotOwned([("s", "1-0")], [])]
