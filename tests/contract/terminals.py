"""Runs commands as a person or a program would: through pseudo-terminals, or through pipes.

One process imports the command line, and each run is a fork of it: a run costs milliseconds instead of a start of
Python. Run as a program, this file is that process; each line of its standard input is a run, as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import selectors
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from quantum_bus.cli import main

COLUMNS = 80
# What rich writes for colours and for moving lines; others' text must not hold the escape character at all.
OUR_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Terminals:
    """The process that runs are forked from."""

    def __init__(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, *arguments: str, terminal: bool = False, stdin: str = "", until: str = "", **env: str) -> Ended:
        """Run one command.

        Args:
            terminal: through pseudo-terminals of 80 columns.
            until: text on standard output behind which the run gets a Ctrl-C.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"arguments": arguments, "terminal": terminal, "stdin": stdin, "until": until, "env": env}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=20)


def _pair(terminal: bool) -> tuple[int, int]:
    if not terminal:
        return os.pipe()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # line ends as they were written
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    terminal = wanted["terminal"]
    out, their_out = _pair(terminal)
    err, their_err = _pair(terminal)
    given, written = os.pipe()
    child = os.fork()
    if child == 0:
        _become(wanted, their_out if terminal and not wanted["stdin"] else given, their_out, their_err)
    for theirs in (their_out, their_err, given):
        os.close(theirs)
    os.write(written, wanted["stdin"].encode())
    os.close(written)
    read = _read(child, out, err, wanted["until"].encode())
    _, status = os.waitpid(child, 0)
    texts = [read[number].decode(errors="surrogateescape") for number in (out, err)]
    for number in read:
        os.close(number)
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def _become(wanted: dict[str, Any], stdin: int, stdout: int, stderr: int) -> NoReturn:
    """In the fork: be the command."""
    os.setsid()
    for number, own in enumerate((stdin, stdout, stderr)):
        os.dup2(own, number)
    os.closerange(3, 64)
    os.environ.update({"TERM": "xterm", **wanted["env"]})
    sys.argv = ["quantum-bus", *wanted["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _read(child: int, out: int, err: int, until: bytes) -> dict[int, bytes]:
    """What the run writes until it ends; it has half a minute."""
    read = {out: b"", err: b""}
    told = False
    deadline = time.monotonic() + 30
    with selectors.DefaultSelector() as selector:
        for number in read:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(timeout=1):
                try:
                    part = os.read(key.fd, 65_536)
                except OSError:  # a terminal whose other end is closed
                    part = b""
                if not part:
                    selector.unregister(key.fd)
                read[key.fd] += part
            if until and until in read[out] and not told:
                told = True
                os.kill(child, signal.SIGINT)
        if selector.get_map():
            os.kill(child, signal.SIGKILL)
    return read


if __name__ == "__main__":
    from quantum_bus.cli.app import NAMES

    for name in NAMES:
        import_module(f"quantum_bus.cli.{name}")  # so that no run has to

    for line in sys.stdin:
        sys.stdout.write(f"{json.dumps(_run(json.loads(line)))}\n")
        sys.stdout.flush()
