"""examples/ as its README has them run: processes of their own, on a real Redis."""

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from quantum_bus.demo.redis_server import start_redis
from tests.servers import series_to_test, server_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"^\| \[([\w.]+)\]\([^)]+\) \| `([^`]+)` \|", README, re.MULTILINE))
PATIENCE = 40.0
MY_ORDER = "my-order-1"


@pytest.fixture
def url() -> Iterator[str]:
    """An empty Redis: the examples' streams have fixed names."""
    with start_redis(server_of(series_to_test()[-1])) as process:
        yield process.url


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])
    return {**inherited, "PATH": path, "QUANTUM_BUS_URL": url, "PYTHONUNBUFFERED": "1"}


def entries(url: str, stream: str) -> list[dict[str, str]]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return [fields for _, fields in client.xrange(stream)]


def lines_of(output: str) -> list[dict[str, Any]]:
    """Every line of an example's output is JSON."""
    return [json.loads(line) for line in output.splitlines()]


def run(name: str, environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """Runs it to its end, and gives what it logged."""
    done = subprocess.run(
        [*shlex.split(COMMANDS[name]), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return lines_of(done.stdout)


def test_every_example_is_in_the_index_and_is_tested_here() -> None:
    there = {path.name for path in EXAMPLES.iterdir() if path.name not in {"README.md", "__pycache__"}}
    assert there == set(COMMANDS) == {"fastapi_orders", "threads.py", "batches.py", "ordered.py"}


def test_threads_and_the_pool_behind_them_stay_in_their_flow(environment: dict[str, str], url: str) -> None:
    lines = run("threads.py", environment)
    seen = defaultdict(list)
    for line in lines:
        if "image" in line:
            seen[line["image"]].append((line["event"], line["correlation_id"]))
    assert len(seen) == 4
    for image, told in seen.items():
        flow = f"upload-{image}"
        assert sorted(told) == [("IMAGE_DONE", flow), ("IMAGE_RESIZED", flow), ("IMAGE_RESIZED", flow)]
    published = entries(url, "thumbnails")
    assert sorted(entry["correlation_id"] for entry in published) == sorted(f"upload-{image}" for image in seen)
    assert all(json.loads(entry["data"])["image"] in entry["correlation_id"] for entry in published)


def test_batches_are_stored_whole_and_every_row_keeps_its_own_flow(
    environment: dict[str, str], url: str, tmp_path: Path
) -> None:
    sizes = [
        line["size"] for line in run("batches.py", environment, str(tmp_path / "p")) if line["event"] == "BATCH_STORED"
    ]
    assert sum(sizes) == 1_000
    assert max(sizes) == 100
    assert len(sizes) < 100
    connection = sqlite3.connect(tmp_path / "p")
    rows = dict(connection.execute("SELECT message_id, flow FROM prices"))
    connection.close()
    assert rows == {entry["message_id"]: entry["correlation_id"] for entry in entries(url, "prices")}
    assert set(rows.values()) == {f"tick-{number}" for number in range(1_000)}


def test_steps_of_an_account_are_in_order_though_one_failed_and_the_other_accounts_did_not_wait(
    environment: dict[str, str],
) -> None:
    lines = [line for line in run("ordered.py", environment) if line["event"] == "STEP_BOOKED"]
    steps = defaultdict(list)
    for line in lines:
        assert line["correlation_id"] == f"account-{line['account']}"
        steps[line["account"]].append(line["step"])
    in_order = ["opened", "paid in", "paid out", "closed"]
    assert steps == {"ada": in_order, "bob": in_order, "cyd": in_order}
    assert [line["attempt"] for line in lines if line["account"] == "bob"] == [1, 2, 1, 1]
    assert [line["account"] for line in lines[-3:]] == ["bob"] * 3


def test_a_correlation_id_goes_from_the_request_through_the_worker_into_the_response(
    environment: dict[str, str], url: str, tmp_path: Path
) -> None:
    port = free_port()
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            ["sh", "-c", COMMANDS["fastapi_orders"].replace("&& ", "&& exec ") + " --no-prefix --no-colour"],
            cwd=ROOT,
            env={**environment, "PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                named = ordered(client, {"X-Correlation-ID": MY_ORDER})
                traced = ordered(client, {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"})
                ordered(client, {})
                refused = client.post("/orders", json={"symbol": "BTCUSDT", "qty": 0})
                assert refused.status_code == 422
                assert refused.headers["x-correlation-id"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)
        log.seek(0)
        output = log.read()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for order_id, flow in ((named, MY_ORDER), (traced, "a1" * 16)):
        of_order = [line for line in lines if line.get("order_id") == order_id]
        assert {(line["service"], line["event"]) for line in of_order} == {
            ("api", "ORDER_ACCEPTED"),
            ("worker", "ORDER_SUBMIT"),
            ("api", "ORDER_FILLED"),
        }
        assert {line["correlation_id"] for line in of_order} == {flow}
        for stream in ("orders", "fills"):
            (entry,) = [entry for entry in entries(url, stream) if order_id in entry["data"]]
            assert entry["correlation_id"] == flow
    assert len(entries(url, "orders")) == 3  # the refused one was not published


def ordered(client: httpx.Client, headers: dict[str, str]) -> str:
    """Orders, once the API answers, waits until that order is filled, and gives its id."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            response = client.post("/orders", json={"symbol": "BTCUSDT", "qty": 0.5}, headers=headers)
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert response.status_code == 202, response.text
    named = headers.get("X-Correlation-ID") or headers.get("traceparent", "").split("-")[1:2]
    flow = response.headers["x-correlation-id"]
    if named:
        assert flow in named
    order_id: str = response.json()["order_id"]
    while client.get(f"/orders/{order_id}").json() != {"status": "filled", "price": 32_000.0}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return order_id


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
