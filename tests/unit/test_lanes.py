"""What an ordered consumer holds: order within each key, as a model that any order of calls may drive."""

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quantum_bus.inbox import Held
from quantum_bus.lanes import WAITING_BEHIND, Lanes
from quantum_bus.streams import Keys
from tests.unit.clock import Clock
from tests.unit.incoming import incoming


def message(number: int, key: str | None = None, *, stream: str = "s", begun: int = 0, retried: int = 0) -> Held:
    """A message as it was taken in; see `tests.unit.incoming.held`."""
    fields = {} if key is None else {"key": key}
    source, source_id = (Keys.of(stream, "g").retry, f"{1000 + number}-0") if retried else (stream, f"{number}-0")
    return Held(
        incoming(number, stream, **fields),
        source,
        source_id,
        attempt=retried + begun,
        noted=retried,
        unsettled=begun > 0,
    )


class Terms:
    """Who leads, as a test says."""

    def __init__(self) -> None:
        self.of: defaultdict[str, int] = defaultdict(lambda: 1)

    def __call__(self, stream: str) -> int:
        return self.of[stream]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terms() -> Terms:
    return Terms()


def lanes(clock: Clock, terms: Terms, *, concurrency: int = 4, batch: int = 1, behind: int = WAITING_BEHIND) -> Lanes:
    made = Lanes(concurrency=concurrency, batch=batch, term=terms, clock=clock, behind=behind)
    for stream in ("s", "t"):
        made.begin_term(stream, 1)
    return made


def done(inbox: Lanes, held: Held, again: float | None = None) -> None:
    """Its handler has ended, and Redis has the outcome."""
    inbox.ran([held])
    inbox.settling()
    inbox.release(held, again)


# --- one after the other -----------------------------------------------------------------------------------------


def test_of_one_key_one_message_runs_at_a_time_in_order_beside_other_keys(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    a1, a2, b1, a3 = (message(number, key) for number, key in enumerate("aaba"))
    for item in (a1, a2, b1, a3):
        inbox.take(item)
    assert [inbox.next_run() for _ in range(3)] == [[a1], [b1], None]
    done(inbox, a1)
    assert [inbox.next_run() for _ in range(2)] == [[a2], None]
    done(inbox, b1)
    assert inbox.next_run() is None
    done(inbox, a2)
    assert inbox.next_run() == [a3]


def test_the_next_of_a_key_waits_until_redis_has_the_outcome_of_the_one_before(clock: Clock, terms: Terms) -> None:
    # else a process that dies between the two would leave the first to be run again behind the second
    inbox = lanes(clock, terms)
    first, second = message(1, "a"), message(2, "a")
    inbox.take(first)
    inbox.take(second)
    inbox.next_run()
    inbox.ran([first])
    inbox.settling()
    assert inbox.next_run() is None
    inbox.release(first)
    assert inbox.next_run() == [second]


def test_what_is_acked_by_hand_is_followed_only_when_its_handler_has_ended(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    first, second = message(1, "a"), message(2, "a")
    inbox.take(first)
    inbox.take(second)
    inbox.next_run()
    inbox.settling()
    inbox.release(first)
    assert inbox.next_run() is None
    inbox.ran([first])
    assert inbox.next_run() == [second]


def test_messages_without_a_key_and_of_other_streams_do_not_wait_for_each_other(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    free = [message(1), message(2), message(3, "a"), message(3, "a", stream="t")]
    for item in free:
        inbox.take(item)
    assert [inbox.next_run() for _ in range(4)] == [[item] for item in free]


def test_a_batch_takes_one_message_of_each_key(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, batch=10)
    a1, a2, b1, free = message(1, "a"), message(2, "a"), message(3, "b"), message(4)
    for item in (a1, a2, b1, free):
        inbox.take(item)
    assert [inbox.next_run() for _ in range(2)] == [[a1, b1, free], None]


def test_what_comes_late_has_its_place_in_the_streams_order(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    late, retry, soon = message(9, "a"), message(3, "a", retried=1), message(10, "a")
    for item in (soon, late, retry):
        inbox.take(item)
    order = []
    while (run := inbox.next_run()) is not None:
        order += run
        done(inbox, run[0])
    assert order == [retry, late, soon]


# --- parked ------------------------------------------------------------------------------------------------------


def test_what_failed_is_parked_with_its_key_until_its_delay_is_over(clock: Clock, terms: Terms) -> None:
    # Without parking the second ran while the first waited for its retry.
    inbox = lanes(clock, terms)
    first, second, other = message(1, "a"), message(2, "a"), message(3, "b")
    for item in (first, second):
        inbox.take(item)
    inbox.next_run()
    done(inbox, first, again=2.0)
    assert (inbox.next_run(), inbox.pause()) == (None, 2.0)
    inbox.take(other)
    assert inbox.next_run() == [other], "other keys go on"
    clock.now = 1.9
    assert inbox.next_run() is None
    assert set(inbox.keys()) == {first.key, second.key, other.key}, "and its lease is kept"
    clock.now = 2.0
    assert inbox.next_run() == [first]
    assert inbox.pause() is None
    done(inbox, first)
    assert inbox.next_run() == [second]


def test_what_ran_here_and_failed_is_no_suspect_any_more(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, batch=2)
    suspect, other = message(1, "a", begun=1), message(2, "b")
    inbox.take(suspect)
    assert inbox.next_run() == [suspect]
    done(inbox, suspect, again=0.0)
    inbox.take(other)
    assert set(inbox.next_run() or ()) == {suspect, other}


def test_what_is_lost_or_deleted_while_it_is_parked_holds_up_its_key_no_more(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    first, second = message(1, "a"), message(2, "a")
    inbox.take(first)
    inbox.take(second)
    inbox.next_run()
    done(inbox, first, again=100.0)
    inbox.lose(first.key, gone=True)
    assert inbox.next_run() == [second]
    done(inbox, second)
    clock.now = 100.0
    assert (inbox.next_run(), len(inbox)) == (None, 0)


# --- room --------------------------------------------------------------------------------------------------------


def test_other_keys_are_read_on_behind_one_that_waits_up_to_the_bound(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, concurrency=2, behind=5)
    assert inbox.room() == 2
    number = 0
    while inbox.room():
        number += 1
        inbox.take(message(number, "a"))
        inbox.next_run()
        assert number < 100
    assert len(inbox) == inbox.bound == 7


def test_where_there_is_enough_to_run_no_more_is_read(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, concurrency=2)
    inbox.take(message(1, "a"))
    inbox.take(message(2, "b"))
    assert inbox.room() == 0
    inbox.next_run()
    assert inbox.room() == 0
    inbox.next_run()
    inbox.ran([message(1, "a")])
    assert inbox.room() == 1


# --- suspects ----------------------------------------------------------------------------------------------------


def test_suspects_run_one_at_a_time_and_are_not_overtaken_by_their_key(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, batch=3)
    s1, s2 = message(1, "a", begun=1), message(2, "b", begun=1)
    a3, b4, c5 = message(3, "a"), message(4, "b"), message(5, "c")
    for item in (s1, s2, a3, b4, c5):
        inbox.take(item)
    assert [inbox.next_run() for _ in range(3)] == [[s1], [c5], None], "alone, though beside others"
    done(inbox, s1)
    assert [inbox.next_run() for _ in range(3)] == [[s2], [a3], None]
    done(inbox, s2)
    assert inbox.next_run() == [b4]


def test_a_suspect_that_comes_late_takes_its_place_before_what_is_ready(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, batch=2)
    later, suspect = message(2, "a"), message(1, "a", begun=1)
    inbox.take(later)
    inbox.take(suspect)
    inbox.take(message(3, "b"))
    assert inbox.next_run() == [suspect]


# --- terms -------------------------------------------------------------------------------------------------------


def test_nothing_is_begun_when_the_term_is_over_and_what_waits_is_held_no_longer(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms, concurrency=9)
    running, waiting, parked, other = message(1, "a"), message(2, "a"), message(3, "b"), message(4, "a", stream="t")
    inbox.take(running)
    inbox.take(parked)
    inbox.next_run()
    inbox.next_run()
    done(inbox, parked, again=1.0)
    for item in (waiting, message(5, "c"), other):
        inbox.take(item)
    terms.of["s"] = 0
    clock.now = 5.0
    assert [inbox.next_run() for _ in range(2)] == [[other], None]
    inbox.begin_term("s", 2)
    terms.of["s"] = 2
    assert set(inbox.keys()) == {running.key, other.key}
    inbox.take(waiting)
    assert inbox.next_run() is None, "what still runs goes before it"
    done(inbox, running, again=3.0)
    clock.now = 8.0
    assert inbox.next_run() == [running]


def test_what_is_to_run_again_in_a_term_that_is_over_is_held_no_longer(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    item = message(1, "a")
    inbox.take(item)
    inbox.next_run()
    terms.of["s"] = 0
    done(inbox, item, again=0.0)
    assert (len(inbox), inbox.next_run()) == (0, None)


def test_a_run_that_was_dropped_before_it_began_frees_its_key(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    item = message(1, "a")
    inbox.take(item)
    inbox.next_run()
    inbox.drop(item)
    again = message(1, "a")
    inbox.take(again)  # inherited in the next term, before the run's end is told
    assert inbox.next_run() is None
    inbox.ran([item])
    assert inbox.next_run() == [again]


def test_what_turns_out_not_to_be_run_frees_its_key_or_waits_with_it(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    skipped, copy, later = message(1, "a"), message(2, "a"), message(3, "a")
    for item in (skipped, copy, later):
        inbox.take(item)
    inbox.next_run()
    skipped.begin(0.0)
    assert inbox.set_aside(skipped.key) is skipped
    inbox.ran([skipped])
    assert inbox.next_run() == [copy]
    copy.begin(0.0)
    assert inbox.postpone(copy.key) is copy
    inbox.ran([copy])
    inbox.release(copy, again=1.0)
    assert inbox.next_run() is None
    clock.now = 1.0
    assert inbox.next_run() == [copy]
    assert (copy.attempt, copy.aside) == (0, 1)
    copy.begin(0.0)
    assert copy.aside < copy.turn, "in its next turn it is run"


def test_what_is_settled_while_a_page_of_what_is_pending_is_under_way_is_not_taken_again(
    clock: Clock, terms: Terms
) -> None:
    inbox = lanes(clock, terms)
    item = message(1, "a")
    inbox.take(item)
    inbox.next_run()
    inbox.watch(watching=True)
    done(inbox, item)
    assert item.key in inbox
    inbox.watch(watching=False)
    assert item.key not in inbox


def test_stopping_hands_back_what_waits_and_what_is_parked(clock: Clock, terms: Terms) -> None:
    inbox = lanes(clock, terms)
    running, behind, parked = message(1, "a"), message(2, "a"), message(3, "b")
    suspects = [message(4, "c", begun=1), message(5, "d", begun=1)]
    for item in (running, behind, parked, *suspects):
        inbox.take(item)
    for _ in range(3):
        inbox.next_run()
    done(inbox, parked, again=60.0)
    assert set(inbox.drop_waiting()) == {behind, parked, suspects[1]}
    assert set(inbox.keys()) == {running.key, suspects[0].key}
    done(inbox, running)
    done(inbox, suspects[0])
    assert (len(inbox), inbox.next_run(), list(inbox.drop_waiting())) == (0, None, [])


# --- any order ---------------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, failures, successes, losses and the end of terms, in any order."""

    KEYS = ("a", "b", None)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.terms = Terms()
        self.lanes = lanes(self.clock, self.terms, concurrency=3, batch=2, behind=6)
        self.number = 0
        self.running: list[list[Held]] = []
        self.settling: list[tuple[Held, float | None]] = []
        self.parked: dict[Held, float] = {}
        self.waiting: list[Held] = []

    def ahead(self, item: Held) -> list[Held]:
        """What must be done with before `item` is begun."""
        if item.incoming.key is None:
            return []
        in_hand = [*self.waiting, *self.parked, *(held for held, _ in self.settling)]
        in_hand += [held for run in self.running for held in run if held is not item]
        lane = (item.incoming.stream, item.incoming.key)
        same = [held for held in in_hand if (held.incoming.stream, held.incoming.key) == lane]
        return [held for held in same if _number(held) < _number(item)]

    def suspect_runs(self) -> int:
        return sum(run[0].is_suspect and run[0].attempt == 1 for run in self.running)

    @rule(
        count=st.integers(1, 6), keys=st.lists(st.sampled_from(KEYS), min_size=6, max_size=6), begun=st.integers(0, 1)
    )
    def read(self, count: int, keys: list[str | None], begun: int) -> None:
        for key in keys[: min(count, self.lanes.room())]:
            self.number += 1
            item = message(self.number, key, stream="st"[self.number % 2], begun=begun)
            self.lanes.take(item)
            self.waiting.append(item)

    @rule()
    def begin(self) -> None:
        for item, due in list(self.parked.items()):
            if due <= self.clock.now:
                self.waiting.append(item)
                del self.parked[item]
        run = self.lanes.next_run()
        if run is None:
            able = [item for item in self.waiting if not self.ahead(item)]
            stuck = [item for item in able if not (item.is_suspect and self.suspect_runs())]
            assert len(self.running) == 3 or not stuck, "what could run is not given out"
            return
        for item in run:
            self.waiting.remove(item)
        self.running.append(list(run))
        for item in run:
            assert not self.ahead(item), "begun before what stands before it"
        assert len({(item.incoming.stream, item.incoming.key or item.key) for item in run}) == len(run)
        assert len(run) == 1 or not any(item.is_suspect for item in run)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 2), delays=st.lists(st.none() | st.integers(0, 3), min_size=2, max_size=2))
    def end(self, index: int, delays: list[int | None]) -> None:
        run = self.running.pop(index % len(self.running))
        self.lanes.ran(run)
        for item, delay in zip(run, delays, strict=False):
            self.lanes.settling()
            self.settling.append((item, delay))

    @precondition(lambda self: self.settling)
    @rule(index=st.integers(0, 9))
    def written(self, index: int) -> None:
        item, again = self.settling.pop(index % len(self.settling))
        self.lanes.release(item, again)
        if again is not None:
            self.parked[item] = self.clock.now + again

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 9))
    def is_deleted(self, index: int) -> None:
        self.lanes.lose(self.waiting.pop(index % len(self.waiting)).key, gone=True)

    @rule(stream=st.sampled_from("st"))
    def a_new_term_begins(self, stream: str) -> None:
        self.terms.of[stream] += 1
        self.lanes.begin_term(stream, self.terms.of[stream])
        self.waiting = [item for item in self.waiting if item.incoming.stream != stream]
        self.parked = {item: due for item, due in self.parked.items() if item.incoming.stream != stream}

    @invariant()
    def everything_in_hand_is_held_and_no_more_than_may_be(self) -> None:
        in_hand = [*self.waiting, *self.parked, *(held for held, _ in self.settling)]
        in_hand += [held for run in self.running for held in run]
        assert set(self.lanes.keys()) == {held.key for held in in_hand}
        assert len(in_hand) <= self.lanes.bound
        assert self.lanes.running == len(self.running) <= 3

    def teardown(self) -> None:
        """Whatever came before, everything is handled in the end."""
        for _ in range(1000):
            self.clock.now += 10
            self.begin()
            while self.running:
                self.end(0, [None, None])
            while self.settling:
                self.written(0)
            if not len(self.lanes):
                return
        raise AssertionError(f"stuck with {self.lanes.keys()}")


def _number(held: Held) -> int:
    return int(held.incoming.id.partition("-")[0])


TestAnyOrder = AnyOrder.TestCase
