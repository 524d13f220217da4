"""When a consumer leads, by what Redis answered and by its own clock."""

import pytest
from redis.exceptions import ResponseError

from quantum_bus import streams
from quantum_bus.heartbeat import Lease
from quantum_bus.leadership import LASTS, LONGEST_PAUSE, NOT_LEADING, TRIES, Leadership
from quantum_bus.sources import NotOwned
from quantum_bus.streams import Keys
from tests.unit.clock import Clock

ACQUIRED, RENEWED = [b"acquired"], [b"renewed"]
ACK_WAIT = 40.0


class Told:
    """How often the consumer was told that something has changed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Told:
    return Told()


def made(clock: Clock, told: Told, *names: str) -> Leadership:
    keys = {stream: Keys.of(stream, "g") for stream in names or ("s",)}
    return Leadership(keys, "c", ACK_WAIT, changed=told, clock=clock)


def answered(leadership: Leadership, *replies: object) -> None:
    leadership.commands()
    leadership.answered(replies)


def test_each_stream_has_a_lease_of_its_own(clock: Clock, told: Told) -> None:
    leadership = made(clock, told, "s", "t")
    lasts_ms = int(ACK_WAIT * LASTS * 1000)
    assert leadership.commands() == [
        streams.LEAD.call(["{s}:lease:g"], "c", lasts_ms),
        streams.LEAD.call(["{t}:lease:g"], "c", lasts_ms),
    ]
    leadership.answered([ACQUIRED, [b"held", b"another"]])
    assert (leadership.term("s"), leadership.term("t")) == (1, NOT_LEADING)
    assert leadership.holders == {"t": "another"}
    assert told.count == 1


def test_a_term_goes_on_with_each_renewal_and_nobody_is_told(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    for _ in range(5):
        clock.now += ACK_WAIT / TRIES
        answered(leadership, RENEWED)
        assert leadership.term("s") == 1
    assert told.count == 1


def test_a_lease_counts_from_when_it_was_asked_for_by_this_process_own_clock(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    leadership.commands()
    clock.now = 10.0  # the answer took its time
    leadership.answered([ACQUIRED])
    clock.now = LASTS * ACK_WAIT - 0.01
    assert leadership.term("s") == 1
    clock.now = LASTS * ACK_WAIT
    assert leadership.term("s") == NOT_LEADING


def test_who_led_renews_too_late_and_leads_again_does_so_in_a_new_term(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    clock.now = ACK_WAIT
    answered(leadership, RENEWED)
    assert (leadership.term("s"), told.count) == (2, 2)


def test_a_lease_that_had_to_be_acquired_anew_begins_a_new_term(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    answered(leadership, ACQUIRED)
    assert leadership.term("s") == 2


def test_a_term_ends_when_another_holds_the_lease_and_when_the_consumer_says_so(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    leadership.end("s")
    assert leadership.term("s") == NOT_LEADING
    answered(leadership, RENEWED)
    assert leadership.term("s") == 2
    answered(leadership, [b"held", b"another"])
    assert (leadership.term("s"), leadership.holders) == (NOT_LEADING, {"s": "another"})
    assert told.count == 3


def test_a_refusal_changes_no_term_and_is_told_once(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    refusal = ResponseError("WRONGTYPE")
    answered(leadership, refusal)
    answered(leadership, refusal)
    assert (leadership.term("s"), leadership.refusal, told.count) == (1, refusal, 2)
    answered(leadership, RENEWED)
    assert leadership.refusal is None


def test_who_has_resigned_asks_for_no_lease_again(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    answered(leadership, ACQUIRED)
    assert leadership.resign() == [streams.RESIGN.call(["{s}:lease:g"], "c", int(ACK_WAIT * LASTS * 1000))]
    assert (leadership.term("s"), leadership.commands()) == (NOT_LEADING, [])


def test_a_standby_asks_at_least_once_a_second(clock: Clock, told: Told) -> None:
    leadership = made(clock, told)
    assert leadership.pause() == LONGEST_PAUSE
    answered(leadership, ACQUIRED)
    assert leadership.pause() == ACK_WAIT / TRIES


def test_two_beats_may_be_lost_before_a_lease_runs_out() -> None:
    assert 3 / TRIES < LASTS
    assert LASTS + 2 / TRIES <= 1, "a standby's next try falls into `ack_wait`"


def test_the_heartbeat_renews_leases_on_streams_and_on_messages_together(clock: Clock, told: Told) -> None:
    leadership = made(clock, told, "s", "t")
    not_owned: list[NotOwned] = []
    lease = Lease("g", "c", ACK_WAIT, lambda: [("s", "1-0")], not_owned.append, leadership)
    commands = lease.commands()
    assert commands[2:] == [streams.KEEP.call(["s"], "g", "c", "1-0")]
    assert lease.answered(commands, [ACQUIRED, ACQUIRED, [[b"1-0"], []]])
    assert (leadership.term("s"), leadership.term("t")) == (1, 1)
    assert not_owned == [NotOwned([("s", "1-0")], [])]
    assert not lease.answered(commands, [ACQUIRED, ResponseError("no"), [[], []]])
