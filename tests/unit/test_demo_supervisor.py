import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantum_bus.demo import run
from quantum_bus.demo.supervisor import StopRequested, StopSignals, Supervisor

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """A zombie, that nobody has waited for yet, is gone too."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def pid_of(supervisor: Supervisor, name: str) -> int:
    return supervisor._children[name].process.pid


@pytest.mark.parametrize("command", [SLEEP, STUBBORN], ids=["willing", "stubborn"])
def test_no_process_outlives_the_block(command: list[str]) -> None:
    with StopSignals() as signals, Supervisor(signals, stop_seconds=0.5) as supervisor:
        supervisor.start("one", command, os.environ)
        wait_until(lambda: supervisor.said("one") == "ready")
        pid = pid_of(supervisor, "one")
    assert is_gone(pid)


def test_no_process_outlives_a_failure() -> None:
    pids = []

    def fail() -> None:
        with StopSignals() as signals, Supervisor(signals) as supervisor:
            supervisor.start("one", SLEEP, os.environ)
            pids.append(pid_of(supervisor, "one"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert is_gone(pids[0])


def test_a_suspended_process_is_ended_too() -> None:
    with StopSignals() as signals, Supervisor(signals) as supervisor:
        supervisor.start("one", SLEEP, os.environ)
        wait_until(lambda: supervisor.said("one") == "ready")
        process = supervisor._children["one"].process
        os.kill(process.pid, signal.SIGSTOP)
    assert process.returncode == -signal.SIGTERM, "it was not killed: it heard that it was to end"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_process_outlives_a_parent_that_is_killed() -> None:
    program = """
        import os, sys, time
        from quantum_bus.demo.supervisor import StopSignals, Supervisor
        with StopSignals() as signals, Supervisor(signals) as supervisor:
            supervisor.start("one", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
            print(supervisor._children["one"].process.pid, flush=True)
            time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    wait_until(lambda: is_gone(pid))


def test_what_a_process_says_and_how_it_ends_is_known() -> None:
    with StopSignals() as signals, Supervisor(signals) as supervisor:
        supervisor.start("one", [sys.executable, "-c", "raise SystemExit('no Redis')"], os.environ)
        wait_until(lambda: supervisor.exit_codes() == {"one": 1})
        assert supervisor.said("one") == "no Redis"
        assert "one" in supervisor
        assert "two" not in supervisor


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_the_first_signal_is_raised_and_the_next_ones_are_not(number: signal.Signals) -> None:
    with StopSignals():
        with pytest.raises(StopRequested) as stop:
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.number == number
    assert str(stop.value) == number.name


def test_a_held_signal_is_raised_behind_the_block() -> None:
    steps = []

    def work(signals: StopSignals) -> None:
        with signals.held():
            with signals.held():
                signal.raise_signal(signal.SIGTERM)
                steps.append("inner")
            steps.append("outer")
        steps.append("behind")

    with StopSignals() as signals, pytest.raises(StopRequested):
        work(signals)
    assert steps == ["inner", "outer"]


def test_the_former_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in StopSignals.SIGNALS]
    with StopSignals():
        pass
    assert [signal.getsignal(number) for number in StopSignals.SIGNALS] == before


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_a_signal_as_redis_is_started_or_stopped_does_not_leave_it_running(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    @contextmanager
    def redis_server(*_: object) -> Iterator[SimpleNamespace]:
        steps.append("starts")
        if moment == "start":
            signal.raise_signal(signal.SIGTERM)
        steps.append("started")
        try:
            yield SimpleNamespace(url="redis://localhost:6379/0")
        finally:
            steps.append("stops")
            if moment == "stop":
                signal.raise_signal(signal.SIGTERM)
            steps.append("stopped")

    monkeypatch.setattr(run, "find_redis_server", lambda: None)
    monkeypatch.setattr(run, "start_redis", redis_server)
    with StopSignals() as signals, pytest.raises(StopRequested), run._own_redis(signals):
        steps.append("used")
    used = ["used"] if moment == "stop" else []
    assert steps == ["starts", "started", *used, "stops", "stopped"]
