"""Forks workers that have everything imported already: a scenario starts many, and importing takes them half a second.

`python -m tests.faults.nursery` reads orders, one JSON object a line, and answers each with a pid: `log`, the file for
what the worker prints, and `arguments`, of `tests.faults.worker.main`. When its input ends, as when whoever ordered was
killed, it kills every worker that is left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


class Process:
    """A worker's process, which is another one's child; so all that can be known of its end is that it came."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        return not select.select([self._handle], [], [], 0)[0]

    def send(self, number: signal.Signals) -> None:
        """Does nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended by then."""
        return bool(select.select([self._handle], [], [], timeout)[0])

    def close(self) -> None:
        os.close(self._handle)


class Nursery:
    """One that was started, to be ordered from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, arguments: Sequence[Any]) -> Process:
        """A new worker."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"log": str(log), "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Process(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=10)


def main() -> None:
    import tests.faults.worker  # noqa: F401 - what every worker needs

    gc.freeze()
    workers: set[int] = set()
    for line in sys.stdin:
        _reap(workers)
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        workers.add(pid)
        print(pid, flush=True)  # noqa: T201 - the answer
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reap(workers: set[int]) -> None:
    """Forget those that have ended: from then on their pids may be anybody's, threads of other programs among them."""
    workers -= {pid for pid in workers if os.waitpid(pid, os.WNOHANG) != (0, 0)}


def _become(order: dict[str, Any]) -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until its bus listens; nothing has begun before
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        from tests.faults.worker import main as work

        work(*order["arguments"])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
