"""What a consumer holds, as a model that any order of calls may drive."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quantum_bus.inbox import Held, Inbox
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
    inbox.ran()
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


def test_a_parked_message_takes_up_room_and_runs_when_it_is_due() -> None:
    inbox = Inbox(concurrency=1, batch=1, streams=1)
    item = held()
    inbox.take(item)
    inbox.next_run()
    inbox.ran()
    assert (inbox.room(), inbox.next_run(), inbox.idle) == (0, None, True)
    inbox.again(item)
    assert not inbox.idle
    assert inbox.next_run() == [item]


class AnyOrder(RuleBasedStateMachine):
    """Read as much as there is room for, run, fail, settle, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox(concurrency=3, batch=2, streams=2)
        self.number = 0
        self.running: list[list[Held]] = []
        self.parked: list[Held] = []
        self.settling: list[Held] = []
        self.ready = 0

    @rule(share=st.floats(0, 1))
    def read(self, share: float) -> None:
        for _ in range(2 * round(share * self.inbox.room())):
            self.number += 1
            self.inbox.take(held(self.number, f"s{self.number % 2}"))
            self.ready += 1

    @rule()
    def begin(self) -> None:
        run = self.inbox.next_run()
        assert (run is None) == (not self.ready or len(self.running) == 3)
        if run is not None:
            assert 1 <= len(run) <= 2
            self.ready -= len(run)
            self.running.append(list(run))

    @precondition(lambda self: self.running)
    @rule(failed=st.booleans())
    def end(self, failed: bool) -> None:
        run = self.running.pop(0)
        self.inbox.ran()
        for item in run:
            if failed:
                self.parked.append(item)
            else:
                self.inbox.settling()
                self.settling.append(item)

    @precondition(lambda self: self.parked)
    @rule()
    def due(self) -> None:
        self.inbox.again(self.parked.pop())
        self.ready += 1

    @precondition(lambda self: self.settling)
    @rule()
    def acked(self) -> None:
        self.inbox.release(self.settling.pop(0))

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        in_hand = self.ready + sum(map(len, self.running)) + len(self.parked)
        assert len(self.inbox) == in_hand + len(self.settling)
        assert in_hand <= self.inbox.capacity
        assert len(self.inbox) <= 2 * self.inbox.capacity
        assert self.inbox.running == len(self.running) <= 3
        assert self.inbox.idle == (not self.running and not self.ready)


TestAnyOrder = AnyOrder.TestCase
