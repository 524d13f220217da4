"""Any Python object → what JSON can hold: bounded, masked, without cycles.

What JSON has no form for is written as its repr. Exceptions to that, because the text is more useful: dates and
times in ISO 8601, Decimal and UUID as their text, sets as lists, dataclasses and models as objects.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from .masking import MASK, is_secret_name, mask_text
from .safetext import repr_of, text_of

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]

_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1
_MAX_PRINTED_BITS: Final = 4096
# A text longer than this is shortened before it is searched for secrets.
LONGEST_SEARCHED: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an object is kept.

    Attributes:
        text: characters of one text.
        nodes: values in all, at every depth.
        name: characters of one key.
        depth: containers inside containers.
    """

    text: int
    nodes: int
    name: int = 256
    depth: int = 12


def cut(text: str, limit: int) -> str:
    """At most about ``limit`` characters of ``text``: its beginning and its end, and how many are missing between."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail
    return f"{text[:head]}...[{len(text) - limit} more characters]...{text[len(text) - tail :]}"


def plain_text(text: str, limit: int) -> str:
    """``text`` masked, at most ``limit`` characters, and encodable: a lone surrogate is written as ``\\udc80``."""
    if len(text) > LONGEST_SEARCHED:
        missing = len(text) - LONGEST_SEARCHED
        text = text[:LONGEST_SEARCHED]
        # Half a URL would show the password whose `@` was cut off.
        scheme = text.rfind("://", -4096)
        text = f"{text[:scheme] if scheme >= 0 else text}...[{missing} more characters]"
    text = cut(mask_text(text), limit)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def plain_object(fields: Mapping[str, object], limits: Limits) -> dict[str, JSON]:
    """The fields of a record as JSON can hold them; values under a secret name are masked. Never raises."""
    walk = _Walk(limits)
    try:
        return walk.mapping(fields, 0)
    except Exception:  # noqa: BLE001 - a mapping that cannot be walked is still a repr
        return {"fields": plain_text(repr_of(fields), limits.text)}


class _Walk:
    """One walk through an object, with what is left of its budget."""

    __slots__ = ("_left", "_limits", "_open")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.nodes
        self._open: set[int] = set()

    def value(self, value: object, depth: int) -> JSON:
        self._left -= 1
        kind = type(value)
        if kind is str:
            return plain_text(value, self._limits.text)  # type: ignore[arg-type]  # its type is str
        if value is None or kind is bool:
            return value  # type: ignore[return-value]  # None or bool
        try:
            return self._other(value, depth)
        except Exception:  # noqa: BLE001 - foreign code ran (properties, iterators, __str__): fall back to the repr
            return plain_text(repr_of(value), self._limits.text)

    def _other(self, value: object, depth: int) -> JSON:
        scalar = _scalar(value)
        if scalar is not None:
            return plain_text(scalar, self._limits.text) if type(scalar) is str else scalar
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._octets(value)
        content = _content(value, self._left)
        if content is None:
            return plain_text(repr_of(value), self._limits.text)
        if id(value) in self._open:
            return f"<circular {type(value).__qualname__}>"
        if depth >= self._limits.depth:
            return f"<{type(value).__qualname__} nested deeper than {self._limits.depth}>"
        self._open.add(id(value))
        try:
            if isinstance(content, Mapping):
                return self.mapping(content, depth + 1)
            return self._sequence(content, depth + 1)
        finally:
            self._open.discard(id(value))

    def mapping(self, content: Mapping[object, object] | Mapping[str, object], depth: int) -> dict[str, JSON]:
        result: dict[str, JSON] = {}
        total = len(content)
        for key, item in islice(content.items(), max(0, self._left)):
            if self._left <= 0:
                break
            name = plain_text(key if type(key) is str else text_of(key), self._limits.name)
            secret = is_secret_name(name) and item is not None
            while name in result:
                name += "_"
            result[name] = MASK if secret else self.value(item, depth)
        if len(result) < total:
            result["..."] = f"{total - len(result)} more"
        return result

    def _sequence(self, content: Collection[object], depth: int) -> list[JSON]:
        items = list(islice(content, max(0, self._left) + 1))
        result: list[JSON] = []
        for item in items:
            if self._left <= 0:
                break
            result.append(self.value(item, depth))
        if len(result) < len(items):
            result.append(f"... {len(content) - len(result)} more")
        return result

    def _octets(self, value: bytes | bytearray | memoryview) -> str:
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        shown = bytes(memoryview(value).cast("B")[: self._limits.text]) if size > self._limits.text else bytes(value)
        missing = f"...[{size - len(shown)} more bytes]" if len(shown) < size else ""
        return plain_text(repr(shown), self._limits.text) + missing


def _scalar(value: object) -> str | int | float | None:
    """The JSON form of what is one value; None for anything else."""
    if isinstance(value, enum.Enum):
        return _scalar(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _integer(int.__index__(value))
    if isinstance(value, float):
        number = float.__add__(value, 0.0)
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, os.PathLike):
        return text_of(os.fspath(value))
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        number = value.tolist()  # type: ignore[attr-defined]  # every numpy scalar has it, and becomes Python's own
        return _scalar(number) if type(number).__module__ == "builtins" else None
    return None


def _integer(number: int) -> int | str:
    if _MIN_INT <= number <= _MAX_INT:
        return number
    return repr(number) if number.bit_length() <= _MAX_PRINTED_BITS else f"<int of {number.bit_length()} bits>"


def _content(value: object, room: int) -> Mapping[object, object] | Collection[object] | None:
    """What a container holds; None for what is no container, or too big a one of a foreign kind."""
    if isinstance(value, type):
        return None
    if isinstance(value, enum.Enum):
        return _content(value.value, room)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (set, frozenset)):
        return _ordered(value) if len(value) <= room else value
    if isinstance(value, (list, tuple)):
        fields = getattr(value, "_fields", None)
        return dict(zip(fields, value, strict=True)) if isinstance(fields, tuple) else value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)  # pydantic
    if dump is not None and callable(dump) and hasattr(type(value), "model_fields"):
        dumped = dump()
        return dumped if isinstance(dumped, Mapping) else None
    if type(value).__module__ == "numpy" and getattr(value, "size", room + 1) <= room:
        items = value.tolist()  # type: ignore[attr-defined]  # every numpy array has it
        return items if isinstance(items, list) else None
    return None


def _ordered(items: set[object] | frozenset[object]) -> list[object]:
    try:
        return sorted(items)  # type: ignore[type-var]  # fails for what has no order
    except TypeError:
        return sorted(items, key=repr_of)
