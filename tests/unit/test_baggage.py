"""Baggage: what comes is checked, what goes is valid, what nobody changed travels as it came."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context

from quantum_bus.propagation import baggage_header, carrier, with_baggage
from tests.unit.hostile import hostile_text
from tests.unit.w3c import has_controls, is_baggage

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
OCTETS = "".join(chr(n) for n in range(0x21, 0x7F) if chr(n) not in '",;\\')


def entries(header: str) -> dict[str, object]:
    return dict(baggage.get_all(with_baggage(header)))


# --- in ------------------------------------------------------------------------------------------


def test_it_arrives_beside_the_trace_context() -> None:
    remote, context = carrier({"baggage": "user=alice"})
    assert remote is None
    assert baggage.get_baggage("user", context) == "alice"


def test_it_is_added_to_the_context_that_is_given() -> None:
    context = with_baggage("b=2", baggage.set_baggage("a", "1", Context()))
    assert dict(baggage.get_all(context)) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("header", [None, "", " ", ",", ";", "=", "nonsense", "\x00", "\ud800", "a=\ud800"])
def test_what_is_none_leaves_the_context_as_it_was(header: str | None) -> None:
    context = baggage.set_baggage("a", "1", Context())
    assert with_baggage(header, context) is context


def test_values_are_percent_decoded_as_utf_8() -> None:
    assert entries("city=M%C3%BCnchen, path=%2Fa%2Cb , plus=1+1") == {"city": "München", "path": "/a,b", "plus": "1+1"}


def test_every_legal_character_travels() -> None:
    value = OCTETS.replace("%", "")
    assert entries(f"k={value}") == {"k": value}
    name = TOKEN.replace("%", "")
    assert entries(f"{name}=1") == {name: "1"}


@pytest.mark.parametrize(
    "encoded", ["%00", "%0a", "%0A", "%0d%0a", "%1f", "%1B%5B31m", "%7f", "%c2%80", "%C2%85", "%c2%9F"]
)
@pytest.mark.parametrize("member", ["x=a{}b", "x{}=1", "x=1;p={}", "x=1;p{}"])
def test_a_member_that_decodes_to_a_control_character_is_dropped_alone(member: str, encoded: str) -> None:
    header = f"a=1,{member.format(encoded)},b=2"
    assert entries(header) == {"a": "1", "b": "2"}
    assert baggage_header(with_baggage(header)) == "a=1,b=2"


@pytest.mark.parametrize("encoded", ["%20", "%C2%A0", "%25", "%250a", "%c3%85", "%e2%82%ac"])
def test_other_encoded_characters_are_kept(encoded: str) -> None:
    assert baggage_header(with_baggage(f"x=a{encoded}")) == f"x=a{encoded}"


@pytest.mark.parametrize("raw", ["\r\nX-Evil: 1", "\n", "\x00", "\x7f", " ", '"', "\\", "ä", "\u2028", "\ud800"])
def test_a_member_with_a_raw_illegal_character_is_dropped_alone(raw: str) -> None:
    assert entries(f"a=1,x=p{raw}q,b=2") == {"a": "1", "b": "2"}


def test_64_members_are_read_and_65_are_none() -> None:
    header = ",".join(f"k{n}={n}" for n in range(64))
    assert len(entries(header)) == 64
    assert entries(header + ",more=1") == {}


def test_8192_bytes_are_read_and_8193_are_none() -> None:
    header = "k=" + "v" * 8190
    assert entries(header) == {"k": "v" * 8190}
    assert entries(header + "v") == {}


@pytest.mark.timeout(10, method="signal")  # a regular expression at work is stopped by a signal, not by a thread
@pytest.mark.parametrize(
    "member",
    [
        pytest.param("a=b" + ";p= " * 24 + '"', id="blanks around empty property values"),
        pytest.param("a=b" + ";p \t= \t " * 900 + '"', id="many of them"),
        pytest.param("a=" + " " * 8000 + '"', id="blanks around an empty value"),
        pytest.param("a" + " " * 8000 + '"', id="blanks before a sign that never comes"),
        pytest.param("a=1;" + " " * 8000 + '"', id="blanks before a property that never comes"),
        pytest.param("!" * 8000, id="a long name"),
        pytest.param("a=b" + ";p" * 4000 + '"', id="many properties"),
        pytest.param("%" * 4000 + "=" + "%0" * 2000, id="percent signs"),
    ],
)
def test_no_member_is_slow_to_refuse(member: str) -> None:
    for _ in range(100):
        assert baggage_header(with_baggage(f"ok=1,{member}"[:8192])) in ("ok=1", "", f"ok=1,{member}")


def test_a_hostile_header_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for header in ("SECRET", "a=b c", "k=" + "v" * 9000, ",".join(f"k{n}=1" for n in range(200)), "a=%0d%0aSECRET"):
        baggage_header(with_baggage(header))
    assert caplog.records == []


# --- out -----------------------------------------------------------------------------------------


def test_no_baggage_is_no_header() -> None:
    assert baggage_header(Context()) == ""
    assert baggage_header() == ""


@pytest.mark.parametrize(
    "header",
    ["a=1;p;q=2", "a = 1", "a=%2c", "a=%2C", "a=1,a=2", "%61=1", "a=b=c", "a=", "user%20id=7", "a=%ff", "a=1;p= "],
)
def test_what_nobody_changed_travels_as_it_came(header: str) -> None:
    assert baggage_header(with_baggage(header)) == header.strip()


def test_beside_what_is_added_the_received_members_travel_as_they_came() -> None:
    context = baggage.set_baggage("new", "ö", with_baggage("a=1;p;q=2,b%20c = %2c"))
    assert baggage_header(context) == "a=1;p;q=2,b%20c = %2c,new=%C3%B6"


def test_what_is_changed_travels_changed_and_without_the_properties_that_described_the_old_value() -> None:
    context = baggage.set_baggage("a", "3", with_baggage("a=1;ttl=5,b=2;p"))
    assert baggage_header(context) == "a=3,b=2;p"


def test_what_is_removed_does_not_travel() -> None:
    assert baggage_header(baggage.remove_baggage("a", with_baggage("a=1,b=2;p"))) == "b=2;p"
    assert baggage_header(baggage.clear(with_baggage("a=1"))) == ""


@pytest.mark.parametrize(("value", "sent"), [(1, "1"), (True, "True"), (None, "None"), (0.5, "0.5")])
def test_values_that_are_no_text_travel_as_their_text(value: object, sent: str) -> None:
    assert baggage_header(baggage.set_baggage("a", value, Context())) == f"a={sent}"


def test_a_member_without_a_name_is_left_out() -> None:
    assert baggage_header(baggage.set_baggage("", "1", baggage.set_baggage("a", "1", Context()))) == "a=1"


def test_a_lone_surrogate_does_not_stop_a_publish() -> None:
    context = baggage.set_baggage("\udcff", "a\ud800", Context())
    assert baggage_header(context) == "%3F=a?"


def test_members_over_the_size_are_left_out_and_smaller_ones_behind_them_are_not() -> None:
    context = baggage.set_baggage("big", "x" * 9000, baggage.set_baggage("a", "1", Context()))
    assert baggage_header(baggage.set_baggage("z", "1", context)) == "a=1,z=1"


def test_exactly_8192_bytes_are_sent() -> None:
    context = baggage.set_baggage("a", "x" * 8186, baggage.set_baggage("b", "1", Context()))
    assert len(baggage_header(context)) == 8192
    assert baggage_header(baggage.set_baggage("a", "x" * 8187, context)) == "b=1"


def test_no_more_than_64_members_are_sent() -> None:
    context = Context()
    for number in range(100):
        context = baggage.set_baggage(f"k{number}", "v", context)
    header = baggage_header(context)
    assert header.count(",") == 63
    assert is_baggage(header)


def test_members_of_opentelemetrys_own_propagator_travel() -> None:
    context = W3CBaggagePropagator().extract({"baggage": "a=1,city=M%C3%BCnchen"}, context=Context())
    assert baggage_header(context) == "a=1,city=M%C3%BCnchen"


# --- whatever comes ------------------------------------------------------------------------------

ANY_TEXT = hostile_text(30)
MEMBER = st.builds(
    "{}{}={}{}{}".format,
    st.text(alphabet=TOKEN, min_size=1, max_size=10),
    st.sampled_from(["", " ", "\t"]),
    st.sampled_from(["", " "]),
    st.text(alphabet=OCTETS, max_size=20),
    st.sampled_from(["", ";p", "; p = 1 ;q", ";", "\n"]),
)


@given(hostile_text(300, ",=;% ") | st.lists(MEMBER | st.text(max_size=20), max_size=80).map(",".join))
def test_whatever_comes_what_is_sent_is_valid_and_bounded(header: str) -> None:
    out = baggage_header(with_baggage(header))
    assert out == "" or is_baggage(out)
    assert not has_controls(out.replace("\t", ""))  # a tab is a legal blank
    assert len(out) <= len(header)
    assert baggage_header(with_baggage(out)) == out


@given(st.dictionaries(ANY_TEXT, ANY_TEXT | st.text(min_size=200, max_size=300) | st.integers(), max_size=80))
def test_whatever_a_user_sets_what_is_sent_is_valid_and_bounded(values: dict[str, object]) -> None:
    context = with_baggage("first=1;p")
    for name, value in values.items():
        context = baggage.set_baggage(name, value, context)
    out = baggage_header(context)
    assert out == "" or is_baggage(out)


PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@given(st.dictionaries(PLAIN, PLAIN | st.just(""), max_size=10))
def test_text_without_control_characters_arrives_as_it_was_set(values: dict[str, str]) -> None:
    context = Context()
    for name, value in values.items():
        context = baggage.set_baggage(name, value, context)
    assert entries(baggage_header(context)) == values
