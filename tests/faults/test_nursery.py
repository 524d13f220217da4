"""Who forks the workers: that it signals none but them."""

import json
import subprocess
import sys
from pathlib import Path

from quantum_bus.demo.redis_server import RedisProcess
from tests.contract.twins import ASYNCIO
from tests.faults.nursery import ROOT, Process
from tests.faults.scenario import CONSUMER, PATIENCE

TELLS_WHOM_IT_KILLS = """
import os
from tests.faults import nursery

def told(pid, number, kill=os.kill):
    print("killed", pid, flush=True)
    kill(pid, number)

os.kill = told
nursery.main()
"""


def test_none_is_killed_that_has_ended_as_its_pid_may_be_a_strangers(own_redis: RedisProcess, tmp_path: Path) -> None:
    # fails without: forgetting who has ended. pytest itself was killed, as a thread of it bore the number: after 32,768
    # pids they are given anew, threads have numbers of the same kind, and a signal to a thread's ends its process.
    nursery = subprocess.Popen(
        [sys.executable, "-c", TELLS_WHOM_IT_KILLS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None

    def start(name: str, *arguments: object) -> Process:
        nursery.stdin.write(json.dumps({"log": str(tmp_path / name), "arguments": arguments}) + "\n")
        nursery.stdin.flush()
        return Process(int(nursery.stdout.readline()))

    ended = start("ended", "no such role")
    assert ended.wait(PATIENCE)
    stays = start("stays", "consumer", ASYNCIO, own_redis.url, str(tmp_path / "history"), CONSUMER)
    said, _ = nursery.communicate(timeout=PATIENCE)
    assert said.splitlines() == [f"killed {stays.pid}"]
    assert not stays.alive
    for process in (ended, stays):
        process.close()
