"""How fast the command line answers: `trace` on a million entries, `status` with 1,000 groups, `import quantum_bus`.

    .venv/bin/python benchmarks/commands.py [--entries N] [--groups N] [--json]

It starts a Redis of its own. Whole processes are measured as a person would see them, the start of Python included, and
with bytecode, which an installation has; of `status` also what Redis is asked alone. The best of some runs is told:
another program on the machine can only add.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import redis

from quantum_bus import flow_index
from quantum_bus.cli.connection import make_client, make_link
from quantum_bus.cli.status import look
from quantum_bus.demo.redis_server import find_redis_server, start_redis
from quantum_bus.inquiry import answered

STREAMS = ("intents", "orders", "executions")
DAY_MS = 86_400_000
RUNS = 5
TOGETHER = 2_000
# The first run of each writes bytecode, where the checkout has none yet.
WITH_BYTECODE = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def fill(client: redis.Redis, entries: int) -> dict[str, str]:
    """A day of three streams; each flow has one entry in each. Returns ids to ask for: of the middle and of the end."""
    flows = entries // len(STREAMS)
    begin = int(time.time() * 1000) - DAY_MS
    pipe = client.pipeline(transaction=False)
    for number in range(flows):
        at = begin + number * DAY_MS // flows
        flow = f"{number:032x}"
        for place, stream in enumerate(STREAMS):
            entry_id = f"{at + place}-{number % 1000}"
            pipe.execute_command("XADD", stream, entry_id, *fields(flow, number, place))
            pipe.hset(flow_index.key(stream, flow, at), flow, entry_id)
        if number % TOGETHER == 0:
            pipe.execute()
    pipe.execute()
    return {"middle": f"{flows // 2:032x}", "newest": f"{flows - 1:032x}", "order": f"order_{flows // 2}"}


def fields(flow: str, number: int, place: int) -> Iterator[str]:
    own = {
        "v": "1",
        "data": json.dumps({"order_id": f"order_{number}", "symbol": "BTCUSDT", "qty": 0.5, "price": 64_000.5}),
        "event": ("INTENT_CREATED", "ORDER_SUBMIT", "ORDER_FILLED")[place],
        "message_id": f"m-{number}-{place}",
        "correlation_id": flow,
        "traceparent": f"00-{flow}-00f067aa0ba902b7-01",
        "service": ("ai_engine", "auto_executor", "portfolio")[place],
        "ts": "2026-01-03T10:15:23.456789Z",
    }
    if place:
        own["causation_id"] = f"m-{number}-{place - 1}"
    for name, value in own.items():
        yield name
        yield value


def best(run: Callable[[], Any], runs: int = RUNS) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def program(*arguments: str, expect: int = 0) -> str:
    """Run one command; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "quantum_bus", *arguments],
        capture_output=True, text=True, check=False, env=WITH_BYTECODE,
    )  # fmt: skip
    if done.returncode != expect:
        raise SystemExit(f"{arguments}: {done.returncode}: {done.stderr}")
    return done.stdout


def command(*arguments: str, url: str, expect: int = 0) -> dict[str, Any]:
    """Run one, with --json; what it says."""
    found: dict[str, Any] = json.loads(program(*arguments, "--url", url, "--json", expect=expect))
    return found


def trace(url: str, wanted: str, *options: str, messages: int = len(STREAMS), indexed: bool) -> float:
    """Seconds of a trace; its answer is looked at, too."""

    def run() -> None:
        told = command("trace", wanted, *options, url=url, expect=0 if messages else 1)
        assert len(told["messages"]) == messages, told
        assert told["indexed"] is indexed, told

    return best(run, RUNS if indexed or messages else 1)


IMPORTS = """
from time import perf_counter
begun = perf_counter()
import redis.asyncio
between = perf_counter()
from quantum_bus import *
print(perf_counter() - between, between - begun)
"""


def import_ms() -> tuple[float, float]:
    """Milliseconds of importing all of quantum_bus: beyond what redis and its asyncio side take, and of those."""
    pairs = []
    for _ in range(20):
        told = subprocess.run(
            [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, env=WITH_BYTECODE
        ).stdout
        pairs.append([float(seconds) * 1000 for seconds in told.split()])
    return min(own for own, _ in pairs), min(theirs for _, theirs in pairs)


def measure(entries: int, groups: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    own, theirs = import_ms()
    figures["import quantum_bus beyond redis, ms"] = own
    figures["import redis.asyncio, ms"] = theirs
    with ExitStack() as stack:
        url = stack.enter_context(start_redis(find_redis_server())).url
        client = stack.enter_context(redis.Redis.from_url(url))
        figures["command with nothing to do (--version), s"] = best(lambda: program("--version"))
        ids = fill(client, entries)
        figures["trace, indexed, of 12 h ago, s"] = trace(url, ids["middle"], indexed=True)
        figures["trace, indexed, just now, s"] = trace(url, ids["newest"], indexed=True)
        hours = list(client.scan_iter(match="*:flows:*", count=10_000))
        for at in range(0, len(hours), 1_000):
            client.unlink(*hours[at : at + 1_000])
        figures["trace, no index, just now, s"] = trace(url, ids["newest"], indexed=False)
        figures["trace, no index, of 12 h ago, s"] = trace(url, ids["middle"], indexed=False)
        figures["trace, no index, order id of 12 h ago, s"] = trace(url, ids["order"], indexed=False)
        figures["trace, no index, an id that is not there, s"] = trace(url, "nobody", messages=0, indexed=False)
        figures["trace, no index, not there, --since 1h, s"] = trace(
            url, "nobody", "--since", "1h", messages=0, indexed=False
        )
        client.flushall()
        pipe = client.pipeline(transaction=False)
        for number in range(groups):
            pipe.xgroup_create(f"stream-{number % 50}", f"group-{number}", "0", mkstream=True)
        pipe.execute()
        link = make_link(make_client(url), url)
        names = [f"stream-{number}" for number in range(min(50, groups))]
        figures[f"status, {groups:,} groups, what Redis is asked, s"] = best(
            lambda: answered(look(names), link.execute)
        )
        link.close()
        figures[f"status --json, {groups:,} groups, the whole command, s"] = best(lambda: command("status", url=url))
        figures[f"status, {groups:,} groups, the whole command, s"] = best(lambda: program("status", "--url", url))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="over three streams")
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    figures = measure(wanted.entries, wanted.groups)
    if wanted.json:
        print(json.dumps(figures, indent=2))
        return
    for name, figure in figures.items():
        print(f"{figure:10.3f}  {name}")


if __name__ == "__main__":
    main()
