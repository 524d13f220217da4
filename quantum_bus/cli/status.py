"""``quantum-bus status``: every stream and group in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from quantum_bus.blocking_link import Link
from quantum_bus.cli.connection import Debug, Prefix, Streams, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_USAGE
from quantum_bus.cli.flow_tree import duration
from quantum_bus.cli.lag import as_object as lag_object
from quantum_bus.cli.terminal import wide_console
from quantum_bus.gauges import alive
from quantum_bus.inquiry import Inquiry, answered
from quantum_bus.jsonlog.escape import escaped, visible
from quantum_bus.pace import StreamPace, paces
from quantum_bus.state import BusState, GroupState, StreamState, observe


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
        if not watch:
            state, rates = _look(link, streams, prefix)
            if as_json:
                print(_text(as_object(state, rates), indent=True))
            else:
                wide_console().print(table(state, rates))
            return
        console = wide_console()
        shows = console.is_terminal and not as_json
        with Live(console=console, auto_refresh=False, screen=False, transient=False) as live:
            if not shows:
                live.stop()
            while True:
                state, rates = _look(link, streams, prefix)
                if as_json:
                    print(_text(as_object(state, rates)), flush=True)
                elif shows:
                    live.update(table(state, rates), refresh=True)
                else:
                    console.print(table(state, rates))
                time.sleep(interval)


def _look(link: Link, streams: list[str] | None, prefix: str) -> tuple[BusState, dict[str, StreamPace]]:
    return answered(look(list(wanted_streams(link, streams, prefix, scheduled=True))), link.execute)


def look(streams: list[str]) -> Inquiry[tuple[BusState, dict[str, StreamPace]]]:
    """What there is to show: four rounds of questions and one for the rates, in commands of 500 together."""
    state = yield from observe(streams)
    rates = yield from paces([stream.name for stream in state.streams], state.now)
    return state, rates


def as_object(state: BusState, rates: dict[str, StreamPace]) -> dict[str, Any]:
    """What ``--json`` prints: that of ``lag``, with rates and consumers alive."""
    told = lag_object(state)
    for shown, stream in zip(told["streams"], state.streams, strict=True):
        pace = rates.get(stream.name, StreamPace(None, {}))
        shown["per_second"] = _rounded(pace.written)
        for of_group, group in zip(shown["groups"], stream.groups, strict=True):
            of_group["per_second"] = _rounded(pace.handled.get(group.name))
            of_group["alive"] = alive(group)
    return told


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def _text(shown: object, *, indent: bool = False) -> str:
    return escaped(orjson.dumps(shown, option=orjson.OPT_INDENT_2 if indent else None)).decode()


def table(state: BusState, rates: dict[str, StreamPace]) -> Table:
    """A row for each stream, and one below it for each of its groups: entries and what is waited for in one column."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", caption_justify="left")
    made.add_column("stream, its groups", overflow="fold")
    for name in ("size/lag", "per s", "oldest", "pending", "oldest", "later", "alive", "dead"):
        made.add_column(name, justify="right", no_wrap=True)
    for stream in state.streams:
        made.add_row(*_stream_row(stream, rates.get(stream.name, StreamPace(None, {}))))
        for group in stream.groups:
            made.add_row(*_group_row(group, rates.get(stream.name, StreamPace(None, {})).handled.get(group.name)))
    groups = sum(len(stream.groups) for stream in state.streams)
    made.caption = f"{len(state.streams):,} streams, {groups:,} groups"
    if state.refused:
        made.caption += f"; Redis refused {len(state.refused):,} questions, as {state.refused[0].command}"
    return made


def _stream_row(stream: StreamState, pace: StreamPace) -> Iterator[Text]:
    yield Text(visible(stream.name), "bold")
    yield Text(_number(stream.length), "bold")
    yield Text(_rate(pace.written))
    yield from (Text(), Text(), Text())
    yield Text(_number(stream.scheduled, blank=True), "yellow" if stream.due else "")
    yield Text()
    yield Text(_number(stream.dead_letters, blank=True), "red" if stream.dead_letters else "")


def _group_row(group: GroupState, handled: float | None) -> Iterator[Text]:
    running = alive(group)
    yield Text(f"  {visible(group.name)}", "green")
    yield Text(_number(group.lag), "yellow" if group.lag else "")
    yield Text(_rate(handled))
    yield Text(_age(group.lag_age), "yellow" if group.lag_age and group.lag_age > 60 else "")
    yield Text(_number(group.pending))
    yield Text(_age(group.pending_age))
    yield Text(_number(group.scheduled, blank=True), "yellow" if group.due else "")
    yield Text(_number(running), "red" if running == 0 and (group.lag or group.pending) else "")
    yield Text()


def _number(value: int | None, *, blank: bool = False) -> str:
    if value is None:
        return "-"
    return "" if blank and not value else f"{value:,}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _age(value: float | None) -> str:
    if value is None:
        return "-"
    return duration(value) if value else ""
