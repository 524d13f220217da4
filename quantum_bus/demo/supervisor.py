"""Child processes that never outlive their parent, and the signals that ask it to end.

See docs/decisions/0005-own-supervisor.md for why this is not honcho's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

DEFAULT_STOP_SECONDS: Final = 15.0
_DIE_WITH_PARENT: Final = Path(__file__).with_name("die_with_parent.py")
_SAID_BYTES: Final = 4_000


class StopRequested(BaseException):
    """A signal asks the program to end. Not an Exception, as KeyboardInterrupt is none: nobody may mistake it for an
    error of theirs.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopSignals:
    """For the length of a block, the first SIGINT, SIGTERM or SIGHUP raises :class:`StopRequested` where the program
    is; later ones do nothing, so that the clean-up behind it is never interrupted.
    """

    SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._received: int | None = None
        self._raised = False
        self._held = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that must be done whole: a signal is raised behind it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise_received()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's signature
        self._received = self._received or number
        self._raise_received()

    def _raise_received(self) -> None:
        if self._received is not None and not self._raised and not self._held:
            self._raised = True
            raise StopRequested(self._received)


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    output: IO[bytes]


class Supervisor:
    """Starts processes, and on leaving the ``with`` block ends every one of them.

    Each has a session of its own, so that Ctrl-C reaches its parent alone, which then ends them in order. On Linux the
    kernel ends them (SIGTERM) even where the parent is killed: they belong to the thread that started them.

    Args:
        signals: held back while a process is started, so that none is started and forgotten.
        stop_seconds: how long all of them together have to end when asked to, before they are killed.
    """

    def __init__(self, signals: StopSignals, *, stop_seconds: float = DEFAULT_STOP_SECONDS) -> None:
        self._signals = signals
        self._stop_seconds = stop_seconds
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        with self._signals.held():
            self._stop()

    def __contains__(self, name: str) -> bool:
        """Whether it was started."""
        return name in self._children

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start ``command``; what it prints is kept for :meth:`said`."""
        wrapped = [sys.executable, "-I", "-S", str(_DIE_WITH_PARENT), str(os.getpid()), str(int(signal.SIGTERM))]
        with self._signals.held():
            output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the others, when all have ended
            try:
                process = subprocess.Popen(
                    [*wrapped, *command],
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except BaseException:
                output.close()
                raise
            self._children[name] = _Child(process, output)

    def exit_codes(self) -> dict[str, int]:
        """Of the processes that have ended."""
        codes = {name: child.process.poll() for name, child in self._children.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def said(self, name: str) -> str:
        """The end of what a process has printed."""
        output = self._children[name].output
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - _SAID_BYTES))
        return output.read().decode(errors="replace").strip()

    def _stop(self) -> None:
        running = [child.process for child in self._children.values() if child.process.poll() is None]
        for process in running:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that is suspended would not see it
        deadline = time.monotonic() + self._stop_seconds
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in self._children.values():
            child.output.close()
