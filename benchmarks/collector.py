"""The real collector, for the last rung of the ladder: it takes spans and metrics over OTLP, counts and drops them."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .runner import ROOT, ContestantFailed, Cores, pin

CONFIG = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
processors:
  memory_limiter: {{check_interval: 500ms, limit_mib: 256}}
exporters:
  debug: {{verbosity: basic}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], processors: [memory_limiter], exporters: [debug]}}
    metrics: {{receivers: [otlp], processors: [memory_limiter], exporters: [debug]}}
"""


@dataclass(frozen=True, slots=True)
class Collector:
    """A running one."""

    url: str
    log: Path

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url}

    def spans(self) -> int:
        """How many it has received."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        return sum(int(count) for count in re.findall(r'"spans": ?(\d+)', log))


@contextmanager
def collector(cores: Cores) -> Iterator[Collector]:
    """Runs it on the server's cores: another machine's, in real life."""
    told = subprocess.run([ROOT / "scripts/tools.sh", "--path"], capture_output=True, text=True, check=True)
    program = Path(told.stdout.strip()) / "otelcol-quantum"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="quantum-bus-bench-") as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "collector.log")
        config.write_text(CONFIG.format(port=port), encoding="utf-8")
        with (
            log.open("wb") as output,
            subprocess.Popen([program, "--config", config], stdout=output, stderr=output) as process,
        ):
            try:
                pin(process.pid, cores.server)
                _wait(process, port, log)
                yield Collector(f"http://127.0.0.1:{port}", log)
            finally:
                process.terminate()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise ContestantFailed(f"the collector did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
