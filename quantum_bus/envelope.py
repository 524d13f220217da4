"""Wire format version 1: an event becomes the fields of a stream entry, and back.

No I/O and no clock of its own beyond ids and timestamps. ``docs/wire-format.md`` describes the format for other
languages; ``tests/vectors`` holds its test vectors.

An entry without ``v`` is foreign. It is read leniently and always yields a message; see :func:`decode`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard
from uuid import UUID

import msgspec
import orjson
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext

from . import names, propagation
from .errors import ConfigurationError, PayloadTooLarge
from .payload import dumps

MAX_ID_LENGTH: Final = 128
MAX_NAME_LENGTH: Final = 1024
MAX_HEADERS: Final = 64
MAX_HEADERS_BYTES: Final = 65_536
# Of a delay or a deduplication window, about a hundred years: longer ones overflow Redis's clock.
MAX_SECONDS: Final = 3_153_600_000

_ENTRY_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)
_VERSION: Final = str(names.WIRE_VERSION).encode()
_KNOWN_FIELDS: Final = frozenset(
    (
        names.FIELD_VERSION,
        names.FIELD_DATA,
        names.FIELD_EVENT,
        names.FIELD_KEY,
        names.FIELD_MESSAGE_ID,
        names.FIELD_CORRELATION_ID,
        names.FIELD_CAUSATION_ID,
        names.FIELD_TRACEPARENT,
        names.FIELD_TRACESTATE,
        names.FIELD_BAGGAGE,
        names.FIELD_SERVICE,
        names.FIELD_TS,
        *names.REPLAY_FIELDS,
    )
)
_FIELD_VERSION: Final = names.FIELD_VERSION.encode()
_FIELD_DATA: Final = names.FIELD_DATA.encode()
_FIELD_EVENT: Final = names.FIELD_EVENT.encode()
_FIELD_MESSAGE_ID: Final = names.FIELD_MESSAGE_ID.encode()
_FIELD_CORRELATION_ID: Final = names.FIELD_CORRELATION_ID.encode()
_FIELD_TRACEPARENT: Final = names.FIELD_TRACEPARENT.encode()
_FIELD_TRACESTATE: Final = names.FIELD_TRACESTATE.encode()
_FIELD_SERVICE: Final = names.FIELD_SERVICE.encode()
_FIELD_TS: Final = names.FIELD_TS.encode()
_EMPTY: Final = b""
_parse_json: Final = msgspec.json.Decoder().decode
# How deep arrays and objects may be nested: as deep as orjson reads.
MOST_LEVELS: Final = 1024
# An entry as the bus writes it, of which nothing more is said.
_USUAL_FIELDS: Final = [
    _FIELD_VERSION, _FIELD_DATA, _FIELD_EVENT, _FIELD_MESSAGE_ID, _FIELD_CORRELATION_ID, _FIELD_TRACEPARENT,
    _FIELD_SERVICE, _FIELD_TS,
]  # fmt: skip
_NEEDED_FIELDS: Final = (_FIELD_VERSION, _FIELD_DATA, _FIELD_MESSAGE_ID, _FIELD_CORRELATION_ID, _FIELD_TRACEPARENT)
_OTHER_FIELDS: Final = (_FIELD_EVENT, _FIELD_SERVICE, _FIELD_TS, _FIELD_TRACESTATE)
_ADDED_FIELDS: Final = names.DLQ_FIELDS | names.REPLAY_FIELDS
# What a foreign entry's `v` (no version) and `message_id` (not vouched for) say is the producer's own matter.
_FOREIGN_FIELDS: Final = _KNOWN_FIELDS - {names.FIELD_VERSION, names.FIELD_MESSAGE_ID}


@dataclass(frozen=True, slots=True)
class Event:
    """Something to publish: a payload and what goes with it. Middleware around publish sees and may replace it.

    Attributes:
        payload: anything JSON can say: dict, list, str, number, bool, None; also dataclasses, pydantic models,
            UUIDs, datetimes and enums.
        event: the event's name, as ``"INTENT_CREATED"``.
        key: the ordering key.
        correlation_id: the flow's id; by default the one in force, else the trace's.
        message_id: unique and stable over retries; by default a new one, ordered by time (UUID version 7).
        headers: the caller's own, str to str.
        stream: where it goes; set by ``publish``.
        delay: seconds until it is added to the stream; None or 0 adds it at once.
        dedupe: seconds within which a second one of this ``message_id`` on this stream is not added; None adds each.
    """

    payload: Any
    event: str | None = None
    key: str | None = None
    correlation_id: str | UUID | None = None
    message_id: str | UUID | None = None
    headers: Mapping[str, str] | None = None
    stream: str = ""
    delay: float | None = None
    dedupe: float | None = None


class Outgoing(NamedTuple):  # made in a third of the time of a frozen dataclass: 0.4 µs for each message
    """A checked event, ready to be given its trace context and sent.

    Attributes:
        data: the payload as JSON.
        delay_ms: milliseconds until it is added to the stream, 0 for none.
        dedupe_ms: milliseconds within which its id is added once, 0 for no such window.
    """

    stream: str
    data: bytes
    event: str | None
    key: str | None
    message_id: str
    correlation_id: str | None
    causation_id: str | None
    headers: tuple[tuple[str, str], ...]
    delay_ms: int = 0
    dedupe_ms: int = 0


# --- out -----------------------------------------------------------------------------------------


# A clock that goes back by more is followed.
_LONGEST_AHEAD: Final = 1_000 << 12
_last_tick = 0


def new_message_id() -> str:
    """A UUID version 7: unique, and behind the one that this thread made before.

    Behind the milliseconds stand 12 bits of their fraction, and where the clock has not moved on, one more than last
    time (RFC 9562, 6.2, methods 3 and 1). 62 bits are random: ids of other threads and processes differ.
    """
    global _last_tick  # noqa: PLW0603 - a class for it takes longer
    tick = (time.time_ns() << 12) // 1_000_000
    if tick <= _last_tick < tick + _LONGEST_AHEAD:
        tick = _last_tick + 1
    _last_tick = tick
    random = propagation.random_bits
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031 - as for a traceparent
        tick >> 28 & 0xFFFF_FFFF, tick >> 12 & 0xFFFF, tick & 0xFFF, 0x8000 | random(14), random(48)
    )  # fmt: skip


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with microseconds, as ``2026-01-03T10:15:23.456789Z``; by default of now."""
    micros = time.time_ns() // 1000 if seconds is None else round(seconds * 1_000_000)
    return f"{_to_the_second(micros // 1_000_000)}.{micros % 1_000_000:06d}Z"


@lru_cache(maxsize=4)  # the second is the same for thousands of messages: 2 µs for each
def _to_the_second(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def prepare(event: Event, *, max_payload_bytes: int, stream: str | None = None) -> Outgoing:
    """Check an event and serialize its payload; see :func:`checked`.

    Args:
        stream: instead of the event's own.
    """
    return checked(
        event.stream if stream is None else stream,
        event.payload,
        event.event,
        event.key,
        event.correlation_id,
        event.message_id,
        event.headers,
        event.delay,
        event.dedupe,
        max_payload_bytes,
    )


def checked(
    stream: str,
    payload: Any,
    event: str | None,
    key: str | None,
    correlation_id: str | UUID | None,
    message_id: str | UUID | None,
    headers: Mapping[str, str] | None,
    delay: float | None,
    dedupe: float | None,
    max_payload_bytes: int,
) -> Outgoing:
    """What an :class:`Event` says, checked, the payload serialized.

    Raises:
        SerializationError: the payload cannot be JSON.
        PayloadTooLarge: it can, and is longer than ``max_payload_bytes``.
        ConfigurationError: a header, key, id, delay or window is of the wrong type or size.
    """
    if type(payload) is Event:
        raise ConfigurationError("the payload is an Event: give publish() its parts, or publish_many() a list of such")
    data = dumps(payload)
    if len(data) > max_payload_bytes:
        raise PayloadTooLarge(len(data), max_payload_bytes)
    if event is not None:
        _check_name("event", event)
    if key is not None:
        _check_name("key", key)
    flow = propagation.checked_correlation_id(correlation_id) if correlation_id is not None else None
    return Outgoing(
        stream,
        data,
        event,
        key,
        new_message_id() if message_id is None else _checked_message_id(message_id),
        flow or propagation.get_correlation_id(),
        propagation.get_causation_id(),
        _checked_headers(headers) if headers else (),
        0 if delay is None else _milliseconds("delay", delay, zero=True),
        0 if dedupe is None else _milliseconds("dedupe", dedupe, zero=False),
    )


def _check_name(option: str, value: object) -> None:
    if not (_is_text(value) and 0 < len(value) <= MAX_NAME_LENGTH):
        raise ConfigurationError(
            f"{option}={_shown(value)}: give a str of 1 to {MAX_NAME_LENGTH:,} characters, or leave it out"
        )


def _milliseconds(option: str, seconds: float, *, zero: bool) -> int:
    """Whole milliseconds, at least one where it is not 0."""
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not (seconds > 0 or (zero and seconds == 0)) or seconds > MAX_SECONDS:
        raise ConfigurationError(
            f"{option}={_shown(seconds)}: give seconds {'of 0 or more' if zero else 'above 0'}, at most "
            f"{MAX_SECONDS:,}, or leave it out"
        )
    return math.ceil(seconds * 1000)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether ``value`` is a str that UTF-8 can carry: one without lone surrogates."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A refused value for an error's text, which ends in logs: short, and one line whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_items(items: Iterable[Any]) -> None:
    """Refuse what is one payload and no series of them, though Python would go through it.

    Raises:
        ConfigurationError: it is a mapping, a text, bytes or an :class:`Event`.
    """
    if isinstance(items, (Mapping, str, bytes, bytearray, Event)):
        raise ConfigurationError(f"items is one payload, a {type(items).__name__}: give publish_many() a list of them")


def before_middleware(event: Event, stream: str) -> Outgoing:
    """What is known of an event that middleware has yet to see: which flow it is of."""
    flow = propagation.checked_correlation_id(event.correlation_id) or propagation.get_correlation_id()
    return Outgoing(stream, b"", None, None, "", flow, None, ())


def _checked_message_id(value: str | UUID) -> str:
    text = str(value) if isinstance(value, UUID) else value
    if not isinstance(text, str) or not 0 < len(text) <= MAX_ID_LENGTH or not text.isprintable():
        raise ConfigurationError(f"message_id={_shown(value)}: give 1 to {MAX_ID_LENGTH} printable characters")
    return text


def _checked_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers: give a dict of str to str, as {{'tenant': 'eu-1'}}, not {_type(headers)}")
    pairs = tuple(headers.items())
    for name, value in pairs:
        if not _is_text(name) or not name or not _is_text(value):  # the value is not shown: it may be a secret
            raise ConfigurationError(
                f"headers: {_shown(name)} to {_type(value)} is not str to str that UTF-8 can carry, "
                "as {'tenant': 'eu-1'}"
            )
    size = sum(len(name) + len(value) for name, value in pairs)
    if len(pairs) > MAX_HEADERS or size > MAX_HEADERS_BYTES:
        raise ConfigurationError(
            f"headers: {len(pairs)} with {size:,} characters, over {MAX_HEADERS} or {MAX_HEADERS_BYTES:,}; "
            "what is large belongs in the payload"
        )
    return pairs


def _type(value: object) -> str:
    return type(value).__name__


def encode(
    outgoing: Outgoing, *, correlation_id: str, carried: tuple[str, ...], service: str
) -> tuple[bytes | str, ...]:
    """The entry's fields, names and values in turn, in the order of the format's table.

    Args:
        carried: the W3C fields of the publish, as :func:`carried` makes them.
    """
    _, data, event, key, message_id, _, causation_id, headers, _, _ = outgoing
    # In one piece, and a copy for each thing that is seldom there: half of the time of adding to a list step by step.
    fields: tuple[bytes | str, ...] = (
        names.FIELD_VERSION, _VERSION,
        names.FIELD_DATA, data,
        *(() if event is None else (names.FIELD_EVENT, event)),
        *(() if key is None else (names.FIELD_KEY, key)),
        names.FIELD_MESSAGE_ID, message_id,
        names.FIELD_CORRELATION_ID, correlation_id,
        *(() if causation_id is None else (names.FIELD_CAUSATION_ID, causation_id)),
        *carried,
        names.FIELD_SERVICE, service,
        names.FIELD_TS, timestamp(),
    )  # fmt: skip
    for name, value in headers:
        fields += (names.HEADER_PREFIX + name, value)
    return fields


def carried(context: SpanContext, baggage: str) -> tuple[str, ...]:
    """The trace context, and baggage where there is any, as fields."""
    fields: tuple[str, ...] = (names.FIELD_TRACEPARENT, propagation.format_traceparent(context))
    if context.trace_state and (tracestate := propagation.format_tracestate(context)):
        fields += (names.FIELD_TRACESTATE, tracestate)
    if baggage:
        fields += (names.FIELD_BAGGAGE, baggage)
    return fields


# --- in ------------------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A stream entry as Redis gave it: ``fields`` are names and values in turn, duplicates included.

    What is made for each message is a msgspec struct: frozen as a dataclass, and made in a sixth of the time (0.3 µs).
    Where nothing that it holds can lead back to it, the garbage collector is spared a look at it (``gc=False``).
    """

    stream: str
    id: str
    fields: Sequence[bytes]


class Incoming(msgspec.Struct, frozen=True):
    """A decoded entry.

    Attributes:
        data: the payload as JSON value; None where ``reason`` says why there is none.
        raw: the payload's bytes.
        context: the remote trace context: the entry's own, else one derived from stream and id.
        baggage: an OpenTelemetry context with the entry's baggage.
        extra: fields that the format does not know, as text.
        foreign: the entry came without ``v``.
        failed_span: ``traceparent`` of the failing run, where this is a dead letter that was replayed into its stream.
        reason: None, or why the payload cannot be had: one of ``names.REASON_*``.
        detail: the reason in words.
    """

    stream: str
    id: str
    data: Any
    raw: bytes
    event: str | None
    key: str | None
    message_id: str
    correlation_id: str
    causation_id: str | None
    service: str | None
    ts: str | None
    headers: Mapping[str, str]
    context: SpanContext
    baggage: Context
    extra: Mapping[str, str]
    foreign: bool
    failed_span: str | None = None
    reason: str | None = None
    detail: str | None = None


def decode(entry: Entry, *, sampled: bool = True) -> Incoming:
    """Read an entry; never raises.

    What cannot be decoded still has ids and a context, so that its dead letter can be followed. In an entry without
    ``v``, ``data``, else ``payload``, is the payload if it is JSON, else the entry's own fields are. A missing or
    malformed trace context or correlation id is derived; see :func:`quantum_bus.propagation.derived_context`. A dead
    letter is read as the entry it was: what derives from stream and id does so from the original ones.

    Args:
        sampled: the flag of a derived context.
    """
    return _decode_plain(entry) or _decode_any(entry, sampled=sampled)


def _decode_plain(entry: Entry) -> Incoming | None:
    """An entry as a bus writes it, with nothing missing, added or malformed; None for any other.

    It is what :func:`_decode_any` says of it, in less than half of the time (3 instead of 8 µs).
    """
    fields = entry.fields
    others: dict[bytes, bytes] | None = None
    state = _EMPTY
    try:
        if fields[::2] == _USUAL_FIELDS:  # a look at the order saves 1 µs
            version, raw, event, message_id, correlation_id, traceparent, service, ts = fields[1::2]
        else:
            pairs = iter(fields)
            others = dict(zip(pairs, pairs, strict=True))
            if 2 * len(others) != len(fields):
                return None
            version, raw, message_id, correlation_id, traceparent = map(others.pop, _NEEDED_FIELDS)
            event, service, ts, state = (others.pop(name, _EMPTY) for name in _OTHER_FIELDS)
        if version != _VERSION:
            return None
        data = parse_json(raw)
        context = propagation.parse_context(traceparent.decode(), state.decode())
        own_id, flow_id = message_id.decode(), correlation_id.decode()
        event_name, sender, sent_at = event.decode() or None, service.decode() or None, ts.decode() or None
        texts = {name.decode(): value.decode() for name, value in others.items()} if others else None
    except (KeyError, ValueError):  # what is no text and what is no JSON are ValueErrors, too
        return None
    if context is None or not _bounded(own_id):
        return None
    # most flows have their trace's id, which is looked at already
    if traceparent[:35] != b"00-" + correlation_id and not propagation.valid_correlation_id(flow_id):
        return None
    key: str | None = None
    causation_id: str | None = None
    baggage = propagation.NO_BAGGAGE
    headers: dict[str, str] = {}
    if texts:
        key = texts.pop(names.FIELD_KEY, None)
        causation_id = _bounded(texts.pop(names.FIELD_CAUSATION_ID, None))
        baggage = propagation.with_baggage(texts.pop(names.FIELD_BAGGAGE, None))
        for name, value in texts.items():
            if not name.startswith(names.HEADER_PREFIX):
                return None
            headers[name.removeprefix(names.HEADER_PREFIX)] = value
    return Incoming(
        entry.stream,
        entry.id,
        data,
        raw,
        event_name,
        key,
        own_id,
        flow_id,
        causation_id,
        sender,
        sent_at,
        headers,
        context,
        baggage,
        {},
        False,
    )


def parse_json(raw: bytes) -> Any:
    """A JSON value, integers of any size exact.

    Raises:
        ValueError: it is none, or is nested deeper than 1,024 levels.
    """
    if len(raw) > 2 * MOST_LEVELS and raw.count(b"[") + raw.count(b"{") > MOST_LEVELS:
        orjson.loads(raw)  # the other one goes as deep as Python does, which differs from version to version
    try:
        return _parse_json(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return orjson.loads(raw)  # goes as deep as it may, and says best what is wrong


def _decode_any(entry: Entry, *, sampled: bool) -> Incoming:
    texts = _texts(entry.fields)
    version = texts.get(names.FIELD_VERSION)
    reason = detail = None
    if version is not None and version.isascii() and version.isdecimal():
        foreign = False
        data, raw, reason, detail = _payload(entry.fields, version)
    else:
        foreign = True
        data, raw = _foreign_payload(entry.fields, texts)

    stream, entry_id = _origin(entry, texts)
    own = propagation.parse_context(texts.get(names.FIELD_TRACEPARENT), texts.get(names.FIELD_TRACESTATE))
    context = own or propagation.derived_context(stream, entry_id, sampled=sampled)
    correlation_id = propagation.checked_correlation_id(texts.get(names.FIELD_CORRELATION_ID))
    known = _FOREIGN_FIELDS if foreign else _KNOWN_FIELDS
    headers = {k.removeprefix(names.HEADER_PREFIX): v for k, v in texts.items() if k.startswith(names.HEADER_PREFIX)}
    event, service, ts = (
        texts.get(name) or (texts.get(stand_in) if foreign else None)
        for name, stand_in in (
            (names.FIELD_EVENT, names.FOREIGN_EVENT),
            (names.FIELD_SERVICE, names.FOREIGN_SERVICE),
            (names.FIELD_TS, names.FOREIGN_TS),
        )
    )
    return Incoming(
        stream=entry.stream,
        id=entry.id,
        data=data,
        raw=raw,
        event=event,
        key=texts.get(names.FIELD_KEY),
        message_id=(not foreign and _bounded(texts.get(names.FIELD_MESSAGE_ID))) or entry_id,
        correlation_id=correlation_id or f"{context.trace_id:032x}",
        causation_id=_bounded(texts.get(names.FIELD_CAUSATION_ID)),
        service=service,
        ts=ts,
        headers=headers,
        context=context,
        baggage=propagation.with_baggage(texts.get(names.FIELD_BAGGAGE)),
        extra={k: v for k, v in texts.items() if k not in known and not k.startswith(names.HEADER_PREFIX)},
        foreign=foreign,
        failed_span=texts.get(names.REPLAY_SPAN),
        reason=reason,
        detail=detail,
    )


def _origin(entry: Entry, texts: Mapping[str, str]) -> tuple[str, str]:
    """Stream and id that the entry was first read under: its own, but for dead letters and replayed ones.

    A dead letter names both. One that was replayed into its stream names its first id, and still does as a dead letter.
    """
    stream, entry_id = texts.get(names.DLQ_STREAM), texts.get(names.DLQ_ID)
    if not (stream and entry_id and is_entry_id(entry_id)):
        stream, entry_id = entry.stream, entry.id
    first = texts.get(names.REPLAY_ID)
    return stream, first if first and is_entry_id(first) else entry_id


def is_entry_id(text: str) -> bool:
    """Whether ``text`` is a stream entry's full id, as ``1735900523456-0``."""
    return _ENTRY_ID.fullmatch(text) is not None


def _texts(fields: Sequence[bytes]) -> dict[str, str]:
    """Fields as text, but for the payload, whose bytes are read as they are. Of two of one name the first counts."""
    texts: dict[str, str] = {}
    for index in range(0, len(fields) - 1, 2):
        name = fields[index].decode(errors="backslashreplace")
        texts.setdefault(name, "" if name == names.FIELD_DATA else fields[index + 1].decode(errors="backslashreplace"))
    return texts


def _first(fields: Sequence[bytes], name: str) -> bytes | None:
    wanted = name.encode()
    for index in range(0, len(fields) - 1, 2):
        if fields[index] == wanted:
            return fields[index + 1]
    return None


def _bounded(text: str | None) -> str | None:
    return text if text and len(text) <= MAX_ID_LENGTH and text.isprintable() else None


def _payload(fields: Sequence[bytes], version: str) -> tuple[Any, bytes, str | None, str | None]:
    raw = _first(fields, names.FIELD_DATA)
    if version != str(names.WIRE_VERSION):
        detail = f"wire format version {version[:20]!r} is not {names.WIRE_VERSION}; a newer quantum_bus may read it"
        return None, raw or b"", names.REASON_UNSUPPORTED_VERSION, detail
    if raw is None:
        return None, b"", names.REASON_UNDECODABLE, f"the entry has no field {names.FIELD_DATA!r}"
    try:
        return parse_json(raw), raw, None, None
    except orjson.JSONDecodeError as error:
        return None, raw, names.REASON_UNDECODABLE, f"field {names.FIELD_DATA!r} is not JSON: {error}"


def _foreign_payload(fields: Sequence[bytes], texts: Mapping[str, str]) -> tuple[Any, bytes]:
    for name in (names.FIELD_DATA, names.FOREIGN_PAYLOAD):
        raw = _first(fields, name)
        if raw is None:
            continue
        try:
            return parse_json(raw), raw
        except orjson.JSONDecodeError:
            break
    # Without what dead-lettering and replay added, which was not the producer's.
    data = {name: text for name, text in texts.items() if name not in _ADDED_FIELDS}
    if names.FIELD_DATA in data:
        data[names.FIELD_DATA] = (_first(fields, names.FIELD_DATA) or b"").decode(errors="backslashreplace")
    return data, orjson.dumps(data)
