"""All commands together."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from quantum_bus.cli import demo, dlq, doctor, exporter, lag, publish, run, status, tail, trace
from quantum_bus.cli.examples import epilog

app = typer.Typer(
    help="An event bus on Redis Streams whose every message and log line says which flow it belongs to.",
    no_args_is_help=True,
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


for _command in (
    demo.demo,
    doctor.doctor,
    exporter.exporter,
    lag.lag,
    publish.publish,
    run.run,
    status.status,
    tail.tail,
    trace.trace,
):
    app.command(_command.__name__, epilog=epilog(_command.__name__))(_command)
app.add_typer(dlq.app, name="dlq")
