"""``quantum-bus trace ID``: what happened to this id?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from quantum_bus.assembly import build
from quantum_bus.blocking_link import Link
from quantum_bus.cli import trace_view as view
from quantum_bus.cli.connection import Debug, Prefix, Streams, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE
from quantum_bus.cli.log_lines import LOKI_BACK, from_files, from_loki
from quantum_bus.cli.terminal import Bar, wide_console
from quantum_bus.deadletters import seconds
from quantum_bus.errors import ConfigurationError, QuantumBusError
from quantum_bus.flow import Flow, LogLine
from quantum_bus.found import Bounds, Found
from quantum_bus.inquiry import answered
from quantum_bus.jsonlog.escape import escaped, visible
from quantum_bus.search import Search
from quantum_bus.sightings import seconds_of
from quantum_bus.wanted import Wanted

# While following: how long a read waits, how many entries of a stream it takes, seconds until all is looked at again.
BLOCK_MS: Final = 1_000
FOLLOW_COUNT: Final = 500
REFRESH: Final = 1.0
# Log lines may be of a little before and after what is in Redis, seconds.
LINES_AROUND: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lines:
    """Where log lines come from."""

    files: Sequence[Path]
    loki: str | None

    def of(self, wanted: str, found: Found) -> list[LogLine]:
        """The flows' lines; those of the id itself where Redis knows nothing of it."""
        ids = found.correlation_ids or [wanted]
        lines = from_files(self.files, ids)
        if self.loki is not None:
            times = [moment for moment in _times(found) if moment is not None]
            began = min(times) - LINES_AROUND if times else found.now - LOKI_BACK
            lines += from_loki(self.loki, ids, began, found.now + LINES_AROUND)
        return lines


def _times(found: Found) -> Iterable[float | None]:
    yield from (seconds_of(seen.message.ts) for seen in found.sightings)
    yield from (run.started for run in found.runs)


def trace(
    wanted_id: Annotated[
        str, typer.Argument(metavar="ID", help="A correlation, trace, message, entry or order id; or a traceparent.")
    ],
    more_logs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Further files of --logs, as a shell makes them of logs/*.jsonl."),
    ] = None,
    url: Url = None,
    streams: Streams = None,
    prefix: Prefix = "",
    since: Annotated[
        str | None,
        typer.Option(metavar="AGE|TIME", help="Look at nothing older: 15m, 2h, 7d, or 2026-01-03T10:15:00Z."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="AGE|TIME", help="Look at nothing newer.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Read the whole streams, not only the times around what is found.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, and show what comes.")] = False,
    logs: Annotated[
        list[Path] | None,
        typer.Option("--logs", metavar="FILE", help="JSON log lines to put in, - for standard input; may be repeated."),
    ] = None,
    loki: Annotated[
        str | None, typer.Option(metavar="URL", help="Put in the lines that Loki has, as http://localhost:3100.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Show what happened to an id: who published what, who handled it, when, how often, and what came of it.

    It asks Redis alone, and only reads. Exit code 0: found. 1: nothing is known of the id. 2: a wrong call, or Redis
    could not be asked.
    """
    with connected("trace", url, debug=debug, unreachable=EXIT_USAGE) as client, linked(client, url) as link:
        wanted = Wanted.of(wanted_id)
        now = time.time()
        bounds = Bounds(_moment("--since", since, now), _moment("--until", until, now), everything)
        names = wanted_streams(link, streams, prefix, scheduled=True)
        if more_logs and not logs:
            raise ConfigurationError(f"{str(more_logs[0])[:40]!a}: behind the ID come files of --logs alone")
        lines = Lines([*(logs or ()), *(more_logs or ())], loki)
        with Bar("reading") as bar:
            search = Search(wanted, names, bounds, progress=bar.at)
            found = answered(search.run(), link.execute)
        flow = _flow(wanted, found, lines)
        if follow:
            _follow(wanted, search, found, lines, link, as_json=as_json)
        if as_json:
            print(_as_text(view.as_object(wanted.text, flow, found, everything=everything), indent=True))
        else:
            _show(wanted, flow, found, wide_console(), everything=everything)
    if not flow.messages and not flow.roots:
        sys.exit(EXIT_FAILED)


def _flow(wanted: Wanted, found: Found, lines: Lines) -> Flow:
    return build(found.sightings, found.runs, found.standings, lines.of(wanted.text, found), matched=found.matched)


def _show(wanted: Wanted, flow: Flow, found: Found, console: Console, *, everything: bool) -> None:
    notes = list(view.left_out(found, everything=everything))
    if not flow.messages and not flow.roots:
        read = sum(looked.entries for looked in found.looked)
        told = f"nothing is known of {visible(wanted.text)}: {read:,} entries of {len(found.looked)} streams were read"
        console.print(Text(told), soft_wrap=True)
    else:
        console.print(view.summary(flow), soft_wrap=True)
        console.print(view.tree(flow, found.now))
    if notes:
        console.print(Text("not looked at:", "dim"))
        for note in notes:
            console.print(Text(f"  {note}", "dim"), soft_wrap=True)


def _as_text(shown: object, *, indent: bool = False) -> str:
    return escaped(orjson.dumps(shown, option=orjson.OPT_INDENT_2 if indent else None)).decode()


def _moment(option: str, text: str | None, now: float) -> int | None:
    """``2h`` ago, or an RFC 3339 time, in milliseconds since 1970.

    Raises:
        ConfigurationError: it is neither.
    """
    if text is None:
        return None
    exact = seconds_of(text)
    if exact is not None:
        return int(exact * 1000)
    try:
        return int((now - seconds(text)) * 1000)
    except ConfigurationError:
        raise ConfigurationError(
            f"{option}={text[:40]!a}: give an age, as 15m, 2h or 7d, or a time with its zone, as 2026-01-03T10:15:00Z"
        ) from None


def _follow(wanted: Wanted, search: Search, found: Found, lines: Lines, link: Link, *, as_json: bool) -> None:
    """Show the flow, and what comes of it, until Ctrl-C."""
    console = wide_console()
    told: set[str] = set()

    def drawn() -> Group:
        flow = _flow(wanted, found, lines)
        if not flow.messages and not flow.roots:
            return Group(Text(f"waiting for {visible(wanted.text)} …", "dim"))
        return Group(view.summary(flow), view.tree(flow, found.now))

    def tell() -> None:
        flow = _flow(wanted, found, lines)
        for fact in view.facts(flow):
            if fact["text"] not in told:
                told.add(fact["text"])
                print(_as_text(fact) if as_json else fact["text"], flush=True)

    live = Live(drawn(), console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    if live is not None:
        live.start()
    try:
        looked = time.monotonic()
        while True:
            if live is not None:
                live.update(drawn(), refresh=True)
            else:
                tell()
            changed = False
            while not changed and time.monotonic() - looked < REFRESH:
                reply = link.execute_one(search.next_read(count=FOLLOW_COUNT, block_ms=BLOCK_MS))
                if isinstance(reply, Exception):
                    raise QuantumBusError(f"Redis refused to be followed: {reply}")
                changed = search.take(reply)
            found = answered(search.refresh(), link.execute)
            looked = time.monotonic()
    finally:
        if live is not None:
            with suppress(BrokenPipeError):
                live.stop()
