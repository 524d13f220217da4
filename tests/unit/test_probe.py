"""`python -m quantum_bus.probe`: a health check without curl."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from quantum_bus import Health, names
from quantum_bus.probe import main
from quantum_bus.probes import ProbeServer

HEALTH = Health(service="shop", state=names.HEALTH_RUNNING, redis="")


class Service:
    health = HEALTH

    def ask(self, redis: bool) -> Health:
        return self.health


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with ProbeServer("127.0.0.1:0", service.ask) as server:
        yield f"http://127.0.0.1:{server.port}/readyz"


def test_the_exit_code_says_whether_it_is_well_and_the_answer_is_printed(
    service: Service, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url]) == 0
    assert '"ready":true' in capsys.readouterr().out
    service.health = replace(HEALTH, state=names.HEALTH_DRAINING)
    assert main([url]) == 1
    assert "the bus is draining" in capsys.readouterr().err


def test_it_waits_where_asked_to(service: Service, url: str) -> None:
    service.health = replace(HEALTH, state=names.HEALTH_STARTING)
    started = threading.Timer(0.3, lambda: setattr(service, "health", HEALTH))
    started.start()
    assert main(["--wait=20", url]) == 0
    started.join()


def test_who_does_not_answer_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert main(["--timeout=0.2", f"http://127.0.0.1:{port}/readyz"]) == 1
        assert "does not answer: timed out" in capsys.readouterr().err
    assert main([f"http://127.0.0.1:{port}/readyz"]) == 1
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["127.0.0.1:8080"], ["https://127.0.0.1/readyz"], ["http://:80/"], ["http://h:99999/"], ["http://h/ x"],
     ["--timeout=soon", "http://h/"], ["--wait=-1", "http://h/"]],
)  # fmt: skip
def test_a_wrong_call_is_told_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "python -m quantum_bus.probe: error:" in capsys.readouterr().err


def test_it_runs_as_a_module(url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "quantum_bus.probe", url], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
