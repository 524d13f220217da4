"""All commands together."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from quantum_bus.cli import demo, dlq, doctor, exporter, lag, publish, run, status, tail, trace

app = typer.Typer(
    help="An event bus on Redis Streams whose every message and log line says which flow it belongs to.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quantum-bus {metadata.version('quantum-bus')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("exporter")(exporter.exporter)
app.command("lag", epilog=lag.EPILOG)(lag.lag)
app.command("publish", epilog=publish.EPILOG)(publish.publish)
app.command("run")(run.run)
app.command("status", epilog=status.EPILOG)(status.status)
app.command("tail", epilog=tail.EPILOG)(tail.tail)
app.command("trace", epilog=trace.EPILOG)(trace.trace)
app.add_typer(dlq.app, name="dlq")
