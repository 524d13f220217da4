from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from quantum_bus.errors import ConnectionLost
from quantum_bus.inquiry import TOGETHER, Inquiry, Refusal, Refusals, answered, as_map, asked, asked_each
from quantum_bus.streams import Command


def echo(*commands: Command) -> list[Any]:
    return [command[1] for command in commands]


def test_many_commands_take_as_many_round_trips_as_they_must() -> None:
    rounds: list[int] = []

    def execute(*commands: Command) -> list[Any]:
        rounds.append(len(commands))
        return echo(*commands)

    commands = [("GET", str(number)) for number in range(TOGETHER + 2)]
    assert answered(asked(commands, Refusals()), execute) == [command[1] for command in commands]
    assert rounds == [TOGETHER, 2]


def test_each_asker_gets_its_own_replies_and_a_question_left_out_an_empty_one() -> None:
    asking: list[Sequence[Command | None]] = [[("GET", "a"), None], [], [None, ("GET", "b"), ("GET", "c")]]
    assert answered(asked_each(asking, Refusals()), echo) == [["a", []], [], [[], "b", "c"]]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("XINFO", "GROUPS", "s"), Refusal("XINFO GROUPS", "s", "no")),
        (("ZCARD", "s"), Refusal("ZCARD", "s", "no")),
        (("EVALSHA", "abc", 1, "s", "0"), Refusal("EVALSHA", "s", "no")),
        (("CONFIG", "GET", "save"), Refusal("CONFIG GET", "", "no")),
        (("INFO",), Refusal("INFO", "", "no")),
        (("TIME",), Refusal("TIME", "", "no")),
    ],
)
def test_a_refusal_is_none_and_told_of(command: Command, expected: Refusal) -> None:
    refusals = Refusals()
    assert answered(asked([command], refusals), lambda *_: [NoPermissionError("no")]) == [None]
    assert refusals.found == [expected]


@pytest.mark.parametrize("text", ["no such key", "ERR no such key", "NOGROUP No such consumer group"])
def test_what_is_not_there_is_an_empty_answer_and_no_refusal(text: str) -> None:
    refusals = Refusals()
    assert answered(asked([("XINFO", "GROUPS", "s")], refusals), lambda *_: [ResponseError(text)]) == [[]]
    assert refusals.found == []


def test_a_lost_connection_ends_the_inquiry() -> None:
    """Without this the figures after the break were missing, and the look counted as one that succeeded."""

    def ends() -> Inquiry[None]:
        yield [("PING",), ("PING",)]

    with pytest.raises(ConnectionLost):
        answered(ends(), lambda *_: [b"PONG", ConnectionLost("gone")])


def test_lists_and_maps_read_the_same() -> None:
    assert as_map([b"a", 1, b"b", 2]) == as_map({b"a": 1, b"b": 2}) == {b"a": 1, b"b": 2}
