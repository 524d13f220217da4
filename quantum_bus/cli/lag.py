"""``quantum-bus lag``: how far each group is behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantum_bus.cli.connection import Debug, Prefix, Url, connected, full_name, make_link
from quantum_bus.discovery import discover
from quantum_bus.errors import ConfigurationError
from quantum_bus.inquiry import answered
from quantum_bus.state import BusState, GroupState, StreamState, observe


def lag(
    url: Url = None,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="NAME", help="A stream to look at; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
    prefix: Prefix = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    debug: Debug = False,
) -> None:
    """Show what waits for each group, what its consumers hold, and how old it is.

    A dash stands where Redis does not tell.
    """
    with connected("lag", url, debug=debug) as client:
        wanted = [full_name(stream, prefix) for stream in streams or ()]
        link = make_link(client, url)
        try:
            if not wanted:
                found = answered(discover(), link.execute)
                if found.refused:
                    raise ConfigurationError(
                        f"Redis does not let this user look for streams; give --stream ({found.refused})"
                    )
                wanted = [stream for stream in found.streams if stream.startswith(prefix)]
            state = answered(observe(wanted), link.execute)
        finally:
            link.close()
    if as_json:
        print(orjson.dumps(as_object(state), option=orjson.OPT_INDENT_2).decode())
    else:
        Console(highlight=False).print(table(state))


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
    made = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stream", "group"):
        made.add_column(name)
    for name in ("length", "lag", "oldest", "pending", "oldest", "scheduled", "consumers", "dead"):
        made.add_column(name, justify="right")
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
        made.add_row(Text(stream.name), Text(own[0]), _number(stream.length), *own[1:], _number(stream.dead_letters))
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
