"""The W3C's trace-context cases: what a service may be sent, and what it then has to send on.

After the validation suite in the W3C's trace-context repository. It speaks HTTP, where one field may come in several
lines; `received` joins those as RFC 9110 (5.3) says and hands them to the propagation.
"""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from quantum_bus.propagation import carrier, child_of, format_traceparent, format_tracestate, parse_context
from tests.unit.hostile import hostile_text
from tests.unit.w3c import is_traceparent, is_tracestate

TRACE_ID = "12345678901234567890123456789012"
SPAN_ID = "1234567890123456"
VALID = f"00-{TRACE_ID}-{SPAN_ID}-01"


def received(*lines: tuple[str, str]) -> SpanContext | None:
    headers: dict[str, str] = {}
    for name, value in lines:
        name = name.lower()  # noqa: PLW2901
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return carrier(headers)[0]


def continued(*lines: tuple[str, str]) -> bool:
    """Whether the incoming trace goes on; if so, in a span of its own and with a valid header."""
    remote = received(*lines)
    if remote is None:
        return False
    child = child_of(remote)
    assert remote.is_remote
    assert not child.is_remote
    assert child.trace_id == remote.trace_id
    assert child.span_id != remote.span_id
    assert is_traceparent(format_traceparent(child))
    return f"{child.trace_id:032x}" == TRACE_ID


def state(*values: str, flags: str = "00") -> dict[str, str]:
    """The tracestate that is sent on, for a valid traceparent and these lines of tracestate."""
    lines = [("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-{flags}"), *(("tracestate", value) for value in values)]
    assert continued(*lines), "a tracestate must never cost the traceparent"
    remote = received(*lines)
    assert remote is not None
    header = format_tracestate(child_of(remote))
    assert header == "" or is_tracestate(header)
    return dict(child_of(remote).trace_state)


# --- traceparent ---------------------------------------------------------------------------------


def test_nothing_received_starts_a_trace() -> None:
    assert received() is None


def test_a_valid_traceparent_is_continued() -> None:
    assert continued(("traceparent", VALID))


@pytest.mark.parametrize("name", ["TraceParent", "TrAcEpArEnT", "TRACEPARENT"])
def test_the_header_name_has_any_case(name: str) -> None:
    assert continued((name, VALID))


@pytest.mark.parametrize("name", ["trace-parent", "trace.parent"])
def test_other_header_names_mean_nothing(name: str) -> None:
    assert not continued((name, VALID))


def test_two_traceparents_are_none() -> None:
    other = VALID.replace(TRACE_ID, TRACE_ID[:-1] + "1")
    assert received(("traceparent", other), ("traceparent", VALID)) is None


@pytest.mark.parametrize("text", [f" {VALID}", f"\t{VALID}", f"{VALID} ", f"{VALID}\t", f"\t {VALID} \t"])
def test_blanks_around_a_traceparent_do_not_count(text: str) -> None:
    assert continued(("traceparent", text))


@pytest.mark.parametrize("text", [f"\n{VALID}", f"{VALID}\n", f"{VALID}\r\n", f"\u00a0{VALID}", f"{VALID}\x00", f"{VALID}\u2028"])  # fmt: skip  # noqa: E501
def test_other_white_space_does(text: str) -> None:
    assert not continued(("traceparent", text))


@pytest.mark.parametrize("text", [f"cc-{TRACE_ID}-{SPAN_ID}-01", f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings"])
def test_a_higher_version_is_read_as_far_as_00_goes(text: str) -> None:
    assert continued(("traceparent", text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{VALID}.", id="00 and a character"),
        pytest.param(f"{VALID}-what-the-future-brings", id="00 and a further field"),
        pytest.param(f"{VALID}-", id="00 and a dash"),
        pytest.param(f"cc-{TRACE_ID}-{SPAN_ID}-01.what-the-future-brings", id="higher, no dash before the rest"),
        pytest.param(f"cc-{TRACE_ID}-{SPAN_ID}", id="higher, too short"),
        pytest.param(f"ff-{TRACE_ID}-{SPAN_ID}-01", id="version ff"),
        pytest.param(f".0-{TRACE_ID}-{SPAN_ID}-01", id="version, first character"),
        pytest.param(f"0.-{TRACE_ID}-{SPAN_ID}-01", id="version, second character"),
        pytest.param(f"000-{TRACE_ID}-{SPAN_ID}-01", id="version of 3"),
        pytest.param(f"0000-{TRACE_ID}-{SPAN_ID}-01", id="version of 4"),
        pytest.param(f"0-{TRACE_ID}-{SPAN_ID}-01", id="version of 1"),
        pytest.param(f"00-{'0' * 32}-{SPAN_ID}-01", id="trace id all zero"),
        pytest.param(f"00-.{TRACE_ID[1:]}-{SPAN_ID}-01", id="trace id, first character"),
        pytest.param(f"00-{TRACE_ID[:-1]}.-{SPAN_ID}-01", id="trace id, last character"),
        pytest.param(f"00-{'A' * 32}-{SPAN_ID}-01", id="trace id in capitals"),
        pytest.param(f"00-{TRACE_ID}3-{SPAN_ID}-01", id="trace id of 33"),
        pytest.param(f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01", id="trace id of 31"),
        pytest.param(f"00-{TRACE_ID}-{'0' * 16}-01", id="span id all zero"),
        pytest.param(f"00-{TRACE_ID}-.{SPAN_ID[1:]}-01", id="span id, first character"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID[:-1]}.-01", id="span id, last character"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID}7-01", id="span id of 17"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID[:-1]}-01", id="span id of 15"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID}-.0", id="flags, first character"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID}-0.", id="flags, second character"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID}-001", id="flags of 3"),
        pytest.param(f"00-{TRACE_ID}-{SPAN_ID}-1", id="flags of 1"),
        pytest.param(f"00_{TRACE_ID}_{SPAN_ID}_01", id="other separators"),
        pytest.param(f"cc-{TRACE_ID}-{SPAN_ID}-01-" + "a" * 500, id="prohibitively long"),
        pytest.param("", id="empty"),
        pytest.param("-", id="a dash"),
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(text: str) -> None:
    assert received(("traceparent", text), ("tracestate", "foo=1")) is None


@pytest.mark.parametrize(
    ("flags", "kept"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0), ("09", 1)]
)
def test_only_the_flags_that_are_defined_are_kept(flags: str, kept: int) -> None:
    remote = parse_context(f"00-{TRACE_ID}-{SPAN_ID}-{flags}")
    assert remote is not None
    assert remote.trace_flags == kept
    assert format_traceparent(child_of(remote)).endswith(f"-0{kept}")


def test_an_sdks_undefined_flags_are_not_written() -> None:
    context = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(0xFD))
    assert format_traceparent(context) == f"00-{1:032x}-{1:016x}-01"


def test_every_child_has_a_span_of_its_own() -> None:
    remote = received(("traceparent", VALID))
    assert remote is not None
    children = [child_of(remote) for _ in range(100)]
    assert {child.trace_id for child in children} == {int(TRACE_ID, 16)}
    assert len({child.span_id for child in children}) == 100


# --- tracestate ----------------------------------------------------------------------------------


def test_tracestate_without_traceparent_is_discarded() -> None:
    assert received(("tracestate", "foo=1,bar=2")) is None


def test_tracestate_is_inherited_in_order() -> None:
    assert list(state("foo=1,bar=2").items()) == [("foo", "1"), ("bar", "2")]


@pytest.mark.parametrize("name", ["trace-state", "trace.state"])
def test_other_names_than_tracestate_mean_nothing(name: str) -> None:
    remote = received(("traceparent", VALID), (name, "foo=1"))
    assert remote is not None
    assert not remote.trace_state


@pytest.mark.parametrize("values", [("",), ("", ""), (",",), (" , \t,",)])
def test_empty_tracestate_is_none(values: tuple[str, ...]) -> None:
    assert state(*values) == {}


@pytest.mark.parametrize("values", [("foo=1", ""), ("", "foo=1"), ("foo=1,",), (",foo=1",), ("foo=1,,",)])
def test_empty_members_do_no_harm(values: tuple[str, ...]) -> None:
    assert state(*values) == {"foo": "1"}


def test_several_lines_of_tracestate_are_one() -> None:
    assert list(state("foo=1,bar=2", "rojo=1,congo=2", "baz=3")) == ["foo", "bar", "rojo", "congo", "baz"]


@pytest.mark.parametrize("values", [("foo=1,foo=1",), ("foo=1,foo=2",), ("foo=1", "foo=1"), ("foo=1", "foo=2")])
def test_of_two_members_of_one_key_the_first_is_kept(values: tuple[str, ...]) -> None:
    assert state(*values) == {"foo": "1"}


LEGAL_KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
LEGAL_VALUE = "".join(chr(n) for n in range(0x20, 0x7F) if chr(n) not in ",=")


@pytest.mark.parametrize("key", [LEGAL_KEY, f"{LEGAL_KEY}@a-z0-9_-*/", f"0{LEGAL_KEY}@v"])
def test_every_legal_character_travels(key: str) -> None:
    assert state(f"{key}={LEGAL_VALUE}") == {key: LEGAL_VALUE}


@pytest.mark.parametrize(
    "value",
    [
        "foo=1 \t , \t bar=2, \t baz=3",
        "foo=1\t \t,\t \tbar=2,\t \tbaz=3",
        " foo=1,bar=2,baz=3",
        "\tfoo=1,bar=2,baz=3 \t",
    ],
)
def test_blanks_around_members_do_not_count(value: str) -> None:
    assert state(value) == {"foo": "1", "bar": "2", "baz": "3"}


@pytest.mark.parametrize("key", ["foo ", "FOO", "foo.bar", "f\u00f6o", "foo\n", "", "0foo", "_foo", "-", "foo\x00"])
def test_an_illegal_key_drops_the_tracestate(key: str) -> None:
    assert state(f"{key}=1,bar=2") == {}


@pytest.mark.parametrize("key", ["foo@", "@foo", "foo@@bar", "foo@bar@baz", "foo@0bar", "foo@BAR", "_foo@bar"])
def test_an_illegal_vendor_format_drops_the_tracestate(key: str) -> None:
    assert state(f"{key}=1,bar=2") == {}


@pytest.mark.parametrize(
    "member", ["foo=bar=baz", "foo=", "foo", "=", "foo=\x07", "foo=b\u00e4r", "foo=a\nb", "foo=\x7f"]
)
def test_an_illegal_value_drops_the_tracestate(member: str) -> None:
    assert state(f"{member},bar=3") == {}


def members(count: int) -> list[str]:
    return [f"bar{number:02}={number:02}" for number in range(1, count + 1)]


def test_over_8192_characters_nothing_is_looked_for() -> None:
    assert state("a=1" + "," * 8189) == {"a": "1"}
    assert state("a=1" + "," * 8190) == {}


def test_32_members_are_inherited() -> None:
    listed = members(32)
    found = state(",".join(listed[:10]), ",".join(listed[10:20]), ",".join(listed[20:30]), ",".join(listed[30:]))
    assert found == dict(member.split("=") for member in listed)


def test_33_members_are_too_many() -> None:
    listed = members(33)
    assert state(",".join(listed[:10]), ",".join(listed[10:])) == {}


def test_33_of_which_one_comes_twice_are_32() -> None:
    assert len(state(",".join([*members(32), "bar01=x"]))) == 32


@pytest.mark.parametrize("key", ["z" * 256, f"{'t' * 241}@{'v' * 14}", f"{'0' * 241}@v"])
def test_the_longest_keys_count(key: str) -> None:
    assert state(f"foo=1,{key}=1")["foo"] == "1"
    assert state(f"{key}=1") == {key: "1"}


@pytest.mark.parametrize("key", ["z" * 257, f"{'t' * 242}@v", f"t@{'v' * 15}"])
def test_longer_keys_drop_the_tracestate(key: str) -> None:
    assert state(f"foo=1,{key}=1") == {}


def test_the_longest_value_counts_and_a_longer_one_does_not() -> None:
    assert state(f"foo={'v' * 256}") == {"foo": "v" * 256}
    assert state(f"foo={'v' * 257}") == {}


def test_512_characters_stay_whole() -> None:
    value = f"a={'x' * 250},b={'y' * 250},c=123"
    assert len(value) == 512 - 1
    assert len(state(value)) == 3
    assert len(state(value + "4")) == 3


def test_over_512_characters_the_long_members_go_first() -> None:
    small = [f"k{number}={'v' * 60}" for number in range(5)]
    found = state(",".join([*small[:2], f"big={'x' * 200}", *small[2:], f"large={'y' * 125}"]))
    assert list(found) == ["k0", "k1", "k2", "k3", "k4"]


def test_then_the_last_members() -> None:
    assert list(state(",".join(f"k{number:02}={'v' * 40}" for number in range(20)))) == [f"k{n:02}" for n in range(11)]


def test_a_member_of_128_characters_is_not_long() -> None:
    listed = [f"a={'x' * 126}", f"b={'x' * 127}", f"c={'x' * 200}", f"d={'x' * 60}"]
    assert list(state(",".join(listed))) == ["a", "d"]


def test_an_sdks_oversized_tracestate_is_cut_when_it_is_sent() -> None:
    context = SpanContext(1, 1, is_remote=False, trace_state=TraceState([(f"k{n}", "v" * 100) for n in range(30)]))
    assert is_tracestate(format_tracestate(context))
    one = SpanContext(1, 1, is_remote=False, trace_state=TraceState([("a" * 256, "v" * 256)]))
    assert format_tracestate(one) == ""


# --- whatever comes ------------------------------------------------------------------------------

ANY_TEXT = hostile_text(100, ",=-0 ") | st.text(max_size=600)
NEARLY_PARENT = st.text(alphabet="0123456789abcdefg-. \t\n", max_size=80) | st.builds(
    "{}-{}-{}-{}{}".format,
    st.sampled_from(["00", "01", "ff", "cc", "0"]),
    st.text(alphabet="0123456789abcdef", min_size=31, max_size=33),
    st.text(alphabet="0123456789abcdef", min_size=15, max_size=17),
    st.sampled_from(["00", "01", "ff", "zz"]),
    st.sampled_from(["", "-", "-x", ".", "\n"]),
)
NEARLY_STATE = st.lists(
    st.builds("{}={}".format, st.text(alphabet="abz09_-*/@A .", max_size=20), st.text(max_size=60)), max_size=40
).map(",".join)


@given(ANY_TEXT | NEARLY_PARENT | st.just(VALID), st.none() | ANY_TEXT | NEARLY_STATE)
def test_whatever_comes_what_is_sent_is_valid_and_bounded(parent: str, tracestate: str | None) -> None:
    remote = parse_context(parent, tracestate)
    if remote is None:
        return
    child = child_of(remote)
    assert is_traceparent(format_traceparent(child))
    header = format_tracestate(child)
    assert header == "" or is_tracestate(header)


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), st.from_regex(r"[!-+.-<>-~]{1,9}", fullmatch=True)), max_size=20, unique_by=lambda pair: pair[0]))  # fmt: skip  # noqa: E501
def test_what_is_valid_and_short_travels_exactly(pairs: list[tuple[str, str]]) -> None:
    header = ",".join(f"{key}={value}" for key, value in pairs)
    remote = parse_context(VALID, header)
    assert remote is not None
    assert format_tracestate(remote) == header


def test_a_hostile_header_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for text in ("evil\r\nSECRET", "a=1,a=2", "A=1", ",".join(members(40)), "x" * 9000):
        parse_context(VALID, text)
        parse_context(text, text)
    assert caplog.records == []
