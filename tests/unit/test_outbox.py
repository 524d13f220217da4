"""Outcomes on their way to Redis."""

import pytest
from redis.exceptions import ResponseError

from quantum_bus import ConnectionLost
from quantum_bus.config import BusConfig
from quantum_bus.delivery import Bury, Failure
from quantum_bus.outbox import ACKS_TOGETHER, DONE, GONE, LOST, Outbox
from tests.unit.incoming import held

BURY = Bury("rejected", Failure("E", "m"))
NOGROUP = ResponseError("NOGROUP No such consumer group")
WRONGTYPE = ResponseError("WRONGTYPE Operation against a key")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(clock: Clock) -> Outbox:
    config = BusConfig(url=None, service="svc", backoff_initial=1.0, backoff_maximum=4.0)
    return Outbox(group="g", consumer="c", config=config, clock=clock)


def test_empty_it_waits_for_nothing(outbox: Outbox) -> None:
    assert outbox.pause() is None
    assert (len(outbox), outbox.take()) == (0, [])


def test_acks_of_one_stream_go_together(outbox: Outbox) -> None:
    for number in range(3):
        outbox.ack(held(number, "a" if number < 2 else "b"))
    assert outbox.pause() == 0
    commands = outbox.take()
    assert [command[2:] for command in commands] == [(1, "a", "g", "c", "0-0", "1-0"), (1, "b", "g", "c", "2-0")]
    assert len(outbox) == 3, "what is being written is not done yet"
    answered = outbox.answered([[], [b"2-0"]])
    assert [letter.result for letter in answered.settled] == [DONE, DONE, LOST]
    assert len(outbox) == 0


def test_one_command_acks_no_more_than_so_many(outbox: Outbox) -> None:
    for number in range(ACKS_TOGETHER + 1):
        outbox.ack(held(number))
    assert [len(command) - 6 for command in outbox.take()] == [ACKS_TOGETHER, 1]


@pytest.mark.parametrize(("reply", "result"), [([b"ok", b"9-0"], DONE), ([b"lost"], LOST), ([b"gone"], GONE)])
def test_a_dead_letter_tells_how_it_went(outbox: Outbox, reply: list[bytes], result: str) -> None:
    outbox.bury(held(), BURY)
    [command] = outbox.take()
    assert command[2:8] == (2, "s", "{s}:dlq", "g", "c", "1-0")
    [letter] = outbox.answered([reply]).settled
    assert letter.result == result
    assert letter.buried == ("rejected" if result == DONE else None)


def test_where_the_group_is_gone_nobody_owns_anything(outbox: Outbox) -> None:
    outbox.ack(held(1))
    outbox.bury(held(2), BURY)
    outbox.take()
    answered = outbox.answered([NOGROUP, NOGROUP])
    assert [letter.result for letter in answered.settled] == [LOST, LOST]
    assert outbox.pause() is None


def test_what_was_refused_is_due_again_and_said_once(outbox: Outbox, clock: Clock) -> None:
    outbox.bury(held(1), BURY)
    outbox.ack(held(2))
    outbox.take()
    answered = outbox.answered([WRONGTYPE, []])
    assert [(letter.held.key, reply) for letter, reply in answered.refused] == [(("s", "1-0"), WRONGTYPE)]
    assert len(outbox) == 1, "the ack beside it is done"
    pause = outbox.pause()
    assert pause is not None
    assert 0.5 <= pause <= 1.0
    assert outbox.take() == []
    clock.now += pause
    assert len(outbox.take()) == 1
    assert not outbox.answered([WRONGTYPE]).refused
    longer = outbox.pause()
    assert longer is not None
    assert 1.0 <= longer <= 2.0


def test_what_holds_up_one_holds_up_no_other(outbox: Outbox) -> None:
    outbox.bury(held(1), BURY)
    outbox.take()
    outbox.answered([WRONGTYPE])
    outbox.ack(held(2))
    assert outbox.pause() == 0
    [command] = outbox.take()
    assert "2-0" in command


def test_without_an_answer_everything_is_due_again(outbox: Outbox, clock: Clock) -> None:
    outbox.ack(held(1))
    outbox.bury(held(2), BURY)
    outbox.take()
    error = ConnectionLost("away")
    assert [reply for _, reply in outbox.failed(error).refused] == [error, error]
    clock.now = 10.0
    assert len(outbox.take()) == 2
    answered = outbox.answered([[b"ok", b"9-0"], []])
    assert [letter.result for letter in answered.settled] == [DONE, DONE]


def test_the_first_failure_is_remembered(outbox: Outbox) -> None:
    item = held()
    item.first_failed_at = "2026-01-03T10:15:23.456789Z"
    outbox.bury(item, BURY)
    [command] = outbox.take()
    assert "2026-01-03T10:15:23.456789Z" in command
