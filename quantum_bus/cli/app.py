"""All commands together."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module, metadata
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from quantum_bus.cli.examples import epilog

# As `--help` lists them; each is a function of its name, or a Typer `app`, in a module of its name.
NAMES: Final = ("demo", "doctor", "exporter", "lag", "publish", "run", "status", "tail", "trace", "dlq")


class _Commands(UserDict[str, Any]):
    """Commands by their names; one's module is imported when it is asked for.

    A command loads what it needs itself, and not what the others do, which is 70 ms of each start.
    """

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = _load(name)
        return self.data[name]


def _load(name: str) -> Any:
    module = import_module(f"quantum_bus.cli.{name}")
    found = getattr(module, "app", None)
    if found is None:
        found = typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name, epilog=epilog(name))(getattr(module, name))
    command = typer.main.get_command(found)
    command.name = name
    return command


class _Group(TyperGroup):
    """The program itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands(dict.fromkeys(NAMES))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - theirs loads each one to tell its name
        """The names."""
        return list(self.commands)


app = typer.Typer(
    cls=_Group,
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
