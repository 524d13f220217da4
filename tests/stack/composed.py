"""deploy/compose.yaml without containers: each service's command, environment and files as written, as a process here.

What a container would give it is put in its place: a mount's target becomes its source, a volume a folder, another
service's name this machine, a port a free one. The image's own entry point is the program that `make tools` built.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.stack import HOST, ROOT, Program, Stack, tool

COMPOSE = ROOT / "deploy/compose.yaml"
# What the images start, where compose.yaml names no program; test_deploy.py reads our Dockerfiles.
ENTRYPOINTS = {
    "redis": [],
    "collector": ["otelcol-quantum"],
    "loki": ["loki"],
    "prometheus": ["prometheus"],
    "alertmanager": ["alertmanager"],
    "exporter": [sys.executable, "-m", "quantum_bus"],
    "auto_executor": [sys.executable, "-m", "quantum_bus"],
    "portfolio": [sys.executable, "-m", "quantum_bus"],
    "ai_engine": [],
}
LISTENING = {
    "redis": (6379,),
    "collector": (4317, 4318, 8888, 8889, 13133),
    "loki": (3100, 9096),
    "prometheus": (9090,),
    "alertmanager": (9093,),
    "exporter": (9464,),
    "auto_executor": (8080,),
    "portfolio": (8080,),
    "ai_engine": (),
}
READY = {"loki": "http://127.0.0.1:3100/ready", "prometheus": "http://127.0.0.1:9090/-/ready",
         "alertmanager": "http://127.0.0.1:9093/-/ready", "collector": "http://127.0.0.1:13133/",
         "exporter": "http://127.0.0.1:9464/metrics"}  # fmt: skip


def model(**environment: str) -> dict[str, Any]:
    """The file as the compose specification's own loader reads it, profiles included."""
    read = subprocess.run(
        [tool("compose-check"), COMPOSE],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    loaded: dict[str, Any] = json.loads(read.stdout)
    return loaded


@dataclass
class Composed:
    """The services of the file, each to be started as a process; `folder` is where everything is kept."""

    folder: Path
    services: dict[str, Any]
    secrets: dict[str, Any]
    ports: dict[tuple[str, int], int] = field(default_factory=dict)

    @classmethod
    def load(cls, stack: Stack, free: Iterator[int]) -> Composed:
        secrets, logs = stack.folder / "compose-secrets", stack.containers
        subprocess.run([ROOT / "deploy/make_secrets.sh", secrets], check=True, capture_output=True)
        loaded = model(QUANTUM_SECRETS=str(secrets), QUANTUM_CONTAINER_LOGS=str(logs))
        ports = {(name, port): next(free) for name, own in LISTENING.items() for port in own}
        made = cls(stack.folder, loaded["services"], loaded["secrets"], ports)
        for name in ("redis_url", "redis_url_exporter", "redis_url_operator"):
            file = secrets / name
            file.write_text(made.here(file.read_text(), "redis"))
        return made

    def address(self, service: str, port: int) -> str:
        return f"{HOST}:{self.ports[service, port]}"

    def program(self, name: str) -> Program:
        """The service's process, with everything as compose.yaml has it."""
        service = self.services[name]
        given = service.get("entrypoint") or ENTRYPOINTS[name]
        argv = [self.here(word, name) for word in (*given, *(service.get("command") or ()))]
        argv[0] = self._program(argv[0])
        environment = {key: self.here(str(value), name) for key, value in (service.get("environment") or {}).items()}
        return Program(
            name,
            (*argv, *self._port_options(name)),
            environment | self._port_environment(name) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'deploy/services'}"},
            self.here(READY[name], name) if name in READY else None,
        )

    def health(self, name: str) -> list[str]:
        """Its health check, as it is typed in the container."""
        kind, program, *arguments = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = [self._program(program), *(self.here(word, name) for word in arguments)]
        if name == "loki":  # it asks its own port, which in a container is the usual one
            words.append(f"-health.url=http://{self.address('loki', 3100)}/ready")
        if name == "redis":
            words[1:1] = ["-p", str(self.ports["redis", 6379])]
        return words

    def here(self, text: str, service: str) -> str:
        """Text of the file, or of one that is mounted, with this machine's paths and ports for the container's."""
        for target, source in sorted(self._mounts(service).items(), reverse=True):
            text = re.sub(rf"(?<![\w/.]){re.escape(target)}(?=[/\s\"',]|$)", str(source), text)

        def port(found: re.Match[str]) -> str:
            name = found[1] if found[1] in self.services else service
            known = self.ports.get((name, int(found[2])))
            return found[0] if known is None else f"{HOST}:{known}"

        names = "|".join([*self.services, r"0\.0\.0\.0", r"127\.0\.0\.1", "localhost"])
        return re.sub(rf"(?<![\w.])({names}):(\d+)\b", port, text)

    def _mounts(self, name: str) -> Mapping[str, Path]:
        service = self.services[name]
        mounts = {"/etc/quantum-bus/collector/config.yaml": ROOT / "collector/config.yaml"}  # copied into its image
        for volume in service.get("volumes") or ():
            target = volume["target"]
            if volume["type"] == "volume":
                source = self.folder / "volumes" / volume["source"]
                source.mkdir(parents=True, exist_ok=True)
            else:
                source = self._copied(Path(volume["source"]), target, name)
            mounts[target] = source
        for secret in service.get("secrets") or ():
            target = secret.get("target") or secret["source"]
            target = target if target.startswith("/") else f"/run/secrets/{target}"
            mounts[target] = Path(self.secrets[secret["source"]]["file"])
        return mounts

    def _copied(self, source: Path, target: str, name: str) -> Path:
        """Configuration that names addresses itself, in a copy that names those here; all else where it is."""
        if name not in {"prometheus", "alertmanager"} or "runbooks" in target:
            return source
        copy = self.folder / "mounts" / name / target.strip("/").replace("/", "_")
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy)
            else:
                shutil.copy(source, copy)
            for file in [copy] if copy.is_file() else list(copy.rglob("*.yml")):
                file.write_text(self.here(file.read_text(), name))
        return copy

    @staticmethod
    def _program(word: str) -> str:
        name = Path(word).name
        if name == "python":
            return sys.executable
        if name in {"redis-server", "redis-cli", "wget"} or (Path(word).is_absolute() and Path(word).exists()):
            return word
        return tool(name)

    def _port_options(self, name: str) -> tuple[str, ...]:
        if name == "redis":
            folder = self.folder / "volumes" / "redis"
            folder.mkdir(parents=True, exist_ok=True)
            return ("--port", str(self.ports["redis", 6379]), "--bind", HOST, "--dir", str(folder))
        return ()

    def _port_environment(self, name: str) -> dict[str, str]:
        """What in a container is the usual port, and is not in the file."""
        if name == "loki":
            ports = {"QUANTUM_LOKI_PORT": 3100, "QUANTUM_LOKI_GRPC_PORT": 9096}
            return {"QUANTUM_LOKI_ADDRESS": HOST} | {key: str(self.ports[name, port]) for key, port in ports.items()}
        if name == "collector":
            return {
                "QUANTUM_HEALTH_ADDRESS": self.address(name, 13133),
                "QUANTUM_SELF_METRICS_HOST": HOST,
                "QUANTUM_SELF_METRICS_PORT": str(self.ports[name, 8888]),
            }
        return {}


class Engine(threading.Thread):
    """A container engine's json-file log driver: what a process prints, as the engine writes it, in its folder."""

    CUT = 16 * 1024

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, service: Mapping[str, Any]) -> None:
        super().__init__()
        options = service["logging"]
        assert options["driver"] == "json-file"
        self._attributes = {"tag": options["options"]["tag"].replace("{{.Name}}", service["container_name"])}
        self._process = process
        container = f"{abs(hash(service['container_name'])):064x}"[:64]
        folder.mkdir(exist_ok=True)
        folder.chmod(0o710)  # root's alone, as the engine makes them
        (folder / container).mkdir(mode=0o710)
        self.file = folder / container / f"{container}-json.log"
        self.file.touch(mode=0o640)
        self.start()

    def run(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output, self.file.open("a") as log:
            for line in output:
                for at in range(0, len(line), self.CUT):
                    text = line[at : at + self.CUT].decode(errors="replace")
                    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
                    entry = {"log": text, "stream": "stdout", "attrs": self._attributes, "time": now}
                    log.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False) + "\n")
                    log.flush()
