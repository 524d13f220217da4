"""One run of the demo: a Redis, three services as processes of their own, and what they have logged and published."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import redis
from redis.exceptions import RedisError

from quantum_bus import names
from quantum_bus.config import masked_url
from quantum_bus.demo.flow import Flow, Line, StreamEntry, build_flow, counts, flows_with, parse_lines
from quantum_bus.demo.redis_server import RedisServerError, find_redis_server, start_redis
from quantum_bus.demo.service import ENV_LOG_DIR, log_path
from quantum_bus.demo.supervisor import StopSignals, Supervisor
from quantum_bus.demo.trading import (
    AI_ENGINE,
    AUTO_EXECUTOR,
    CONSUMERS,
    PORTFOLIO,
    SERVICES,
)
from quantum_bus.errors import ConfigurationError, QuantumBusError

DEFAULT_INTENTS: Final = 10
RATE: Final = 20.0
SEED: Final = 1
# The slowest part on a cold machine is three interpreters starting on one core.
START_SECONDS: Final = 30.0
FLOW_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05
REDIS_SECONDS: Final = 5.0
# A group of somebody else's that was read for so recently is in use, seconds.
IN_USE_SECONDS: Final = 60.0
ENTRIES_FILE: Final = "entries.jsonl"


class DemoError(QuantumBusError):
    """The demo cannot run, or did not come to its end; the text says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has shown.

    Attributes:
        flow: the first intent's.
        counts: of each service, how often it logged each event.
        files: each service's log.
        entries: what both streams hold of this run, oldest first.
        entries_file: the same, one JSON object a line.
        redis: the server's address, without its password.
        own_redis: it was started for this run, and is gone with it.
        seconds: from the first service's start to the last intent's arrival.
    """

    flow: Flow
    counts: Mapping[str, Mapping[str, int]]
    files: Mapping[str, Path]
    entries: Sequence[StreamEntry]
    entries_file: Path
    redis: str
    own_redis: bool
    seconds: float


def run_demo(
    folder: Path,
    *,
    url: str | None,
    signals: StopSignals,
    intents: int = DEFAULT_INTENTS,
    say: Callable[[str], None],
) -> Result:
    """Run the three services until every intent has gone through all of them; whatever happens, none is left running.

    Args:
        folder: logs go to ``logs/`` in there.
        url: of a running Redis; None starts one.
        signals: entered by the caller.
        say: told what is being done.

    Raises:
        ConfigurationError: the folder or the Redis cannot be used; the text says what can.
        DemoError: the flow did not come to its end.
        StopRequested: by a signal.
    """
    try:
        return _run_demo(folder, url=url, signals=signals, intents=intents, say=say)
    except RedisError as error:
        raise DemoError(f"Redis failed in the middle of the demo: {error}") from error


def _run_demo(
    folder: Path, *, url: str | None, signals: StopSignals, intents: int, say: Callable[[str], None]
) -> Result:
    logs = _prepare(folder)
    with ExitStack() as stack:
        own = url is None
        if url is None:
            say("starting Redis")
            url = stack.enter_context(_own_redis(signals))
        client = stack.enter_context(_connected(url))
        group_suffix = "" if own else f"-demo-{secrets.token_hex(4)}"
        if not own:
            _refuse_if_in_use(client)
        last_ids = {stream: _last_id(client, stream) for stream in CONSUMERS}
        if not own:
            stack.callback(_remove_groups, client, group_suffix)
        supervisor = stack.enter_context(Supervisor(signals))
        run = _Run(supervisor, {service: _Tail(path) for service, path in logs.items()}, url, logs[AI_ENGINE].parent)
        began = time.monotonic()

        say("starting the services")
        for service in (AUTO_EXECUTOR, PORTFOLIO):
            # Groups that begin with what is new, made before the first intent: another run's intents stay untouched.
            run.start(service, f"--group={service}{group_suffix}", "--start=new")
        run.wait_for(
            "the services ready",
            lambda: all(run.logged(service, names.EVENT_BUS_STARTED) for service in (AUTO_EXECUTOR, PORTFOLIO)),
            START_SECONDS,
        )
        run.start(AI_ENGINE, f"--intents={intents}", f"--rate={RATE}", f"--seed={SEED}")
        run.wait_for("the first intent", lambda: run.logged(AI_ENGINE, names.EVENT_INTENT_CREATED), START_SECONDS)
        say("following the intents")
        run.wait_for("every intent in the portfolio", lambda: run.arrived() >= intents, FLOW_SECONDS + intents / RATE)
        seconds = time.monotonic() - began
        entries = [entry for stream in CONSUMERS for entry in _entries(client, stream, last_ids[stream], run.flows())]

    # Their last lines, too: the services have stopped by now.
    run.read()
    entries_file = folder / ENTRIES_FILE
    entries_file.write_bytes(b"".join(_as_line(entry) for entry in entries))
    return Result(
        flow=build_flow(run.flows()[0], run.lines, entries),
        counts={service: counts(run.lines[service]) for service in SERVICES},
        files=logs,
        entries=entries,
        entries_file=entries_file,
        redis=masked_url(url),
        own_redis=own,
        seconds=seconds,
    )


class _Run:
    """The services at work, and what they have logged so far."""

    def __init__(self, supervisor: Supervisor, tails: Mapping[str, _Tail], url: str, log_folder: Path) -> None:
        self._supervisor = supervisor
        self._tails = tails
        self._env = {**os.environ, names.ENV_URL: url, ENV_LOG_DIR: str(log_folder), names.ENV_LOG_FORMAT: "json"}
        self.lines: dict[str, list[Line]] = {service: [] for service in SERVICES}

    def start(self, service: str, *arguments: str) -> None:
        # -P: what stands in the current folder is not to be taken for a module of ours
        command = [sys.executable, "-P", "-m", f"quantum_bus.demo.{service}", *arguments]
        self._supervisor.start(service, command, self._env)

    def read(self) -> None:
        for service, tail in self._tails.items():
            self.lines[service] += parse_lines(tail.read())

    def logged(self, service: str, event: str) -> bool:
        return any(line.get(names.LOG_EVENT) == event for line in self.lines[service])

    def flows(self) -> list[str]:
        return flows_with(self.lines[AI_ENGINE], names.EVENT_INTENT_CREATED)

    def arrived(self) -> int:
        """How many of the flows have come through the last service."""
        return len(set(self.flows()).intersection(flows_with(self.lines[PORTFOLIO], names.EVENT_POSITION_UPDATED)))

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            ended = self._supervisor.exit_codes()
            self.read()
            if condition():
                return
            for service, code in ended.items():
                if code or service != AI_ENGINE:  # which ends by itself when it has published all
                    raise DemoError(f"{service} ended with {code}: {self._last_words(service)}")
            if time.monotonic() > deadline:
                words = "; ".join(f"{service}: {self._last_words(service)}" for service in SERVICES)
                raise DemoError(f"{what}: not within {seconds:.0f} s. {words}")
            time.sleep(POLL_SECONDS)

    def _last_words(self, service: str) -> str:
        said = self._supervisor.said(service) if service in self._supervisor else ""
        if said:
            return said.splitlines()[-1]
        lines = self.lines[service]
        return str(lines[-1].get(names.LOG_MSG)) if lines else "nothing logged"


class _Tail:
    """What is appended to a log file from now on, over a rotation by rename as well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb") if path.exists() else None
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def read(self) -> bytes:
        """The whole lines that have come since the last call."""
        read = self._rest + (self._file.read() if self._file is not None else b"")
        if self._replaced():
            if self._file is not None:
                read += self._file.read()
                self._file.close()
            self._file = self._path.open("rb")
            read += self._file.read()
        whole, newline, self._rest = read.rpartition(b"\n")
        return whole + newline

    def _replaced(self) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        opened = os.fstat(self._file.fileno())
        return (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


# --- the folder ----------------------------------------------------------------------------------


def _prepare(folder: Path) -> dict[str, Path]:
    """Each service's log file, in a folder that can be written to and is nobody else's at the moment."""
    logs = (folder / "logs").absolute()
    try:
        logs.mkdir(parents=True, exist_ok=True)
        files = {service: log_path(service, {ENV_LOG_DIR: str(logs)}) for service in SERVICES}
        for path in files.values():
            if path is not None:
                _refuse_if_written(path)
    except OSError as error:
        raise ConfigurationError(
            f"--dir {folder}: {error.strerror or error}; name a folder you may write to"
        ) from error
    return {service: path for service, path in files.items() if path is not None}


def _refuse_if_written(path: Path) -> None:
    """A log that a running service holds: this run's service would write to another file beside it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise ConfigurationError(
                f"a running service writes to {path}: stop it, or give this run a folder of its own with --dir"
            ) from error


# --- Redis ---------------------------------------------------------------------------------------


@contextmanager
def _own_redis(signals: StopSignals) -> Iterator[str]:
    """Its URL; a signal waits while it is started and while it is stopped, so that it is never forgotten in between."""
    try:
        server = find_redis_server()
        with ExitStack() as stack:
            with signals.held():
                process = stack.enter_context(start_redis(server))
            try:
                yield process.url
            finally:
                with signals.held():
                    stack.close()
    except RedisServerError as error:
        raise DemoError(
            f"no Redis to run on: {error}; name a running one with --url redis://localhost:6379/0"
        ) from error


@contextmanager
def _connected(url: str) -> Iterator[redis.Redis]:
    try:
        client = redis.Redis.from_url(
            url, decode_responses=True, socket_connect_timeout=REDIS_SECONDS, socket_timeout=REDIS_SECONDS
        )
    except ValueError as error:
        raise ConfigurationError(f"--url {masked_url(url)}: {error}; a right one is redis://localhost:6379/0") from None
    try:
        client.ping()
    except RedisError as error:
        client.close()
        raise DemoError(
            f"Redis at {masked_url(url)} cannot be used: {error}; start it, or leave out the URL and {names.ENV_URL} "
            "to have one started"
        ) from error
    try:
        yield client
    finally:
        client.close()


def _refuse_if_in_use(client: redis.Redis) -> None:
    """Somebody's own services must not be handed the demo's intents: they would take them for real ones."""
    for stream in CONSUMERS:
        for group in _groups(client, stream):
            consumers: Any = client.xinfo_consumers(stream, group)
            if any(consumer["idle"] < IN_USE_SECONDS * 1000 for consumer in consumers):
                raise ConfigurationError(
                    f"group {group!r} is reading {stream} in this Redis and would handle the demo's messages; name "
                    "another database, as redis://localhost:6379/15, or leave out the URL to have a Redis started"
                )


def _groups(client: redis.Redis, stream: str) -> list[str]:
    try:
        found: Any = client.xinfo_groups(stream)
    except RedisError as error:
        if "no such key" in str(error):
            return []
        raise DemoError(f"the key {stream} in this Redis is no stream, and the demo needs it: {error}") from error
    return [group["name"] for group in found]


def _remove_groups(client: redis.Redis, suffix: str) -> None:
    """This run's groups would never be read for again, and keep their streams from being trimmed."""
    for stream, service in CONSUMERS.items():
        if f"{service}{suffix}" in _groups(client, stream):
            client.xgroup_destroy(stream, f"{service}{suffix}")


def _last_id(client: redis.Redis, stream: str) -> str:
    newest: Any = client.xrevrange(stream, count=1)
    return str(newest[0][0]) if newest else "0-0"


def _entries(client: redis.Redis, stream: str, after: str, flows: Sequence[str]) -> list[StreamEntry]:
    """What this run has published to a stream."""
    found: Any = client.xrange(stream, min=f"({after}")
    own = set(flows)
    return [
        StreamEntry(stream, entry_id, fields)
        for entry_id, fields in found
        if fields.get(names.FIELD_CORRELATION_ID) in own
    ]


def _as_line(entry: StreamEntry) -> bytes:
    return orjson.dumps({"stream": entry.stream, "id": entry.id, **entry.fields}, option=orjson.OPT_APPEND_NEWLINE)
