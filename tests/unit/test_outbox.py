"""Outcomes on their way to Redis."""

from typing import Any
from unittest.mock import Mock

import msgspec
import orjson
import pytest
from opentelemetry.trace import SpanContext
from redis.exceptions import ResponseError

from quantum_bus import ConnectionLost, journal, names, propagation, streams
from quantum_bus.config import BusConfig
from quantum_bus.delivery import ACK, Again, Bury, Failure, Outcome
from quantum_bus.outbox import ACKS_TOGETHER, DONE, GONE, LOST, Letter, Outbox
from quantum_bus.streams import Command, Keys
from quantum_bus.telemetry import Telemetry
from tests.unit.clock import Clock
from tests.unit.incoming import held

BURY = Bury("rejected", Failure("E", "m"))
AGAIN = Again(0.25, Failure("E", "m"))
NOGROUP = ResponseError("NOGROUP No such consumer group")
WRONGTYPE = ResponseError("WRONGTYPE Operation against a key")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(clock: Clock) -> Outbox:
    config = BusConfig(url=None, service="svc", backoff_initial=1.0, backoff_maximum=4.0, completed=100)
    keys = {stream: Keys.of(stream, "g") for stream in ("s", "a", "b")}
    return Outbox(group="g", consumer="c", keys=keys, config=config, clock=clock)


def call_of(command: Command) -> tuple[streams.Script, list[Any], list[Any]]:
    """The script that a command calls, its keys and its arguments."""
    script = streams._BY_SHA[command[1]]
    first = 3 + int(command[2])
    return script, list(command[3:first]), list(command[first:])


def settled(outbox: Outbox, *replies: Any) -> list[str]:
    return [letter.result for letter in outbox.answered(replies).settled]


def test_empty_it_waits_for_nothing(outbox: Outbox) -> None:
    assert outbox.pause() is None
    assert (len(outbox), outbox.take()) == (0, [])


def test_acks_of_one_stream_go_together(outbox: Outbox) -> None:
    for number in range(3):
        outbox.post(held(number, "a" if number < 2 else "b"), ACK)
    assert outbox.pause() == 0
    (script, keys, arguments), (_, other_keys, others) = (call_of(command) for command in outbox.take())
    assert script is streams.ACK
    assert (keys, other_keys) == (["a", "{a}:completed"], ["b", "{b}:completed"])
    assert arguments[:5] == others[:5] == ["g", "c", "svc", 100, 0]
    assert (arguments[6::3], arguments[7::3]) == (["0-0", "1-0"],) * 2
    assert others[6::3] == ["2-0"]
    assert len(outbox) == 3, "what is being written is not done yet"
    assert settled(outbox, [[], []], [[b"2-0"], []]) == [DONE, DONE, LOST]
    assert len(outbox) == 0


def test_a_runs_outcomes_are_counted_but_for_what_was_settled_by_hand(outbox: Outbox) -> None:
    items = [held(number) for number in range(4)]
    assert outbox.post_run(zip(items, [ACK, None, AGAIN, ACK], strict=True)) == 3
    assert len(outbox) == 3
    assert [bool(item.first_failed_at) for item in items] == [False, False, True, False]
    assert outbox.post_run([(items[1], None)]) == 0
    retry, acks = outbox.take()
    assert call_of(retry)[0] is streams.RETRY
    assert call_of(acks)[2][6::3] == ["0-0", "3-0"]


def test_what_was_refused_goes_before_what_is_new_once_it_is_due(outbox: Outbox, clock: Clock) -> None:
    outbox.post(held(1), AGAIN)
    outbox.take()
    outbox.answered([WRONGTYPE])
    outbox.post(held(2), AGAIN)
    assert outbox.pause() == 0
    clock.now += 10.0
    assert [call_of(command)[2][2] for command in outbox.take()] == ["1-0", "2-0"]


def test_one_command_acks_no_more_than_so_many(outbox: Outbox) -> None:
    for number in range(ACKS_TOGETHER + 1):
        outbox.post(held(number), ACK)
    assert [len(call_of(command)[2][5:]) // 3 for command in outbox.take()] == [ACKS_TOGETHER, 1]


def test_a_retry_is_acked_where_it_is_pending_and_its_entry_goes_with_it(outbox: Outbox) -> None:
    outbox.post(held(1, "a", retried=2), ACK)
    outbox.post(held(2, "a"), ACK)
    calls = {call_of(command)[1][0]: call_of(command)[2] for command in outbox.take()}
    assert set(calls) == {"{a}:retry:g", "a"}, "its own stream and the retries' are acked apart"
    assert calls["{a}:retry:g"][4:8] == [1, 0, "1001-0", "1-0"], "under the message's own id"
    assert calls["a"][4:8] == [0, 0, "2-0", "2-0"]


@pytest.mark.parametrize(
    ("reply", "result"),
    [([b"ok", b"9-0"], DONE), ([b"lost"], LOST), ([b"absent"], LOST), ([b"gone"], GONE)],
)
def test_a_dead_letter_tells_how_it_went(outbox: Outbox, reply: list[bytes], result: str) -> None:
    outbox.post(held(), BURY)
    script, keys, arguments = call_of(*outbox.take())
    assert script is streams.DEAD_LETTER
    assert keys == ["s", "{s}:dlq", "{s}:completed"]
    assert arguments[:7] == ["g", "c", "1-0", 0, "svc", 100, "1-0"]
    assert dict(zip(arguments[8::2], arguments[9::2], strict=True))[names.DLQ_REASON] == "rejected"
    [letter] = outbox.answered([reply]).settled
    assert letter.result == result
    assert letter.bury is BURY


def test_where_the_group_is_gone_nobody_owns_anything(outbox: Outbox) -> None:
    for number, outcome in enumerate((ACK, BURY, AGAIN)):
        outbox.post(held(number), outcome)
    outbox.take()
    assert settled(outbox, NOGROUP, NOGROUP, NOGROUP) == [LOST, LOST, LOST]
    assert outbox.pause() is None


def test_what_was_refused_is_due_again_and_said_once(outbox: Outbox, clock: Clock) -> None:
    outbox.post(held(1), BURY)
    outbox.post(held(2), ACK)
    outbox.take()
    answered = outbox.answered([WRONGTYPE, [[], []]])
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


def test_a_refusal_is_said_once_for_each_kind_until_one_goes(outbox: Outbox, clock: Clock) -> None:
    def said(*posts: tuple[int, str, Outcome], reply: Any = WRONGTYPE) -> int:
        clock.now += 100
        for number, stream, outcome in posts:
            outbox.post(held(number, stream), outcome)
        return len(outbox.answered([reply] * len(outbox.take())).refused)

    assert said((1, "a", BURY), (2, "a", BURY), (3, "a", AGAIN), (4, "b", BURY)) == 3
    assert said((5, "a", BURY)) == 0
    assert said(reply=[b"ok", b"9-0"]) == 0
    assert said((6, "a", BURY)) == 1


def test_what_holds_up_one_holds_up_no_other(outbox: Outbox) -> None:
    outbox.post(held(1), BURY)
    outbox.take()
    outbox.answered([WRONGTYPE])
    outbox.post(held(2), ACK)
    assert outbox.pause() == 0
    [command] = outbox.take()
    assert "2-0" in command


def test_without_an_answer_everything_is_due_again(outbox: Outbox, clock: Clock) -> None:
    outbox.post(held(1), ACK)
    outbox.post(held(2), BURY)
    outbox.take()
    error = ConnectionLost("away")
    assert [reply for _, reply in outbox.failed(error).refused] == [error, error]
    clock.now = 10.0
    assert len(outbox.take()) == 2
    answered = outbox.answered([[b"ok", b"9-0"], [[], []]])
    assert [letter.result for letter in answered.settled] == [DONE, DONE]


def test_the_first_failure_is_remembered(outbox: Outbox) -> None:
    item = held()
    item.first_failed_at = "2026-01-03T10:15:23.456789Z"
    outbox.post(item, BURY)
    [command] = outbox.take()
    assert "2026-01-03T10:15:23.456789Z" in command


def test_a_first_failure_is_noted_and_an_ack_is_none(outbox: Outbox) -> None:
    failed, acked = held(1), held(2)
    outbox.post(failed, AGAIN)
    outbox.post(acked, ACK)
    assert failed.first_failed_at.endswith("Z")
    assert not acked.first_failed_at


# --- retries -----------------------------------------------------------------------------------------------------


def test_a_retry_notes_its_attempts_and_the_span_behind_the_messages_own_fields(outbox: Outbox) -> None:
    span = propagation.parse_context("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert isinstance(span, SpanContext)
    item = held(begun=1)
    item.first_failed_at = "2026-01-03T10:15:23.456789Z"
    item.last_span = span
    outbox.post(item, AGAIN)
    script, keys, arguments = call_of(*outbox.take())
    assert script is streams.RETRY
    assert keys == ["s", "{s}:due:g", "{s}:scheduled:g", "{s}:completed"]
    assert arguments[:7] == ["g", "c", "1-0", 0, "svc", 100, "1-0"]
    assert arguments[8] == 250, "milliseconds"
    assert arguments[9:] == [
        names.RETRY_ID, "1-0", names.RETRY_ATTEMPTS, "1",
        names.RETRY_FIRST_FAILED_AT, "2026-01-03T10:15:23.456789Z",
        names.RETRY_SPAN, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ]  # fmt: skip
    assert settled(outbox, [b"ok", b"1700000000000"]) == [DONE]


@pytest.mark.parametrize("outcome", [AGAIN, BURY], ids=["retry", "dead letter"])
def test_what_the_former_retry_noted_is_cut_off_again(outbox: Outbox, outcome: Outcome) -> None:
    item = held(retried=2)
    item.attempt += 1
    outbox.post(item, outcome)
    _, keys, arguments = call_of(*outbox.take())
    assert keys[0] == "{s}:retry:g"
    assert arguments[2:4] == ["1001-0", streams.RETRY_VALUES]
    assert arguments[6] == "1-0", "the message stays known by its own id"
    noted = dict(zip(arguments[9::2], arguments[10::2], strict=True)) if outcome is AGAIN else {}
    assert noted.get(names.RETRY_ID, "1-0") == "1-0"
    assert noted.get(names.RETRY_ATTEMPTS, "3") == "3"


# --- lost replies ------------------------------------------------------------------------------------------------

NOT_PENDING = {ACK: [[], [b"1-0"]], AGAIN: [b"absent"], BURY: [b"absent"]}


@pytest.mark.parametrize("outcome", [ACK, AGAIN, BURY], ids=["ack", "retry", "dead letter"])
def test_what_is_not_pending_was_lost_unless_an_earlier_try_may_have_settled_it(
    outbox: Outbox, clock: Clock, outcome: Outcome
) -> None:
    outbox.post(held(), outcome)
    outbox.take()
    assert settled(outbox, NOT_PENDING[outcome]) == [LOST], "nobody but others can have settled it"
    outbox.post(held(), outcome)
    outbox.take()
    outbox.failed(ConnectionLost("away"))
    clock.now = 10.0
    outbox.take()
    assert settled(outbox, NOT_PENDING[outcome]) == [DONE], "the try whose reply was lost did it"


OTHERS = {ACK: [[b"1-0"], []], AGAIN: [b"lost"], BURY: [b"lost"]}


@pytest.mark.parametrize("outcome", [ACK, AGAIN, BURY], ids=["ack", "retry", "dead letter"])
def test_what_another_consumer_owns_was_lost_however_often_it_was_tried(
    outbox: Outbox, clock: Clock, outcome: Outcome
) -> None:
    outbox.post(held(), outcome)
    outbox.take()
    outbox.failed(ConnectionLost("away"))
    clock.now = 10.0
    outbox.take()
    assert settled(outbox, OTHERS[outcome]) == [LOST]


def test_of_acks_written_together_only_those_tried_before_may_have_been_done(outbox: Outbox, clock: Clock) -> None:
    outbox.post(held(1), ACK)
    outbox.take()
    outbox.failed(ConnectionLost("away"))
    clock.now = 10.0
    outbox.post(held(2), ACK)
    assert len(outbox.take()) == 1
    results = {letter.held.source_id: letter.result for letter in outbox.answered([[[], [b"1-0", b"2-0"]]]).settled}
    assert results == {"1-0": DONE, "2-0": LOST}


# --- completion records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "name"),
    [(ACK, names.OUTCOME_ACK), (AGAIN, names.OUTCOME_RETRY), (BURY, names.OUTCOME_DEAD_LETTER)],
)
def test_each_outcome_leaves_a_record_of_its_run(outbox: Outbox, outcome: Outcome, name: str) -> None:
    item = held(retried=1)
    item.attempt, item.started, item.duration = 2, 1_767_435_323.25, 0.0123456789
    outbox.post(item, outcome)
    _, _, arguments = call_of(*outbox.take())
    record = arguments[8 if outcome is ACK else 7]
    assert list(orjson.loads(record).items()) == [
        (names.RECORD_MESSAGE_ID, "m-1"),
        (names.RECORD_CORRELATION_ID, "flow-1"),
        (names.RECORD_STARTED, "2026-01-03T10:15:23.250000Z"),
        (names.RECORD_DURATION, 0.012346),
        (names.RECORD_ATTEMPT, 2),
        (names.RECORD_OUTCOME, name),
    ]


def test_acks_written_together_tell_each_of_its_own_run(outbox: Outbox) -> None:
    items = [held(number) for number in range(5)]
    runs = [(10.0, 0.5, 1), (10.0, 0.5, 1), (10.0, 0.25, 1), (10.0, 0.25, 2), (11.0, 0.25, 2)]
    for item, (item.started, item.duration, item.attempt) in zip(items, runs, strict=True):
        outbox.post(item, ACK)
    records = [orjson.loads(record) for record in call_of(*outbox.take())[2][8::3]]
    assert [record[names.RECORD_MESSAGE_ID] for record in records] == [item.incoming.message_id for item in items]
    assert [(record[names.RECORD_DURATION], record[names.RECORD_ATTEMPT]) for record in records] == [
        (duration, attempt) for _, duration, attempt in runs
    ]
    assert [record[names.RECORD_STARTED][-10:] for record in records] == ["10.000000Z"] * 4 + ["11.000000Z"]


def test_an_id_with_quotes_is_quoted_in_its_record(outbox: Outbox) -> None:
    item = held()
    item.incoming = msgspec.structs.replace(item.incoming, message_id='say "m\\\u00fc"')
    outbox.post(item, ACK)
    assert orjson.loads(call_of(*outbox.take())[2][8])[names.RECORD_MESSAGE_ID] == item.incoming.message_id


def test_what_never_reached_a_handler_has_no_start(outbox: Outbox) -> None:
    outbox.post(held(), BURY)
    record = orjson.loads(call_of(*outbox.take())[2][7])
    assert (record[names.RECORD_STARTED], record[names.RECORD_ATTEMPT]) == (None, 0)


# --- who waits ---------------------------------------------------------------------------------------------------


def test_who_settles_by_hand_is_to_be_told(outbox: Outbox) -> None:
    told: list[str] = []
    outbox.post(held(), ACK, told.append)
    outbox.take()
    [letter] = outbox.answered([[[], []]]).settled
    assert isinstance(letter, Letter)
    assert letter.settled is not None
    letter.settled(letter.result)
    assert told == [DONE]


@pytest.mark.parametrize(
    ("found", "gone", "events"),
    [
        (False, False, [names.EVENT_BUS_LEASE_LOST]),
        (True, False, [names.EVENT_BUS_LEASE_LOST]),
        (True, True, []),
    ],
    ids=["found by the ack", "found by the heartbeat", "deleted"],
)
def test_a_lost_lease_is_said_and_counted_once_however_it_was_found(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, found: bool, gone: bool, events: list[str]
) -> None:
    item = held()
    item.lost, item.gone = found, gone
    outbox.post(item, ACK)
    outbox.take()
    [letter] = outbox.answered([[[b"1-0"], []]]).settled
    journal.settled(letter, "g")
    assert [getattr(record, "event", "") for record in caplog.records] == events
    telemetry = Mock(spec=Telemetry)
    letter.count(telemetry, "g")
    assert telemetry.lease_lost.call_count == len(events)
