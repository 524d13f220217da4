"""``quantum-bus status``: every stream and group in one table."""

from __future__ import annotations

import time
from typing import Annotated, NoReturn

import orjson
import typer

from quantum_bus.blocking_link import Link
from quantum_bus.cli.connection import Debug, Prefix, Streams, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_USAGE
from quantum_bus.cli.state_view import status_object, status_table
from quantum_bus.cli.terminal import terminal, wide_console
from quantum_bus.inquiry import Inquiry, answered
from quantum_bus.jsonlog.escape import escaped
from quantum_bus.pace import StreamPace, paces
from quantum_bus.state import BusState, observe


def status(
    url: Url = None,
    streams: Streams = None,
    prefix: Prefix = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="How often --watch looks.")] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON, and nothing else; with --watch one object a line.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show every stream and group: lengths, rates, lag, what is pending and how old, scheduled and dead messages.

    A dash stands where Redis does not tell. Rates are of the newest messages. Exit code 2: Redis could not be asked.
    """
    with connected("status", url, debug=debug, unreachable=EXIT_USAGE) as client, linked(client, url) as link:
        if watch:
            _watch(link, streams, prefix, interval, as_json=as_json)
        state, rates = _look(link, streams, prefix)
        if as_json:
            print(_text(status_object(state, rates), indent=True))
        else:
            status_table(state, rates).show(terminal())


def _watch(link: Link, streams: list[str] | None, prefix: str, interval: float, *, as_json: bool) -> NoReturn:
    """Look again and again, until Ctrl-C."""
    from rich.live import Live

    console = wide_console()
    shows = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False, screen=False, transient=False) as live:
        if not shows:
            live.stop()
        while True:
            state, rates = _look(link, streams, prefix)
            if as_json:
                print(_text(status_object(state, rates)), flush=True)
            elif shows:
                live.update(status_table(state, rates), refresh=True)
            else:
                status_table(state, rates).show(console)
            time.sleep(interval)


def _look(link: Link, streams: list[str] | None, prefix: str) -> tuple[BusState, dict[str, StreamPace]]:
    return answered(look(list(wanted_streams(link, streams, prefix, scheduled=True))), link.execute)


def look(streams: list[str]) -> Inquiry[tuple[BusState, dict[str, StreamPace]]]:
    """What there is to show: four rounds of questions and one for the rates, in commands of 500 together."""
    state = yield from observe(streams)
    rates = yield from paces([stream.name for stream in state.streams], state.now)
    return state, rates


def _text(shown: object, *, indent: bool = False) -> str:
    return escaped(orjson.dumps(shown, option=orjson.OPT_INDENT_2 if indent else None)).decode()
