"""A program of the stack under test: started, killed, stopped and started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from scripts.stack import Program, answers, wait_until


@dataclass
class Running:
    """`program` as a process; its output goes to `log`. Use it with `with`: it never outlives the test."""

    program: Program
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.program.name} was never started"
        return self._process.pid

    def start(self, *, ready: bool = True) -> Self:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.program.argv, env=self.program.environment(), stdout=output, stderr=output, cwd=self.log.parent
            )
        if ready and self.program.ready is not None:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        process, url = self._process, self.program.ready
        assert process is not None
        assert url is not None

        def is_ready() -> bool:
            assert process.poll() is None, f"{self.program.name} ended:\n{self.log.read_text()[-4000:]}"
            return answers(url)

        wait_until(is_ready, timeout=60, what=f"{self.program.name} ready")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, *, timeout: float = 60) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout)

    def open_files(self) -> list[str]:
        """What it has open, as the kernel calls it."""
        names = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                names.append(str(descriptor.readlink()))
        return names

    def resident_mib(self) -> float:
        """The most memory it has held at once so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
