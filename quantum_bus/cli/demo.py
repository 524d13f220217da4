"""``quantum-bus demo``: one intent through three services, under one correlation id."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from quantum_bus import names
from quantum_bus.address import url_of
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_USAGE, fail
from quantum_bus.cli.flow_tree import Branch, draw, logged, sent
from quantum_bus.cli.flow_tree import Step as Line
from quantum_bus.demo.flow import Flow, Hop, StreamEntry
from quantum_bus.demo.run import DEFAULT_INTENTS, DemoError, Result, run_demo
from quantum_bus.demo.supervisor import StopRequested, StopSignals
from quantum_bus.demo.trading import CONSUMERS, INTENT_STREAM
from quantum_bus.errors import ConfigurationError

# Shells report a program that was ended by a signal so.
EXIT_SIGNAL_BASE = 128


def demo(
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the log files go.")] = Path(".quantum"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"A running Redis.  [default: {names.ENV_URL}, else one is started]",
            show_default=False,
        ),
    ] = None,
    intents: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many intents.")] = DEFAULT_INTENTS,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Send intents through three services and follow one of them.

    ai_engine, auto_executor and portfolio run as processes of their own, on a Redis that is started for them, and are
    all gone when the command returns.
    """
    console = Console(highlight=False)
    progress = Console(stderr=True, highlight=False)
    with StopSignals() as signals:
        try:
            with progress.status("…") as status:
                result = run_demo(
                    folder,
                    url=url or url_of(os.environ),
                    signals=signals,
                    intents=intents,
                    say=lambda text: status.update(f"{text} …"),
                )
        except ConfigurationError as error:
            fail(f"demo: {error}", EXIT_USAGE, error=error if debug else None)
        except DemoError as error:
            fail(f"demo: {error}", EXIT_FAILED, error=error if debug else None)
        except StopRequested as stop:
            fail(f"demo: stopped by {stop}; no process is left", EXIT_SIGNAL_BASE + stop.number)
    if as_json:
        print(orjson.dumps(as_object(result), option=orjson.OPT_INDENT_2).decode())
    else:
        show(result, console)


def as_object(result: Result) -> dict[str, object]:
    """What ``--json`` prints."""
    return {
        "correlation_id": result.flow.correlation_id,
        "duration_ms": result.flow.duration_ms,
        "services": {name: {"lines": sum(own.values()), "events": own} for name, own in result.counts.items()},
        "files": {name: str(path) for name, path in result.files.items()},
        "streams": {
            stream: {
                "entries": sum(entry.stream == stream for entry in result.entries),
                "of_flow": [entry.id for entry in _of_flow(result) if entry.stream == stream],
            }
            for stream in CONSUMERS
        },
        "entries_file": str(result.entries_file),
        "redis": result.redis,
        "flow": _hop_object(result.flow.first),
    }


def _hop_object(hop: Hop) -> dict[str, object]:
    return {
        "service": hop.service,
        "waited_ms": hop.waited_ms,
        "steps": [
            {"offset_ms": step.offset_ms, "event": step.event, "text": step.text, "stream": step.stream}
            for step in hop.steps
        ],
        "next": [_hop_object(following) for following in hop.next],
    }


def _of_flow(result: Result) -> list[StreamEntry]:
    wanted = result.flow.correlation_id
    return [entry for entry in result.entries if entry.fields.get(names.FIELD_CORRELATION_ID) == wanted]


# --- for people ----------------------------------------------------------------------------------


def show(result: Result, console: Console) -> None:
    """The flow as a tree, the counts, and where to look."""
    console.print()
    console.print(f"One intent through three services, in [bold]{result.flow.duration_ms:.1f} ms[/]:")
    console.print()
    console.print(flow_tree(result.flow))
    console.print()
    console.print(counts_table(result))
    console.print()
    for line in _where_to_look(result):
        console.print(line, soft_wrap=True)


def flow_tree(flow: Flow) -> Tree:
    """One branch a service; times are milliseconds since the flow began."""
    return draw(Text.assemble("correlation_id ", (flow.correlation_id, "bold cyan")), [_branch(flow.first)])


def _branch(hop: Hop) -> Branch:
    waited = "" if hop.waited_ms is None else f"  {hop.waited_ms:.1f} ms after it was sent"
    following = list(hop.next)
    steps = []
    for step in hop.steps:
        sends = step.stream is not None
        text = sent(step.stream or "", step.text) if sends else logged(step.event, step.text)
        below = [_branch(following.pop(0))] if step.stream in CONSUMERS and following else []
        steps.append(Line(step.offset_ms / 1000, text, below))
    return Branch(hop.service, Text(waited, "dim"), steps)


def counts_table(result: Result) -> Table:
    """What every service has logged."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("service")
    table.add_column("lines", justify="right")
    table.add_column("of which")
    for service, own in result.counts.items():
        # What the bus and the set-up say of themselves is not what a service is there for.
        shown = [f"{event} {count}" for event, count in own.items() if not event.startswith(("BUS_", "SERVICE_"))]
        table.add_row(Text(service, "bold green"), str(sum(own.values())), Text(", ".join(shown)))
    return table


def _where_to_look(result: Result) -> list[str]:
    found = result.flow.correlation_id
    logs = result.entries_file.parent / "logs"
    quoted = shlex.quote(str(logs))
    query = f"jq -r 'select(.correlation_id == \"{found}\") | [.ts, .service, .event, .msg] | @tsv'"
    lines = [
        "[dim]log files, one a service:[/]",
        *(f"  {escape(str(path))}" for path in result.files.values()),
        "[dim]both streams' entries:[/]",
        f"  {escape(str(result.entries_file))}",
        "[dim]look yourself:[/]",
        f"  grep -h {found} {escape(quoted)}/*.jsonl | sort",
        f"  {escape(query)} {escape(quoted)}/*.jsonl | sort",
    ]
    if result.own_redis:
        lines.append(
            "[dim]The Redis was the demo's own and has ended with it. To look into the streams, name one that runs:[/]"
        )
        lines.append(f"  make demo {names.ENV_URL}=redis://localhost:6379/0")
        lines.append(f"  redis-cli -u redis://localhost:6379/0 XRANGE {INTENT_STREAM} - +")
    else:
        first = next((entry.id for entry in result.entries if entry.stream == INTENT_STREAM), "-")
        lines.append(f"  redis-cli -u {escape(result.redis)} XRANGE {INTENT_STREAM} {first} +")
        lines.append("[dim]The entries stay in your Redis; the demo's consumer groups are removed.[/]")
    return lines
