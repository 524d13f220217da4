"""What a handler wants: its signature read once, when it is subscribed, and its arguments made from messages.

A parameter annotated :class:`~quantum_bus.Message` gets the message, the other one the payload as its annotation
says: ``dict``, any JSON value, a dataclass, a ``TypedDict``, a pydantic model. With ``batch`` above 1 both are lists.

Conversion is msgspec's, from the payload's bytes, and pydantic's for what is pydantic's. What is to be a ``dict`` is
parsed already.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import msgspec.inspect

from .envelope import Incoming
from .errors import ConfigurationError
from .message import Message

Convert = Callable[[Incoming], Any]

_RIGHT: Final = "async def handle(order: Order, message: Message)"


@dataclass(frozen=True, slots=True)
class Handler:
    """A checked handler.

    Attributes:
        function: what the user wrote.
        is_async: it is awaited; otherwise it runs in a worker thread.
        payload: name of the parameter for the payload, if it has one.
        message: name of the parameter for the message, if it has one.
        convert: makes the payload from a decoded entry; raises where it does not fit.
        batch: parameters are lists.
    """

    function: Callable[..., Any]
    name: str
    is_async: bool
    payload: str | None
    message: str | None
    convert: Convert
    batch: bool

    def arguments(self, messages: Sequence[Message], payloads: Sequence[Any]) -> dict[str, Any]:
        """The keyword arguments of one run; without ``batch`` the sequences hold one item each."""
        arguments: dict[str, Any] = {}
        if self.payload is not None:
            arguments[self.payload] = list(payloads) if self.batch else payloads[0]
        if self.message is not None:
            arguments[self.message] = list(messages) if self.batch else messages[0]
        return arguments


def inspect_handler(
    function: Callable[..., Any], *, batch: bool, local_names: Mapping[str, Any] | None = None, threads: bool = False
) -> Handler:
    """Read a handler's signature.

    Args:
        batch: it takes lists.
        local_names: names of the scope it was written in, for annotations that name local classes.
        threads: it belongs to a bus without an event loop, so it must not be ``async def``.

    Raises:
        ConfigurationError: it cannot be called with a payload, a message, or both.
    """
    if not callable(function):
        raise ConfigurationError(f"{function!r} is no function; a handler is, for example, {_RIGHT}")
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    call = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise ConfigurationError(f"{name} yields; a handler returns, as {_RIGHT}")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    if threads and is_async:
        raise ConfigurationError(f"{name} is async def, and quantum_bus.sync has no event loop; write def {name}(…)")

    payload: tuple[str, Any] | None = None
    message: str | None = None
    for parameter, annotation in _parameters(function, name, local_names):
        if _wants_message(annotation, batch=batch, parameter=f"{name}({parameter})"):
            if message is not None:
                raise ConfigurationError(f"{name} takes the message twice, as {message} and {parameter}; drop one")
            message = parameter
        elif payload is None:
            payload = (parameter, annotation)
        else:
            raise ConfigurationError(
                f"{name} takes {payload[0]} and {parameter}: there is one payload; annotate the other as Message, give "
                f"it a default, or drop it: {_RIGHT}"
            )
    if payload is None and message is None:
        raise ConfigurationError(f"{name} takes nothing; a handler takes the payload, the message, or both: {_RIGHT}")
    annotation = _item(payload[1], name, payload[0]) if payload and batch else payload[1] if payload else Any
    return Handler(
        function=function,
        name=name,
        is_async=is_async,
        payload=payload[0] if payload else None,
        message=message,
        convert=_converter(annotation, f"{name}({payload[0]})" if payload else name),
        batch=batch,
    )


def _parameters(
    function: Callable[..., Any], name: str, local_names: Mapping[str, Any] | None
) -> list[tuple[str, Any]]:
    """Names and resolved annotations of the parameters that a run has to fill."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} has no signature to read; write {_RIGHT}") from error
    unresolved = inspect.unwrap(function) if inspect.isroutine(function) else function
    target = unresolved if inspect.isroutine(unresolved) else getattr(type(function), "__call__", function)  # noqa: B004
    try:
        hints = typing.get_type_hints(target, localns=dict(local_names or {}), include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{name}: an annotation cannot be resolved ({error}); import it where {name} is"
        ) from error
    except TypeError:
        hints = {}
    wanted = []
    for parameter in signature.parameters.values():
        annotation = hints.get(parameter.name, parameter.annotation)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ConfigurationError(f"{name}: {parameter.name} is positional-only; drop the '/', as {_RIGHT}")
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.default is inspect.Parameter.empty or annotation in (Message, list[Message]):
            wanted.append((parameter.name, annotation))
    return wanted


def _wants_message(annotation: Any, *, batch: bool, parameter: str) -> bool:
    if annotation is Message:
        if batch:
            raise ConfigurationError(f"{parameter}: with batch= above 1 it is a list[Message]")
        return True
    if typing.get_origin(annotation) in (list, Sequence) and typing.get_args(annotation) == (Message,):
        if not batch:
            raise ConfigurationError(f"{parameter}: without batch= it is a Message; list[Message] needs batch=100")
        return True
    return False


def _item(annotation: Any, name: str, parameter: str) -> Any:
    """The type of one payload in a batch handler's list."""
    if annotation in (list, Any, inspect.Parameter.empty):
        return Any
    if typing.get_origin(annotation) in (list, Sequence):
        arguments = typing.get_args(annotation)
        return arguments[0] if arguments else Any
    raise ConfigurationError(
        f"{name}({parameter}): with batch= above 1 the payload is a list, as {parameter}: list[Order]"
    )


def _converter(annotation: Any, parameter: str) -> Convert:
    if annotation in (Any, object, inspect.Parameter.empty):
        return _parsed
    if _is_pydantic(annotation):
        return _pydantic(annotation, parameter)
    wrong = f"{parameter}: a payload cannot become {annotation!r}"
    right = "annotate it as dict, a dataclass, a TypedDict or a pydantic model"
    try:
        decode = msgspec.json.Decoder(annotation).decode
        foreign = _foreign_class(msgspec.inspect.type_info(annotation))
    except TypeError as error:
        raise ConfigurationError(f"{wrong} ({error}); {right}") from error
    if foreign is not None:
        if "pydantic" in sys.modules:  # such as a list of pydantic models
            return _pydantic(annotation, parameter)
        raise ConfigurationError(f"{wrong}: nothing is known of {foreign.__qualname__}; {right}")
    if annotation in (dict, dict[str, Any]):
        return lambda incoming: data if type(data := incoming.data) is dict else decode(incoming.raw)
    return lambda incoming: decode(incoming.raw)


def _parsed(incoming: Incoming) -> Any:
    return incoming.data


def _foreign_class(info: Any, seen: frozenset[int] = frozenset()) -> type | None:
    """A class, anywhere inside a type, that msgspec takes as it is but never makes; None where there is none."""
    if isinstance(info, msgspec.inspect.CustomType):
        return info.cls
    if id(info) in seen:  # a type that holds itself
        return None
    seen |= {id(info)}
    if isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        inside: Iterable[Any] = (getattr(info, name) for name in info.__struct_fields__)
    elif isinstance(info, tuple):
        inside = info
    else:
        return None
    return next((found for item in inside if (found := _foreign_class(item, seen)) is not None), None)


def _is_pydantic(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        hasattr(annotation, "model_validate_json")
        or (dataclasses.is_dataclass(annotation) and hasattr(annotation, "__pydantic_validator__"))
    )


def _pydantic(annotation: Any, parameter: str) -> Convert:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        validate = TypeAdapter(annotation).validate_json
    except PydanticSchemaGenerationError as error:
        raise ConfigurationError(
            f"{parameter}: a payload cannot become {annotation!r}; annotate it as dict, a dataclass, a TypedDict or a "
            "pydantic model"
        ) from error
    return lambda incoming: validate(incoming.raw)
