"""Whatever is logged: one line, valid JSON, bounded, and no exception."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import io
import json
import re
import sys
import tracemalloc
import uuid
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantum_bus.jsonlog import CaptureSink, Logger, capture_logs, get_logger, setup_json_logging


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class LyingRepr:
    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


class BadHash:
    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")


class BadMapping(dict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class EndlessStr:
    def __str__(self) -> str:
        return str(self)


class Side(enum.Enum):
    BUY = "buy"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Order:
    id: str
    password: str
    inner: object = None


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the plain form is what is tested


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no str")


def cycle() -> list[object]:
    items: list[object] = []
    items.append({"items": items})
    return items


def deep() -> object:
    value: object = 1
    for _ in range(5000):
        value = [value]
    return value


HOSTILE: list[object] = [
    Raises(), LyingRepr(), BadHash(), BadMapping(a=1), EndlessStr(), Text("text"), cycle(), deep(), float("nan"),
    [float("inf")], 2**64, -(2**63) - 1, 10**5000, "\ud800", b"\xff", memoryview(b"abc"), object(), type, len, Ellipsis,
    {1: 2, None: 3, (1, 2): 4}, {"\ud800": 1}, {Raises(): 1}, dt.datetime.now(dt.UTC), dt.timedelta(1), ValueError("x"),
    iter([1]), (number for number in range(3)), sys, "\x00",
    "a\u2028b\u2029c\x85d\x7fe\nf\rg\x0bh\x0ci\x1cj", "\u202eabc\u2066",
]  # fmt: skip


UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def only(lines: list[str]) -> dict[str, Any]:
    [line] = lines
    assert len(line.splitlines()) == 1
    assert not UNSAFE.search(line)
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(record)[:6] == ["ts", "level", "service", "event", "correlation_id", "msg"]
    return record  # type: ignore[no-any-return]


anything: st.SearchStrategy[object] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(exclude_categories=())),
        st.binary(),
        st.decimals(),
        st.datetimes(),
        st.uuids(),
        st.complex_numbers(),
        # By number: Hypothesis shows what it samples from, and some of these cannot be shown.
        st.integers(0, len(HOSTILE) - 1).map(lambda number: HOSTILE[number]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner, max_size=4),
        st.builds(Order, st.text(), st.text(), inner),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(msg=anything, args=st.lists(anything, max_size=2), value=anything, name=st.text(), event=anything, cid=anything)
@example(msg="m", args=[], value="\x7f", name="\x7f", event="\x7f", cid="\x7f")
@example(msg="%s", args=[1, 2], value=1, name="a b", event="E", cid="c")
def test_any_object_anywhere_is_one_line_of_json(
    msg: object, args: list[object], value: object, name: str, event: object, cid: object
) -> None:
    with capture_logs() as logs:
        log = get_logger()
        log.info(msg, *args, **{name: value}, event=event, correlation_id=cid)
        only(logs.lines)
        logs.clear()
        log.info("x", extra=value, exc_info=value, stack_info=value)
        only(logs.lines)
        logs.clear()
        log.bind(**{name: value}, event=event, correlation_id=cid).info("x")
        only(logs.lines)


@pytest.mark.parametrize("place", ["extra", "exc_info", "stack_info", "event", "correlation_id", "field", "msg", "arg"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_a_hostile_value_in_any_place_is_one_line(value: object, place: str, log: Logger, logs: CaptureSink) -> None:
    if place == "msg":
        log.info(value)
    elif place == "arg":
        log.info("x %s", value)
    else:
        log.info("x", **{place: value})
    record = only(logs.lines)
    if place == "extra" and type(value) is BadMapping:
        assert "extra" in record


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_a_hostile_value_is_written_somehow(value: object, log: Logger, logs: CaptureSink) -> None:
    for _ in range(2):
        log.info("x", value=value)
        assert "value" in only(logs.lines)
        logs.clear()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ([float("nan"), None], ["nan", None]),
        ({"a": float("inf")}, {"a": "inf"}),
        ({3, 1, 2}, [1, 2, 3]),
        (b"abc", "b'abc'"),
        (dt.datetime(2026, 1, 3, 10, 15, tzinfo=dt.UTC), "2026-01-03T10:15:00+00:00"),
        (dt.date(2026, 1, 3), "2026-01-03"),
        (decimal.Decimal("1.10"), "1.10"),
        (Side.BUY, "buy"),
        (Side.PAIR, [1, 2]),
        (Level.HIGH, 3),
        (Order("o-1", "p"), {"id": "o-1", "password": "***", "inner": None}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (2**64, "18446744073709551616"),
        (2**64 - 1, 2**64 - 1),
        ("\udc80", "\\udc80"),
        ({1: "a"}, {"1": "a"}),
        (Point(1, 2), {"x": 1, "y": 2}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Path("/tmp/x"), "/tmp/x"),
        (Text("text"), "text"),
        (None, None),
    ],
    ids=repr,
)
def test_values_json_has_no_form_for_are_written_readably(
    value: object, written: object, log: Logger, logs: CaptureSink
) -> None:
    for _ in range(2):
        log.info("x", value=value)
    for record in logs.records:
        assert record["value"] == written


class Array:
    """As numpy's arrays and scalars are seen from outside."""

    def __init__(self, content: object, size: int) -> None:
        self.size = size
        self._content = content

    def tolist(self) -> object:
        assert self.size < 1_000_000, "a big array must not be copied"
        return self._content

    def __repr__(self) -> str:
        return "array(...)"


Array.__module__ = "numpy"


def test_numpy_values_are_written_as_numbers_unless_there_are_too_many(log: Logger, logs: CaptureSink) -> None:
    log.info("x", scalar=Array(0.5, 1), small=Array([1, 2], 2), big=Array(None, 10**7))
    record = only(logs.lines)
    assert (record["scalar"], record["small"], record["big"]) == (0.5, [1, 2], "array(...)")


def test_a_cycle_is_named_and_not_followed(log: Logger, logs: CaptureSink) -> None:
    log.info("x", value=cycle())
    assert only(logs.lines)["value"] == [{"items": "<circular list>"}]


def test_the_same_object_twice_is_no_cycle(log: Logger, logs: CaptureSink) -> None:
    shared = {1}
    log.info("x", value=[shared, shared])
    assert only(logs.lines)["value"] == [[1], [1]]


@pytest.mark.parametrize(
    "char",
    [chr(code) for code in (0x7F, 0x80, 0x85, 0x9B, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))],
)
def test_what_could_break_a_line_or_reorder_a_screen_is_escaped(char: str, log: Logger, logs: CaptureSink) -> None:
    for _ in range(2):  # each by itself: one such text is enough to take the record off the fast path
        log.info("x", value=char)
        log.info("x", **{f"na{char}me": 1})
        log.info("x", items=[char])
        log.info(f"m{char}")  # noqa: G004
        log.info("x", event=f"E{char}")
        log.info("x", correlation_id=char)
        log.bind(bound=char).info("x")
    for line in logs.lines:
        assert char not in line
        assert f"\\u{ord(char):04x}" in line
        assert char in str(list(json.loads(line).items())).replace(f"\\u{ord(char):04x}", char).replace(
            f"\\x{ord(char):02x}", char
        )


def test_letters_of_all_languages_stay_as_they_are(log: Logger, logs: CaptureSink) -> None:
    for _ in range(2):
        log.info("Zürich 東京 🚀", city="Zürich 東京 🚀")
        assert logs.lines[-1].count("Zürich 東京 🚀") == 2


LIMIT = 8192


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    char=st.sampled_from(["x", "\x00", "é", "🚀", "\u2028", "\ud800", '"', "\\"]),
    size=st.sampled_from([100, 3000, 9000, 200_000]),
    shape=st.sampled_from(["text", "list", "dict", "many", "deep", "names"]),
)
def test_no_line_is_longer_than_the_limit(char: str, size: int, shape: str) -> None:
    text = char * size
    fields: dict[str, Any] = {
        "text": {"a": text, "b": text},
        "list": {"a": [text] * 50},
        "dict": {"a": {f"{i}{text}": text for i in range(20)}},
        "many": {f"f{i}": text[:1000] for i in range(300)},
        "deep": {"a": [[[[[[[[[[[[[[text]]]]]]]]]]]]]] * 10},
        "names": {f"{text[:2000]}{i}": i for i in range(50)},
    }[shape]
    stream = io.BytesIO()
    log = setup_json_logging("s" * 128, stream=stream, announce=False, max_record_bytes=LIMIT)
    log.error(text, **fields, exc_info=ValueError(text), event=text, correlation_id=text)
    [line] = stream.getvalue().splitlines(keepends=True)
    assert len(line) <= LIMIT
    record = json.loads(line)
    assert record["level"] == "ERROR"
    assert record["exc_type"] == "ValueError"


def test_what_is_shortened_says_by_how_much(log: Logger, logs: CaptureSink) -> None:
    log.info("x", text="a" * 300_000, items=list(range(100_000)))
    record = only(logs.lines)
    assert "more characters]..." in record["text"]
    assert record["items"][-1].startswith("... ")


def test_a_million_items_take_no_longer_than_what_is_kept_of_them(log: Logger, logs: CaptureSink) -> None:
    items: list[object] = [object()] * 3_000_000
    log.info("x", items=items)
    assert len(only(logs.lines)["items"]) < 20_000


def test_a_log_call_at_the_recursion_limit_returns(log: Logger) -> None:
    def fall() -> None:
        log.info("x", value={1})
        fall()

    with pytest.raises(RecursionError):
        fall()
    log.info("still here")


def test_field_names_of_all_kinds_are_fields(log: Logger, logs: CaptureSink) -> None:
    fields = {"self": 1, "msg": 2, "args": 3, "": 4, "a b": 5, "level": 6, "context": 7}
    log.info("x", **fields)  # type: ignore[arg-type]
    log.log(20, "x", **fields)  # type: ignore[arg-type]
    for line in logs.lines:
        record = only([line])
        assert (record["self"], record["msg_"], record["args"], record[""], record["level_"]) == (1, 2, 3, 4, 6)


def test_thousands_of_different_texts_and_names_keep_memory_flat(log: Logger, logs: CaptureSink) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 6000):
            log.info(
                f"message {number}",  # noqa: G004
                **{f"field_{number}": number},
                event=f"EVENT_{number}",
            )
            logs.clear()

    write(0)
    tracemalloc.start()
    write(10_000)
    first = tracemalloc.get_traced_memory()[0]
    write(20_000)
    second = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert second - first < 500_000
