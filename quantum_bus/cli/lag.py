"""``quantum-bus lag``: how far each group is behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from quantum_bus.cli.connection import Debug, Prefix, Streams, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE
from quantum_bus.cli.terminal import wide_console
from quantum_bus.inquiry import answered
from quantum_bus.jsonlog.escape import escaped, visible
from quantum_bus.state import BusState, GroupState, StreamState, observe


def lag(
    url: Url = None,
    streams: Streams = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="GROUP", help="Only this group; may be repeated.", show_default=False),
    ] = None,
    prefix: Prefix = "",
    max_messages: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Exit with 1 where more messages wait for a group.", show_default=False),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Exit with 1 where one has waited for longer.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Show what waits for each group, what its consumers hold, and how old it is.

    A dash stands where Redis does not tell. Exit code 0: within the limits, or none was given. 1: over one, or it is
    not known whether. 2: a wrong call, or Redis could not be asked.
    """
    with connected("lag", url, debug=debug, unreachable=EXIT_USAGE) as client, linked(client, url) as link:
        state = answered(observe(wanted_streams(link, streams, prefix)), link.execute)
    missing = [stream.name for stream in state.streams if streams and stream.exists is False]
    if groups is not None:
        missing += [name for name in groups if not any(name == group.name for _, group in _groups(state))]
        state = replace(
            state,
            streams=[
                replace(stream, groups=[group for group in stream.groups if group.name in groups])
                for stream in state.streams
            ],
        )
    if as_json:
        print(escaped(orjson.dumps(as_object(state), option=orjson.OPT_INDENT_2)).decode())
    else:
        wide_console().print(table(state))
    if max_messages is None and max_seconds is None:
        return
    over = [f"{name} is not there" for name in missing]
    for stream, group in _groups(state):
        over += (f"{stream.name} / {group.name}: {text}" for text in exceeded(group, max_messages, max_seconds))
    for text in over:
        print(f"quantum-bus: lag: {visible(text)}", file=sys.stderr)
    if over:
        sys.exit(EXIT_FAILED)


def _groups(state: BusState) -> Iterator[tuple[StreamState, GroupState]]:
    return ((stream, group) for stream in state.streams for group in stream.groups)


def exceeded(group: GroupState, max_messages: int | None, max_seconds: float | None) -> Iterator[str]:
    """Which limits a group is over. What Redis does not tell counts as over: an alarm must not sleep."""
    if max_messages is not None:
        if group.lag is None:
            yield f"how many messages wait is not known, and more than {max_messages:,} may"
        elif group.lag > max_messages:
            yield f"{group.lag:,} {'message waits' if group.lag == 1 else 'messages wait'}, over {max_messages:,}"
    if max_seconds is not None:
        if group.lag_age is None:
            yield f"how long the oldest message has waited is not known, and it may be over {max_seconds:g} s"
        elif group.lag_age > max_seconds:
            yield f"the oldest message has waited for {group.lag_age:.1f} s, over {max_seconds:g} s"


def as_object(state: BusState) -> dict[str, Any]:
    """What ``--json`` prints: ``null`` where Redis does not tell."""
    return {
        "time": state.now,
        "streams": [
            {
                "stream": stream.name,
                "length": stream.length,
                "dead_letters": stream.dead_letters,
                "scheduled": stream.scheduled,
                "groups": [_group_object(group) for group in stream.groups],
            }
            for stream in state.streams
        ],
        "refused": [f"{refusal.command} {refusal.key}: {refusal.text}" for refusal in state.refused],
    }


def _group_object(group: GroupState) -> dict[str, Any]:
    return {
        "group": group.name,
        "lag": group.lag,
        "lag_age": group.lag_age,
        "pending": group.pending,
        "pending_age": group.pending_age,
        "scheduled": group.scheduled,
        "consumers": None if group.consumers is None else len(group.consumers),
    }


def table(state: BusState) -> Table:
    """One row a group; a stream without one has a row, too."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("stream", "group"):
        made.add_column(name, overflow="fold")
    for name in ("length", "lag", "oldest", "pending", "oldest", "scheduled", "consumers", "dead"):
        made.add_column(name, justify="right", no_wrap=True)
    for stream, group in _rows(state):
        own: tuple[str, ...] = ("", "-", "", "-", "", "-", "-")
        if group is not None:
            own = (
                group.name,
                _number(group.lag),
                _seconds(group.lag_age),
                _number(group.pending),
                _seconds(group.pending_age),
                _number(group.scheduled),
                _number(None if group.consumers is None else len(group.consumers)),
            )
        made.add_row(
            Text(visible(stream.name)),
            Text(visible(own[0])),
            _number(stream.length),
            *own[1:],
            _number(stream.dead_letters),
        )
    return made


def _rows(state: BusState) -> Iterator[tuple[StreamState, GroupState | None]]:
    for stream in state.streams:
        yield from ((stream, group) for group in stream.groups or (None,))


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value else ""
