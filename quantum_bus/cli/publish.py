"""``quantum-bus publish STREAM [PAYLOAD|-]``: messages from the shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Annotated, Any, Final, NoReturn

import orjson
import typer

from quantum_bus.cli.connection import Debug, Prefix, Url, connected
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail
from quantum_bus.cli.terminal import Bar
from quantum_bus.config import DEFAULT_PUBLISH_TIMEOUT
from quantum_bus.deadletters import Pace
from quantum_bus.envelope import Event
from quantum_bus.errors import ConfigurationError, PayloadTooLarge, PublishError, SerializationError
from quantum_bus.jsonlog.escape import escaped, visible
from quantum_bus.sync import EventBus

DEFAULT_SERVICE: Final = "quantum-bus-cli"
# Bytes of a line: more is no message that a bus would take, and a file without line ends would fill the memory.
LONGEST_LINE: Final = 16 * 1_048_576
_OF_EVENT: Final = ("payload", "event", "key", "correlation_id", "message_id", "headers", "delay", "dedupe")


class BadLine(Exception):
    """A line that is no message; the text says why."""


@dataclass(slots=True)
class Tally:
    """What came of the lines."""

    published: int = 0
    failed: int = 0

    def __str__(self) -> str:
        text = f"published {self.published:,} {'message' if self.published == 1 else 'messages'}"
        return f"{text}, {self.failed:,} failed" if self.failed else text


def publish(
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="Where they go.")],
    payload: Annotated[
        str, typer.Argument(metavar="[PAYLOAD|-]", help="JSON; - reads a message from each line of standard input.")
    ] = "-",
    url: Url = None,
    prefix: Prefix = "",
    event: Annotated[str | None, typer.Option(metavar="NAME", help="The event's name.")] = None,
    key: Annotated[str | None, typer.Option(metavar="TEXT", help="The ordering key.")] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="A header; may be repeated.")
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The flow they belong to.  [default: each begins one]")
    ] = None,
    message_id: Annotated[str | None, typer.Option(metavar="ID", help="The message's id; for one message.")] = None,
    delay: Annotated[float | None, typer.Option(metavar="SECONDS", help="Add them so much later.")] = None,
    dedupe: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Add one of a message id once within this window.")
    ] = None,
    events: Annotated[
        bool,
        typer.Option(
            "--events", help="Lines are objects of payload, event, key, headers, correlation_id, message_id, …"
        ),
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="PAYLOAD, or each line, is a text and no JSON.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, metavar="N", help="At most N a second.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Publish what comes behind a bad line; else that is the end.")
    ] = False,
    service: Annotated[str, typer.Option(metavar="NAME", help="Who publishes.")] = DEFAULT_SERVICE,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="How long each may take.")
    ] = DEFAULT_PUBLISH_TIMEOUT,
    debug: Debug = False,
) -> None:
    """Publish a message, or one for each line of standard input; each receipt is a JSON object on a line.

    Lines are published in order. At the first that cannot be, it ends: what was published has its receipt, and the line
    is named. Exit code 0: all are stored. 1: a line or a publish failed. 2: a wrong call, or Redis cannot be reached.
    """
    with connected("publish", url, debug=debug, unreachable=EXIT_USAGE):
        pass  # a Redis that cannot be used is told in one line, before anything is read
    try:
        given = Event(None, event, key, correlation_id, message_id, _headers(headers), delay=delay, dedupe=dedupe)
        with EventBus(url, service=service, prefix=prefix) as bus:
            if payload != "-":
                _one(bus, stream, given, payload, text=text, events=events, timeout=timeout)
                return
            if message_id is not None:
                raise ConfigurationError("--message-id names one message: give it with a PAYLOAD, or --events lines")
            if sys.stdin.isatty():
                print("reading a message from each line; Ctrl-D ends", file=sys.stderr)
            read = _as_events if events else _as_text if text else _as_json
            _all(bus, stream, given, read, Pace(rate, clock=time.monotonic), keep_going=keep_going, timeout=timeout)
    except ConfigurationError as error:
        fail(f"publish: {error}", EXIT_USAGE, error=error if debug else None)


def _headers(pairs: Sequence[str] | None) -> Mapping[str, str] | None:
    made = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ConfigurationError(f"--header {pair[:20]!a}: give NAME=VALUE, as tenant=eu-1")
        made[name] = value
    return made or None


def _one(bus: EventBus, stream: str, given: Event, payload: str, *, text: bool, events: bool, timeout: float) -> None:
    read = _as_events if events else _as_text if text else _as_json
    try:
        item = read(payload.encode(errors="surrogateescape"), given)
        print(_publish(bus, stream, item, timeout), flush=True)
    except BadLine as error:
        fail(f"publish: PAYLOAD: {error}", EXIT_USAGE)
    except (PublishError, SerializationError, PayloadTooLarge) as error:
        fail(f"publish: {error}", EXIT_FAILED)


def _publish(bus: EventBus, stream: str, item: Event, timeout: float, **more: object) -> str:
    receipt = bus.publish(
        stream,
        item.payload,
        event=item.event,
        key=item.key,
        correlation_id=item.correlation_id,
        message_id=item.message_id,
        headers=item.headers,
        delay=item.delay,
        dedupe=item.dedupe,
        timeout=timeout,
    )
    shown = more | {
        "stream": receipt.stream,
        "id": receipt.id or None,
        "message_id": receipt.message_id,
        "correlation_id": receipt.correlation_id,
    }
    return escaped(orjson.dumps(shown)).decode()


def _all(bus: EventBus, stream: str, given: Event, read: Any, pace: Pace, *, keep_going: bool, timeout: float) -> None:
    tally = Tally()
    try:
        with Bar("publishing") as bar:
            for number, line in _lines(sys.stdin.buffer):
                try:
                    item = read(line, given)
                    if (pause := pace.pause()) > 0:
                        time.sleep(pause)
                    print(_publish(bus, stream, item, timeout, line=number), flush=True)
                    tally.published += 1
                    bar.at(tally.published, None)
                except (BadLine, PublishError, SerializationError, PayloadTooLarge, ConfigurationError) as error:
                    tally.failed += 1
                    print(f"quantum-bus: publish: line {number}: {visible(str(error))}", file=sys.stderr)
                    if not keep_going:
                        _ended(f"stopped at line {number}; {tally}")
    except KeyboardInterrupt:
        fail(f"publish: stopped; {tally}", EXIT_INTERRUPTED)
    if tally.failed:
        _ended(str(tally))


def _ended(text: str) -> NoReturn:
    print(f"quantum-bus: publish: {text}", file=sys.stderr)
    sys.exit(EXIT_FAILED)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if line.strip():
            yield number, line.rstrip(b"\r\n")


# --- what a line is ------------------------------------------------------------------------------


def _as_json(line: bytes, given: Event) -> Event:
    try:
        return replace(given, payload=orjson.loads(line))
    except orjson.JSONDecodeError as error:
        hint = 'a text is written "so", with its quotes, or with --text'
        raise BadLine(f"it is not JSON: {error}; {hint}") from error


def _as_text(line: bytes, given: Event) -> Event:
    try:
        return replace(given, payload=line.decode())
    except UnicodeDecodeError as error:
        raise BadLine(f"it is not UTF-8: {error}") from error


def _as_events(line: bytes, given: Event) -> Event:
    told = _as_json(line, given).payload
    if not isinstance(told, dict) or "payload" not in told:
        raise BadLine('give an object with its payload, as {"payload": {"n": 1}, "event": "ORDER_SUBMIT"}')
    unknown = [name for name in told if name not in _OF_EVENT]
    if unknown:
        raise BadLine(f"{unknown[0][:40]!a} is none of {', '.join(_OF_EVENT)}")
    return replace(given, **told)
