"""What an ordered consumer asks Redis next: first what is pending, then what is new, and nothing while it stands by."""

from typing import Any

import pytest

from quantum_bus import streams
from quantum_bus.config import BusConfig, SubscriberConfig
from quantum_bus.inbox import Held
from quantum_bus.lanes import Lanes
from quantum_bus.leadership import Leadership
from quantum_bus.sources import Sources
from quantum_bus.streams import FETCH, INHERIT
from quantum_bus.succession import News, Step, Succession
from tests.unit.clock import Clock
from tests.unit.incoming import held

RETRY = "{s}:retry:g"
ACQUIRED = [b"acquired"]
NO_MORE = [b"", [], [], 0]
"""A page of what is pending behind which there is nothing."""


class Reading:
    """A consumer's succession with all that it stands on."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        config = SubscriberConfig(streams=names or ("s",), group="g", ack_wait=8.0, ordered=True)
        bus = BusConfig(url=None, service="svc", block=2.0)
        self.sources = Sources(config, "c", bus, clock=self.clock)
        self.leadership = Leadership(self.sources.keys, "c", 8.0, changed=lambda: None, clock=self.clock)
        self.lanes = Lanes(concurrency=4, batch=1, term=self.leadership.term, clock=self.clock)
        self.succession = Succession(
            config,
            bus,
            consumer="c",
            sources=self.sources,
            lanes=self.lanes,
            leadership=self.leadership,
            clock=self.clock,
        )

    def leads(self, *replies: Any) -> None:
        self.leadership.commands()
        self.leadership.answered(replies or [ACQUIRED] * len(self.sources.keys))

    def next(self) -> Step:
        step = self.succession.step(4)
        assert step is not None
        return step

    def inherits_nothing(self, count: int = 2) -> None:
        for _ in range(count):
            step = self.next()
            assert step.command[1] == INHERIT.sha
            self.succession.answered(step, NO_MORE)

    def finds_nothing_new(self) -> None:
        step = self.next()
        assert step.command[1] == FETCH.sha
        self.succession.answered(step, [[], [b"7-0", b"9-0"]])

    def takes(self, *taken: Held) -> None:
        for item in taken:
            self.lanes.take(item)


@pytest.fixture
def reading() -> Reading:
    return Reading()


def row(number: int) -> list[Any]:
    return [b"%d-0" % number, 1, [b"v", b"1", b"data", b"{}"]]


def test_a_standby_asks_for_nothing(reading: Reading) -> None:
    assert reading.succession.step(4) is None
    reading.leads([b"held", b"another"])
    assert reading.succession.step(4) is None
    assert list(reading.succession.news()) == [News("s", False, "another")]
    assert list(reading.succession.news()) == []


def test_all_that_is_pending_comes_before_anything_new_page_by_page(reading: Reading) -> None:
    reading.leads()
    assert reading.next().source == RETRY, "retries are older"
    reading.succession.answered(reading.next(), NO_MORE)
    step = reading.next()
    assert step.command == INHERIT.call(["{s}:lease:g", "s"], "g", "c", "0", 100)
    read, count = reading.succession.answered(step, [b"2-0", [row(1), row(2)], [], 2])
    assert ([delivery.source_id for delivery in read.deliveries], count) == (["1-0", "2-0"], 0)
    step = reading.next()
    assert step.command == INHERIT.call(["{s}:lease:g", "s"], "g", "c", "(2-0", 100)
    _, count = reading.succession.answered(step, NO_MORE)
    assert count == 2, "told once, with the last page"
    assert reading.next().command == FETCH.call(["{s}:lease:g", RETRY, "s"], "g", "c", 4)
    assert list(reading.succession.news()) == [News("s", True)]


def test_what_is_inherited_is_bounded_by_what_may_be_held(reading: Reading) -> None:
    reading.leads()
    reading.next()
    reading.takes(*(held(number) for number in range(1, reading.lanes.bound - 2)))
    assert reading.next().command[-1] == 3


def test_where_nothing_is_new_it_waits_behind_what_the_group_was_given_and_then_asks_again(reading: Reading) -> None:
    reading.leads()
    reading.inherits_nothing()
    reading.finds_nothing_new()
    step = reading.next()
    assert step.command == ("XREAD", "COUNT", 1, "BLOCK", 2000, "STREAMS", RETRY, "s", "7-0", "9-0")
    assert step.timeout > 2.0
    reading.succession.answered(step, [[b"s", [[b"10-0", [b"a", b"b"]]]]])
    assert reading.next().command[1] == FETCH.sha, "what the wait shows was given to nobody"


def test_a_script_that_finds_another_leading_ends_the_term(reading: Reading) -> None:
    reading.leads()
    reading.inherits_nothing()
    reading.succession.answered(reading.next(), None)
    assert reading.succession.step(4) is None


def test_a_new_term_begins_with_what_is_pending_and_without_what_waited(reading: Reading) -> None:
    reading.leads()
    reading.inherits_nothing()
    reading.finds_nothing_new()
    reading.takes(held(1))
    reading.succession.lost("s")
    assert len(reading.lanes) == 0
    reading.takes(held(2))
    reading.leads()
    reading.inherits_nothing()
    assert len(reading.lanes) == 0
    assert reading.next().command[1] == FETCH.sha


def test_after_a_lost_reply_what_is_pending_is_looked_through_again(reading: Reading) -> None:
    reading.leads()
    reading.inherits_nothing()
    reading.finds_nothing_new()
    reading.succession.look_again()
    reading.inherits_nothing()
    reading.finds_nothing_new()


def test_streams_take_turns_and_each_is_led_on_its_own() -> None:
    reading = Reading("s", "t")
    reading.leads(ACQUIRED, [b"held", b"another"])
    reading.inherits_nothing()
    reading.finds_nothing_new()
    step = reading.next()
    assert step.command[4] < 2000, "the other stream may fall to it any moment"
    assert "t" not in step.command
    reading.succession.answered(step, None)
    reading.leads([b"renewed"], ACQUIRED)
    turns = [reading.next().stream for _ in range(4)]
    assert turns == ["t", "s", "t", "s"]


def test_what_was_given_out_may_be_begun_in_its_term_only(reading: Reading) -> None:
    reading.leads()
    reading.inherits_nothing()
    reading.takes(held(1), held(2))
    run = reading.lanes.next_run()
    assert run is not None
    assert reading.succession.may_run(run)
    reading.clock.now = 6.0
    assert not reading.succession.may_run(run)
    assert reading.lanes.keys() == (run[0].key,), "what waited is inherited in the next"
    reading.leads([b"renewed"])
    assert not reading.succession.may_run(run), "others may have led meanwhile"


def test_a_refusal_is_told_once(reading: Reading) -> None:
    refusal = ValueError("no")
    reading.leads(refusal)
    assert reading.succession.refusal() is refusal
    assert reading.succession.refusal() is None
    reading.leads()
    assert reading.succession.refusal() is None
    reading.leads(refusal)
    assert reading.succession.refusal() is refusal


def test_from_time_to_time_it_tidies(reading: Reading) -> None:
    assert reading.succession.tidying()
    assert not reading.succession.tidying()
    reading.clock.now += 2.0
    assert reading.succession.tidying()


def test_a_key_whose_group_cannot_be_made_is_left_out(reading: Reading) -> None:
    assert reading.sources.do_without(RETRY)
    reading.leads()
    reading.inherits_nothing(1)
    assert reading.next().command == streams.FETCH.call(["{s}:lease:g", "s"], "g", "c", 4)
