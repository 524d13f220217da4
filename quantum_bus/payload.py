"""A payload as JSON: what can be said in it unchanged, and a clear error for the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
import orjson

from .errors import SerializationError


def dumps(payload: Any) -> bytes:
    """The payload as JSON bytes.

    Raises:
        SerializationError: it cannot be said in JSON without changing it.
    """
    try:
        data = orjson.dumps(payload, default=_jsonable)
    except (TypeError, RecursionError) as error:  # orjson's JSONEncodeError is a TypeError
        cause = error.__cause__ or error
        raise SerializationError(
            f"the payload ({type(payload).__name__}) cannot be JSON: {cause}; publish dicts with str keys, lists, "
            "str, numbers below 64 bits, bool, None, dataclasses, pydantic models or msgspec Structs"
        ) from error
    if b"null" in data:  # orjson writes NaN and the infinities as null, which would change the payload in silence
        _refuse_non_finite(payload)
    return data


def _jsonable(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SerializationError(
                f"the payload holds {value!r}, which JSON cannot say; publish None or a str instead"
            )
    elif isinstance(value, Mapping):
        for item in value.values():
            _refuse_non_finite(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_non_finite(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _refuse_non_finite(getattr(value, field.name, None))
    elif not isinstance(value, str) and (isinstance(value, msgspec.Struct) or hasattr(value, "model_dump")):
        _refuse_non_finite(_jsonable(value))
