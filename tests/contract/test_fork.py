"""A bus of threads on both sides of a fork: each side has connections of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.contract.backends import Backend

ROOT = Path(__file__).parents[2]
FORKS = """
import os, sys, threading
from quantum_bus.sync import EventBus

bus = EventBus(sys.argv[1], service="forks")
bus.publish(sys.argv[2] + "-parent", 0)
stop = threading.Event()

def busy():  # a lock may be held at the fork
    while not stop.is_set():
        bus.publish(sys.argv[2] + "-parent", 0)

threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
child = os.fork()
side = "parent" if child else "child"
if child:
    stop.set()
    for thread in threads:
        thread.join()
for n in range(200):
    entry_id = bus.publish(f"{sys.argv[2]}-{side}", n, timeout=10.0).id
    os.write(1, f"{side} {entry_id}\\n".encode())  # in one piece
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
bus.stop()
"""


@pytest.mark.parametrize("twin", ["threads"])
def test_a_bus_publishes_on_both_sides_of_a_fork(real_backend: Backend, stream: str, twin: str) -> None:
    # fails without: a child that opens a connection of its own. One side read the other's receipts
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, real_backend.url, stream],
        capture_output=True,
        cwd=ROOT,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with redis.Redis.from_url(real_backend.url, decode_responses=True) as client:
        told = [line.split() for line in ran.stdout.splitlines()]
        assert len(told) == 400
        for side in ("parent", "child"):
            stored = {entry_id for entry_id, _ in client.xrange(f"{stream}-{side}")}
            assert {entry_id for of, entry_id in told if of == side} <= stored
            client.delete(f"{stream}-{side}")
