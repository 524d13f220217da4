import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from quantum_bus import EventBus
from quantum_bus.cli.run import TargetError, load, made
from quantum_bus.sync import EventBus as SyncEventBus

MODULE = """
    from quantum_bus import EventBus
    bus = EventBus("redis://127.0.0.1:1/0", service="shop")
    number = 3

    class app:
        bus = bus

    def make():
        return bus

    async def make_later():
        return bus

    def fail():
        raise ZeroDivisionError("two\\nlines")

    def nothing():
        return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The module, under a name that no other test has imported."""
    name = f"shop_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


async def found(target: str) -> Any:
    return await made(target, load(target))


@pytest.mark.parametrize("path", ["bus", "app.bus", "make", "make_later"])
async def test_a_bus_is_found_by_name_or_made_by_a_function(module: str, path: str) -> None:
    bus = await found(f"{module}:{path}")
    assert isinstance(bus, EventBus)
    assert bus.config.service == "shop"


async def test_the_bus_for_threads_is_one_too(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_sync.py").write_text(
        "from quantum_bus.sync import EventBus\nbus = EventBus('redis://127.0.0.1:1/0', service='shop')\n",
        encoding="utf-8",
    )
    assert isinstance(await found(f"{module}_sync:bus"), SyncEventBus)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "no MODULE:BUS"),
        (":bus", "no MODULE:BUS"),
        ("shop/main.py:bus", "no MODULE:BUS"),
        ("{}.py:bus", "write {}:bus"),
        ("{}", "did you mean {}:bus?"),
        ("{}:", "did you mean {}:bus?"),
        ("{}:buss", "did you mean {}:bus?"),
        ("{}:app.buss", "did you mean {}:bus?"),
        ("{}:number", "of type int"),
        ("{}:nothing", "returned of type NoneType"),
        ("{}:EventBus", "the class EventBus"),
        ("{}:fail", "ZeroDivisionError: two"),
        ("no_such_module:bus", "there is no module 'no_such_module'"),
        ("{}.sub:bus", "there is no module '{}.sub'"),
    ],
)
async def test_a_target_that_is_no_bus_is_refused_with_what_would_be_right(module: str, target: str, says: str) -> None:
    with pytest.raises(TargetError) as refused:
        await found(target.format(module))
    assert says.format(module) in str(refused.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_library\n", "No module named 'no_such_library'"),
        ("x = 1\nx.y\n", ":2: AttributeError"),
        ("def broken(:\n", ":1: "),
        ("raise SystemExit(3)\n", ":1: SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_named_with_its_line(module: str, tmp_path: Path, source: str, says: str) -> None:
    name = f"{module}_broken"
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    with pytest.raises(TargetError) as refused:
        load(f"{name}:bus")
    assert says in str(refused.value)


def run(*arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program] if program else [sys.executable, "-m", "quantum_bus"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=25, check=False)


def test_the_commands_are_listed() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "demo" in shown.stdout
    assert "run" in shown.stdout


def test_it_tells_its_version() -> None:
    shown = run("--version")
    assert shown.stdout.startswith("quantum-bus 0.")


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-such"], ["no-such"], ["demo", "--intents", "0"]])
def test_a_wrong_call_ends_with_2_and_without_a_traceback(arguments: list[str]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    assert "Error" in shown.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_it_says_in_one_line_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from quantum_bus.cli import main; main()"
    shown = run(program=program)
    assert shown.returncode == 1
    assert shown.stderr.splitlines() == [
        "quantum-bus: the command line needs its extra; install it: pip install 'quantum-bus[cli]'"
    ]


@pytest.mark.parametrize(
    ("missing", "option", "says"),
    [
        ("prometheus_client", "--listen=127.0.0.1:0", "--listen needs prometheus-client"),
        ("opentelemetry.sdk", "--otlp=http://127.0.0.1:1", "pip install 'quantum-bus[otel]'"),
    ],
)
def test_no_command_needs_what_only_the_exporter_sends_with(missing: str, option: str, says: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from quantum_bus.cli import main; main()"
    assert run("--help", program=program).returncode == 0
    shown = run("exporter", "--url=redis://127.0.0.1:1/0", option, program=program)
    assert shown.returncode in (1, 2)
    assert len(shown.stderr.splitlines()) == 1
    assert says in shown.stderr
