"""What a program with a bus loads, and a command: that is what they cost; `benchmarks/commands.py` prints the times."""

import os
import subprocess
import sys

import pytest

from quantum_bus.cli.app import NAMES

PROGRAM = """
import sys
import redis.asyncio
before = set(sys.modules)
from quantum_bus import *
print(*sorted(set(sys.modules) - before))
"""
# Beside itself: what a message needs. redis and what it loads, asyncio too, are there already.
MAY_LOAD = {"hiredis", "msgspec", "opentelemetry", "orjson", "redis"}
# Rooms that only commands, tests and set-up enter.
ROOMS_APART = {
    "asgi", "assembly", "checkup", "cli", "deadletter_stream", "demo", "discovery", "exporter", "findings", "flow",
    "flow_index", "found", "gauges", "inquiry", "known", "otel", "otlp", "pace", "reading", "scraping", "search",
    "sightings", "state", "testing", "wanted",
}  # fmt: skip
# Of the standard library, what is slow to load, and no message needs.
SLOW = {
    "argparse", "ctypes", "email", "http", "multiprocessing", "sqlite3", "unittest", "urllib.request", "xml",
}  # fmt: skip


def test_it_loads_nothing_that_publishing_and_handling_do_not_need() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    loaded = told.stdout.split()
    own = {name.split(".")[1] for name in loaded if name.startswith("quantum_bus.")}
    assert own.isdisjoint(ROOMS_APART), own & ROOMS_APART
    others = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"quantum_bus"}
    assert {name for name in others if not name.startswith("_")} <= MAY_LOAD
    assert not [name for name in loaded if name.startswith("opentelemetry.sdk")]
    assert not SLOW & set(loaded)
    assert len(own) <= 60, "each module takes a file's reading"


COMMAND = """
import sys
import redis.asyncio
before = set(sys.modules)
from quantum_bus.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, *sorted(set(sys.modules) - before))
"""
# What a command shows with, checks words with, is measured with; and what fetches pages.
NOT_FOR_FIGURES = {"opentelemetry.sdk", "prometheus_client", "pydantic", "rich", "urllib.request"}


@pytest.mark.parametrize("command", ["lag", "status"])
def test_a_command_loads_neither_the_others_nor_what_only_they_need(command: str) -> None:
    arguments = [command, "--stream", "orders", "--url", "redis://127.0.0.1:1/0"]
    told = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    code, *loaded = told.stdout.split()
    assert code == "2", told.stderr
    assert "cannot be reached" in told.stderr
    assert "quantum_bus.bus" not in loaded
    assert "quantum_bus.jsonlog.logger" not in loaded
    of_commands = {name.split(".")[2] for name in loaded if name.startswith("quantum_bus.cli.")}
    assert of_commands.isdisjoint({*NAMES} - {command})
    assert not NOT_FOR_FIGURES & set(loaded)
    assert len(of_commands) <= 9, "each module takes a file's reading"


SHOWN = """
import sys
from quantum_bus.cli.columns import Column, Columns
from quantum_bus.cli.terminal import terminal
Columns([Column("stream", names=True)], [[("orders", "bold")]], "1 stream").show(terminal())
print("rich" in sys.modules)
"""


def test_a_table_in_a_pipe_is_shown_without_rich() -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    told = subprocess.run(
        [sys.executable, "-c", SHOWN], capture_output=True, text=True, check=True, timeout=30, env=env
    )
    assert told.stdout.splitlines() == ["stream", "orders", "1 stream", "False"]
