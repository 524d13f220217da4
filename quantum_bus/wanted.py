"""What an id that somebody asks about may be, when it was made, and which messages it names. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from . import names
from .envelope import Incoming, is_entry_id
from .errors import ConfigurationError
from .propagation import parse_context

MAX_LENGTH: Final = 1_024
# Values of one payload that are compared: a hostile one may have millions.
MOST_VALUES: Final = 100_000

_UUID7: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
_CORRELATION_FIELD: Final = names.FIELD_CORRELATION_ID.encode()


class Match(IntEnum):
    """How a message is named by an id, the strongest last."""

    NONE = 0
    VALUE = 1
    """A value in its payload, its headers or its other fields; its ordering key."""
    ID = 2
    """Its correlation id, its trace's id, its own id or its entry's."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An id that is looked for.

    Attributes:
        text: it, as fields hold it.
        needles: bytes of which an entry holds one, if it names the id in a field of its own.
        entry_id: whether it may be a stream entry's id.
        made_ms: when it was made, milliseconds since 1970, where the id itself tells: entry ids and UUIDs of version 7.
    """

    text: str
    needles: tuple[bytes, ...]
    entry_id: bool
    made_ms: int | None

    @classmethod
    def of(cls, text: str) -> Wanted:
        """Read what was typed; of a whole ``traceparent`` the trace's id is meant.

        Raises:
            ConfigurationError: no id looks like this.
        """
        text = text.strip()
        if not text or len(text) > MAX_LENGTH or not text.isprintable():
            raise ConfigurationError(
                f"ID={text[:40]!a}: give 1 to {MAX_LENGTH:,} printable characters: a correlation, trace, message or "
                "entry id, or an id of your own that stands in messages"
            )
        context = parse_context(text)
        if context is not None:
            text = f"{context.trace_id:032x}"
        return cls(text, needles_of(text), is_entry_id(text), made_ms(text))

    def may_be_in(self, fields: Sequence[bytes]) -> bool:
        """Whether an entry with these fields is worth decoding. Derived ids stand in no field: see :func:`named`."""
        text = b"\n".join(fields)
        return any(needle in text for needle in self.needles) or _CORRELATION_FIELD not in text

    def match(self, message: Incoming, entry_id: str) -> Match:
        """How the id names a message.

        Args:
            entry_id: of the message in its stream.
        """
        trace_id = f"{message.context.trace_id:032x}"
        if self.text in (message.correlation_id, trace_id, message.message_id, message.causation_id, entry_id):
            return Match.ID
        if self.text == message.key or self.text in message.headers.values() or self.text in message.extra.values():
            return Match.VALUE
        return Match.VALUE if any(value == self.text for value in _texts(message.data)) else Match.NONE


def needles_of(text: str) -> tuple[bytes, ...]:
    """Bytes of which an entry holds one, if it names an id in a field: as it is, and as JSON may write it."""
    return tuple(dict.fromkeys((text.encode(), json.dumps(text)[1:-1].encode())))


def made_ms(text: str) -> int | None:
    """When an id was made, where it tells."""
    if is_entry_id(text):
        return int(text.partition("-")[0])
    found = _UUID7.fullmatch(text.lower())
    return int(found[1] + found[2], 16) if found else None


def _texts(data: Any) -> Iterator[str]:
    """The texts and numbers of a JSON value, as text."""
    waiting = [data]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str):
            yield value
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(value)
