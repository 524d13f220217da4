"""How each of the demo's services begins and ends: its log, its telemetry, its exit code.

From the environment: ``QUANTUM_BUS_URL`` (Redis), ``QUANTUM_LOG_DIR`` (the log goes to ``SERVICE.jsonl`` in there,
without it to standard output), and OpenTelemetry's ``OTEL_*``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from quantum_bus import names
from quantum_bus.config import STOP_SIGNALS
from quantum_bus.errors import ConfigurationError, QuantumBusError
from quantum_bus.jsonlog import Logger, setup_json_logging

ENV_LOG_DIR: Final = "QUANTUM_LOG_DIR"
_OTLP_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

Serve = Callable[[Logger], Awaitable[None]]


class _Telemetry(Protocol):
    def shutdown(self, timeout: float = ...) -> object: ...


def run_service(service: str, serve: Serve) -> int:
    """Run ``serve`` until it returns, which it does when it is told to stop; the process's exit code."""
    try:
        log = setup_json_logging(service, path=log_path(service, os.environ))
    except ConfigurationError as error:
        print(f"{service}: {error}", file=sys.stderr)
        return EXIT_USAGE
    telemetry = _start_telemetry(service, log)
    try:
        asyncio.run(_awaited(serve, log))
    except QuantumBusError as error:
        log.critical("Service failed", exc_info=error)
        print(f"{service}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED
    finally:
        for number in STOP_SIGNALS:  # it is ending already: a signal must not cut off its last spans and lines
            signal.signal(number, signal.SIG_IGN)
        if telemetry is not None:
            telemetry.shutdown()
        log.info("Service stopped", event=names.EVENT_SERVICE_STOPPED)
    return 0


def log_path(service: str, env: Mapping[str, str]) -> Path | None:
    """Where the service's log goes, or None for standard output."""
    folder = env.get(ENV_LOG_DIR)
    return Path(folder, f"{service}.jsonl") if folder else None


def consumer_parser(service: str, description: str) -> argparse.ArgumentParser:
    """The command line of a consuming service: what it reads are options of its subscriber."""
    parser = argparse.ArgumentParser(prog=f"python -m quantum_bus.demo.{service}", description=description)
    parser.add_argument("--group", default=service, help="the consumer group (%(default)s)")
    parser.add_argument(
        "--start", choices=("beginning", "new"), default="beginning", help="where a new group starts (%(default)s)"
    )
    return parser


async def _awaited(serve: Serve, log: Logger) -> None:
    await serve(log)


def _start_telemetry(service: str, log: Logger) -> _Telemetry | None:
    if not any(os.environ.get(name) for name in _OTLP_ENDPOINTS):
        return None
    try:
        from quantum_bus.otel import setup
    except ImportError as error:
        log.warning("No telemetry: %s", error)
        return None
    return setup(service)
