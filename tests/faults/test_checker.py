"""The checker sees each kind of thing that may go wrong, and nothing where nothing is wrong.

Each test takes a history that is right, with one message of every fate, and does one thing wrong in it.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.checker import Verdict, check
from tests.faults.history import (
    FAILED,
    OK,
    RAISE,
    REJECT,
    RETURN,
    UNKNOWN,
    Fault,
    Handling,
    History,
    Publish,
    Recorder,
    history_of,
    lines_of,
    read_history,
)
from tests.faults.holdings import Holdings, Letter

TRACE = "a" * 32


def publish(message_id: str, outcome: str = OK, at: float = 1.0) -> Publish:
    return Publish(message_id, f"flow-{message_id}", TRACE, at, at + 0.1, outcome, f"{message_id}-entry")


def handling(message_id: str, outcome: str | None = RETURN, *, attempt: int = 1, at: float = 2.0) -> Handling:
    return Handling(
        message_id=message_id,
        entry_id=f"{message_id}-entry",
        stream="s",
        group="g",
        correlation_id=f"flow-{message_id}",
        trace_id=TRACE,
        context_id=f"flow-{message_id}",
        attempt=attempt,
        pid=7,
        began=at,
        ended=None if outcome is None else at + 0.1,
        outcome=outcome,
    )


def letter(message_id: str, attempts: int = 1) -> Letter:
    return Letter(message_id, f"{message_id}-entry", "g", f"flow-{message_id}", TRACE, attempts, "rejected")


RIGHT = History(
    publishes=(
        publish("handled"),
        publish("again"),
        publish("killed"),
        publish("dead"),
        publish("refused", FAILED),
        publish("doubtful", UNKNOWN),
        publish("doubtful and there", UNKNOWN),
    ),
    handlings=(
        handling("handled"),
        handling("again", RAISE, at=2.1),
        handling("again", attempt=2, at=2.2),
        handling("killed", None, at=2.3),
        handling("killed", attempt=2, at=2.4),
        handling("dead", REJECT, at=2.5),
        handling("doubtful and there", at=2.6),
    ),
)
HELD = Holdings(dead=(letter("dead"),))


def with_handlings(*handlings: Handling) -> History:
    return replace(RIGHT, handlings=(*RIGHT.handlings, *handlings))


def without(message_id: str) -> History:
    return replace(RIGHT, handlings=tuple(one for one in RIGHT.handlings if one.message_id != message_id))


def only(verdict: Verdict, rule: str, message_id: str, said: str) -> None:
    assert [(found.rule, found.message_id) for found in verdict.violations] == [(rule, message_id)]
    assert said in verdict.violations[0].detail
    assert message_id in str(verdict), "it says which"


def test_what_is_right_is_right() -> None:
    verdict = check(RIGHT, HELD)
    assert verdict.violations == ()
    assert verdict.figures["acknowledged"] == 4
    assert verdict.figures["cut off"] == 1
    assert "nothing wrong" in str(verdict)


# --- lost --------------------------------------------------------------------------------------------------------


def test_acknowledged_and_nowhere_is_lost() -> None:
    only(check(without("handled"), HELD), checker.LOST, "handled", "attempts: none")


def test_begun_and_never_ended_is_lost() -> None:
    killed = replace(without("killed"), handlings=(*without("killed").handlings, handling("killed", None)))
    only(check(killed, HELD), checker.LOST, "killed", "attempts: 1 (not ended)")


def test_a_handling_that_failed_is_no_handling() -> None:
    failed = replace(without("again"), handlings=(*without("again").handlings, handling("again", RAISE)))
    only(check(failed, HELD), checker.LOST, "again", "1 (raise)")


def test_a_dead_letter_that_is_not_there_is_lost() -> None:
    only(check(RIGHT, Holdings()), checker.LOST, "dead", "1 (reject)")


@pytest.mark.parametrize("place", ["undelivered", "pending", "scheduled", "retrying"])
def test_what_waits_is_not_lost_and_is_left_only_after_a_drain(place: str) -> None:
    waiting = replace(HELD, **{place: ("handled",)})
    assert not check(without("handled"), waiting, drained=False).violations
    only(check(without("handled"), waiting), checker.LEFT, "handled", place)


def test_what_was_never_acknowledged_cannot_be_lost() -> None:
    assert not check(without("doubtful and there"), HELD).violations


def test_what_a_fault_loses_is_excused_and_only_what_was_published_before() -> None:
    flushed = Fault("FLUSHALL", 1.5, 1.6, loses=True, forgets=True)
    assert not check(replace(without("handled"), faults=(flushed,)), HELD).violations
    later = replace(without("handled"), faults=(flushed,), publishes=(*RIGHT.publishes[1:], publish("handled", at=1.7)))
    only(check(later, HELD), checker.LOST, "handled", "none")
    harmless = replace(flushed, loses=False)
    only(check(replace(without("handled"), faults=(harmless,)), HELD), checker.LOST, "handled", "none")


# --- phantoms ----------------------------------------------------------------------------------------------------


def test_a_handling_of_what_nobody_published_is_a_phantom() -> None:
    only(check(with_handlings(handling("nobody's")), HELD), checker.PHANTOM, "nobody's", "nobody published it")


def test_a_handling_of_what_is_said_not_to_be_stored_is_a_phantom() -> None:
    only(check(with_handlings(handling("refused")), HELD), checker.PHANTOM, "refused", "not stored")


def test_a_dead_letter_of_what_nobody_published_is_a_phantom() -> None:
    held = replace(HELD, dead=(*HELD.dead, letter("nobody's")))
    only(check(RIGHT, held), checker.PHANTOM, "nobody's", "dead-lettered")


# --- contexts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["correlation_id", "trace_id", "context_id"])
def test_a_handling_in_another_context_is_seen(what: str) -> None:
    other = replace(handling("handled", at=3.0), **{what: "other"})
    only(check(with_handlings(other), HELD), checker.CONTEXT, "handled", "other")


@pytest.mark.parametrize("what", ["correlation_id", "trace_id"])
def test_a_dead_letter_in_another_context_is_seen(what: str) -> None:
    other = replace(letter("dead"), **{what: "other"})
    only(check(RIGHT, Holdings(dead=(other,))), checker.CONTEXT, "dead", "dead letter")


# --- attempts ----------------------------------------------------------------------------------------------------


def test_attempts_that_go_back_are_seen() -> None:
    back = handling("again", attempt=1, at=3.0)
    only(check(with_handlings(back), HELD), checker.ATTEMPTS, "again", "attempt 1 in process 7 came after attempt 2")


def test_the_same_attempt_again_is_right_for_its_note_may_be_on_its_way() -> None:
    assert not check(with_handlings(handling("again", attempt=2, at=3.0)), HELD).violations


def test_another_entry_of_the_same_message_counts_for_itself() -> None:
    other = replace(handling("again", at=3.0), entry_id="another entry")
    assert not check(with_handlings(other), HELD).violations


def test_a_dead_letter_that_counts_too_few_is_seen() -> None:
    history = with_handlings(handling("dead", RAISE, attempt=3, at=3.0))
    only(check(history, HELD), checker.ATTEMPTS, "dead", "counts 1 attempts")


def test_where_attempts_are_forgotten_they_may_begin_again() -> None:
    history = with_handlings(handling("again", attempt=1, at=3.0))
    destroyed = Fault("XGROUP DESTROY", 2.7, 2.8, forgets=True)
    assert not check(replace(history, faults=(destroyed,)), HELD).violations
    earlier = replace(destroyed, began=1.0, ended=1.1)
    only(check(replace(history, faults=(earlier,)), HELD), checker.ATTEMPTS, "again", "came after")


def test_a_process_that_was_stopped_may_begin_late_and_no_other_may() -> None:
    history = with_handlings(handling("again", attempt=1, at=3.0))
    stopped = Fault("SIGSTOP", 2.05, 2.95, stops=7)
    assert not check(replace(history, faults=(stopped,)), HELD).violations
    for other in (replace(stopped, stops=8), replace(stopped, ended=2.9 - checker.LATE)):
        only(check(replace(history, faults=(other,)), HELD), checker.ATTEMPTS, "again", "came after")


def test_where_every_lease_expires_a_run_of_what_was_taken_over_may_begin_late() -> None:
    jump = Fault("a clock jumps", 2.1, 2.3, expires=True)
    others = without("again").handlings
    ours, theirs = handling("again", attempt=1, at=2.4), replace(handling("again", attempt=2, at=2.2), pid=8)
    history = replace(RIGHT, handlings=(*others, theirs, ours), faults=(jump,))
    assert not check(history, HELD).violations
    begun = replace(theirs, attempt=1, began=2.05)
    for other in (
        replace(history, faults=()),
        replace(history, faults=(replace(jump, expires=False),)),
        replace(history, faults=(replace(jump, began=2.25),)),  # nothing was taken over by it
        replace(history, faults=(replace(jump, began=1.0, ended=2.3 - checker.LATE),)),
        replace(history, handlings=(*others, replace(theirs, pid=ours.pid), ours)),  # it was not taken over
        replace(history, handlings=(*others, begun, theirs, ours)),  # it had begun
    ):
        only(check(other, HELD), checker.ATTEMPTS, "again", "attempt 1 in process 7 came after attempt 2")


# --- twice -------------------------------------------------------------------------------------------------------


def test_two_dead_letters_of_one_entry_are_seen() -> None:
    only(check(RIGHT, Holdings(dead=HELD.dead * 2)), checker.TWICE, "dead", "2 dead letters")


def test_an_entry_that_was_settled_twice_is_seen_unless_its_group_was_made_anew() -> None:
    held = replace(HELD, settled={"handled handled-entry": 2, "again again-entry": 1})
    only(check(RIGHT, held), checker.TWICE, "handled", "handled-entry was settled 2 times")
    destroyed = Fault("XGROUP DESTROY", 2.7, 2.8, forgets=True)
    assert not check(replace(RIGHT, faults=(destroyed,)), held).violations


# --- what is long ------------------------------------------------------------------------------------------------


def test_many_violations_are_counted_and_the_first_are_shown() -> None:
    history = History(publishes=tuple(publish(f"m{number}") for number in range(100)))
    verdict = check(history, Holdings())
    assert len(verdict.of(checker.LOST)) == 100
    assert "100 lost" in str(verdict)
    assert str(verdict).endswith("and 80 more")


# --- histories ---------------------------------------------------------------------------------------------------


def test_what_a_process_wrote_is_read_again_and_a_line_cut_off_is_not(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "worker.jsonl")
    recorder.publish("m", "flow", TRACE)
    recorder.published("m", OK, "1-0")
    recorder.publish("died over it", "flow", TRACE)
    said = {"message_id": "m", "entry_id": "1-0", "stream": "s", "group": "g", "attempt": 1}
    said |= {"correlation_id": "flow", "trace_id": TRACE, "context_id": "flow"}
    run = recorder.begun(**said)
    recorder.begun(**said)
    recorder.ended(run, RETURN)
    with recorder.fault("FLUSHALL", loses=True):
        pass
    recorder.close()
    (path,) = tmp_path.iterdir()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"what": "published", "mess')
    history = read_history(tmp_path)
    assert [(one.message_id, one.outcome, one.entry_id) for one in history.publishes] == [
        ("m", OK, "1-0"),
        ("died over it", UNKNOWN, None),
    ]
    assert [one.outcome for one in history.handlings] == [RETURN, None]
    assert [(one.name, one.loses, one.began < one.ended) for one in history.faults] == [("FLUSHALL", True, True)]
    assert check(history, Holdings()).violations == ()


def test_a_fault_that_is_not_over_lasts(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "worker.jsonl")
    recorder.fault("a kill", loses=True).__enter__()
    recorder.close()
    (fault,) = history_of(lines_of(tmp_path)).faults
    assert fault.ended == float("inf")
