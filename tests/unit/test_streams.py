"""Commands and replies, without a server; what the scripts do to one is told in the contract's tests."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus import streams
from quantum_bus.config import check_stream, hash_tag
from quantum_bus.envelope import Entry
from quantum_bus.errors import ConfigurationError
from quantum_bus.streams import Delivery, Keys


def test_a_script_is_called_by_its_digest_and_sent_as_text_where_that_is_not_known() -> None:
    command = streams.ACK.call(["s"], "g", "c", "1-0")
    assert command == ("EVALSHA", streams.ACK.sha, 1, "s", "g", "c", "1-0")
    assert streams.ACK.sha == hashlib.sha1(streams.ACK.text.encode()).hexdigest()
    assert streams.as_text(command) == ("EVAL", streams.ACK.text, 1, "s", "g", "c", "1-0")
    assert streams.as_text(("XADD", "s", "*", "a", "b")) is None
    assert streams.as_text(("EVALSHA", "0" * 40, 0)) is None


@pytest.mark.parametrize("script", streams._SCRIPTS)
def test_no_script_begins_with_a_shebang_which_a_full_redis_would_refuse(script: streams.Script) -> None:
    assert not script.text.startswith("#!")


@pytest.mark.parametrize(
    "script", [streams.ACK, streams.BEGIN, streams.DEAD_LETTER, streams.KEEP, streams.RELEASE, streams.RETRY]
)
def test_what_changes_a_held_entry_looks_at_its_owner_before(script: streams.Script) -> None:
    changes = [script.text.find(f"'{command}'") for command in ("XACK", "XCLAIM", "XDEL", "XADD", "HSET")]
    assert 0 < script.text.index("'XPENDING'") < min(at for at in changes if at >= 0)


@pytest.mark.parametrize(
    ("name", "key"), [("orders", "{orders}:dlq"), ("a:b c", "{a:b c}:dlq"), ("orders{eu}", "orders{eu}:dlq")]
)
def test_side_keys_stand_in_literal_braces_unless_the_name_has_a_tag(name: str, key: str) -> None:
    assert streams.side_key(name, "dlq") == key


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_side_key_hashes_to_the_streams_own_slot(name: str) -> None:
    try:
        check_stream(name)
    except ConfigurationError:
        return
    key = streams.side_key(name, "dlq")
    assert (hash_tag(key) or key) == (hash_tag(name) or name)


def test_commands_read_as_redis_wants_them() -> None:
    assert streams.add("s", ["a", b"b"]) == ("XADD", "s", "*", "a", b"b")
    assert streams.create_group("s", "g", "0") == ("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    assert streams.read_new("g", "c", ["s", "t"], count=5, block_ms=100) == (
        "XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "BLOCK", 100, "STREAMS", "s", "t", ">", ">",
    )  # fmt: skip
    assert "BLOCK" not in streams.read_new("g", "c", ["s", "t"], count=5, block_ms=0), "where 0 would block for ever"


def test_all_keys_of_a_stream_stand_in_its_slot_and_a_groups_own_bear_its_name() -> None:
    keys = Keys.of("s", "g")
    assert (keys.stream, keys.dead, keys.completed) == ("s", "{s}:dlq", "{s}:completed")
    assert (keys.retry, keys.due, keys.copies) == ("{s}:retry:g", "{s}:due:g", "{s}:scheduled:g")
    assert (keys.delayed_due, keys.delayed_copies) == ("{s}:due", "{s}:scheduled")
    assert Keys.of("s{t}", "g").retry == "s{t}:retry:g"


def test_what_is_added_with_care_names_the_keys_it_touches() -> None:
    assert streams.add_with_care(
        "s", ["a", b"b"], message_id="m", correlation_id="c", delay_ms=5, dedupe_ms=0
    ) == streams.PUBLISH.call(["s", "{s}:due", "{s}:scheduled"], "m", 5, 0, "c", "a", b"b")
    assert streams.add_with_care(
        "s{t}", ["a", b"b"], message_id="{m}", correlation_id="c", delay_ms=0, dedupe_ms=7
    ) == streams.PUBLISH.call(["s{t}", "s{t}:due", "s{t}:scheduled", "s{t}:dedupe:{m}"], "{m}", 0, 7, "c", "a", b"b")


def test_an_addition_is_answered_with_an_id_and_where_it_may_be_the_first_ones_its_flow() -> None:
    assert streams.parse_added(b"1-0") == ("1-0", "")
    assert streams.parse_added(b"1-0 flow") == ("1-0", "flow")
    assert streams.parse_added(b" flow") == ("", "flow")


ENTRIES = [[b"1-0", [b"a", b"b"]], [b"2-0", None], [b"10-3", [b"c", b"d", b"c", b"e"]]]


@pytest.mark.parametrize("reply", [[[b"s", ENTRIES]], {b"s": ENTRIES}], ids=["RESP2", "RESP3"])
def test_a_read_gives_entries_with_all_their_fields_and_what_was_deleted(reply: object) -> None:
    read = streams.parse_read(reply, {})
    assert read.deliveries == [
        Delivery("s", "1-0", Entry("s", "1-0", [b"a", b"b"])),
        Delivery("s", "10-3", Entry("s", "10-3", [b"c", b"d", b"c", b"e"])),
    ]
    assert read.deleted == [("s", "2-0")]


@pytest.mark.parametrize("reply", [None, [], {}])
def test_a_read_that_timed_out_gives_nothing(reply: object) -> None:
    assert streams.parse_read(reply, {}) is streams.NOTHING_READ


RETRY_STREAM = "{s}:retry:g"
SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def retried(span: str = SPAN) -> list[bytes]:
    """An entry of a retry stream, as Redis gives it."""
    own = [b"c", b"d", b"c", b"e"]
    return own + [part.encode() for part in streams.retry_fields("1-0", 2, "2026-01-03T10:15:23.456789Z", span)]


def test_a_retry_is_the_message_as_published_and_what_is_noted_of_its_attempts() -> None:
    other = [b"t", [[b"3-0", [b"a", b"b"]]]]
    read = streams.parse_read([[RETRY_STREAM.encode(), [[b"77-0", retried()]]], other], {RETRY_STREAM: "s"})
    assert read.deliveries == [
        Delivery(
            RETRY_STREAM,
            "77-0",
            Entry("s", "1-0", [b"c", b"d", b"c", b"e"]),
            attempts=2,
            noted=2,
            first_failed_at="2026-01-03T10:15:23.456789Z",
            last_span=SPAN,
            cut=streams.RETRY_VALUES,
        ),
        Delivery("t", "3-0", Entry("t", "3-0", [b"a", b"b"])),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        [b"a", b"b"],
        [b"a", b"b"] * 6,
        retried()[-streams.RETRY_VALUES :],
        [b"c", b"d", *[b"x" if part == b"2" else part for part in retried()[-streams.RETRY_VALUES :]]],
        [b"c", b"d", *[b"\xff" if part == SPAN.encode() else part for part in retried()[-streams.RETRY_VALUES :]]],
    ],
)
def test_what_others_put_into_a_retry_stream_is_known_as_no_retry(fields: list[bytes]) -> None:
    # It raised, and ended the reader of whoever got it.
    read = streams.parse_read([[RETRY_STREAM.encode(), [[b"77-0", fields]]]], {RETRY_STREAM: "s"})
    assert read.deliveries == [
        Delivery(RETRY_STREAM, "77-0", Entry("s", "77-0", fields), cut=streams.NOT_A_RETRY),
    ]


def test_a_retry_without_a_span_of_its_last_run_has_none() -> None:
    [delivery] = streams.parse_page([b"", [[b"77-0", 1, retried("")]], []], RETRY_STREAM, "s").deliveries
    assert delivery.last_span is None


def test_what_a_retry_appends_is_as_long_as_what_is_cut_off_again() -> None:
    assert len(streams.retry_fields("1-0", 1, "", "")) == streams.RETRY_VALUES
    assert retried()[: -streams.RETRY_VALUES] == [b"c", b"d", b"c", b"e"]


@pytest.mark.parametrize(("count", "begun"), [(0, 0), (1, 0), (2, 1), (6, 5)])
def test_the_delivery_count_tells_how_many_runs_have_begun(count: int, begun: int) -> None:
    page = streams.parse_page([b"9-0", [[b"1-0", count, [b"a", b"b"]]], [b"4-0"]], "s", None)
    assert page.deliveries == [Delivery("s", "1-0", Entry("s", "1-0", [b"a", b"b"]), attempts=begun, noted=0)]
    assert (page.deleted, page.cursor) == ([("s", "4-0")], "9-0")
    again = streams.parse_page([b"", [[b"77-0", count, retried()]], []], RETRY_STREAM, "s")
    [delivery] = again.deliveries
    assert (delivery.attempts, delivery.noted) == (2 + begun, 2)
    assert again.cursor is None


def test_the_groups_of_a_stream_are_read_by_name() -> None:
    flat = [[b"name", b"g", b"consumers", 1], [b"name", b"h", b"consumers", 0]]
    assert streams.parse_groups(flat) == ["g", "h"]
    assert streams.parse_groups([{b"name": b"g"}]) == ["g"]
    assert streams.parse_groups(ValueError("no such key")) == ()
