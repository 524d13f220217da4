"""Where a consumer's messages come from, and when it looks for more."""

from typing import Any

import pytest

from quantum_bus import sources, streams
from quantum_bus.config import BusConfig, Start, SubscriberConfig
from quantum_bus.delivery import ACK, Again, Bury, Failure, Outcome
from quantum_bus.outbox import DONE, LOST, Letter
from quantum_bus.sources import LONGEST_NAP, LONGEST_ROUND, PAGE, ROUNDS, NotOwned, Sources
from quantum_bus.streams import DUE_PAGE, OWN, RECOVER, RECOVERY_PAGE, RELEASE, Command
from tests.unit.clock import Clock
from tests.unit.incoming import held

FAILURE = Failure("E", "m")
RETRY = "{s}:retry:g"
OTHER_RETRY = "{t}:retry:g"
AROUND = [b"0-0", [], []]
"""A page of recovery behind which there is nothing more."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(clock: Clock, *names: str, ack_wait: float = 8.0, block: float = 2.0, start: Start = "beginning") -> Sources:
    config = SubscriberConfig(streams=names or ("s",), group="g", ack_wait=ack_wait, start=start)
    return Sources(config, "c", BusConfig(url=None, service="svc", block=block), clock=clock)


@pytest.fixture
def steady_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.random, "uniform", lambda low, high: (low + high) / 2)


def looked_at(command: Command | None) -> tuple[Any, Any] | None:
    """The key that a page of recovery is of, and its cursor."""
    if command is None:
        return None
    assert command[1] == RECOVER.sha
    return command[3], command[7]


def page(reading: Sources, room: int = 10) -> Command | None:
    """The next page of recovery that is due, behind a read."""
    reading.read(room)
    return reading.recover(room)


@pytest.mark.parametrize(
    ("room", "batch", "count"), [(7, 1, 7), (1_000, 1, PAGE), (1_600, 100, 200), (9_000, 500, 1_000), (800, 500, 800)]
)
def test_one_read_brings_a_page_or_two_batches(clock: Clock, room: int, batch: int, count: int) -> None:
    config = SubscriberConfig(streams=("s",), group="g", batch=batch)
    reading = Sources(config, "c", BusConfig(url=None, service="svc"), clock=clock)
    command = reading.read(room)
    assert command[command.index("COUNT") + 1] == count


def go_round(sources: Sources) -> list[str]:
    """Every key of a round that is due, none of which has anything."""
    seen = []
    while (command := page(sources)) is not None:
        seen.append(str(command[3]))
        sources.recovered(AROUND)
    return seen


# --- reading -----------------------------------------------------------------------------------------------------


def test_streams_are_read_together_with_their_retries(clock: Clock) -> None:
    command = made(clock, "s", "t").read(7)
    assert command[:6] == ("XREADGROUP", "GROUP", "g", "c", "COUNT", 7)
    assert command[9:] == ("s", "t", RETRY, OTHER_RETRY, ">", ">", ">", ">")


@pytest.mark.parametrize(("ack_wait", "block", "expected"), [(30.0, 2.0, 2000), (2.0, 2.0, 500), (0.001, 2.0, 1)])
def test_a_read_blocks_no_longer_than_a_round_and_never_for_ever(
    clock: Clock, ack_wait: float, block: float, expected: int
) -> None:
    reading = made(clock, ack_wait=ack_wait, block=block)
    assert reading.read(1)[7] == expected
    assert reading.read_timeout == pytest.approx(min(block, ack_wait / ROUNDS) + streams.BLOCK_MARGIN)


def test_a_retry_that_is_read_belongs_to_its_stream(clock: Clock) -> None:
    reading = made(clock)
    fields = [b"a", b"b", *(part.encode() for part in streams.retry_fields("1-0", 1, "", ""))]
    [delivery] = reading.new([[RETRY.encode(), [[b"77-0", fields]]]]).deliveries
    assert (delivery.source, delivery.entry.stream, delivery.entry.id) == (RETRY, "s", "1-0")
    assert (reading.stream_of(RETRY), reading.stream_of("s")) == ("s", "s")


def test_what_is_its_own_is_gone_through_page_by_page(clock: Clock) -> None:
    reading = made(clock)
    assert reading.own("s", None) == OWN.call(["s"], "g", "c", "0", RECOVERY_PAGE)
    read = reading.owned([b"5-0", [[b"5-0", 2, [b"a", b"b"]]], [b"4-0"]], "s")
    assert [(found.source_id, found.attempts) for found in read.deliveries] == [("5-0", 1)]
    assert read.deleted == [("s", "4-0")]
    assert reading.own("s", read.cursor) == OWN.call(["s"], "g", "c", "(5-0", RECOVERY_PAGE), "behind the last one"
    assert reading.owned([b"", [], []], "s").cursor is None


# --- recovery ----------------------------------------------------------------------------------------------------


def test_the_first_round_is_at_once_and_looks_at_every_key(clock: Clock) -> None:
    reading = made(clock, "s", "t")
    assert page(reading) == RECOVER.call(["s"], "g", "c", 8000, "0-0", 10)
    assert go_round(reading) == ["s", "t", RETRY, OTHER_RETRY]


def test_between_two_pages_there_is_a_read_that_does_not_block(clock: Clock) -> None:
    """With a millisecond an idle server took a tenth of a second for each: 160 messages of a long list came in one."""
    reading = made(clock)
    assert reading.recover(10) is not None
    reading.recovered([b"17-0", [], []])
    assert reading.recover(10) is None, "what is new comes first"
    assert "BLOCK" not in reading.read(10)
    assert looked_at(reading.recover(10)) == ("s", "17-0")
    reading.recovered(AROUND)
    go_round(reading)
    assert reading.read(10)[7] == 2000


def test_a_page_is_no_larger_than_there_is_room_for(clock: Clock) -> None:
    reading = made(clock)
    assert [command[8] for room in (3, 10_000) if (command := page(reading, room))] == [3, RECOVERY_PAGE]


def test_the_cursor_is_kept_until_it_has_been_around(clock: Clock) -> None:
    reading = made(clock)
    assert looked_at(page(reading)) == ("s", "0-0")
    read = reading.recovered([b"17-0", [[b"3-0", 2, [b"a", b"b"]]], [b"4-0"]])
    assert [(found.source, found.source_id, found.attempts) for found in read.deliveries] == [("s", "3-0", 1)]
    assert read.deleted == [("s", "4-0")]
    assert looked_at(page(reading)) == ("s", "17-0")
    reading.recovered([b"23-0", [], []])
    clock.now += 1_000  # there was no room for long
    assert looked_at(page(reading)) == ("s", "23-0"), "a round is finished, however long it takes"
    reading.recovered(AROUND)
    assert looked_at(page(reading)) == (RETRY, "0-0")


def test_a_page_that_was_not_answered_is_asked_for_again(clock: Clock) -> None:
    reading = made(clock)
    page(reading)
    reading.recovered([b"17-0", [], []])
    assert looked_at(page(reading)) == looked_at(page(reading)) == ("s", "17-0")


def test_a_page_that_was_refused_waits_for_the_next_round_from_the_beginning(clock: Clock) -> None:
    reading = made(clock)
    page(reading)
    reading.recovered([b"17-0", [], []])
    page(reading)
    reading.not_recovered()
    assert page(reading) is None
    clock.now += 1_000
    assert looked_at(page(reading)) == ("s", "0-0")


@pytest.mark.usefixtures("steady_rounds")
@pytest.mark.parametrize(("ack_wait", "seconds"), [(8.0, 8.0 / ROUNDS), (3600.0, LONGEST_ROUND)])
def test_rounds_are_a_share_of_a_lease_apart(clock: Clock, ack_wait: float, seconds: float) -> None:
    reading = made(clock, ack_wait=ack_wait)
    for _ in range(3):
        assert go_round(reading) == ["s", RETRY]
        clock.now += seconds - 0.01
        assert page(reading) is None
        clock.now += 0.01


def test_the_rounds_of_consumers_that_started_together_drift_apart(clock: Clock) -> None:
    each = [made(clock) for _ in range(50)]
    for reading in each:
        go_round(reading)
    clock.now = 0.75 * 8.0 / ROUNDS - 0.01
    assert not any(page(reading) for reading in each)
    clock.now = 8.0 / ROUNDS
    assert 0 < sum(page(reading) is not None for reading in each) < 50
    clock.now = 1.25 * 8.0 / ROUNDS + 0.01
    assert all(page(reading) for reading in each)


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "again", "expected"),
    [("beginning", False, "0"), ("new", False, "$"), ("beginning", True, "0"), ("new", True, "0")],
)
def test_a_group_starts_as_told_but_never_at_the_end_when_it_was_lost_nor_on_retries(
    clock: Clock, start: Start, again: bool, expected: str
) -> None:
    groups = list(made(clock, start=start).make_groups(again=again))
    assert [(source, where) for source, where, _ in groups] == [("s", expected), (RETRY, "0")]
    make, listed = groups[0][2]
    assert listed == ("XINFO", "GROUPS", "s")
    assert make == streams.GROUP.call(["s", "{s}:upkeep"], "g", expected), "or where it had come to, says the script"
    assert groups[1][2][0] == ("XGROUP", "CREATE", RETRY, "g", "0", "MKSTREAM")


def test_reading_does_without_retries_whose_group_cannot_be_made_until_it_can(clock: Clock) -> None:
    reading = made(clock, "s", "t")
    assert not reading.incomplete
    assert not reading.do_without("s"), "without its stream a subscriber is none"
    assert reading.do_without(RETRY)
    assert reading.incomplete
    assert reading.names == ("s", "t", OTHER_RETRY)
    assert reading.read(1)[9:12] == ("s", "t", OTHER_RETRY)
    assert go_round(reading) == ["s", "t", OTHER_RETRY]
    assert [source for source, _, _ in reading.make_groups(again=True)] == ["s", "t", RETRY, OTHER_RETRY]
    assert not reading.incomplete


def test_a_group_says_where_it_was_made_to_start() -> None:
    assert streams.started(b"OK", "$") == "$"
    assert streams.started(b"1-1", "0") == "1-1"


# --- holding -----------------------------------------------------------------------------------------------------


def test_a_beginning_run_makes_the_delivery_count_one_more_than_its_entry_does_not_tell_of(clock: Clock) -> None:
    new, begun, retry = held(1), held(2, begun=2), held(3, retried=4)
    for item in (new, begun, retry):
        item.attempt += 1
    assert made(clock).begin([new, begun, retry]) == [
        streams.BEGIN.call(["s"], "g", "c", "1-0", 2, "2-0", 4),
        streams.BEGIN.call([RETRY], "g", "c", "1003-0", 2),
    ]


def test_what_is_given_up_looks_as_idle_as_others_wait_for(clock: Clock) -> None:
    reading = made(clock, ack_wait=1.5)
    assert reading.release([("s", "1-0"), (RETRY, "77-0"), ("s", "2-0")]) == [
        RELEASE.call(["s"], "g", "c", streams.GIVEN_UP_MS, "1-0", "2-0"),
        RELEASE.call([RETRY], "g", "c", streams.GIVEN_UP_MS, "77-0"),
    ]
    assert reading.release([]) == []


def test_replies_tell_what_is_not_owned_any_more_and_errors_tell_nothing(clock: Clock) -> None:
    commands = made(clock).begin([held(1), held(2, retried=1), held(3, "t")])
    replies = [[[b"1-0"], []], [[], [b"1002-0"]], ConnectionError("away")]
    assert Sources.not_owned(commands, replies) == NotOwned([("s", "1-0")], [(RETRY, "1002-0")])


def test_names_of_the_gone_are_forgotten_from_time_to_time_and_its_own_when_it_leaves(clock: Clock) -> None:
    reading = made(clock)
    assert reading.forget() == []
    clock.now += sources.FORGET_EVERY
    idle_ms = int(sources.FORGET_AFTER * 1000)
    assert reading.forget() == [streams.FORGET.call([key], "g", idle_ms, "c", 0) for key in ("s", RETRY)]
    assert reading.forget() == []
    assert reading.forget(leaving=True) == [streams.FORGET.call([key], "g", idle_ms, "c", 1) for key in ("s", RETRY)]


# --- scheduled ---------------------------------------------------------------------------------------------------


def letter(outcome: Outcome, result: str = DONE) -> Letter:
    return Letter(held(), outcome, result=result)


def test_what_is_due_is_made_readable_for_every_stream(clock: Clock) -> None:
    assert made(clock, "s", "t").due() == [
        streams.DUE.call(["{s}:due:g", "{s}:scheduled:g", RETRY], DUE_PAGE),
        streams.DUE.call(["{s}:due", "{s}:scheduled", "s"], DUE_PAGE),
        streams.DUE.call(["{t}:due:g", "{t}:scheduled:g", OTHER_RETRY], DUE_PAGE),
        streams.DUE.call(["{t}:due", "{t}:scheduled", "t"], DUE_PAGE),
    ]


def test_it_looks_at_once_for_what_was_scheduled_before_it_came(clock: Clock) -> None:
    assert made(clock).pause() == 0


@pytest.mark.parametrize(
    ("replies", "seconds"),
    [
        ([[0, -1], [0, -1]], LONGEST_NAP),  # others may schedule something sooner
        ([[0, 60_000], [0, -1]], LONGEST_NAP),
        ([[3, 400], [0, 250]], 0.25),
        ([[DUE_PAGE, 0], [0, -1]], 0.001),  # there may be more
        ([[0, 0], [0, -1]], 0.001),
        ([], LONGEST_NAP),
        ([ConnectionError("away"), [0, 250]], 0.25),
    ],
)
def test_it_looks_again_when_the_next_is_due_but_never_much_later(
    clock: Clock, replies: list[Any], seconds: float
) -> None:
    reading = made(clock, "s", "t")
    reading.due()
    reading.moved(replies)
    assert reading.pause() == pytest.approx(seconds)
    clock.now += seconds
    assert reading.pause() == pytest.approx(0)


def test_a_retry_of_its_own_brings_the_next_look_nearer(clock: Clock) -> None:
    reading = made(clock)
    reading.due()
    reading.moved([[0, -1]])
    assert reading.scheduled(letter(Again(0.2, FAILURE)))
    assert reading.pause() == pytest.approx(0.2)
    assert not reading.scheduled(letter(Again(0.5, FAILURE))), "sooner than that it looks anyway"
    assert reading.pause() == pytest.approx(0.2)


@pytest.mark.parametrize(
    "written",
    [letter(ACK), letter(Bury("rejected", FAILURE)), letter(Again(0.1, FAILURE), LOST)],
    ids=["ack", "dead letter", "lost"],
)
def test_what_schedules_nothing_brings_no_look_nearer(clock: Clock, written: Letter) -> None:
    reading = made(clock)
    reading.due()
    reading.moved([[0, -1]])
    assert not reading.scheduled(written)
    assert reading.pause() == LONGEST_NAP


def test_what_comes_due_while_redis_answers_is_not_forgotten(clock: Clock) -> None:
    # Where the answer alone set the next look, it came up to a second late.
    reading = made(clock)
    reading.due()
    assert reading.scheduled(letter(Again(0.2, FAILURE)))
    reading.moved([[0, -1], [0, -1]])
    assert reading.pause() == pytest.approx(0.2)
