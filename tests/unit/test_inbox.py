"""What a consumer holds, as a model that any order of calls may drive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quantum_bus.inbox import SURPLUS_AFTER, Held, Inbox
from tests.unit.clock import Clock
from tests.unit.incoming import held


def test_a_new_inbox_has_room_for_what_its_handlers_may_take() -> None:
    assert Inbox(concurrency=16, batch=1, streams=1).room() == 16
    assert Inbox(concurrency=2, batch=10, streams=1).room() == 20


@given(concurrency=st.integers(1, 20), batch=st.integers(1, 20), streams=st.integers(1, 5))
def test_with_several_streams_one_free_handler_is_room_enough_for_one_entry_of_each(
    concurrency: int, batch: int, streams: int
) -> None:
    inbox = Inbox(concurrency=concurrency, batch=batch, streams=streams)
    for number in range(concurrency * batch - 1):
        inbox.take(held(number))
    assert inbox.room() == 1
    inbox.take(held(999))
    assert inbox.room() == 0


def test_messages_run_in_the_order_they_were_read_in() -> None:
    inbox = Inbox(concurrency=3, batch=1, streams=1)
    taken = [held(number) for number in range(5)]
    for item in taken:
        inbox.take(item)
    assert [inbox.next_run() for _ in range(4)] == [[taken[0]], [taken[1]], [taken[2]], None]
    inbox.ran([taken[1]])
    assert inbox.next_run() == [taken[3]]


def test_a_run_takes_up_to_a_batch() -> None:
    inbox = Inbox(concurrency=2, batch=3, streams=1)
    for number in range(5):
        inbox.take(held(number))
    sizes = [len(run) for run in (inbox.next_run(), inbox.next_run()) if run]
    assert sizes == [3, 2]


def test_what_is_settling_makes_room_but_is_held_until_redis_knows() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.take(item)
    inbox.next_run()
    assert inbox.room() == 0
    inbox.settling()
    assert inbox.room() == 1
    assert item.key in inbox
    inbox.release(item)
    assert item.key not in inbox
    assert (len(inbox), inbox.room()) == (0, 1)


def test_what_redis_does_not_take_makes_room_only_up_to_what_may_be_held() -> None:
    inbox = Inbox(concurrency=2, batch=1, streams=1)
    for number in range(2):
        inbox.hold(held(number))
    assert inbox.room() == 2
    for number in range(2, 4):
        inbox.hold(held(number))
    assert inbox.room() == 0


def test_a_message_released_twice_counts_once() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.hold(item)
    inbox.release(item)
    inbox.release(item)
    assert inbox.room() == 1


def test_a_message_that_ran_and_is_not_settled_takes_up_room() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.take(item)
    inbox.next_run()
    inbox.ran([item])
    assert (inbox.room(), inbox.next_run()) == (0, None)


# --- suspects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "suspect"),
    [
        (held(), False),
        (held(begun=1), True),
        (held(retried=2), False),
        (held(retried=2, begun=1), True),
        (held(unsettled=True), False),
    ],
    ids=["new", "begun", "failed", "begun again", "only prefetched"],
)
def test_a_message_is_a_suspect_whose_last_run_was_never_settled(item: Held, suspect: bool) -> None:
    assert item.is_suspect == suspect


def test_a_message_is_no_suspect_of_its_own_consumers() -> None:
    item = held(retried=1)
    item.attempt += 1  # its run has begun here
    assert not item.is_suspect


def test_suspects_run_one_at_a_time_beside_others() -> None:
    inbox = Inbox(concurrency=4, batch=1, streams=1)
    others = [held(1), held(4)]
    suspects = [held(2, begun=1), held(3, begun=1)]
    for item in (others[0], *suspects, others[1]):
        inbox.take(item)
    runs = [inbox.next_run() for _ in range(4)]
    assert runs == [[suspects[0]], [others[0]], [others[1]], None], "a handler is free, and the second suspect waits"
    inbox.ran([others[0]])
    assert inbox.next_run() is None, "the first one still runs"
    inbox.ran([suspects[0]])
    assert inbox.next_run() == [suspects[1]]
    assert inbox.running == 2


def test_a_suspect_shares_no_batch() -> None:
    inbox = Inbox(concurrency=2, batch=3, streams=1)
    suspects, others = [held(1, begun=1), held(2, begun=1)], [held(3), held(4)]
    for item in (*suspects, *others):
        inbox.take(item)
    assert [inbox.next_run() for _ in range(2)] == [[suspects[0]], others]


# --- leases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [0, 1])
def test_what_is_lost_before_it_is_begun_never_runs(begun: int) -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held(begun=begun)
    inbox.take(item)
    assert inbox.lose(item.key) is item
    assert item.lost
    assert (inbox.next_run(), inbox.keys(), inbox.room()) == (None, (), 1)


def test_what_is_lost_while_it_runs_is_held_until_its_outcome_is_known() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.take(item)
    inbox.next_run()
    inbox.lose(item.key)
    assert item.lost
    assert inbox.keys() == (item.key,)
    inbox.drop(item)
    assert (inbox.keys(), inbox.room()) == ((), 1)


def test_what_is_deleted_while_it_runs_was_not_taken_over() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.take(item)
    inbox.next_run()
    inbox.lose(item.key, gone=True)
    inbox.lose(item.key)  # the next renewal finds it pending no more
    assert item.lost
    assert item.gone


def test_losing_what_is_not_held_changes_nothing() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    assert inbox.lose(("s", "9-0")) is None
    assert inbox.room() == 1


def test_stopping_hands_back_what_was_not_begun_suspects_included() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=3)
    running, waiting, suspect = held(1), held(2), held(3, begun=1)
    inbox.take(running)
    inbox.next_run()
    inbox.take(waiting)
    inbox.take(suspect)
    assert set(inbox.drop_waiting()) == {waiting, suspect}
    assert inbox.keys() == (running.key,)
    assert inbox.drop_waiting() == ()


class AnyOrder(RuleBasedStateMachine):
    """Read as much as there is room for, run, fail, settle, lose, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox(concurrency=3, batch=2, streams=2)
        self.number = 0
        self.running: list[list[Held]] = []
        self.unsettled: list[Held] = []
        self.settling: list[Held] = []
        self.ready: list[Held] = []
        self.suspects: list[Held] = []

    @property
    def suspect_runs(self) -> int:
        return sum(run[0].unsettled for run in self.running)

    @rule(share=st.floats(0, 1), begun=st.integers(0, 1))
    def read(self, share: float, begun: int) -> None:
        for _ in range(2 * round(share * self.inbox.room())):
            self.number += 1
            item = held(self.number, f"s{self.number % 2}", begun=begun)
            self.inbox.take(item)
            (self.suspects if begun else self.ready).append(item)

    @rule()
    def begin(self) -> None:
        run = self.inbox.next_run()
        suspect = bool(self.suspects) and not self.suspect_runs
        assert (run is None) == (len(self.running) == 3 or not (self.ready or suspect))
        if run is not None:
            assert list(run) == (self.suspects[:1] if suspect else self.ready[:2]), "in the order they were read in"
            del (self.suspects if suspect else self.ready)[: len(run)]
            self.running.append(list(run))

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2), by_hand=st.booleans())
    def end(self, index: int, by_hand: bool) -> None:
        run = self.running.pop(index % len(self.running))
        self.inbox.ran(run)
        for item in run:
            if by_hand:
                self.unsettled.append(item)
            else:
                self.inbox.settling()
                self.settling.append(item)

    @precondition(lambda self: self.unsettled)
    @rule()
    def settle(self) -> None:
        self.inbox.settling()
        self.settling.append(self.unsettled.pop())

    @precondition(lambda self: self.settling)
    @rule()
    def written(self) -> None:
        self.inbox.release(self.settling.pop(0))

    @precondition(lambda self: self.ready or self.suspects)
    @rule(last=st.booleans())
    def lose(self, last: bool) -> None:
        waiting = self.suspects if (self.suspects and last) or not self.ready else self.ready
        self.inbox.lose(waiting.pop(-1 if last else 0).key)

    @precondition(lambda self: self.settling)
    @rule()
    def lose_what_is_settling(self) -> None:
        self.inbox.lose(self.settling[0].key)

    @rule()
    def give_up(self) -> None:
        assert list(self.inbox.drop_waiting()) == [*self.suspects, *self.ready]
        self.suspects, self.ready = [], []

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        in_hand = [*self.suspects, *self.ready, *self.unsettled, *(item for run in self.running for item in run)]
        assert set(self.inbox.keys()) == {item.key for item in (*in_hand, *self.settling)}
        assert len(self.inbox) == len(in_hand) + len(self.settling)
        assert len(in_hand) <= self.inbox.capacity
        assert len(self.inbox) <= 2 * self.inbox.capacity
        assert self.inbox.running == len(self.running) <= 3

    @invariant()
    def runs_no_two_suspects_at_once(self) -> None:
        assert self.suspect_runs <= 1


TestAnyOrder = AnyOrder.TestCase


# --- reading ahead -----------------------------------------------------------------------------------------------


def run_some(inbox: Inbox, count: int, first: int = 0) -> None:
    """Messages come, are run, and are settled."""
    for number in range(first, first + count):
        inbox.take(held(number))
        run = inbox.next_run()
        assert run is not None
        inbox.ran(run)
        inbox.settling()
        inbox.release(run[0])


def test_fast_handlers_find_the_next_messages_here_as_many_as_take_a_hundredth_of_a_second() -> None:
    clock = Clock()
    inbox = Inbox(concurrency=20, batch=1, streams=1, clock=clock)
    assert inbox.room() == 20, "nothing is known yet"
    for start in range(0, 200, 20):
        run_some(inbox, 20, start)
        clock.now += 0.02
        room = inbox.room()
    assert room == 20 + 10
    run_some(inbox, 200, 1_000)
    clock.now += 0.02
    assert inbox.room() == 20 + 20, "as many again as may run at once are the most"
    for number in range(2_000, 2_035):
        inbox.take(held(number))
    assert inbox.room() == 0, "enough waits: the next read is to be a large one"
    clock.now += 1.0
    assert inbox.room() < 0, "who handles nothing any more reads nothing ahead"


def test_slow_handlers_read_nothing_ahead() -> None:
    clock = Clock()
    inbox = Inbox(concurrency=4, batch=1, streams=1, clock=clock)
    for start in range(0, 40, 4):
        run_some(inbox, 4, start)
        clock.now += 0.1
        assert inbox.room() == 4


def test_what_was_read_ahead_is_given_up_where_handlers_do_not_come_to_it() -> None:
    clock = Clock()
    inbox = Inbox(concurrency=2, batch=1, streams=1, clock=clock)
    taken = [held(number) for number in range(5)]
    for item in taken:
        inbox.take(item)
    assert inbox.next_run() == [taken[0]]
    assert inbox.next_run() == [taken[1]]
    assert not inbox.surplus(), "it may be a moment's"
    clock.now += SURPLUS_AFTER
    assert inbox.surplus() == [taken[4], taken[3], taken[2]], "what no handler of its own is free for"
    assert len(inbox) == 2
    assert not inbox.surplus()
