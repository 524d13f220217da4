"""JSON text on one line, whatever the strings hold.

orjson leaves DEL, C1 controls, line and paragraph separators and the marks that reorder text on a screen as they are.
All of them are allowed in JSON; none of them is safe in a file read by line or on a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from .plain import JSON

# DEL and C1 (U+0085 is a line end to many readers); U+2028 and U+2029; bidi marks, embeddings, overrides, isolates;
# the byte order mark.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def escaped(encoded: bytes) -> bytes:
    """Encoded JSON with what a line or a screen could stumble over written as ``\\uXXXX``."""
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _UNSAFE.sub(_escape, encoded.decode()).encode()


def visible(text: str) -> str:
    """``text`` with control characters, line ends and bidi marks written as escapes, for plain lines."""
    return text if text.isprintable() else escaped(orjson.dumps(text))[1:-1].decode()


def encode_members(fields: Mapping[str, JSON]) -> bytes:
    """The members of a JSON object behind others: ``,"key":value,…``; empty for none."""
    return b"," + escaped(orjson.dumps(fields))[1:-1] if fields else b""


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
