"""An event becomes the fields of an entry and back: exactly, within limits, and on the way in without exceptions."""

import dataclasses
import json
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any
from uuid import UUID, uuid4

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from quantum_bus import envelope, names, propagation
from quantum_bus.envelope import (
    Entry,
    Event,
    Incoming,
    Outgoing,
    carried,
    decode,
    dumps,
    encode,
    new_message_id,
    prepare,
    timestamp,
)
from quantum_bus.errors import ConfigurationError, PayloadTooLarge, SerializationError
from tests.unit.handlers import in_message
from tests.unit.hostile import hostile_text
from tests.unit.w3c import has_controls, is_baggage, is_correlation_id, is_traceparent, is_tracestate

LIMIT = 1_048_576
CONTEXT = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))


def prepared(payload: Any = None, **options: Any) -> Outgoing:
    return prepare(Event(payload, **options), max_payload_bytes=LIMIT)


def encoded(outgoing: Outgoing, context: SpanContext = CONTEXT, baggage: str = "") -> list[bytes]:
    fields = encode(outgoing, correlation_id="flow", carried=carried(context, baggage), service="s")
    return [field.encode() if isinstance(field, str) else field for field in fields]


def pairs(fields: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


# --- ids and times -------------------------------------------------------------------------------


def test_message_ids_are_uuids_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    made = UUID(new_message_id())
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000


def test_message_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.time_ns()
    made = []
    for millis in [*range(50), 1_000, 1_000_000, 10**9, 10**12]:
        monkeypatch.setattr(envelope.time, "time_ns", lambda millis=millis: start + millis * 1_000_000)
        made.append(new_message_id())
    assert made == sorted(made)


@pytest.mark.parametrize("back", [0, 1, 500_000_000], ids=["stands", "goes back", "goes back half a second"])
def test_message_ids_sort_and_differ_while_the_clock_does_not_move_on(
    monkeypatch: pytest.MonkeyPatch, back: int
) -> None:
    # fails without: counting on from the last one
    now = 1_767_435_323_456_789_000
    monkeypatch.setattr(envelope.time, "time_ns", lambda: now)
    made = [new_message_id() for _ in range(1_000)]
    now -= back
    made += [new_message_id() for _ in range(1_000)]
    assert made == sorted(set(made))


def test_message_ids_follow_a_clock_that_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(envelope.time, "time_ns", lambda: now)
    new_message_id()
    now -= 3_600 * 10**9
    assert UUID(new_message_id()).int >> 80 == now // 1_000_000


def test_message_ids_of_several_threads_differ() -> None:
    def make(_: int) -> list[str]:
        return [new_message_id() for _ in range(2_000)]

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(make, range(4)))
    assert len({one for of_thread in made for one in of_thread}) == 8_000


def test_timestamps_are_rfc_3339_with_microseconds() -> None:
    assert timestamp(1_767_435_323.456789) == "2026-01-03T10:15:23.456789Z"
    assert timestamp(1_767_435_323) == "2026-01-03T10:15:23.000000Z"
    assert abs(datetime.fromisoformat(timestamp()).timestamp() - time.time()) < 5


# --- payloads ------------------------------------------------------------------------------------


class Side(Enum):
    BUY = "buy"
    NAN = float("nan")


@dataclasses.dataclass
class Order:
    symbol: str
    qty: float
    note: str = dataclasses.field(init=False)


class Measured(msgspec.Struct):
    value: float


class Intent(pydantic.BaseModel):
    symbol: str
    confidence: float


MOMENT = datetime(2026, 1, 3, 10, 15, 23, 456789, UTC)


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (None, b"null"),
        ({}, b"{}"),
        ({"a": [1, 2.5, True, None, "\u00fc"]}, '{"a":[1,2.5,true,null,"\u00fc"]}'.encode()),
        ((1, 2), b"[1,2]"),
        (OrderedDict(b=1, a=2), b'{"b":1,"a":2}'),
        ([2**64 - 1, -(2**63)], b"[18446744073709551615,-9223372036854775808]"),
        (Side.BUY, b'"buy"'),
        (MOMENT, b'"2026-01-03T10:15:23.456789+00:00"'),
        (UUID(int=7), b'"00000000-0000-0000-0000-000000000007"'),
        (Order("BTC", 0.5), b'{"symbol":"BTC","qty":0.5}'),
        ([None, Order("BTC", 0.5)], b'[null,{"symbol":"BTC","qty":0.5}]'),
        (Intent(symbol="BTC", confidence=0.82), b'{"symbol":"BTC","confidence":0.82}'),
        ({"i": [Intent(symbol="BTC", confidence=1)], "n": None}, b'{"i":[{"symbol":"BTC","confidence":1.0}],"n":null}'),
    ],
)
def test_what_json_can_say(payload: object, data: bytes) -> None:
    assert dumps(payload) == data


class Broken:
    def model_dump(self, mode: str) -> object:
        raise RuntimeError("broken model")


class Endless:
    def model_dump(self, mode: str) -> object:
        return self


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (object(), "object has no JSON form"),
        ({"a": {1, 2}}, "set has no JSON form"),
        (b"bytes", "bytes has no JSON form"),
        (Decimal("1.5"), "Decimal has no JSON form"),
        ({1: 2}, "Dict key must be str"),
        (2**64, "64-bit"),
        ("\ud800", "surrogates not allowed"),
        (Intent, "has no JSON form"),
        (Broken(), "broken model"),
        (Endless(), "recursion limit"),
        (CYCLE, "Recursion limit"),
        (reduce(lambda inner, _: [inner], range(5_000), []), "Recursion limit"),  # type: ignore[arg-type, return-value]
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_say(payload: object, said: str) -> None:
    with pytest.raises(SerializationError) as caught:
        dumps(payload)
    assert said in str(caught.value)
    assert "publish dicts with str keys, lists, str, numbers below 64 bits" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda number: number,
        lambda number: {"a": [1, (number,)]},
        lambda number: {"a": None, "b": OrderedDict(c=number)},
        lambda number: Order("BTC", number),
        lambda number: Intent(symbol="BTC", confidence=number),
        lambda number: [{"a": Intent(symbol="BTC", confidence=number)}],
        Measured,
        lambda number: Enum("Number", {"VALUE": number}).VALUE,  # type: ignore[attr-defined]
    ],
    ids=["bare", "nested", "mapping", "dataclass", "model", "model inside", "struct", "enum"],
)
def test_a_number_json_cannot_say_is_not_turned_into_null(number: float, wrap: Any) -> None:
    with pytest.raises(SerializationError, match="JSON cannot say; publish None or a str instead"):
        dumps(wrap(number))


def test_a_payload_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert len(prepare(Event("x" * 98), max_payload_bytes=100).data) == 100
    with pytest.raises(PayloadTooLarge) as caught:
        prepare(Event("x" * 99), max_payload_bytes=100)
    assert (caught.value.size, caught.value.limit) == (101, 100)
    with pytest.raises(PayloadTooLarge):
        prepare(Event("\u00fc" * 50), max_payload_bytes=100)


ANY_TEXT = hostile_text(30)
UTF8 = st.text(st.characters(codec="utf-8"))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | UTF8,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(UTF8, inner, max_size=5),
    max_leaves=20,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary() | st.decimals() | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT | st.integers(), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=10,
)


@given(ANYTHING)
def test_any_payload_is_json_or_a_serialization_error(payload: object) -> None:
    try:
        data = dumps(payload)
    except SerializationError:
        return
    json.loads(data, parse_constant=pytest.fail)


# --- what goes with it ---------------------------------------------------------------------------


def test_given_ids_are_kept() -> None:
    value = uuid4()
    assert prepared(message_id="m-1").message_id == "m-1"
    assert prepared(message_id=value).message_id == str(value)
    assert prepared(correlation_id=value).correlation_id == str(value)
    assert prepared(message_id="m" * 128).message_id == "m" * 128


def test_missing_ids_are_taken_from_the_flow() -> None:
    with in_message("flow", "cause"):
        outgoing = prepared()
        assert (outgoing.correlation_id, outgoing.causation_id) == ("flow", "cause")
        assert prepared(correlation_id="mine").correlation_id == "mine"
        assert prepared(correlation_id="not one").correlation_id == "flow"
    outgoing = prepared()
    assert (outgoing.correlation_id, outgoing.causation_id) == (None, None)
    assert UUID(outgoing.message_id).version == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *[
            ({option: value}, f"{option}={shown}: give a str of 1 to 1,024 characters, or leave it out")
            for option in ("event", "key")
            for value, shown in (
                ("", "''"),
                (5, "5"),
                (b"x", "b'x'"),
                ("\ud800", r"'\ud800'"),
                ("x" * 1025, f"'{'x' * 79}…"),
            )
        ],
        *[
            ({"message_id": value}, "give 1 to 128 printable characters")
            for value in ("", "m" * 129, "a\nb", "\ud800", 5, b"m")
        ],
        *[
            ({"headers": value}, "give a dict of str to str, as {'tenant': 'eu-1'}, not")
            for value in ([("a", "b")], "a=b", 5)
        ],
        *[
            ({"headers": value}, "is not str to str that UTF-8 can carry, as {'tenant': 'eu-1'}")
            for value in ({"a": 1}, {1: "a"}, {"": "a"}, {"a": None}, {"a": b"x"}, {"a": "\ud800"}, {"\ud800": "a"})
        ],
        ({"headers": {f"h{n}": "" for n in range(65)}}, "over 64 or 65,536; what is large belongs in the payload"),
        ({"headers": {"h": "x" * 65_536}}, "over 64 or 65,536; what is large belongs in the payload"),
    ],
)
def test_what_cannot_go_with_it_is_refused_before_anything_is_sent(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        prepared(**options)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


def test_a_refused_headers_value_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        prepared(headers={"authorization": b"secret"})
    assert "secret" not in str(caught.value)


def test_what_is_at_the_limit_goes() -> None:
    headers = {f"h{n}": "x" * 1000 for n in range(64)}
    outgoing = prepared(event="e" * 1024, key="k" * 1024, headers=headers)
    assert dict(outgoing.headers) == headers


def test_the_widest_entry_that_can_be_published_fits_a_lua_scripts_unpack() -> None:
    headers = {f"h{n}": "" for n in range(envelope.MAX_HEADERS)}
    outgoing = prepared({}, event="E", key="k", headers=headers, delay=1)._replace(causation_id="c")
    context = SpanContext(1, 2, is_remote=False, trace_state=TraceState([("a", "b")]))
    assert len(encoded(outgoing, context, baggage="a=b")) < 7_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0, 0)),
        ({"delay": 0, "dedupe": None}, (0, 0)),
        ({"delay": 1.5, "dedupe": 60}, (1500, 60_000)),
        ({"delay": 0.00001, "dedupe": 0.00001}, (1, 1)),
        ({"delay": envelope.MAX_SECONDS}, (envelope.MAX_SECONDS * 1000, 0)),
    ],
)
def test_delay_and_window_are_whole_milliseconds_never_rounded_to_none(
    options: dict[str, float], expected: tuple[int, int]
) -> None:
    outgoing = prepared({}, **options)
    assert (outgoing.delay_ms, outgoing.dedupe_ms) == expected


def test_an_empty_mapping_of_headers_is_none() -> None:
    assert prepared(headers={}).headers == ()


# --- out -----------------------------------------------------------------------------------------


def test_optional_fields_are_left_out() -> None:
    assert list(pairs(encoded(prepared({})))) == [
        b"v", b"data", b"message_id", b"correlation_id", b"traceparent", b"service", b"ts"
    ]  # fmt: skip


def test_an_oversized_tracestate_is_cut_and_an_empty_one_left_out() -> None:
    big = SpanContext(1, 1, is_remote=False, trace_state=TraceState([(f"k{n}", "v" * 100) for n in range(30)]))
    assert is_tracestate(pairs(encoded(prepared({}), big))[b"tracestate"].decode())
    one = SpanContext(1, 1, is_remote=False, trace_state=TraceState([("a" * 256, "v" * 256)]))
    assert b"tracestate" not in pairs(encoded(prepared({}), one))


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
FLOW = st.text(alphabet="ABCabc019._:-", min_size=1, max_size=128)


@given(
    payload=JSON, event=st.none() | TEXT, key=st.none() | TEXT, flow=FLOW,
    headers=st.dictionaries(TEXT, st.text(st.characters(codec="utf-8"), max_size=60), max_size=8),
    trace_id=st.integers(1, 2**128 - 1), span_id=st.integers(1, 2**64 - 1), flags=st.integers(0, 3),
)  # fmt: skip
def test_what_is_encoded_is_decoded_as_it_was(
    payload: Any,
    event: str | None,
    key: str | None,
    flow: str,
    headers: dict[str, str],
    trace_id: int,
    span_id: int,
    flags: int,
) -> None:
    context = SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=TraceState([("k", "v")])
    )
    with in_message(flow, "cause"):
        outgoing = prepared(payload, event=event, key=key, headers=headers)
    fields = encode(outgoing, correlation_id=flow, carried=carried(context, "a=1;p"), service="s")
    incoming = decode(Entry("orders", "1-0", [f.encode() if isinstance(f, str) else f for f in fields]))
    assert incoming.data == payload
    assert type(incoming.data) is type(payload)
    assert (incoming.raw, incoming.event, incoming.key) == (outgoing.data, event, key)
    assert (incoming.message_id, incoming.correlation_id, incoming.causation_id) == (outgoing.message_id, flow, "cause")
    assert (incoming.headers, incoming.service, incoming.extra) == (headers, "s", {})
    assert incoming.context == context
    assert incoming.context.trace_state == context.trace_state
    assert propagation.baggage_header(incoming.baggage) == "a=1;p"
    assert (incoming.foreign, incoming.reason, incoming.detail) == (False, None, None)


# --- in ------------------------------------------------------------------------------------------

NAMES = [
    value for name, value in vars(names).items() if name.startswith(("FIELD_", "FOREIGN_")) and isinstance(value, str)
]
FIELD = st.sampled_from([*NAMES, "h.x", "h.", names.DLQ_STREAM, names.DLQ_ID]).map(str.encode) | st.binary(max_size=12)
VALUE = (
    st.binary(max_size=200)
    | ANY_TEXT.map(lambda text: text.encode(errors="surrogatepass"))
    | JSON.map(orjson.dumps)
    | st.sampled_from([b"1", b"2", b"", b"1-0", b"[" * 3000, b"a=b" + b";p= " * 500 + b'"', b"9" * 5000])
    | st.just(f"00-{'a' * 32}-{'b' * 16}-01".encode())
)


def assert_sound(incoming: Incoming) -> None:
    assert is_correlation_id(incoming.correlation_id)
    assert is_traceparent(propagation.format_traceparent(incoming.context))
    assert incoming.context.is_remote
    state, baggage = incoming.context.trace_state.to_header(), propagation.baggage_header(incoming.baggage)
    assert state == "" or is_tracestate(state)
    assert baggage == "" or (is_baggage(baggage) and not has_controls(baggage.replace("\t", "")))
    for text in (
        incoming.event,
        incoming.key,
        incoming.message_id,
        incoming.causation_id,
        incoming.service,
        incoming.ts,
    ):
        assert text is None or text.encode() is not None
    for mapping in (incoming.headers, incoming.extra):
        assert all(name.encode() is not None and value.encode() is not None for name, value in mapping.items())
    assert (incoming.reason is None) == (incoming.detail is None)
    assert incoming.reason in (None, names.REASON_UNDECODABLE, names.REASON_UNSUPPORTED_VERSION)
    assert incoming.detail is None or len(incoming.detail) < 300


@pytest.mark.timeout(60, method="signal")
@given(st.lists(st.tuples(FIELD, VALUE), max_size=15), st.booleans(), st.booleans())
@example([(b"v", b"1")], False, False)
@example([(b"data", b"\xff"), (b"v", b"x")], True, True)
def test_no_entry_raises_and_every_message_is_sound(
    listed: list[tuple[bytes, bytes]], cut_short: bool, sampled: bool
) -> None:
    fields = [item for pair in listed for item in pair]
    if cut_short:
        fields = fields[:-1]
    entry = Entry("orders", "1767435323456-0", fields)
    incoming = decode(entry, sampled=sampled)
    assert_sound(incoming)
    again = decode(entry, sampled=sampled)
    assert msgspec.structs.replace(again, baggage=incoming.baggage) == incoming, "every group and retry sees the same"
    # Whatever came, what is published in its flow is within the format.
    with in_message(incoming.correlation_id, incoming.message_id):
        outgoing = prepared({})
    assert outgoing.correlation_id == incoming.correlation_id
    sent = pairs(
        encoded(outgoing, propagation.child_of(incoming.context), propagation.baggage_header(incoming.baggage))
    )
    assert sum(len(name) + len(value) for name, value in sent.items()) < 10_000
    assert_sound(decode(Entry("orders", "2-0", [item for pair in sent.items() for item in pair])))


@given(st.binary(max_size=700), st.binary(max_size=700), st.binary(max_size=700), st.binary(max_size=200))
def test_any_bytes_as_context_are_survived(parent: bytes, state: bytes, baggage: bytes, correlation_id: bytes) -> None:
    fields = [b"v", b"1", b"data", b"{}", b"traceparent", parent, b"tracestate", state, b"baggage", baggage]
    assert_sound(decode(Entry("orders", "1-0", [*fields, b"correlation_id", correlation_id])))


@given(ANY_TEXT, ANY_TEXT)
def test_any_stream_name_and_entry_id_are_survived(stream: str, entry_id: str) -> None:
    assert_sound(msgspec.structs.replace(decode(Entry(stream, entry_id, [b"a", b"1"])), message_id="x"))


@pytest.mark.timeout(10, method="signal")
def test_a_hostile_context_costs_no_time() -> None:
    huge = b"a=b" + b";p= " * 2_000 + b'"'
    fields = [b"v", b"1", b"data", b"{}"]
    for name in (b"traceparent", b"tracestate", b"baggage", b"correlation_id", b"causation_id", b"message_id"):
        fields += [name, huge[:8192]]
    for number in range(2_000):
        decode(Entry("orders", f"{number}-0", fields))


def test_an_unreadable_version_is_not_repeated_at_length() -> None:
    incoming = decode(Entry("orders", "1-0", [b"v", b"9" * 100_000, b"data", b"{}"]))
    assert incoming.reason == names.REASON_UNSUPPORTED_VERSION
    assert incoming.detail is not None
    assert "is not 1; a newer quantum_bus may read it" in incoming.detail
    assert len(incoming.detail) < 120
    assert incoming.raw == b"{}"


def test_an_undecodable_payload_says_why_and_keeps_its_bytes() -> None:
    incoming = decode(Entry("orders", "1-0", [b"v", b"1", b"data", b"{'a'}"]))
    assert (incoming.reason, incoming.raw) == (names.REASON_UNDECODABLE, b"{'a'}")
    assert incoming.detail is not None
    assert "field 'data' is not JSON: " in incoming.detail
    missing = decode(Entry("orders", "1-0", [b"v", b"1"]))
    assert (missing.detail, missing.raw) == ("the entry has no field 'data'", b"")


def test_a_derived_context_is_sampled_as_told() -> None:
    entry = Entry("orders", "1-0", [b"a", b"1"])
    assert decode(entry).context.trace_flags == 1
    assert decode(entry, sampled=False).context.trace_flags == 0


def test_a_foreign_entrys_bytes_are_its_payload_as_json() -> None:
    incoming = decode(Entry("orders", "1-0", [b"symbol", b"BTC", b"blob", b"\xff"]))
    assert orjson.loads(incoming.raw) == incoming.data == {"symbol": "BTC", "blob": "\\xff"}


def test_without_baggage_the_context_is_empty() -> None:
    assert decode(Entry("orders", "1-0", [b"a", b"1"])).baggage == Context()


@given(st.lists(st.tuples(FIELD, VALUE), max_size=6), st.sampled_from([b"{}", b"1", b"{", b"\xff"]), st.booleans())
def test_what_a_bus_writes_is_read_on_a_shorter_way_and_to_the_same_effect(
    listed: list[tuple[bytes, bytes]], data: bytes, derived: bool
) -> None:
    usual = encoded(prepared({}), propagation.mint(), "a=1")
    fields = [item.encode() if isinstance(item, str) else item for item in usual]
    fields[3] = data
    entry = Entry("orders", "1-0", [*fields, *(item for pair in listed for item in pair)])
    plain = envelope._decode_plain(entry)
    assert plain is not None or listed or data not in (b"{}", b"1")
    if plain is not None:
        full = envelope._decode_any(entry, sampled=derived)
        assert msgspec.structs.replace(full, baggage=plain.baggage) == plain
        assert propagation.baggage_header(full.baggage) == propagation.baggage_header(plain.baggage) == "a=1"


@pytest.mark.parametrize("name", ["data", "payload"])
def test_integers_of_any_size_are_exact(name: str) -> None:
    # publishing them is refused, as few others could read them; who sends them all the same means what they say
    incoming = decode(Entry("orders", "1-0", [name.encode(), b'{"n":123456789012345678901234567890}']))
    assert incoming.data == {"n": 123456789012345678901234567890}
    usual = plain_fields(data=b"[-9223372036854775809]")
    assert decode(Entry("orders", "1-0", usual)).data == [-9223372036854775809]


def test_what_is_nested_is_read_as_deep_as_json_may_be_here() -> None:
    # which is the same in every Python, though some let other parsers go deeper
    most = envelope.MOST_LEVELS
    deep = decode(Entry("orders", "1-0", plain_fields(data=b"[" * most + b"]" * most)))
    assert deep.reason is None
    levels = 1
    value = deep.data
    while value:
        (value,) = value
        levels += 1
    assert levels == most
    for deeper in (b"[" * (most + 1) + b"]" * (most + 1), b'{"a":' * (most + 1) + b"1" + b"}" * (most + 1)):
        found = decode(Entry("orders", "1-0", plain_fields(data=deeper)))
        assert (found.reason, "depth" in (found.detail or "")) == (names.REASON_UNDECODABLE, True)
    wide = decode(Entry("orders", "1-0", plain_fields(data=b"[" + b"[18446744073709551616]," * most + b"0]")))
    assert wide.data == [[18446744073709551616]] * most + [0]


@pytest.mark.parametrize("blanks", range(8))
def test_a_correlation_id_that_is_a_piece_of_a_padded_traceparent_is_looked_at_as_any_other(blanks: int) -> None:
    parent = b" " * blanks + b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    for flow in (parent[3:35], parent[:32]):
        incoming = decode(Entry("orders", "1-0", plain_fields(traceparent=parent, correlation_id=flow)))
        assert is_correlation_id(incoming.correlation_id)
        assert incoming.correlation_id == (flow.decode() if is_correlation_id(flow.decode()) else "a" * 32)


def plain_fields(**values: bytes) -> list[bytes]:
    """An entry's fields as a bus writes them, with some values changed."""
    usual = {
        b"v": b"1",
        b"data": b"{}",
        b"event": b"E",
        b"message_id": b"m",
        b"correlation_id": b"a" * 32,
        b"traceparent": b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
        b"service": b"svc",
        b"ts": b"2026-01-03T10:15:23.456789Z",
    }
    usual |= {name.encode(): value for name, value in values.items()}
    assert list(usual) == envelope._USUAL_FIELDS
    return [part for pair in usual.items() for part in pair]
