"""A scenario: processes that publish and handle, faults while they do, then time to recover, then the checker.

    async def test_…(load: Scenario) -> None:
        await load.begin()
        with load.fault("what is done"):
            ...
        await load.progress()
        await load.over()

`over` ends the publishers, waits until nothing waits any more, ends the consumers, and asserts the checker's verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from quantum_bus.demo.redis_server import RedisProcess
from tests.contract.twins import ASYNCIO, THREADS
from tests.faults.checker import Verdict, check
from tests.faults.forms import BOTH, Form
from tests.faults.history import Effects, Recorder, read_history
from tests.faults.holdings import Holdings, holdings_of
from tests.faults.nursery import Nursery, Process

STREAM = "load"
GROUP = "consumer"

PATIENCE = 60.0
"""Seconds until a condition counts as never coming true. Far more than it takes: machines differ."""
ACK_WAIT = 1.5
NEVER = 600.0
"""A lease that does not run out in any test: what is left to it is seen to be left."""
LOAD = {"ok": 20, "raise/ok": 3, "reject": 1, "raise": 1, "work": 1}
"""Of so many messages so many do this. `raise` fails each time; what it fails beside does not."""
CONSUMER = {
    "stream": STREAM,
    "concurrency": 16,
    "ack_wait": ACK_WAIT,
    "block": 0.5,
    "reply_timeout": 1.0,
    "backoff_maximum": 0.3,
    "retry": {"max_attempts": 5, "initial": 0.02, "maximum": 0.2},
}
PUBLISHER = {"stream": STREAM, "lanes": 8, "pause": 0.01, "mix": LOAD}


class Worker:
    """A process of `tests.faults.worker`."""

    def __init__(self, process: Process, role: str, log: Path, history: Path) -> None:
        self.process = process
        self.role = role
        self.log = log
        self._history = history

    @property
    def alive(self) -> bool:
        return self.process.alive

    def send(self, number: signal.Signals) -> None:
        self.process.send(number)

    def kill(self) -> None:
        self.process.send(signal.SIGKILL)
        assert self.process.wait(PATIENCE)

    async def stopped(self) -> None:
        """After SIGTERM, have it agree that this went well."""
        ended = await asyncio.to_thread(self.process.wait, PATIENCE)
        assert ended, f"a {self.role} did not stop:\n{self.told()}"
        assert b'"over"' in self._history.read_bytes(), f"a {self.role} broke:\n{self.told()}"

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")[-3000:]

    def events(self) -> Counter[str]:
        """What it has logged."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return Counter(json.loads(line)["event"] for line in lines if line.startswith("{"))

    @property
    def rss(self) -> int:
        """Bytes of memory that it uses."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Scenario:
    """One run. Attributes: random: drawn from the seed."""

    def __init__(self, server: RedisProcess, twin: str, form: Form, folder: Path, nursery: Nursery) -> None:
        self.server = server
        self._nursery = nursery
        self.form = form
        self.random = random.Random(form.seed)
        self.folder = folder
        again = Retry(ConstantBackoff(0.05), 20)  # its server comes and goes
        self.client = redis.asyncio.Redis.from_url(server.url, retry=again)
        self.workers: list[Worker] = []
        self.recorder = Recorder(folder / "scenario.jsonl")
        self._twins = itertools.cycle([ASYNCIO, THREADS] if twin == BOTH else [twin])
        self._tails: dict[Path, int] = {}
        self._counts: Counter[str] = Counter()

    # --- processes -------------------------------------------------------------------------------

    def publisher(self, url: str | None = None, **options: Any) -> Worker:
        return self._start("publisher", url, {**PUBLISHER, "seed": self.random.getrandbits(32), **options})

    def consumer(self, url: str | None = None, **options: Any) -> Worker:
        return self._start("consumer", url, {**CONSUMER, **options})

    def restless(self, rounds: int, lanes: int) -> Worker:
        """Consumers that do not stay."""
        return self._start(
            "restless", None, {**CONSUMER, "rounds": rounds, "lanes": lanes, "seed": self.random.getrandbits(32)}
        )

    def _start(self, role: str, url: str | None, options: dict[str, Any]) -> Worker:
        name = f"{role}-{len(self.workers)}"
        history, log = self.folder / f"{name}.jsonl", self.folder / f"{name}.log"
        arguments = [role, next(self._twins), url or self.server.url, str(history), options]
        worker = Worker(self._nursery.start(log, arguments), role, log, history)
        self.workers.append(worker)
        return worker

    def of(self, role: str) -> list[Worker]:
        """Those that are alive."""
        return [worker for worker in self.workers if worker.role == role and worker.alive]

    async def begin(
        self, url: str | None = None, *, consumers: int = 2, lease: float = ACK_WAIT, **publisher: Any
    ) -> None:
        """A publisher and consumers, at work."""
        for _ in range(consumers):
            self.consumer(url, ack_wait=lease)
        self.publisher(url, **publisher)
        await self.progress()

    # --- faults ----------------------------------------------------------------------------------

    def fault(self, name: str, **effects: Unpack[Effects]) -> AbstractContextManager[None]:
        """Note a fault that lasts while the block does; see `tests.faults.history`."""
        return self.recorder.fault(name, **effects)

    # --- waiting ---------------------------------------------------------------------------------

    def count(self, what: str) -> int:
        """How many lines say this, in all processes' histories so far."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._tails.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._tails[path] = self._tails.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                said = json.loads(line)
                self._counts[said["what"]] += 1
                self._counts[f"{said['what']} {said.get('outcome')}"] += 1
        return self._counts[what]

    async def until(self, condition: Callable[[], Any], why: str, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while not (await value if asyncio.iscoroutine(value := condition()) else value):
            assert time.monotonic() < deadline, f"within {timeout:g} s this did not come true: {why}\n{self.told()}"
            await asyncio.sleep(0.02)

    async def progress(self, count: int = 100, what: str = "ended return") -> None:
        """Until so many more of these were written down."""
        goal = self.count(what) + count
        await self.until(lambda: self.count(what) >= goal, f"{count} more lines of {what!r}", PATIENCE + count)

    async def holdings(self, stream: str = STREAM) -> Holdings:
        return await holdings_of(self.client, stream, GROUP)

    # --- the end ---------------------------------------------------------------------------------

    async def over(self, *, stream: str = STREAM, timeout: float = PATIENCE) -> Verdict:
        """Let everything end, and assert that nothing is wrong."""
        verdict = await self.verdict(stream=stream, timeout=timeout)
        assert not verdict.violations, f"{verdict}\n{self.told()}"
        return verdict

    async def verdict(self, *, stream: str = STREAM, timeout: float = PATIENCE) -> Verdict:
        """Let everything end, and judge."""
        await self.stopped(self.of("publisher"))
        await self.drained(stream, timeout)
        await self.stopped(self.of("consumer"))
        verdict = check(read_history(self.folder), await self.holdings(stream))
        print(f"seed {self.form.seed}: {verdict}")  # noqa: T201 - the figures are worth reading
        return verdict

    async def stopped(self, workers: Sequence[Worker]) -> None:
        """End them gracefully."""
        for worker in workers:
            worker.send(signal.SIGTERM)
        for worker in workers:
            await worker.stopped()

    async def drained(self, stream: str = STREAM, timeout: float = PATIENCE) -> None:
        """Until nothing waits any more, or the time is up: then the checker says what does."""

        async def nothing_waits() -> bool:
            return not (await self.holdings(stream)).waiting

        with contextlib.suppress(AssertionError):
            await self.until(nothing_waits, "nothing waits", timeout)

    def told(self) -> str:
        """What helps to see what went wrong."""
        logs = [f"--- {worker.log.name} {dict(worker.events())}" for worker in self.workers]
        return f"seed {self.form.seed} (--faults-seed), histories in {self.folder}\n" + "\n".join(logs)

    async def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.process.close()
        await self.client.aclose()
        self.recorder.close()
