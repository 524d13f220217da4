"""``quantum-bus lag``: how far each group is behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import orjson
import typer

from quantum_bus.cli.connection import Debug, Prefix, Streams, Url, connected, linked, wanted_streams
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE
from quantum_bus.cli.state_view import lag_object, lag_table
from quantum_bus.cli.terminal import terminal
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
        print(escaped(orjson.dumps(lag_object(state), option=orjson.OPT_INDENT_2)).decode())
    else:
        lag_table(state).show(terminal())
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
