"""How streams and their groups stand, as ``quantum-bus status`` and ``lag`` show it: in columns, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantum_bus.cli.columns import Cell, Column, Columns
from quantum_bus.cli.figures import age, number, rate
from quantum_bus.gauges import alive
from quantum_bus.jsonlog.escape import visible
from quantum_bus.pace import StreamPace
from quantum_bus.state import BusState, GroupState, StreamState

Rates = Mapping[str, StreamPace]

_UNKNOWN = StreamPace(None, {})


# --- as JSON: null where Redis does not tell -----------------------------------------------------


def lag_object(state: BusState) -> dict[str, Any]:
    """What ``lag --json`` prints."""
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


def status_object(state: BusState, rates: Rates) -> dict[str, Any]:
    """What ``status --json`` prints: that of ``lag``, with rates and consumers alive."""
    told = lag_object(state)
    for shown, stream in zip(told["streams"], state.streams, strict=True):
        pace = rates.get(stream.name, _UNKNOWN)
        shown["per_second"] = _rounded(pace.written)
        for of_group, group in zip(shown["groups"], stream.groups, strict=True):
            of_group["per_second"] = _rounded(pace.handled.get(group.name))
            of_group["alive"] = alive(group)
    return told


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


# --- the columns of lag --------------------------------------------------------------------------


def lag_table(state: BusState) -> Columns:
    """One row a group; a stream without one has a row, too."""
    figures = ("length", "lag", "oldest", "pending", "oldest", "scheduled", "consumers", "dead")
    table = Columns([Column("stream", names=True), Column("group", names=True), *map(Column, figures)])
    for stream in state.streams:
        for group in stream.groups or (None,):
            own: tuple[str, ...] = ("", "-", "", "-", "", "-", "-")
            if group is not None:
                own = (
                    visible(group.name),
                    number(group.lag),
                    _seconds(group.lag_age),
                    number(group.pending),
                    _seconds(group.pending_age),
                    number(group.scheduled),
                    number(None if group.consumers is None else len(group.consumers)),
                )
            cells = (visible(stream.name), own[0], number(stream.length), *own[1:], number(stream.dead_letters))
            table.add(*((cell, "") for cell in cells))
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value else ""


# --- the columns of status -----------------------------------------------------------------------


def status_table(state: BusState, rates: Rates) -> Columns:
    """A row for each stream, and one below it for each of its groups: entries and what is waited for in one column."""
    figures = ("size/lag", "per s", "oldest", "pending", "oldest", "later", "alive", "dead")
    table = Columns([Column("stream, its groups", names=True), *map(Column, figures)])
    for stream in state.streams:
        pace = rates.get(stream.name, _UNKNOWN)
        table.add(*_stream_row(stream, pace))
        for group in stream.groups:
            table.add(*_group_row(group, pace.handled.get(group.name)))
    groups = sum(len(stream.groups) for stream in state.streams)
    table.caption = f"{len(state.streams):,} streams, {groups:,} groups"
    if state.refused:
        table.caption += f"; Redis refused {len(state.refused):,} questions, as {state.refused[0].command}"
    return table


def _stream_row(stream: StreamState, pace: StreamPace) -> Iterator[Cell]:
    yield visible(stream.name), "bold"
    yield number(stream.length), "bold"
    yield rate(pace.written), ""
    yield from (("", ""), ("", ""), ("", ""))
    yield number(stream.scheduled, blank=True), "yellow" if stream.due else ""
    yield "", ""
    yield number(stream.dead_letters, blank=True), "red" if stream.dead_letters else ""


def _group_row(group: GroupState, handled: float | None) -> Iterator[Cell]:
    running = alive(group)
    yield f"  {visible(group.name)}", "green"
    yield number(group.lag), "yellow" if group.lag else ""
    yield rate(handled), ""
    yield age(group.lag_age), "yellow" if group.lag_age and group.lag_age > 60 else ""
    yield number(group.pending), ""
    yield age(group.pending_age), ""
    yield number(group.scheduled, blank=True), "yellow" if group.due else ""
    yield number(running), "red" if running == 0 and (group.lag or group.pending) else ""
    yield "", ""
