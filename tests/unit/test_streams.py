"""Commands and replies, without a server; what the scripts do to one is told in the contract's tests."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_bus import streams
from quantum_bus.config import check_stream, hash_tag
from quantum_bus.envelope import Entry
from quantum_bus.errors import ConfigurationError


def test_a_script_is_called_by_its_digest_and_sent_as_text_where_that_is_not_known() -> None:
    command = streams.ACK.call(["s"], "g", "c", "1-0")
    assert command == ("EVALSHA", streams.ACK.sha, 1, "s", "g", "c", "1-0")
    assert streams.ACK.sha == hashlib.sha1(streams.ACK.text.encode()).hexdigest()
    assert streams.as_text(command) == ("EVAL", streams.ACK.text, 1, "s", "g", "c", "1-0")
    assert streams.as_text(("XADD", "s", "*", "a", "b")) is None
    assert streams.as_text(("EVALSHA", "0" * 40, 0)) is None


@pytest.mark.parametrize("script", [streams.ACK, streams.DEAD_LETTER, streams.KEEP])
def test_no_script_begins_with_a_shebang_which_a_full_redis_would_refuse(script: streams.Script) -> None:
    assert not script.text.startswith("#!")
    assert "XPENDING" in script.text, "each looks at the owner before it changes anything"


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
    assert streams.read_own("g", "c", "s", after="1-0")[-3:] == ("STREAMS", "s", "1-0")


ENTRIES = [[b"1-0", [b"a", b"b"]], [b"2-0", None], [b"10-3", [b"c", b"d", b"c", b"e"]]]


@pytest.mark.parametrize("reply", [[[b"s", ENTRIES]], {b"s": ENTRIES}], ids=["RESP2", "RESP3"])
def test_a_read_gives_entries_with_all_their_fields_and_what_was_deleted(reply: object) -> None:
    read = streams.parse_read(reply)
    assert read.entries == [Entry("s", "1-0", [b"a", b"b"]), Entry("s", "10-3", [b"c", b"d", b"c", b"e"])]
    assert read.deleted == [("s", "2-0")]
    assert read.last == "10-3"


@pytest.mark.parametrize("reply", [None, [], {}])
def test_a_read_that_timed_out_gives_nothing(reply: object) -> None:
    assert streams.parse_read(reply) is streams.NOTHING_READ
    assert streams.NOTHING_READ.last is None


def test_the_last_id_is_the_greatest_as_redis_orders_them() -> None:
    read = streams.parse_read([[b"s", [[b"9-9", [b"a", b"b"]], [b"10-0", [b"a", b"b"]], [b"9-10", None]]]])
    assert read.last == "10-0"


def test_the_groups_of_a_stream_are_read_by_name() -> None:
    flat = [[b"name", b"g", b"consumers", 1], [b"name", b"h", b"consumers", 0]]
    assert streams.parse_groups(flat) == ["g", "h"]
    assert streams.parse_groups([{b"name": b"g"}]) == ["g"]
    assert streams.parse_groups(ValueError("no such key")) == ()
