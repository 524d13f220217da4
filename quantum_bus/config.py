"""Options of a bus and of a subscriber: checked once, when they are given, and never again.

A value that cannot work raises :class:`ConfigurationError` at construction and says what would be right.
Durations are seconds.
"""

from __future__ import annotations

import enum
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Final, Literal
from urllib.parse import unquote_plus, urlsplit

from . import names
from .address import url_of
from .errors import ConfigurationError

SCHEMES: Final = ("redis", "rediss", "unix")
MAX_SERVICE_LENGTH: Final = 128
MAX_PORT: Final = 65_535

_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")

DEFAULT_MAX_PAYLOAD_BYTES: Final = 1_048_576
DEFAULT_CONNECT_TIMEOUT: Final = 5.0
DEFAULT_REPLY_TIMEOUT: Final = 5.0
DEFAULT_BLOCK: Final = 2.0
DEFAULT_PUBLISH_TIMEOUT: Final = 5.0
DEFAULT_STOP_TIMEOUT: Final = 30.0
DEFAULT_BACKOFF_INITIAL: Final = 0.05
DEFAULT_BACKOFF_MAXIMUM: Final = 2.0
# Of a Redis that is near 95 of 100 replies come in 60 % of it.
DEFAULT_BUSY_POLL: Final = 0.0001
LONGEST_BUSY_POLL: Final = 0.01
DEFAULT_COMPLETED: Final = 10_000
DEFAULT_KEEP: Final = 10_000
DEFAULT_CAP: Final = 1_000_000
# The longest that the index of flows may reach back, seconds: a reader asks for each hour.
LONGEST_INDEX: Final = 604_800.0

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class State(enum.Enum):
    """Where a bus is in its life; it goes one way only."""

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    CLOSED = "closed"


TraceMode = Literal["continue", "link"]
Start = Literal["beginning", "new"]
Jitter = Literal["full", "none"]
ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


def _positive(name: str, value: float, *, zero: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value >= 0 if zero else value > 0) or value == float("inf"):
        raise ConfigurationError(f"{name}={value!r}: give a finite number {'of 0 or more' if zero else 'above 0'}")


def _count(name: str, value: int, *, zero: bool = False) -> None:
    least = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name}={value!r}: give a whole number of {least} or more")


def _index(seconds: float | None) -> None:
    if seconds is None:
        return
    _positive("index", seconds)
    if seconds > LONGEST_INDEX:
        raise ConfigurationError(f"index={seconds!r}: give at most {LONGEST_INDEX:,.0f} seconds, a week")


def _encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{name}={text!a}: give text that UTF-8 can carry, without lone surrogates") from error


def _error_types(name: str, types: ErrorTypes) -> None:
    listed = types if isinstance(types, tuple) else (types,)
    if not all(isinstance(t, type) and issubclass(t, BaseException) for t in listed):
        raise ConfigurationError(f"{name}={types!r}: give an exception class or a tuple of them")


_SECRET_OPTION: Final = re.compile("pass|pwd|secret|token|auth|cred", re.IGNORECASE)


def masked_url(url: str) -> str:
    """The URL as it may be shown, whatever is wrong with it: its password replaced by ``***``. Never raises.

    A password that lacks its percent-encoding (``/``, ``?``, ``#``, ``@``) is not shown as what it looks like: up to
    the last ``@`` all is user and password, and where that stands behind a ``?`` or ``#``, nothing is shown. Hidden
    as well: a user alone, often a password without its colon; all from what stands in a port's place and is none; a
    query from its first secret on; a fragment.
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, rest = "", url
    credentials, at, rest = rest.rpartition("@")
    if "?" in credentials or "#" in credentials:
        return f"{scheme}{slashes}***"
    user, colon, _ = credentials.partition(":")
    shown_user = f"{user}:" if colon and "/" not in user else ""
    rest, fragment_mark, _ = rest.partition("#")
    address, query_mark, query = rest.partition("?")
    host, slash, path = address.partition("/")
    masked = f"{scheme}{slashes}{shown_user}***@" if at else scheme + slashes
    bracketed, bracket, after = host.rpartition("]") if host.startswith("[") else ("", "", host)
    name, port_mark, port = after.partition(":")
    name = bracketed + bracket + name
    if port_mark and not (name and port.isdecimal()):
        return f"{masked}{name}:***"
    return f"{masked}{host}{slash}{path}{query_mark}{_masked_query(query)}{fragment_mark and '#***'}"


def _masked_query(query: str) -> str:
    shown = []
    for pair in query.split("&") if query else ():
        name, sign, _ = pair.partition("=")
        if not sign or _SECRET_OPTION.search(unquote_plus(name)):
            shown.append(f"{name}=***" if sign else "***")
            break
        shown.append(pair)
    return "&".join(shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a failed handler runs again.

    The delay before attempt ``n + 1`` is ``min(maximum, initial * multiplier ** (n - 1))``; with full jitter
    a uniformly random share of it (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Attributes:
        max_attempts: handler runs in all, the first one included; after the last the message is dead-lettered.
        initial: delay after the first failure, in seconds; 0 runs again at once.
        maximum: longest delay, in seconds.
        multiplier: growth from one delay to the next, 1 or more.
        jitter: ``"full"`` or ``"none"``.
        retry_on: only these errors are retried; the others are dead-lettered at once.
        give_up_on: these errors are dead-lettered at once, even where ``retry_on`` names them.
    """

    max_attempts: int = 5
    initial: float = 0.5
    maximum: float = 300.0
    multiplier: float = 2.0
    jitter: Jitter = "full"
    retry_on: ErrorTypes = Exception
    give_up_on: ErrorTypes = ()

    def __post_init__(self) -> None:
        _count("max_attempts", self.max_attempts)
        _positive("initial", self.initial, zero=True)
        _positive("maximum", self.maximum, zero=True)
        number = isinstance(self.multiplier, (int, float)) and not isinstance(self.multiplier, bool)
        if not number or not 1 <= self.multiplier < float("inf"):
            raise ConfigurationError(f"multiplier={self.multiplier!r}: give a finite number of 1 or more")
        if self.jitter not in ("full", "none"):
            raise ConfigurationError(f"jitter={self.jitter!r}: give 'full' or 'none'")
        _error_types("retry_on", self.retry_on)
        _error_types("give_up_on", self.give_up_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When a subscriber stops for an outage of what its handlers need, instead of using up its messages' attempts.

    Where in the last ``window`` seconds at least ``minimum`` runs ended and the share ``failure_rate`` of them failed,
    the subscriber takes no message for ``pause`` seconds. Then it runs one, as a probe: if that works it goes on; if it
    fails it pauses again, twice as long each time. A probe that fails uses up no attempt.

    Attributes:
        failure_rate: share of failed runs at which it opens, above 0, at most 1.
        window: seconds that it looks back.
        minimum: runs in the window before their rate counts.
        pause: first pause, in seconds.
        maximum: longest pause, in seconds.
        trip_on: only these errors count as failures; :class:`~quantum_bus.Reject` never does.
        ignore: these do not, even where ``trip_on`` names them.
    """

    failure_rate: float = 0.5
    window: float = 30.0
    minimum: int = 10
    pause: float = 5.0
    maximum: float = 60.0
    trip_on: ErrorTypes = Exception
    ignore: ErrorTypes = ()

    def __post_init__(self) -> None:
        number = isinstance(self.failure_rate, (int, float)) and not isinstance(self.failure_rate, bool)
        if not number or not 0 < self.failure_rate <= 1:
            raise ConfigurationError(f"failure_rate={self.failure_rate!r}: give a share above 0 and at most 1, as 0.5")
        _positive("window", self.window)
        _count("minimum", self.minimum)
        _positive("pause", self.pause)
        _positive("maximum", self.maximum)
        if self.maximum < self.pause:
            raise ConfigurationError(f"maximum={self.maximum!r}: give at least the first pause, {self.pause!r}")
        _error_types("trip_on", self.trip_on)
        _error_types("ignore", self.ignore)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusConfig:
    """What a bus was told; see :class:`quantum_bus.EventBus` for the meaning of each option.

    ``url`` is None where the caller hands in a client of its own.
    """

    url: str | None = field(repr=False)  # it may hold a password
    service: str
    prefix: str = ""
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    reply_timeout: float = DEFAULT_REPLY_TIMEOUT
    block: float = DEFAULT_BLOCK
    sampled: bool = True
    send_baggage: bool = True
    backoff_initial: float = DEFAULT_BACKOFF_INITIAL
    backoff_maximum: float = DEFAULT_BACKOFF_MAXIMUM
    busy_poll: float = DEFAULT_BUSY_POLL
    completed: int = DEFAULT_COMPLETED
    keep: int | None = DEFAULT_KEEP
    cap: int = DEFAULT_CAP
    index: float | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            _check_url(self.url)
        if not isinstance(self.service, str) or not self.service.strip():
            raise ConfigurationError(
                f"service={self.service!r}: name the service, as service='auto_executor' or in {names.ENV_SERVICE}"
            )
        if not self.service.isprintable() or len(self.service) > MAX_SERVICE_LENGTH:
            raise ConfigurationError(
                f"service={self.service[:40]!a}: give 1 to {MAX_SERVICE_LENGTH} printable characters, "
                "as 'auto_executor'"
            )
        if not isinstance(self.prefix, str):
            raise ConfigurationError(f"prefix={self.prefix!r}: give a str, for example 'staging:'")
        if self.prefix:
            _encodable("prefix", self.prefix)
        _count("max_payload_bytes", self.max_payload_bytes)
        _count("completed", self.completed, zero=True)
        if self.keep is not None:
            _count("keep", self.keep, zero=True)
        _count("cap", self.cap)
        if self.keep is not None and self.cap <= self.keep:
            raise ConfigurationError(f"cap={self.cap!r}: give more than keep, which is {self.keep!r}")
        _index(self.index)
        for option in ("sampled", "send_baggage"):
            if not isinstance(getattr(self, option), bool):
                raise ConfigurationError(f"{option}={getattr(self, option)!r}: give True or False")
        for option in ("connect_timeout", "reply_timeout", "block", "backoff_initial", "backoff_maximum"):
            _positive(option, getattr(self, option))
        _positive("busy_poll", self.busy_poll, zero=True)
        if self.busy_poll > LONGEST_BUSY_POLL:
            raise ConfigurationError(
                f"busy_poll={self.busy_poll!r}: give at most {LONGEST_BUSY_POLL} seconds, for it keeps a processor "
                f"busy; {DEFAULT_BUSY_POLL:f} is usual, and 0 never looks"
            )

    @classmethod
    def resolve(
        cls,
        url: str | None,
        service: str | None,
        *,
        has_client: bool,
        env: Mapping[str, str] | None = None,
        **options: object,
    ) -> BusConfig:
        """Fill in what the caller left out from the environment.

        Raises:
            ConfigurationError: no URL or no service is to be found, or an option cannot work.
        """
        known = [f.name for f in fields(cls) if f.name not in ("url", "service")]
        for option in options:
            if option not in known:
                near = get_close_matches(option, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ConfigurationError(f"{option}: the bus has no such option; {hint}")
        env = os.environ if env is None else env
        if has_client and url is not None:
            raise ConfigurationError("give either a url or a client, not both")
        if not has_client and url is None:
            url = url_of(env)
            if not url:
                raise ConfigurationError(
                    f"no Redis to talk to: EventBus('redis://localhost:6379/0'), or set {names.ENV_URL}"
                )
        if service is None:
            service = env.get(names.ENV_SERVICE) or env.get(names.ENV_OTEL_SERVICE)
            if not service:
                raise ConfigurationError(
                    f"the service has no name: EventBus(…, service='auto_executor'), or set {names.ENV_SERVICE}"
                )
        return cls(url=url, service=service, **options)  # type: ignore[arg-type]  # __post_init__ checks each


def _check_url(url: str) -> None:
    right = "a right one is 'redis://localhost:6379/0'"
    if not isinstance(url, str):
        raise ConfigurationError(f"url is of type {type(url).__name__}: give a str; {right}")
    shown = f"url={masked_url(url)!a}"
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigurationError(f"{shown} does not begin with one of {schemes}; {right}")
    if not url.isprintable() or " " in url:
        raise ConfigurationError(f"{shown} holds a space or a character that cannot be printed; {right}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # whose own text, and so the cause, may hold the password
        raise ConfigurationError(
            f"{shown} cannot be read: behind host and colon comes a port of 1 to 65535, and a password with one of "
            f"/ ? # @ : must be percent-encoded; {right}"
        ) from None
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not parts.path:
            raise ConfigurationError(f"{shown}: the socket's path comes behind three slashes, 'unix:///run/redis.sock'")
        return
    if not parts.hostname:
        raise ConfigurationError(f"{shown} names no host; {right}")
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdecimal()):
        raise ConfigurationError(f"{shown}: the database behind the slash is a number; {right}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberConfig:
    """What a subscriber was told; see :meth:`quantum_bus.EventBus.subscriber`. ``streams`` carry the bus's prefix."""

    streams: tuple[str, ...]
    group: str
    batch: int = 1
    concurrency: int = 16
    ack_wait: float = 30.0
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    start: Start = "beginning"
    trace_mode: TraceMode = "continue"
    idempotent: float | None = None
    breaker: Breaker | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        if not self.streams:
            raise ConfigurationError("a subscriber needs a stream: @bus.subscriber('orders')")
        for stream in self.streams:
            check_stream(stream)
        if len(set(self.streams)) != len(self.streams):
            raise ConfigurationError(f"streams={self.streams!r}: name each stream once")
        if not isinstance(self.group, str) or not self.group:
            raise ConfigurationError(f"group={self.group!r}: give the consumer group's name")
        _encodable("group", self.group)
        _count("batch", self.batch)
        _count("concurrency", self.concurrency)
        _positive("ack_wait", self.ack_wait)
        if self.timeout is not None:
            _positive("timeout", self.timeout)
        if self.idempotent is not None:
            _positive("idempotent", self.idempotent)
        if not isinstance(self.retry, Retry):
            raise ConfigurationError(f"retry={self.retry!r}: give a Retry, as Retry(max_attempts=3)")
        if self.breaker is not None and not isinstance(self.breaker, Breaker):
            raise ConfigurationError(f"breaker={self.breaker!r}: give a Breaker, as Breaker()")
        if self.start not in ("beginning", "new"):
            raise ConfigurationError(f"start={self.start!r}: give 'beginning' or 'new'")
        if self.trace_mode not in ("continue", "link"):
            raise ConfigurationError(f"trace_mode={self.trace_mode!r}: give 'continue' or 'link'")
        if not isinstance(self.ordered, bool):
            raise ConfigurationError(f"ordered={self.ordered!r}: give True or False")


def check_timeout(timeout: float) -> None:
    """Refuse what is no timeout.

    Raises:
        ConfigurationError: it is no finite number above 0.
    """
    _positive("timeout", timeout)


STOP_IN_A_HANDLER: Final = (
    "stop() in a handler would wait for that handler: call request_stop() where the bus is in run(), else stop() from "
    "elsewhere"
)


def check_stop_timeout(timeout: float) -> None:
    """Refuse what is no time to drain.

    Raises:
        ConfigurationError: it is no finite number of 0 or more.
    """
    _positive("timeout", timeout, zero=True)


def check_address(name: str, address: str) -> tuple[str, int]:
    """The host and the port of an address to listen on; port 0 takes a free one.

    Raises:
        ConfigurationError: it is no HOST:PORT.
    """
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= len("65535") else -1
    if not colon or not _HOST.fullmatch(host) or (":" in host and not bracketed) or not 0 <= number <= MAX_PORT:
        raise ConfigurationError(f"{name}={address!r}: give an address and a port, as '127.0.0.1:8080' or '[::1]:8080'")
    return host, number


def check_replicas(wait_replicas: int | None) -> None:
    """Refuse what is no number of replicas to wait for; None waits for none.

    Raises:
        ConfigurationError: it is no whole number of 1 or more.
    """
    if wait_replicas is not None:
        _count("wait_replicas", wait_replicas)


def check_stream(stream: str) -> None:
    """Refuse what cannot be a stream's name.

    Side keys must hash to the stream's own cluster slot, as ``{name}:dlq``. That works for a name without
    braces, and for one with a hash tag of its own; not for one whose braces hold no tag.

    Raises:
        ConfigurationError: the name is empty, no str, or has braces that are no hash tag.
    """
    if not isinstance(stream, str) or not stream:
        raise ConfigurationError(f"stream={stream!r}: give a stream's name, as 'orders'")
    _encodable("stream", stream)
    if ("{" in stream or "}" in stream) and hash_tag(stream) is None:
        raise ConfigurationError(
            f"stream={stream!r} has braces that are no Redis hash tag; leave them out, or write a tag as 'orders{{eu}}'"
        )


def hash_tag(key: str) -> str | None:
    """The part of a key that decides its cluster slot, or None where the whole key does.

    Source: Redis Cluster specification, "Hash tags": what stands between the first ``{`` and the first ``}`` after
    it, if that is not empty.
    """
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return tag if opened and closed and tag else None
