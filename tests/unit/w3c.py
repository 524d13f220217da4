"""What W3C Trace Context and W3C Baggage allow to be sent, checked letter by letter.

Written apart from `quantum_bus.propagation`, without a regular expression, so that one mistake is not made twice.
"""

import string
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

HEX = frozenset(string.digits + "abcdef")
LOWER = frozenset(string.ascii_lowercase)
KEY_CHARS = LOWER | frozenset(string.digits + "_-*/")
TOKEN_CHARS = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
BAGGAGE_CHARS = frozenset(chr(n) for n in range(0x21, 0x7F)) - frozenset('",;\\')
STATE_CHARS = frozenset(chr(n) for n in range(0x20, 0x7F)) - frozenset(",=")
CORRELATION_CHARS = frozenset(string.ascii_letters + string.digits + "._:-")


def only(text: str, allowed: Iterable[str]) -> bool:
    return set(text) <= set(allowed)


def is_traceparent(text: str) -> bool:
    """As a sender of version 00 may write it: no flags but sampled and random."""
    parts = text.split("-")
    return (
        [len(part) for part in parts] == [2, 32, 16, 2]
        and all(only(part, HEX) for part in parts)
        and parts[0] == "00"
        and set(parts[1]) != {"0"}
        and set(parts[2]) != {"0"}
        and parts[3] in ("00", "01", "02", "03")
    )


def is_state_key(key: str) -> bool:
    tenant, at, system = key.partition("@")
    if not at:
        return 1 <= len(key) <= 256 and key[0] in LOWER and only(key, KEY_CHARS)
    return (
        1 <= len(tenant) <= 241
        and 1 <= len(system) <= 14
        and tenant[0] in LOWER | set(string.digits)
        and system[0] in LOWER
        and only(tenant, KEY_CHARS)
        and only(system, KEY_CHARS)
    )


def is_tracestate(text: str) -> bool:
    members = [member.split("=") for member in text.split(",")]
    return (
        len(text) <= 512
        and len(members) <= 32
        and all(len(member) == 2 for member in members)
        and all(is_state_key(key) for key, _ in members)
        and all(1 <= len(value) <= 256 and only(value, STATE_CHARS) and value[-1] != " " for _, value in members)
        and len({key for key, _ in members}) == len(members)
    )


def has_controls(encoded: str) -> bool:
    decoded = unquote_to_bytes(encoded).decode(errors="replace")
    return any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in decoded)


def is_pair(text: str, *, value_needed: bool) -> bool:
    key, sign, value = text.partition("=")
    key, value = key.strip(" \t"), value.strip(" \t")
    return bool(key) and only(key, TOKEN_CHARS) and only(value, BAGGAGE_CHARS) and (bool(sign) or not value_needed)


def is_baggage(text: str) -> bool:
    """As a sender may write it."""
    members = [member.split(";") for member in text.split(",")]
    return (
        text.isascii()
        and len(text) <= 8192
        and len(members) <= 64
        and all(is_pair(first, value_needed=True) for first, *_ in members)
        and all(is_pair(prop, value_needed=False) for _, *properties in members for prop in properties)
    )


def is_correlation_id(text: str) -> bool:
    return 1 <= len(text) <= 128 and only(text, CORRELATION_CHARS)
