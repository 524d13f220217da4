#!/usr/bin/env python
"""The pipeline's programs on loopback: how each is configured and started, and `make stack`, which runs them all.

The tests start the same programs through the same functions, so that what they prove is what runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
SERVICES = ("ai_engine", "auto_executor", "portfolio")
# Without it the collector loses lines when it is killed: see the head of collector/config.yaml.
FEATURE_GATES = "stanza.synchronousLogEmitter"
# What is alive in it is little, and garbage much: a tenth less CPU for some memory.
COLLECTOR_GOGC = "200"
READY_SECONDS = 60.0
# What Prometheus fetches from, by the names of their ports.
_SCRAPED = ("prometheus", "alertmanager", "loki", "self_metrics", "metrics", "exporter")
# Loki writes its chunks out when asked to stop, which takes longer than honcho's five seconds.
STOP_SECONDS = 30
# Then the others: a service's last lines and spans get through, and Loki is not stopped in the middle of a push, which
# it would wait for. Each turn takes so long at most.
STOPPED_FIRST = (SERVICES, ("collector",))
TURN_SECONDS = 10.0
# One order of so many goes wrong, at the demo's two a second every ten seconds one.
TROUBLE_EVERY = 20


@dataclass(frozen=True, slots=True)
class Ports:
    """Where each part listens, all on loopback."""

    redis: int = 6379
    loki: int = 3100
    loki_grpc: int = 9096
    otlp_grpc: int = 4317
    otlp_http: int = 4318
    health: int = 13133
    metrics: int = 8889
    self_metrics: int = 8888
    exporter: int = 9464
    prometheus: int = 9090
    alertmanager: int = 9093
    grafana: int = 3001
    webhook: int = 9095
    smtp: int = 2525

    @classmethod
    def usual_or_free(cls) -> Ports:
        """The usual port where nobody has it, any free one otherwise."""
        usual = cls()
        return cls(**{name: _port_or_free(getattr(usual, name)) for name in cls.__slots__})

    @classmethod
    def free(cls) -> Ports:
        """Free ports only, for tests that run side by side; none is given twice."""
        return cls(**{name: next(_free_ports()) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Program:
    """One program: how it is started, and the address that answers once it is ready."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | None = None

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.env}


@dataclass(frozen=True, slots=True)
class Stack:
    """The whole pipeline in one folder."""

    folder: Path
    ports: Ports
    redis_url: str

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def containers(self) -> Path:
        return self.folder / "containers"

    @property
    def loki_url(self) -> str:
        return f"http://{HOST}:{self.ports.loki}"

    @property
    def prometheus_url(self) -> str:
        return f"http://{HOST}:{self.ports.prometheus}"

    @property
    def alertmanager_url(self) -> str:
        return f"http://{HOST}:{self.ports.alertmanager}"

    @property
    def grafana_url(self) -> str:
        return f"http://{HOST}:{self.ports.grafana}"

    @property
    def status_file(self) -> Path:
        """What `scripts/log_status.sh --env-file` is to be told."""
        return self.folder / "status.env"

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def otlp_url(self) -> str:
        return f"http://{HOST}:{self.ports.otlp_http}"

    def make_folders(self) -> None:
        for folder in (self.logs, self.containers, self.secrets, self.folder / "redis", self.folder / "assets"):
            folder.mkdir(parents=True, exist_ok=True)
        runbooks = self.folder / "assets" / "runbooks"
        if not runbooks.is_symlink():
            runbooks.symlink_to(ROOT / "runbooks")


class StackError(RuntimeError):
    """The stack cannot be started; the message says what would help."""


def tool(name: str) -> str:
    """The path of one of the programs that `make tools` builds."""
    shown = subprocess.run([ROOT / "scripts/tools.sh", "--path"], capture_output=True, text=True, check=True)
    path = Path(shown.stdout.strip()) / name
    if not os.access(path, os.X_OK):
        raise StackError(f"{name} is not built: run `make tools`")
    return str(path)


def _adapted(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each of `changes` made. Prometheus and Alertmanager read no environment."""
    for old, new in changes.items():
        if old not in text:
            raise StackError(f"the configuration does not say {old!r} any more: change scripts/stack.py with it")
        text = text.replace(old, new)
    return text


def loki(stack: Stack, *, rules: Path | None = None) -> Program:
    """Loki with the committed configuration, its data in the stack's folder; `rules` instead of the committed ones."""
    data = stack.folder / "loki"
    config = ROOT / "observability/loki/loki.yaml"
    return Program(
        "loki",
        (tool("loki"), f"-config.file={config}", "-config.expand-env=true"),
        {
            "QUANTUM_LOKI_DATA": str(data),
            "QUANTUM_LOKI_RULES": str(rules or ROOT / "observability/loki/rules"),
            "QUANTUM_ALERTMANAGER_URL": stack.alertmanager_url,
            "QUANTUM_PROMETHEUS_URL": stack.prometheus_url,
            "QUANTUM_LOKI_PORT": str(stack.ports.loki),
            "QUANTUM_LOKI_GRPC_PORT": str(stack.ports.loki_grpc),
        },
        f"{stack.loki_url}/ready",
    )


def collector(stack: Stack, *overlays: Path) -> Program:
    """The collector with the committed configuration; `overlays` are further configurations, merged over it."""
    configs = [ROOT / "collector/config.yaml", *overlays]
    return Program(
        "collector",
        (tool("otelcol-quantum"), *(f"--config={path}" for path in configs), f"--feature-gates={FEATURE_GATES}"),
        {
            "GOGC": COLLECTOR_GOGC,
            "QUANTUM_LOG_DIR": str(stack.logs),
            "QUANTUM_CONTAINER_LOG_DIR": str(stack.containers),
            "QUANTUM_COLLECTOR_STATE": str(stack.folder / "collector"),
            "QUANTUM_LOKI_URL": stack.loki_url,
            "QUANTUM_OTLP_GRPC": f"{HOST}:{stack.ports.otlp_grpc}",
            "QUANTUM_OTLP_HTTP": f"{HOST}:{stack.ports.otlp_http}",
            "QUANTUM_HEALTH_ADDRESS": f"{HOST}:{stack.ports.health}",
            "QUANTUM_METRICS_ADDRESS": f"{HOST}:{stack.ports.metrics}",
            "QUANTUM_SELF_METRICS_PORT": str(stack.ports.self_metrics),
        },
        f"http://{HOST}:{stack.ports.health}/",
    )


def prometheus(stack: Stack, *, rules: Path | None = None, changes: Mapping[str, str] | None = None) -> Program:
    """Prometheus with the committed configuration, told where everything is here.

    Args:
        rules: a folder instead of the committed rules.
        changes: further pieces of the configuration to be replaced.
    """
    ports = Ports()
    here = {f"{HOST}:{getattr(ports, name)}": f"{HOST}:{getattr(stack.ports, name)}" for name in _SCRAPED}
    text = (ROOT / "observability/prometheus/prometheus.yml").read_text()
    folder = rules or ROOT / "observability/prometheus/rules"
    config = stack.folder / "prometheus.yml"
    # All ports at once: one part's new port may be another's usual one.
    text = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)
    config.write_text(_adapted(text, {"rules/*.yml": str(folder / "*.yml"), **(changes or {})}))
    argv = (
        tool("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={stack.folder / 'prometheus'}",
        "--storage.tsdb.retention.time=30d",
        f"--web.listen-address={HOST}:{stack.ports.prometheus}",
        "--web.enable-remote-write-receiver",  # for what Loki's ruler records
        f"--web.user-assets={stack.folder / 'assets'}",
        "--log.level=warn",
    )
    return Program("prometheus", argv, {}, f"{stack.prometheus_url}/-/ready")


def alertmanager(stack: Stack, *, changes: Mapping[str, str] | None = None) -> Program:
    """Alertmanager with the committed configuration, which here tells `notified`; `changes` as of `prometheus`."""
    hook = f"http://{HOST}:{stack.ports.webhook}"
    for name, secret in {
        "webhook_url": f"{hook}/alerts",
        "watchdog_url": f"{hook}/watchdog",
        "smtp_password": "-",
    }.items():
        file = stack.secrets / name
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secret)
    text = (ROOT / "observability/alertmanager/alertmanager.yml").read_text()
    here = {
        "/etc/quantum-bus/secrets": str(stack.secrets),
        "127.0.0.1:587": f"{HOST}:{stack.ports.smtp}",
        "smtp_require_tls: true": "smtp_require_tls: false",
    }
    config = stack.folder / "alertmanager.yml"
    config.write_text(_adapted(text, {**here, **(changes or {})}))
    argv = (
        tool("alertmanager"),
        f"--config.file={config}",
        f"--storage.path={stack.folder / 'alertmanager'}",
        f"--web.listen-address={HOST}:{stack.ports.alertmanager}",
        "--cluster.listen-address=",
        "--log.level=warn",
    )
    return Program("alertmanager", argv, {}, f"{stack.alertmanager_url}/-/ready")


def notified(stack: Stack) -> Program:
    """In place of the people who are told: prints what Alertmanager posts and mails."""
    script = ROOT / "scripts/notified.py"
    return Program(
        "notified", (sys.executable, str(script), f"--http={stack.ports.webhook}", f"--smtp={stack.ports.smtp}")
    )


def grafana_stand_in(stack: Stack, *, loki: bool = True) -> Program:
    """In place of Grafana, which cannot be built here: its health and its data sources; `loki` among them or not."""
    token = stack.secrets / "grafana_token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_urlsafe())
    argv = [sys.executable, str(ROOT / "scripts/grafana_stand_in.py"), f"--port={stack.ports.grafana}"]
    argv += [f"--token-file={token}", f"--prometheus={stack.prometheus_url}"]
    argv += [f"--loki={stack.loki_url}"] * loki
    return Program("grafana_stand_in", tuple(argv), {}, f"{stack.grafana_url}/api/health")


def write_status_file(stack: Stack) -> None:
    """Where everything is, for `scripts/log_status.sh`."""
    told = {
        "LOKI_URL": stack.loki_url,
        "COLLECTOR_HEALTH_URL": f"http://{HOST}:{stack.ports.health}",
        "COLLECTOR_METRICS_URL": f"http://{HOST}:{stack.ports.self_metrics}/metrics",
        "GRAFANA_URL": stack.grafana_url,
        "GRAFANA_TOKEN_FILE": stack.secrets / "grafana_token",
        "PROMETHEUS_URL": stack.prometheus_url,
        "ALERTMANAGER_URL": stack.alertmanager_url,
        "LOG_DIR": stack.logs,
    }
    stack.status_file.write_text("".join(f"QUANTUM_{name}={value}\n" for name, value in told.items()))


def exporter(stack: Stack, *, interval: float = 15.0) -> Program:
    """`quantum-bus exporter` on the stack's Redis."""
    listen = f"{HOST}:{stack.ports.exporter}"
    command = (sys.executable, "-m", "quantum_bus", "exporter", f"--listen={listen}", f"--interval={interval}")
    environment = dict.fromkeys(("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"), "")
    return Program("exporter", command, {**environment, "QUANTUM_BUS_URL": stack.redis_url}, f"http://{listen}/metrics")


def redis(stack: Stack) -> Program:
    """A Redis of the stack's own, for when no running one is named."""
    options = {"bind": HOST, "port": stack.ports.redis, "dir": stack.folder / "redis", "appendonly": "yes", "save": ""}
    argv = [_redis_server()]
    for name, value in options.items():
        argv += [f"--{name}", str(value)]
    return Program("redis", tuple(argv))


def service(stack: Stack, name: str, *arguments: str, metrics_every: float = 15.0) -> Program:
    """One of the demo's services, started once Redis answers. It sends spans, and metrics every so many seconds."""
    host, _, port = stack.redis_url.rpartition("/")[0].rpartition("@")[2].removeprefix("redis://").partition(":")
    command = (sys.executable, "-m", f"quantum_bus.demo.{name}", *arguments)
    return Program(
        name,
        (sys.executable, __file__, "--when-open", f"{host or HOST}:{port or 6379}", *command),
        {
            "QUANTUM_BUS_URL": stack.redis_url,
            "QUANTUM_LOG_DIR": str(stack.logs),
            "PYTHONUNBUFFERED": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_url,
            "OTEL_METRIC_EXPORT_INTERVAL": str(int(metrics_every * 1000)),
        },
    )


def demo_services(stack: Stack, *, metrics_every: float = 15.0, trouble_every: int = TROUBLE_EVERY) -> list[Program]:
    """The demo's services, with an exchange that now and then gives no answer or refuses an order."""
    arguments = {"auto_executor": (f"--trouble-every={trouble_every}",)}
    return [service(stack, name, *arguments.get(name, ()), metrics_every=metrics_every) for name in SERVICES]


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.1) -> None:
    """Returns once `condition()` is true; raises StackError naming `what` when that takes too long (seconds)."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)


def answers(url: str) -> bool:
    """Whether a GET of `url` gives a good status."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  loopback, an address of our own
            return bool(200 <= answer.status < 300)
    except OSError:
        return False


def _bound(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
    except OSError:
        held.close()
        raise
    return held


def _port_or_free(port: int) -> int:
    for candidate in (port, 0):
        with contextlib.suppress(OSError), _bound(candidate) as held:
            return int(held.getsockname()[1])
    raise StackError("no free port on loopback")


@functools.cache
def _free_ports() -> Iterator[int]:
    """Free ports in no order, of those that the kernel gives to nobody who asks for any: they stay free until used."""
    ports = list(range(10_000, 32_000))
    secrets.SystemRandom().shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError):
            _bound(port).close()
            yield port


def _redis_server() -> str:
    from quantum_bus.demo.redis_server import RedisServerError, find_redis_server

    try:
        return str(find_redis_server().path)
    except RedisServerError as error:
        raise StackError(f"{error}; QUANTUM_BUS_URL can name a running one") from error


def _run_when_open(address: str, command: Sequence[str]) -> None:
    """Becomes `command` once something listens at `address`."""
    host, _, port = address.rpartition(":")

    def is_open() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False

    wait_until(is_open, timeout=READY_SECONDS, what=f"something listening at {address}")
    os.execv(command[0], list(command))  # noqa: S606  a program and arguments of our own


def _banner(stack: Stack) -> str:
    status = shlex.join([str(ROOT / "scripts/log_status.sh"), "--env-file", str(stack.status_file)])
    logcli = shlex.join([tool("logcli"), f"--addr={stack.loki_url}", "query", "--since=1h", "--limit=20"])
    return "\n".join(
        [
            "",
            "The stack is ready.",
            f"  Redis            {stack.redis_url}",
            f"  Loki             {stack.loki_url}",
            f"  Prometheus       {stack.prometheus_url}/alerts",
            f"  Grafana          not here: a stand-in at {stack.grafana_url} answers for it in the check below",
            f"  Alertmanager     {stack.alertmanager_url} (what it sends is printed here, by notified)",
            f"  OTLP             {stack.otlp_url} (HTTP), {HOST}:{stack.ports.otlp_grpc} (gRPC)",
            f"  metrics          http://{HOST}:{stack.ports.metrics}/metrics of the services",
            f"                   http://{HOST}:{stack.ports.self_metrics}/metrics of the collector",
            f"                   http://{HOST}:{stack.ports.exporter}/metrics of streams and groups",
            f"  log files        {stack.logs}",
            "",
            "Is all well?",
            f"  {status}",
            "",
            "One order's story, from every service (any correlation_id of a line will do):",
            f"""  {logcli} '{{service_name=~".+"}} |= "ORDER_"'""",
            f"""  {logcli} '{{service_name=~".+"}} |= "ORDER_" | correlation_id="…"'""",
            "",
            f"One order of {TROUBLE_EVERY} goes wrong on purpose: DeadLettersArriving will be told.",
            "Ctrl-C stops everything.",
            "",
        ]
    )


def _supervisor(patience: float) -> Any:
    from honcho import manager as honcho

    class Supervisor(honcho.Manager):  # type: ignore[misc]
        """honcho's manager, which stops programs in turn: senders before what they send to.

        It also survives a signal that comes before every program has said its pid.
        """

        _turn = 0
        _until: float | None = None
        _lock = threading.RLock()  # a signal may come in between

        def terminate(self) -> None:
            with self._lock:
                if not self._terminating and self._all_started() and self._turns_are_over():
                    super().terminate()
            if not self._terminating:
                threading.Timer(0.1, self.terminate).start()

        def _turns_are_over(self) -> bool:
            while self._turn < len(STOPPED_FIRST):
                programs = [self._processes[name] for name in STOPPED_FIRST[self._turn]]
                running = [program for program in programs if "returncode" not in program]
                if self._until is None:
                    self._until = time.monotonic() + patience * TURN_SECONDS
                    for program in running:
                        self._procmgr.terminate(program["pid"])
                if running and time.monotonic() < self._until:
                    return False
                self._turn, self._until = self._turn + 1, None
            return True

    honcho.KILL_WAIT = patience * STOP_SECONDS
    return Supervisor()


def run(folder: Path, *, seconds: float | None, patience: float = 1.0) -> int:
    """Runs the whole stack until a signal comes, a program ends by itself, or `seconds` are over.

    Programs have `patience` times as long to stop as they usually have.
    """
    url = os.environ.get("QUANTUM_BUS_URL")
    ports = Ports.usual_or_free()
    stack = Stack(folder.resolve(), ports, url or f"redis://{HOST}:{ports.redis}/0")
    stack.make_folders()
    watching = [exporter(stack), prometheus(stack), notified(stack), alertmanager(stack), grafana_stand_in(stack)]
    write_status_file(stack)
    programs = [loki(stack), collector(stack), *watching, *demo_services(stack)]
    if not url:
        programs.insert(0, redis(stack))

    supervisor = _supervisor(patience)
    for program in programs:
        # "exec": the pid that gets the signals is the program's, not a shell's.
        supervisor.add_process(
            program.name, f"exec {shlex.join(program.argv)}", env=program.environment(), cwd=str(stack.folder)
        )
    bounded = threading.Event()

    def announce() -> None:
        started = time.monotonic()
        try:
            for program in programs:
                if program.ready:
                    is_ready = functools.partial(answers, program.ready)
                    wait_until(is_ready, timeout=READY_SECONDS, what=f"{program.name} ready")
            print(_banner(stack), flush=True)
        except StackError as error:
            print(error, file=sys.stderr, flush=True)
            supervisor.terminate()
        if seconds is not None:
            time.sleep(max(0.0, seconds - (time.monotonic() - started)))
            bounded.set()
            supervisor.terminate()

    threading.Thread(target=announce, daemon=True).start()
    supervisor.loop()
    # 130 and 143 are honcho's for SIGINT and SIGTERM: being asked to stop is how a stack ends well.
    return 0 if bounded.is_set() or supervisor.returncode in {130, 143} else supervisor.returncode or 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=ROOT / ".quantum", help="where everything is kept (%(default)s)")
    parser.add_argument("--for", type=float, dest="seconds", metavar="SECONDS", help="stop by itself after so long")
    parser.add_argument("--patience", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--when-open", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.when_open:
        address, *command = chosen.when_open
        _run_when_open(address, command)
    try:
        return run(chosen.dir, seconds=chosen.seconds, patience=chosen.patience)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
