from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus import deadletters, delivery, names, streams
from quantum_bus.deadletters import MAX_VALUES, DeadLetter, Filter, Pace, Replay, Target, replay
from quantum_bus.delivery import Bury, Failure
from quantum_bus.errors import ConfigurationError
from tests.unit.clock import Clock

KEY = "{s}:dlq"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SPAN = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"
OWN = [b"v", b"1", b"data", b'{"n":1}', b"event", b"E", b"message_id", b"m-1", b"correlation_id", b"flow-1"]
OWN += [b"traceparent", TRACEPARENT.encode()]

values = st.lists(st.binary(max_size=40) | st.sampled_from([name.encode() for name in sorted(names.DLQ_FIELDS)]))
own_fields = values.map(lambda found: found[: len(found) // 2 * 2])


def tail(*, group: str = "g", stream: str = "s", span: str = SPAN, entry_id: str = "5-0") -> list[bytes]:
    fields = delivery.dead_letter_fields(
        Bury("max_attempts", Failure("ValueError", "the exchange says no", "Traceback …\n")),
        stream=stream, entry_id=entry_id, group=group, consumer="c", attempts=3, first_failed_at="t1", now="t2",
        span=span,
    )  # fmt: skip
    return [field.encode() for field in fields]


def letter(own: Sequence[bytes] = OWN, entry_id: str = "1000-0", **said: str) -> DeadLetter:
    return DeadLetter.of(KEY, entry_id, [*own, *tail(**said)])


def pack(parts: Sequence[bytes]) -> bytes:
    """As move.lua does."""
    return b"".join(b"%d:%s" % (len(part), part) for part in parts)


# --- reading -------------------------------------------------------------------------------------


def test_a_dead_letter_is_the_message_and_what_was_wrong() -> None:
    found = letter()
    assert found.fields == OWN
    assert (found.message.data, found.message.event, found.message.correlation_id) == ({"n": 1}, "E", "flow-1")
    assert (found.message.stream, found.message.id) == ("s", "5-0")
    assert (found.id, found.time_ms, found.stream, found.entry_id) == ("1000-0", 1000, "s", "5-0")
    assert (found.group, found.consumer, found.attempts, found.reason) == ("g", "c", 3, "max_attempts")
    assert (found.error_type, found.error_message, found.stack) == (
        "ValueError",
        "the exchange says no",
        "Traceback …\n",
    )
    assert (found.first_failed_at, found.last_failed_at, found.span) == ("t1", "t2", SPAN)
    assert not found.packed


@given(own_fields)
def test_the_messages_own_fields_are_what_stood_before_the_dead_letterings(own: list[bytes]) -> None:
    """Whatever they look like: also as a dead letter's, as those of one that was put back by hand."""
    found = letter(own)
    assert list(found.fields) == own or (own[:1] == [b"dlq.packed"] and found.packed)
    assert found.group == "g"
    assert found.span == SPAN


def test_a_dead_letter_that_was_put_back_as_it_was_is_told_by_the_last_block() -> None:
    found = letter([*OWN, *tail(group="first")], group="second", entry_id="9-0")
    assert found.group == "second"
    assert found.fields == [*OWN, *tail(group="first")]


def test_duplicate_fields_stay_two() -> None:
    own = [b"x", b"1", b"x", b"2", b"\xff", b"\r\n\x00"]
    assert letter(own).fields == own


@given(values)
def test_no_entry_of_the_stream_is_refused(anything: list[bytes]) -> None:
    found = DeadLetter.of(KEY, "1000-0", anything)
    assert Filter().matches(found)
    assert isinstance(replay(found, "s", Target.GROUP, groups=["g"]), (str, Replay))


def test_an_entry_that_no_bus_has_added_says_nothing_of_a_failure() -> None:
    found = DeadLetter.of(KEY, "1000-0", [b"symbol", b"BTC"])
    assert found.message.data == {"symbol": "BTC"}
    assert (found.group, found.attempts, found.reason, found.span, found.stream) == (None,) * 5
    assert (found.message.stream, found.message.id) == (KEY, "1000-0")


@pytest.mark.parametrize("attempts", [b"", b"many", b"-1", b"9" * 5000, "٣".encode()])
def test_attempts_that_are_no_number_are_unknown(attempts: bytes) -> None:
    assert DeadLetter.of(KEY, "1-0", [b"dlq.stream", b"s", b"dlq.attempts", attempts]).attempts is None


# --- packed --------------------------------------------------------------------------------------


@given(own_fields)
def test_what_was_packed_is_unpacked(own: list[bytes]) -> None:
    assert deadletters.unpack(pack(own)) == own


@given(st.binary(max_size=60) | st.from_regex(rb"[0-9:a]{0,20}", fullmatch=True))
def test_what_is_no_row_of_netstrings_is_not_unpacked(packed: bytes) -> None:
    found = deadletters.unpack(packed)
    assert found is None or sum(map(len, found)) < len(packed) or packed == b""


@pytest.mark.parametrize("packed", [b"1", b"1:", b"2:a", b"1:a", b"-1:a", b":", b"1:a1:b,", b"9" * 12 + b":a"])
def test_half_of_one_is_none(packed: bytes) -> None:
    assert deadletters.unpack(packed) is None


def test_a_very_wide_entry_is_shown_as_it_was_and_cannot_be_given_back() -> None:
    own = [b"x", b""] * (MAX_VALUES // 2 + 1)
    found = letter([b"dlq.packed", pack(own)])
    assert found.fields == own
    assert found.packed
    for target in Target:
        said = replay(found, "s", target, groups=["g"])
        assert isinstance(said, str)
        assert "3,501 fields" in said


def test_a_message_with_a_field_of_that_name_is_not_unpacked() -> None:
    """Its fields were few: nothing had to be packed."""
    own = [b"dlq.packed", b"1:a1:b"]
    found = letter(own)
    assert found.fields == own
    assert not found.packed


# --- which ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter(event="E"), True),
        (Filter(event="F"), False),
        (Filter(correlation_id="flow-1", group="g", reason="max_attempts", event="E"), True),
        (Filter(correlation_id="flow-2"), False),
        (Filter(group="h"), False),
        (Filter(reason="rejected"), False),
        (Filter(error="valueerror"), True),
        (Filter(error="SAYS NO"), True),
        (Filter(error="KeyError"), False),
        (Filter(since_ms=1000, until_ms=1000), True),
        (Filter(since_ms=1001), False),
        (Filter(until_ms=999), False),
        (Filter(event="E", group="h"), False),
    ],
)
def test_a_filter_takes_what_everything_given_is_true_of(wanted: Filter, matches: bool) -> None:
    assert wanted.matches(letter()) is matches


def test_the_range_to_be_read_is_that_of_the_times() -> None:
    assert Filter().bounds == ("-", "+")
    assert Filter(since_ms=5, until_ms=9).bounds == ("5", "9")
    assert Filter(since_ms=-5).bounds == ("0", "+")


@pytest.mark.parametrize(
    ("text", "found"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("2w", 1_209_600), ("1h30m", 5400), (" 1.5H ", 5400)],
)
def test_a_duration_is_written_with_its_unit(text: str, found: float) -> None:
    assert deadletters.seconds(text) == found


@pytest.mark.parametrize("text", ["", "5", "h", "-5m", "1h 30m", "5y", "1e3s", "٣h", "9" * 200 + "s", "99999w", "1,5h"])
def test_what_is_no_duration_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ConfigurationError, match="15m, 2h, 7d"):
        deadletters.seconds(text)


# --- back ----------------------------------------------------------------------------------------


def given_back(found: DeadLetter, target: Target = Target.GROUP, *, force: bool = False) -> tuple[str, list[object]]:
    """The keys, and the arguments, of the script."""
    way = replay(found, "s", target, groups=["g", "other"], force=force)
    assert isinstance(way, Replay), way
    name, sha, count, *rest = way.command
    assert (name, sha, count) == ("EVALSHA", streams.REPLAY.sha, 3)
    assert rest[1] == way.key
    assert rest[0] == KEY
    assert rest[2] == "s"
    return way.key, rest[3:]


def test_to_its_group_it_goes_as_a_retry_that_never_ran() -> None:
    key, arguments = given_back(letter())
    assert key == "{s}:retry:g"
    assert arguments[:3] == ["1000-0", len(OWN), "g"]
    added = [str(part).encode() for part in arguments[3:]]
    read = streams.parse_read([[key.encode(), [[b"1-0", [*OWN, *added]]]]], {key: "s"})
    [delivery_again] = read.deliveries
    assert (delivery_again.attempts, delivery_again.noted, delivery_again.first_failed_at) == (0, 0, "")
    assert delivery_again.last_span == SPAN
    assert (delivery_again.entry.id, delivery_again.entry.fields) == ("5-0", OWN)


def test_to_the_stream_it_goes_with_where_it_failed_and_its_first_id() -> None:
    key, arguments = given_back(letter(), Target.STREAM)
    assert key == "s"
    assert arguments == ["1000-0", len(OWN), "", "replay.id", "5-0", "replay.span", SPAN]


def test_a_second_replay_takes_the_place_of_the_first_and_keeps_the_first_id() -> None:
    again = letter([*OWN, b"replay.id", b"5-0", b"replay.span", b"old"], entry_id="2000-0")
    _, arguments = given_back(again, Target.STREAM)
    assert arguments[1:] == [len(OWN), "", "replay.id", "5-0", "replay.span", SPAN]
    assert given_back(again)[1][1] == len(OWN) + 4, "to its group it goes as it stood in the stream"


def test_a_group_that_is_not_there_gets_nothing_unless_it_is_forced() -> None:
    gone = letter(group="gone")
    said = replay(gone, "s", Target.GROUP, groups=["g"])
    assert isinstance(said, str)
    assert "'gone' is not on 's'" in said
    assert given_back(gone, force=True)[1][2] == "", "nor does the script look for it"
    assert given_back(gone, Target.STREAM)[0] == "s"


def test_what_belongs_to_another_stream_stays() -> None:
    for target in Target:
        said = replay(letter(stream="t"), "s", target, groups=["g"], force=True)
        assert said == "it comes from the stream 't', not from 's'"


def test_what_no_bus_has_dead_lettered_can_go_to_the_stream_only() -> None:
    found = DeadLetter.of(KEY, "1000-0", [b"symbol", b"BTC"])
    assert isinstance(replay(found, "s", Target.GROUP, groups=["g"], force=True), str)
    assert given_back(found, Target.STREAM)[1] == ["1000-0", 2, ""]


def test_a_dead_letter_without_fields_of_a_message_stays() -> None:
    assert replay(letter([]), "s", Target.STREAM, groups=["g"]) == "it has no fields of a message"


def test_the_pace_is_even_and_what_was_late_is_not_caught_up_with() -> None:
    clock = Clock()
    pace = Pace(4.0, clock=clock)
    pauses = []
    for late in (0.0, 0.0, 10.0, 0.0, 0.0):
        pauses.append(pace.pause())
        clock.now += pauses[-1] + late
    assert pauses == [0.0, 0.25, 0.25, 0.0, 0.25]


def test_without_a_rate_there_is_no_pause() -> None:
    pace = Pace(None, clock=Clock())
    assert [pace.pause() for _ in range(3)] == [0.0, 0.0, 0.0]
