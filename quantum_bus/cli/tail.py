"""``quantum-bus tail [STREAM…]``: messages as they come."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.text import Text

from quantum_bus.blocking_link import Link
from quantum_bus.cli import message_view
from quantum_bus.cli.connection import Debug, Prefix, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_USAGE
from quantum_bus.cli.terminal import wide_console
from quantum_bus.envelope import Entry, Incoming, decode, timestamp
from quantum_bus.errors import ConfigurationError, QuantumBusError
from quantum_bus.jsonlog.escape import escaped, visible
from quantum_bus.sightings import milliseconds_of
from quantum_bus.state import entry_id as entry_number

# How long a read waits at the server, and how many entries of each stream it takes at most.
BLOCK_MS: Final = 1_000
PAGE: Final = 50
# Seconds until streams are looked for again, where none is named.
LOOK_AGAIN: Final = 15.0
_COLOURS: Final = ("cyan", "bright_blue", "bright_magenta", "bright_cyan", "blue", "bright_green")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages are shown: those that everything given is true of."""

    events: Sequence[str] = ()
    services: Sequence[str] = ()
    correlation_ids: Sequence[str] = ()
    fields: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(
        cls,
        events: Sequence[str] | None,
        services: Sequence[str] | None,
        correlation_ids: Sequence[str] | None,
        fields: Sequence[str] | None,
    ) -> Filter:
        """Check what the command line says.

        Raises:
            ConfigurationError: a field has no value.
        """
        pairs = []
        for text in fields or ():
            name, sign, value = text.partition("=")
            if not sign or not name:
                raise ConfigurationError(f"--field {text[:40]!a}: give NAME=VALUE, as symbol=BTCUSDT")
            pairs.append((name, value))
        return cls(events or (), services or (), correlation_ids or (), pairs)

    def matches(self, message: Incoming) -> bool:
        return (
            (not self.events or message.event in self.events)
            and (not self.services or message.service in self.services)
            and (not self.correlation_ids or message.correlation_id in self.correlation_ids)
            and all(value in _values(message, name) for name, value in self.fields)
        )


def _values(message: Incoming, name: str) -> Iterator[str]:
    """What goes by a name: a field of the entry or a header, or a member of the payload, by a path with dots."""
    known = {"key": message.key, "message_id": message.message_id, "causation_id": message.causation_id}
    for found in (known.get(name), message.headers.get(name), message.extra.get(name)):
        if found is not None:
            yield found
    value: Any = message.data
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)  # of any size
    elif value is not None and not isinstance(value, (dict, list)):
        yield orjson.dumps(value).decode()


def tail(
    streams: Annotated[
        list[str] | None, typer.Argument(metavar="[STREAM]...", help="Streams to watch.  [default: all]")
    ] = None,
    url: Url = None,
    prefix: Prefix = "",
    events: Annotated[
        list[str] | None, typer.Option("--event", metavar="NAME", help="Only this event; may be repeated.")
    ] = None,
    services: Annotated[
        list[str] | None, typer.Option("--service", metavar="NAME", help="Only what this service published.")
    ] = None,
    correlation_ids: Annotated[
        list[str] | None, typer.Option("--correlation-id", metavar="ID", help="Only this flow.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="NAME=VALUE", help="Only with this in the payload (a.b=1), a header or the key."
        ),
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, metavar="N", help="First the newest N of each.")] = 0,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N messages.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    debug: Debug = False,
) -> None:
    """Show messages as they come, until Ctrl-C.

    It reads over a connection of its own and without a consumer group: nobody gets less for it. On a terminal a
    message has one line, cut at its width.
    """
    with connected("tail", url, debug=debug, unreachable=EXIT_USAGE) as client, linked(client, url) as link:
        wanted = Filter.of(events, services, correlation_ids, fields)
        console = wide_console()
        shown = 0
        for entry in _entries(link, streams, prefix, last):
            message = decode(entry)
            if wanted.matches(message):
                if as_json:
                    print(as_line(message), flush=True)
                else:
                    _print(console, message)
                shown += 1
                if count is not None and shown >= count:
                    return


def _entries(link: Link, streams: Sequence[str] | None, prefix: str, last: int) -> Iterator[Entry]:
    """Entries as they come; of each stream the newest ``last`` first."""
    after: dict[str, str] = {}
    looked: float | None = None
    while True:
        if looked is None or (not streams and time.monotonic() - looked > LOOK_AGAIN):
            found = [name for name in wanted_streams(link, streams, prefix) if name not in after]
            # of a stream that came since nothing was seen, so that all of it is new
            before, after_now = _begin(link, found, last) if looked is None else ((), dict.fromkeys(found, "0-0"))
            yield from before
            after |= after_now
            looked = time.monotonic()
        if not after:
            time.sleep(BLOCK_MS / 1000)
            continue
        reply = link.execute_one(("XREAD", "COUNT", PAGE, "BLOCK", BLOCK_MS, "STREAMS", *after, *after.values()))
        if isinstance(reply, Exception):
            raise QuantumBusError(f"Redis refused to read: {reply}")
        pages = reply.items() if isinstance(reply, Mapping) else reply or ()
        for key, entries in pages:
            name = key.decode()
            for entry_id, values in entries:
                after[name] = entry_id.decode()
                yield Entry(name, after[name], values)


def _begin(link: Link, found: Sequence[str], last: int) -> tuple[Sequence[Entry], dict[str, str]]:
    """The newest entries of each stream, by time, and the id that watching begins behind."""
    replies = link.execute(*(("XREVRANGE", name, "+", "-", "COUNT", max(1, last)) for name in found)) if found else []
    after: dict[str, str] = {}
    entries: list[Entry] = []
    for name, page in zip(found, replies, strict=True):
        if isinstance(page, Exception):
            raise QuantumBusError(f"Redis refused to read {name}: {page}")
        after[name] = page[0][0].decode() if page else "0-0"
        entries += (Entry(name, entry_id.decode(), values) for entry_id, values in page[:last])
    entries.sort(key=lambda entry: entry_number(entry.id))
    return entries, after


def _print(console: Console, message: Incoming) -> None:
    text = Text.assemble(
        (_time(message), "dim"),
        " ",
        (visible(message.stream), "magenta"),
        f" {message.id} ",
        (visible(message.event or "-"), "bold"),
        " ",
        (visible(message.service or "-"), "green"),
        " ",
        (message.correlation_id, _COLOURS[zlib.crc32(message.correlation_id.encode()) % len(_COLOURS)]),
        " ",
        visible(message.key) + " " if message.key else "",
        _payload(message),
    )
    if console.is_terminal:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, soft_wrap=True)


def _time(message: Incoming) -> str:
    try:
        return timestamp(milliseconds_of(message.id) / 1000)[11:23]
    except (ValueError, OverflowError, OSError):
        return "-" * 12


def _payload(message: Incoming) -> str:
    raw = message_view.on_one_line(message)
    try:
        return escaped(raw).decode() if message.reason is None else visible(raw.decode(errors="backslashreplace"))
    except UnicodeDecodeError:
        return visible(raw.decode(errors="backslashreplace"))


def as_line(message: Incoming) -> str:
    """One JSON object on one line."""
    shown: dict[str, Any] = {
        "stream": message.stream,
        "id": message.id,
        **message_view.fields(message),
        "undecodable": message.reason,
        "data": None if message.reason is not None else orjson.Fragment(message_view.on_one_line(message)),
    }
    return escaped(orjson.dumps(shown)).decode()
