"""What `import quantum_bus` loads, which is what it costs; `benchmarks/commands.py` prints the time."""

import subprocess
import sys

PROGRAM = """
import sys
import redis.asyncio
before = set(sys.modules)
import quantum_bus
print(*sorted(set(sys.modules) - before))
"""
# Beside itself: what a message needs. redis and what it loads, asyncio too, are there already.
MAY_LOAD = {"hiredis", "msgspec", "opentelemetry", "orjson", "redis"}
# Rooms that only commands, tests and set-up enter.
ROOMS_APART = {
    "asgi", "assembly", "checkup", "cli", "deadletter_stream", "demo", "discovery", "exporter", "findings", "flow",
    "flow_index", "found", "gauges", "inquiry", "otel", "otlp", "pace", "reading", "scraping", "search", "sightings",
    "state", "testing", "wanted",
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
