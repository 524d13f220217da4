"""`make stack`: everything runs, one flow is found in Loki from all its services, and everything ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.stack import ROOT, SERVICES, STOP_SECONDS, TURN_SECONDS
from tests.stack.asking import wait_until
from tests.stack.loki_reader import DAY_NS, HOUR_NS, LokiReader

# Each turn of the stop comes to its end, however slow the machine; whoever stops it in a terminal waits less.
PATIENCE = 3
LONGEST_STOP = PATIENCE * (TURN_SECONDS + STOP_SECONDS)


@dataclass
class MakeStack:
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def pids(self) -> set[int]:
        return {int(pid) for pid in re.findall(r"started \(pid=(\d+)\)", self.said)}

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.said
            return "The stack is ready." in self.said

        wait_until(ready, timeout=90, what="the stack ready")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[MakeStack]:
    output = tmp_path / "output"
    environment = {name: value for name, value in os.environ.items() if name != "QUANTUM_BUS_URL"}
    command = [sys.executable, ROOT / "scripts/stack.py", "--dir", tmp_path / "stack", f"--patience={PATIENCE}"]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    running = MakeStack(process, output)
    yield running
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_STOP)
    for pid in filter(alive, running.pids):
        os.kill(pid, signal.SIGKILL)


def test_a_flow_is_found_from_every_service_and_nothing_is_left_after_ctrl_c(make_stack: MakeStack) -> None:
    make_stack.wait_ready()
    said = make_stack.said
    [loki_url] = set(re.findall(r"^ +Loki +(http://127\.0\.0\.1:\d+)$", said, re.MULTILINE))
    assert "logcli" in said
    reader = LokiReader(loki_url)

    def services_of_one_flow() -> set[str]:
        window = {"start_ns": time.time_ns() - DAY_NS, "end_ns": time.time_ns() + HOUR_NS, "limit": 500}
        ordered = reader.query('{event="ORDER_SUBMIT"}', **window)
        if not ordered:
            return set()
        flow = ordered[0].labels["correlation_id"]
        lines = reader.query(f'{{service_name=~".+"}} | correlation_id="{flow}"', **window)
        return {entry.labels["service"] for entry in lines}

    wait_until(lambda: services_of_one_flow() == set(SERVICES), timeout=60, what="one flow in three services")
    assert len(make_stack.pids) == 11
    make_stack.process.send_signal(signal.SIGINT)
    assert make_stack.process.wait(LONGEST_STOP) == 0, make_stack.said
    assert not list(filter(alive, make_stack.pids))
    in_turn = ["auto_executor stopped", "collector stopped", "sending SIGTERM to loki"]
    assert sorted(in_turn, key=make_stack.said.index) == in_turn, "senders before what they send to"


def test_a_signal_right_after_the_start_leaves_nothing_behind(make_stack: MakeStack) -> None:
    wait_until(lambda: "started (pid=" in make_stack.said, timeout=60, what="the first program", interval=0.01)
    make_stack.process.send_signal(signal.SIGTERM)
    assert make_stack.process.wait(LONGEST_STOP) == 0, make_stack.said
    assert not list(filter(alive, make_stack.pids))
