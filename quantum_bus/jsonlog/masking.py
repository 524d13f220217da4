"""What must not be seen in a log line, a span or a dead letter: secrets, found by name and by form.

By name: the value under a key such as ``password`` or ``X-Api-Key``, at any depth. By form, in any text: the
password of a URL, ``key=value`` and ``key: value`` pairs with such a key, bearer tokens. In doubt a word too many is
masked rather than one too few.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from .safetext import text_of

MASK: Final = "***"

# Compared with the name in lower case, without anything but letters and digits: apiKey, API_KEY and X-Api-Key are one.
_SECRET_PARTS: Final = re.compile(
    r"password|passwd|passphrase|secret|token|apikey|authorization|cookie|privatekey|accesskey|credential|"
    r"connectionstring"
)
# Too short to be looked for inside other words; these are whole words of a name.
_SECRET_WORDS: Final = frozenset({"dsn", "pwd", "pass", "jwt", "bearer", "auth"})
# Language models count in tokens; those numbers are no secret.
_TOKEN_COUNT: Final = re.compile(
    r"(?:max|min|total|prompt|completion|input|output|cached|cache|read|write|reasoning|num|new|used|remaining)+tokens|"
    r"tokens?(?:used|count|total|limit|remaining|usage|type|per[a-z]+)"
)
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NOT_ALNUM: Final = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME: Final = 256

# Each begins with a literal and repeats only what cannot begin another match: linear in the text.
_URL_PASSWORD: Final = re.compile(r"://([^\s/?#:@\"'<>\\]{0,256}):([^\s/?#\"'<>\\]+)@")
# Redis, AMQP and database URLs hold no `@` behind the host: here a `/` or `?` may be part of the password.
_STORE_PASSWORD: Final = re.compile(
    r"((?:redis|rediss|valkey|amqps?|postgres(?:ql)?|mysql|mongodb|kafka|nats)(?:\+[a-z0-9]{1,16})?://"
    r"[^\s/?#:@\"'<>\\]{0,256}):(?:(?!://)[^\s\"'<>\\])+@",
    re.IGNORECASE,
)
_URL_TOKEN: Final = re.compile(r"(https?://)[^\s/?#:@\"'<>\\]{16,}@", re.IGNORECASE)
_PAIR: Final = re.compile(
    r"((?:password|passwd|passphrase|pwd|secret|token(?!s)|api[-_ ]?key|authorization|cookie|private[-_ ]?key|"
    r"access[-_ ]?key|credentials?|\bdsn)[\w-]{0,64}\\?[\"']?\s{0,4}(?:=>|[=:])\s{0,4})"
    r"(?:b?\\?(\"|')(?:(?!\\?\2)[^\r\n])+|(?:(?:bearer|basic|digest|token)\s{1,4})?[^\s\"',;&()\[\]{}\\]+)",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"\b(bearer\s{1,4})[\w.~+/=-]{6,}", re.IGNORECASE)
_PRIVATE_KEY: Final = re.compile(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)(?:(?!-----BEGIN ).)*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)

# The quick look, at text in lower case: a seventh of the time of the patterns above. Each of them finds only what this
# finds, too.
HINT: Final = re.compile(
    r"passw|passphrase|pwd|secret|token|api[-_ ]?key|authorization|cookie|private[-_ ]?key|access[-_ ]?key|"
    r"credential|dsn|bearer|://(?:(?!://)[^\s\"])*@"
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a field, header or key of this name holds a secret, by its name alone."""
    name = name[:_LONGEST_NAME]
    flat = _NOT_ALNUM.sub("", name.lower())
    if _SECRET_PARTS.search(flat):
        return _TOKEN_COUNT.fullmatch(flat) is None
    return not _SECRET_WORDS.isdisjoint(word.lower() for word in _WORDS.findall(name))


def mask_text(text: str) -> str:
    """``text`` with the secrets it shows replaced by ``***``; the same text where it shows none.

    The host and user of a URL stay: ``redis://app:***@cache:6379/0``.
    """
    if HINT.search(text.lower()) is None:
        return text
    if "://" in text:
        text = _STORE_PASSWORD.sub(rf"\1:{MASK}@", text)
        text = _URL_PASSWORD.sub(rf"://\1:{MASK}@", text)
        text = _URL_TOKEN.sub(rf"\1{MASK}@", text)
    if "PRIVATE KEY-----" in text:
        text = _PRIVATE_KEY.sub(rf"\1{MASK}\2", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(_mask_pair, text)
    if "earer" in text or "EARER" in text:
        text = _BEARER.sub(rf"\1{MASK}", text)
    return text


def _mask_pair(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2] or ''}{MASK}"


@dataclass(frozen=True, slots=True)
class MaskedException:
    """An exception as it may be shown.

    Attributes:
        type: its class, with the module unless that is ``builtins`` (OpenTelemetry's ``exception.type``).
        message: its text, masked.
        stack: its traceback with causes, masked; empty where none was asked for.
    """

    type: str
    message: str
    stack: str


def mask_exception(exception: BaseException, *, stack: bool = True) -> MaskedException:
    """Type, message and traceback of an exception without the secrets they show; never raises."""
    kind = type(exception)
    module = getattr(kind, "__module__", None)
    name = kind.__qualname__
    if isinstance(module, str) and module != "builtins":
        name = f"{module}.{name}"
    message = mask_text(text_of(exception))
    return MaskedException(name, message, mask_text(_traceback(exception)) if stack else "")


def _traceback(exception: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(exception)).rstrip("\n")
    except Exception as error:  # noqa: BLE001 - a hostile exception must not hide the record that reports it
        return f"<traceback not available: {type(error).__name__}>"
