"""Real programs on free loopback ports, with the committed configurations. A missing program fails the test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from scripts.notified import Notified
from scripts.stack import Ports, Program, Stack, collector, loki
from tests.stack.alerting import Watch, quick_alertmanager
from tests.stack.running import Running

LOG_PIPELINES = ("logs/files", "logs/containers", "logs/otlp")


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A folder and free ports for one pipeline of the test's own; nothing runs yet."""
    ports = Ports.free()
    made = Stack(tmp_path, ports, f"redis://127.0.0.1:{ports.redis}/0")
    made.make_folders()
    return made


@pytest.fixture
def start(stack: Stack) -> Iterator[Callable[[Program], Running]]:
    """`start(program)`: a running program, killed when the test is over."""
    with ExitStack() as running:
        yield lambda program: running.enter_context(Running(program, stack.folder / f"{program.name}.log"))


@pytest.fixture
def real_loki(stack: Stack, start: Callable[[Program], Running]) -> Running:
    return start(loki(stack))


@pytest.fixture
def real_collector(stack: Stack, start: Callable[[Program], Running]) -> Running:
    return start(collector(stack))


@pytest.fixture
def to_files(stack: Stack) -> Path:
    """A second configuration for the collector: to `{signal}.json` in the stack's folder instead of Loki."""
    pipelines = {name: {"exporters": ["file/logs", "signal_to_metrics"]} for name in LOG_PIPELINES}
    pipelines |= {name: {"exporters": [f"file/{name}"]} for name in ("traces", "metrics")}
    exporters = {
        f"file/{name}": {"path": str(stack.folder / f"{name}.json"), "flush_interval": "100ms"}
        for name in ("logs", "traces", "metrics")
    }
    overlay = stack.folder / "to-files.yaml"
    overlay.write_text(yaml.safe_dump({"exporters": exporters, "service": {"pipelines": pipelines}}))
    return overlay


@pytest.fixture
def watch(stack: Stack, start: Callable[[Program], Running]) -> Iterator[Watch]:
    """Alertmanager, and the two servers that it tells."""
    with Notified(stack.ports.webhook, stack.ports.smtp) as notified:
        start(quick_alertmanager(stack))
        yield Watch(stack, notified)
