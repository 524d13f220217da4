"""A handler's signature, read once; its arguments, made from entries."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from quantum_bus import ConfigurationError, Message
from quantum_bus.handlers import inspect_handler
from tests.unit.incoming import incoming


class Side(Enum):
    BUY = "BUY"
    SELL = "SELL"


@dataclass(frozen=True)
class Leg:
    price: Decimal


@dataclass(frozen=True)
class Order:
    symbol: str
    side: Side
    at: datetime
    legs: list[Leg] = dataclasses.field(default_factory=list)
    note: str | None = None


class Quote(TypedDict):
    symbol: str
    bid: NotRequired[float]


class Model(pydantic.BaseModel):
    symbol: str
    quantity: Annotated[int, pydantic.Field(gt=0)]


ORDER = b'{"symbol":"BTC","side":"SELL","at":"2026-01-03T10:15:23Z","legs":[{"price":"42.50"}],"unknown":1}'


def converted(kind: Any, data: bytes) -> Any:
    def handle(payload: Any) -> None: ...

    handle.__annotations__["payload"] = kind
    return inspect_handler(handle, batch=False).convert(incoming(data=data))


# --- what a payload becomes --------------------------------------------------------------------------------------


def test_a_dataclass_is_filled_in_depth_and_unknown_fields_are_passed_by() -> None:
    order = converted(Order, ORDER)
    assert order == Order("BTC", Side.SELL, datetime.fromisoformat("2026-01-03T10:15:23Z"), [Leg(Decimal("42.50"))])


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        (dict, b'{"a":1}', {"a": 1}),
        (dict[str, Any], b'{"a":1}', {"a": 1}),
        (dict, b'{"a":123456789012345678901}', {"a": 123456789012345678901}),
        (dict[str, int], b'{"a":1}', {"a": 1}),
        (list, b"[1]", [1]),
        (list[float], b"[1]", [1.0]),
        (int, b"7", 7),
        (str, b'"x"', "x"),
        (bool, b"true", True),
        (None, b"null", None),
        (int | None, b"null", None),
        (str | int, b"7", 7),
        (Literal["a", "b"], b'"b"', "b"),
        (Quote, b'{"symbol":"BTC"}', {"symbol": "BTC"}),
        (Any, b"[1,null]", [1, None]),
        (object, b"1.5", 1.5),
        (Model, b'{"symbol":"BTC","quantity":"2"}', Model(symbol="BTC", quantity=2)),
        (list[Model], b'[{"symbol":"BTC","quantity":2}]', [Model(symbol="BTC", quantity=2)]),
        (Model | None, b"null", None),
    ],
)
def test_a_payload_becomes_what_its_annotation_says(kind: Any, data: bytes, value: object) -> None:
    result = converted(kind, data)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (dict, b"[]"),
        (dict[str, Any], b"[]"),
        (dict[str, int], b'{"a":"x"}'),
        (int, b'"7"'),
        (int, b"1.5"),
        (str, b"null"),
        (Order, b'{"symbol":"BTC"}'),
        (Order, ORDER.replace(b"SELL", b"HOLD")),
        (Quote, b'{"bid":1.0}'),
        (Model, b'{"symbol":"BTC","quantity":0}'),
        (list[Model], b'[{"symbol":"BTC"}]'),
    ],
)
def test_what_does_not_fit_raises(kind: Any, data: bytes) -> None:
    with pytest.raises((msgspec.ValidationError, pydantic.ValidationError)):
        converted(kind, data)


def test_a_type_that_cannot_be_a_payload_is_refused_with_the_parameters_name() -> None:
    class Odd:
        pass

    with pytest.raises(ConfigurationError, match=r"handle\(payload\).*annotate it as dict"):
        converted(Odd, b"{}")


# --- which parameter is which ------------------------------------------------------------------------------------


def with_message(order: Order, message: Message) -> None: ...
def message_first(message: Message, order: Order) -> None: ...
def only_message(anything: Message) -> None: ...
def only_payload(order: Order) -> None: ...
def unannotated(order) -> None: ...  # type: ignore[no-untyped-def]
def with_default(order: Order, dry_run: bool = False) -> None: ...
def message_by_default(order: Order, message: Message = None) -> None: ...  # type: ignore[assignment]
def keyword_only(*, order: Order, message: Message) -> None: ...
def with_rest(order: Order, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "payload", "message"),
    [
        (with_message, "order", "message"),
        (message_first, "order", "message"),
        (only_message, None, "anything"),
        (only_payload, "order", None),
        (unannotated, "order", None),
        (with_default, "order", None),
        (message_by_default, "order", "message"),
        (keyword_only, "order", "message"),
        (with_rest, "order", None),
    ],
)
def test_message_and_payload_are_told_by_annotation(
    function: Callable[..., Any], payload: str | None, message: str | None
) -> None:
    handler = inspect_handler(function, batch=False)
    assert (handler.payload, handler.message) == (payload, message)


def test_arguments_are_given_by_name() -> None:
    message: Any = object()
    handler = inspect_handler(with_message, batch=False)
    assert handler.arguments([message], [7]) == {"order": 7, "message": message}
    assert inspect_handler(only_message, batch=False).arguments([message], [7]) == {"anything": message}


def test_a_batch_gets_lists() -> None:
    def handle(orders: list[Order], messages: list[Message]) -> None: ...
    def sequences(orders: Sequence[Order], messages: Sequence[Message]) -> None: ...
    def bare(orders: list) -> None: ...  # type: ignore[type-arg]

    message: Any = object()
    for function in (handle, sequences):
        handler = inspect_handler(function, batch=True)
        assert handler.arguments([message, message], [1, 2]) == {"orders": [1, 2], "messages": [message, message]}
        assert isinstance(handler.convert(incoming(data=ORDER)), Order)
    assert inspect_handler(bare, batch=True).convert(incoming(data=b"7")) == 7


@pytest.mark.parametrize("annotation", ["Later", "list[Later]", "Later | None"])
def test_names_of_the_scope_it_was_written_in_are_found(annotation: str) -> None:
    @dataclass
    class Later:
        n: int

    def handle(payload: Any) -> None: ...

    handle.__annotations__["payload"] = annotation
    assert inspect_handler(handle, batch=False, local_names={"Later": Later}).payload == "payload"


def test_a_name_that_is_nowhere_is_named() -> None:
    def handle(payload: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="'Nowhere' is not defined"):
        inspect_handler(handle, batch=False)


# --- what may be a handler ---------------------------------------------------------------------------------------


class Service:
    def method(self, order: Order) -> None: ...
    async def async_method(self, order: Order) -> None: ...
    @classmethod
    def class_method(cls, order: Order) -> None: ...
    @staticmethod
    def static_method(order: Order) -> None: ...
    async def __call__(self, order: Order, message: Message) -> None: ...


def wrapped() -> Callable[..., Any]:
    @functools.wraps(with_message)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    return wrapper


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (Service().method, False),
        (Service().async_method, True),
        (Service.class_method, False),
        (Service.static_method, False),
        (Service(), True),
        (wrapped(), False),
        (functools.partial(with_default, dry_run=True), False),
        (functools.partial(Service.async_method, Service()), True),
        (lambda payload: None, False),
    ],
)
def test_whatever_can_be_called_with_a_payload_is_a_handler(function: Callable[..., Any], is_async: bool) -> None:
    handler = inspect_handler(function, batch=False)
    assert handler.is_async is is_async
    assert handler.payload in ("order", "payload")
    assert handler.name


def test_what_is_no_handler_is_refused_with_an_example_of_one() -> None:
    def generator(order: Any) -> Any:
        yield

    async def async_generator(order: Any) -> Any:
        yield

    def nothing() -> None: ...
    def two(a: int, b: int) -> None: ...
    def twice(a: Message, b: Message) -> None: ...
    def positional(a: int, /) -> None: ...

    for function, right in (
        (7, "is no function"),
        (generator, "yields"),
        (async_generator, "yields"),
        (nothing, "takes nothing"),
        (two, "there is one payload"),
        (twice, "takes the message twice"),
        (positional, "positional-only"),
    ):
        with pytest.raises(ConfigurationError, match=right):
            inspect_handler(function, batch=False)  # type: ignore[arg-type]


def test_a_bus_for_threads_takes_no_coroutine_functions() -> None:
    with pytest.raises(ConfigurationError, match="write def"):
        inspect_handler(Service().async_method, batch=False, threads=True)
    assert not inspect_handler(Service().method, batch=False, threads=True).is_async
