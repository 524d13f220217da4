import pytest

from quantum_bus.envelope import Entry, decode, new_message_id
from quantum_bus.errors import ConfigurationError
from quantum_bus.wanted import Match, Wanted

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def entry(**fields: str) -> list[bytes]:
    return [part.encode() for pair in fields.items() for part in pair]


@pytest.mark.parametrize(
    ("text", "meant", "made"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE, None),
        (f"  {TRACE}\n", TRACE, None),
        ("1735900523456-0", "1735900523456-0", 1735900523456),
        ("0190a6e4-7c00-7abc-8def-0123456789ab", "0190a6e4-7c00-7abc-8def-0123456789ab", 0x0190A6E47C00),
        ("a1b2c3d4-e5f6-4890-abcd-ef1234567890", "a1b2c3d4-e5f6-4890-abcd-ef1234567890", None),
        ("Bestellung 4711 äöü", "Bestellung 4711 äöü", None),
    ],
)
def test_an_id_is_read_as_what_it_is(text: str, meant: str, made: int | None) -> None:
    wanted = Wanted.of(text)
    assert (wanted.text, wanted.made_ms) == (meant, made)


def test_the_buss_own_message_ids_tell_when_they_were_made() -> None:
    made = Wanted.of(new_message_id()).made_ms
    assert made is not None
    assert made > 1_735_900_523_456


@pytest.mark.parametrize("text", ["", "  ", "x" * 1025, "a\x1b[31m", "a\nb"])
def test_what_is_no_id_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give 1 to 1,024 printable characters"):
        Wanted.of(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("flow", Match.ID),
        (TRACE, Match.ID),
        ("m-1", Match.ID),
        ("m-0", Match.ID),
        ("1735900523456-0", Match.ID),
        ("BTC", Match.VALUE),
        ("eu-1", Match.VALUE),
        ("4711", Match.VALUE),
        ("ö-1", Match.VALUE),
        ("more", Match.VALUE),
        ("471", Match.NONE),
        ("true", Match.NONE),
        ("n", Match.NONE),
    ],
)
def test_a_message_is_named_by_its_ids_and_by_whole_values_in_it(text: str, match: Match) -> None:
    fields = entry(
        v="1", data='{"a":[{"n":4711},true],"o":"\\u00f6-1"}', message_id="m-1", causation_id="m-0",
        correlation_id="flow", key="BTC", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01", x="more",
        **{"h.tenant": "eu-1"},
    )  # fmt: skip
    wanted = Wanted.of(text)
    message = decode(Entry("s", "1735900523456-0", fields))
    assert wanted.match(message, "1735900523456-0") is match
    if match is not Match.NONE and not wanted.entry_id:
        assert wanted.may_be_in(fields), "the look at its bytes passes nothing over"


def test_an_entry_whose_ids_derive_is_always_worth_a_look() -> None:
    assert Wanted.of(TRACE).may_be_in(entry(symbol="BTCUSDT"))
    assert not Wanted.of(TRACE).may_be_in(entry(symbol="BTCUSDT", correlation_id="flow"))
