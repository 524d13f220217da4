"""``quantum-bus run MODULE:BUS``: a service, from the bus in a module."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, Literal

import typer

from quantum_bus import names
from quantum_bus.bus import EventBus
from quantum_bus.cli import USUAL, collect_as_a_service
from quantum_bus.cli.ending import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail
from quantum_bus.config import DEFAULT_STOP_TIMEOUT, check_address
from quantum_bus.errors import ConfigurationError, QuantumBusError
from quantum_bus.jsonlog import get_logger, setup_json_logging
from quantum_bus.sync import EventBus as SyncEventBus

AnyBus = EventBus | SyncEventBus
BUSES: Final = (EventBus, SyncEventBus)


class LogFormat(StrEnum):
    """How a service's log is written."""

    JSON = "json"
    TEXT = "text"
    NONE = "none"


class TargetError(Exception):
    """What was named is not a bus; the text says what is wrong."""


def run(
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:BUS", help="Where the bus is, as app.main:bus; or a function that returns one."),
    ],
    stop_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long running handlers have to end.")
    ] = DEFAULT_STOP_TIMEOUT,
    probes: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where /livez and /readyz are answered over HTTP.", show_default=False),
    ] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL.")] = "INFO",
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            help=f"none leaves logging to the module.  [default: json, or {names.ENV_LOG_FORMAT}]", show_default=False
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar=names.ENV_LOG_DIR, help="Log to SERVICE.jsonl in there, not to standard output."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run a bus until SIGTERM or SIGINT, then drain it."""
    gc.set_threshold(*USUAL)
    # As uvicorn and `python -m` do: the program's own modules are those of the folder it is started in.
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - as text, as sys.path holds it
        sys.path.insert(0, "")
    try:
        found = load(target)
    except TargetError as error:
        fail(f"run: {error}", EXIT_USAGE, error=error.__cause__ if debug else None)
    try:
        if probes is not None:
            check_address("--probes", probes)
        bus = asyncio.run(made(target, found))
        if log_format is not LogFormat.NONE:
            chosen: Literal["json", "text"] | None = None
            if log_format is not None:
                chosen = "text" if log_format is LogFormat.TEXT else "json"
            path = log_dir / f"{bus.config.service}.jsonl" if log_dir is not None else None
            setup_json_logging(bus.config.service, log_level, format=chosen, path=path)
        collect_as_a_service()
        if isinstance(bus, SyncEventBus):
            bus.run(stop_timeout=stop_timeout, probes=probes)
        else:
            asyncio.run(bus.run(stop_timeout=stop_timeout, probes=probes))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        fail("run: stopped without draining", EXIT_INTERRUPTED, error=error if debug else None)
    except (TargetError, ConfigurationError) as error:
        fail(f"run: {error}", EXIT_USAGE, error=error if debug else None)
    except Exception as error:  # noqa: BLE001 - the edge of the program: one line says what it ended from
        known = isinstance(error, QuantumBusError)
        if not known and log_format is not LogFormat.NONE:
            get_logger().critical("Service failed", exc_info=error)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        fail(f"run: {text}", EXIT_FAILED, error=error if debug else None)
    if log_format is not LogFormat.NONE:
        get_logger().info("Service stopped", event=names.EVENT_SERVICE_STOPPED)


def load(target: str) -> Any:
    """What ``MODULE:NAME`` names: a bus, or something to call for one.

    Raises:
        TargetError: there is none, or the module fails.
    """
    module_name, colon, path = target.partition(":")
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise TargetError(f"{target!r} is no MODULE:BUS; write, for example, app.main:bus")
    if module_name.endswith(".py"):
        raise TargetError(f"{target!r} names a file; write {module_name.removesuffix('.py')}:{path or 'bus'}")
    module = _imported(module_name)
    if not colon or not path:
        raise TargetError(f"{target!r} names no bus; {_hint(module)}")
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise TargetError(f"{module_name} has no {path!r}; {_hint(module)}") from None
    return found


async def made(target: str, found: Any) -> AnyBus:
    """The bus that was found, or that what was found returns.

    Raises:
        TargetError: it is neither.
    """
    called = False
    if not isinstance(found, BUSES) and callable(found) and not inspect.isclass(found):
        called = True
        try:
            found = found()
            if inspect.isawaitable(found):
                found = await found
        except QuantumBusError:
            raise
        except Exception as error:
            raise TargetError(f"{target}() fails: {_where(error)}") from error
    if not isinstance(found, BUSES):
        what = "returned" if called else "is"
        raise TargetError(f"{target} {what} {_described(found)}, not an EventBus")
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(f"there is no module {name!r}, in {os.getcwd()} or installed") from error  # noqa: PTH109
        raise TargetError(f"{name} cannot be imported: {_where(error)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """The error in one line, with the line of code it arose in."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    # The last line of the program's own; below it are libraries, this one included.
    own = [frame for frame in frames if "site-packages" not in frame.filename and not _is_ours(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}: {text}" if own else text


def _is_ours(filename: str) -> bool:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - file names are text
    return filename.startswith((package + os.sep, "<frozen importlib", os.path.dirname(importlib.__file__)))  # noqa: PTH120


def _hint(module: ModuleType) -> str:
    buses = [name for name, value in vars(module).items() if isinstance(value, BUSES)]
    if buses:
        return f"did you mean {module.__name__}:{buses[0]}?"
    return f"{module.__name__} holds no EventBus"


def _described(value: object) -> str:
    kind = value.__name__ if inspect.isclass(value) else type(value).__name__
    return f"the class {kind}" if inspect.isclass(value) else f"of type {kind}"
