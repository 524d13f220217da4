from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from quantum_bus.cli import dlq
from quantum_bus.cli.dlq import Chosen
from quantum_bus.deadletters import DeadLetter, Filter, Pace, Replay
from tests.unit.clock import Clock

LETTERS = [DeadLetter.of("{s}:dlq", f"{number}-0", [b"a", b"b"]) for number in range(1, 6)]


class Dead:
    """A dead-letter stream that answers what it is told to."""

    stream, key = "s", "{s}:dlq"

    def __init__(self, clock: Callable[[], float], *answers: str | BaseException) -> None:
        self._clock = clock
        self._answers = iter(answers)
        self.given: list[float] = []

    def find(self, wanted: Filter, last: str) -> Iterator[DeadLetter]:
        return iter(LETTERS)

    def give_back(self, command: Any) -> str:
        self.given.append(self._clock())
        answer = next(self._answers, "ok")
        if isinstance(answer, BaseException):
            raise answer
        return answer


def run(dead: Dead, clock: Clock, *, rate: float | None = None) -> dlq.Tally:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    return dlq.give_back_all(
        dead,  # type: ignore[arg-type]
        Chosen((), Filter(), None, "9-0"),
        lambda letter: Replay("s", ("EVALSHA", letter.id)),
        Pace(rate, clock=clock),
        total=len(LETTERS),
        sleep=sleep,
    )


def test_a_rate_spaces_the_messages_evenly() -> None:
    clock = Clock()
    dead = Dead(clock)
    assert run(dead, clock, rate=4.0).done == {"s": 5}
    assert dead.given == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_what_redis_refuses_holds_up_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    dead = Dead(clock, "ok", ResponseError("OOM command not allowed"), "gone", "no group")
    tally = run(dead, clock)
    assert (tally.done["s"], tally.gone, tally.failed) == (2, 1, 2)
    first, second = capsys.readouterr().err.splitlines()
    assert "2-0: s: Redis refused it, and it stays: OOM command not allowed" in first
    assert "4-0: the group ''" in second


def test_a_broken_connection_ends_it_with_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with pytest.raises(RedisConnectionError):
        run(Dead(clock, "ok", "ok", RedisConnectionError("reset")), clock)
    assert capsys.readouterr().out == "replayed 2 dead letters: 2 → s\n"


def test_ctrl_c_ends_it_with_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with pytest.raises(SystemExit) as end:
        run(Dead(clock, "ok", KeyboardInterrupt()), clock)
    assert end.value.code == 130
    shown = capsys.readouterr()
    assert shown.out == "replayed 1 dead letter: 1 → s\n"
    assert "running it again goes on" in shown.err
