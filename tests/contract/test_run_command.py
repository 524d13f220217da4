"""`quantum-bus run MODULE:BUS`, as a process on a real Redis."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.contract.conditions import PATIENCE
from tests.servers import RedisPool, series_to_test

PROGRAM = """
    import {asyncio_or_time} as clock
    from {package} import EventBus
    bus = EventBus(service="shop", block=0.1)

    @bus.subscriber({stream!r})
    {prefix}def handle(order: dict) -> None:
        print("handling", flush=True)
        {wait}clock.sleep(order["seconds"])
        print("handled", flush=True)
"""
TWINS = {
    "asyncio": {"package": "quantum_bus", "prefix": "async ", "wait": "await ", "asyncio_or_time": "asyncio"},
    "threads": {"package": "quantum_bus.sync", "prefix": "", "wait": "", "asyncio_or_time": "time"},
}


@pytest.fixture(params=TWINS)
def program(request: pytest.FixtureRequest, tmp_path: Path, stream: str) -> Path:
    source = textwrap.dedent(PROGRAM).format(stream=stream, **TWINS[request.param])
    (tmp_path / "shop.py").write_text(source, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def url(redis_pool: RedisPool) -> str:
    return redis_pool.of(series_to_test()[0]).url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as made:
        yield made


class Service:
    """The running command; its output is read line by line."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quantum_bus", "run", *arguments],
            env={**env, "QUANTUM_BUS_URL": url},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.seen: list[str] = []

    def wait_for(self, part: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line.strip())
            if part in line:
                return line
        raise AssertionError(f"no {part!r}: {self.seen}, {self.end()}")

    def end(self) -> tuple[int, list[str], list[str]]:
        """Exit code, output and errors."""
        out, errors = self.process.communicate(timeout=30)
        self.seen += out.splitlines()
        return self.process.returncode, self.seen, errors.splitlines()


@pytest.fixture
def serve(program: Path, url: str) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(*arguments: str) -> Service:
        made.append(Service(program, url, *arguments))
        return made[-1]

    yield start
    for service in made:
        service.process.kill()
        service.process.communicate()


def publish(client: redis.Redis, stream: str, seconds: float) -> None:
    client.xadd(stream, {"data": json.dumps({"seconds": seconds})})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_handles_messages_until_a_signal_and_drains(
    serve: Callable[..., Service], client: redis.Redis, stream: str, number: signal.Signals
) -> None:
    service = serve("shop:bus")
    service.wait_for("BUS_STARTED")
    publish(client, stream, 0.3)
    service.wait_for("handling")
    service.process.send_signal(number)
    code, lines, errors = service.end()
    assert (code, errors) == (0, [])
    assert "handled" in lines
    pending: Any = client.xpending(stream, "shop")
    assert pending["pending"] == 0
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert events[0] == "SERVICE_STARTED"
    assert events[-1] == "SERVICE_STOPPED"


COLLECTING = """
import atexit, gc

def tell(when):  # Python 3.12 has hundreds frozen by itself
    print(when, gc.isenabled(), gc.get_freeze_count() > 10_000, *gc.get_threshold(), flush=True)

tell("loading")
atexit.register(tell, "in the end")
"""


@pytest.mark.parametrize("own", [(), (5_000, 7, 8)], ids=["", "with a threshold of its own"])
def test_a_service_has_its_garbage_collector_spared_what_was_loaded_and_what_is_in_hand(
    serve: Callable[..., Service], program: Path, own: tuple[int, ...]
) -> None:
    with (program / "shop.py").open("a", encoding="utf-8") as file:
        file.write(COLLECTING)
        if own:
            file.write(f"gc.set_threshold(*{own})\n")
    service = serve("shop:bus")
    assert service.wait_for("loading").split()[1:] == ["True", "False", *map(str, gc.get_threshold())]
    service.wait_for("BUS_STARTED")
    service.process.terminate()
    code, lines, _ = service.end()
    assert code == 0
    told = next(line for line in lines if line.startswith("in the end"))
    assert told.split()[3:] == ["True", "True", *map(str, own or (10_000, 10, 10))]


def test_stop_timeout_bounds_the_drain(serve: Callable[..., Service], client: redis.Redis, stream: str) -> None:
    service = serve("shop:bus", "--stop-timeout=0.2")
    service.wait_for("BUS_STARTED")
    publish(client, stream, 600.0)
    service.wait_for("handling")
    service.process.terminate()
    code, lines, _ = service.end()
    assert code == 0
    assert any("BUS_ABANDONED" in line for line in lines)
    pending: Any = client.xpending(stream, "shop")
    assert pending["pending"] == 1


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["--log-format=json"], '{"ts":'),
        (["--log-format=text", "--log-level=info"], "20"),
    ],
)
def test_the_log_is_in_the_format_that_is_asked_for(
    serve: Callable[..., Service], arguments: list[str], first: str
) -> None:
    service = serve("shop:bus", *arguments)
    service.wait_for("is started")
    assert service.seen[0].startswith(first)
    service.process.terminate()
    assert service.end()[0] == 0


def test_logging_can_be_left_to_the_program(serve: Callable[..., Service], client: redis.Redis, stream: str) -> None:
    publish(client, stream, 0)
    service = serve("shop:bus", "--log-format=none")
    service.wait_for("handled")
    service.process.terminate()
    code, lines, errors = service.end()
    assert (code, lines, errors) == (0, ["handling", "handled"], [])


def test_a_level_keeps_lower_records_out(serve: Callable[..., Service], client: redis.Redis, stream: str) -> None:
    publish(client, stream, 0)
    service = serve("shop:bus", "--log-level=ERROR")
    service.wait_for("handled")
    service.process.terminate()
    assert service.end()[1] == ["handling", "handled"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["shop:buss"], 2, "did you mean shop:bus?"),
        (["nothing:bus"], 2, "there is no module 'nothing'"),
        (["shop:bus", "--log-level=loud"], 2, "level='loud'"),
        (["shop:bus", "--probes=8080"], 2, "--probes='8080': give an address and a port"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(
    serve: Callable[..., Service], arguments: list[str], code: int, says: str
) -> None:
    ended, _, errors = serve(*arguments).end()
    assert ended == code
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.parametrize("debug", [False, True])
def test_a_redis_that_is_away_is_one_line_and_1(program: Path, debug: bool) -> None:
    source = (program / "shop.py").read_text(encoding="utf-8").replace("block=0.1", "connect_timeout=0.2")
    (program / "shop.py").write_text(source, encoding="utf-8")
    code, _, errors = Service(program, "redis://127.0.0.1:1/0", "shop:bus", *["--debug"] * debug).end()
    assert code == 1
    assert "redis://127.0.0.1:1/0 cannot be reached" in errors[-1]
    assert ("Traceback (most recent call last):" in errors) is debug
    assert debug or len(errors) == 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_log_goes_to_a_folder_and_is_rolled_back_to_plain_text_by_the_environment(
    program: Path, url: str, tmp_path: Path, log_format: str
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    env |= {"QUANTUM_BUS_URL": url, "QUANTUM_LOG_DIR": str(tmp_path), "QUANTUM_BUS_LOG_FORMAT": log_format}
    command = [sys.executable, "-m", "quantum_bus", "run", "shop:bus"]
    log = tmp_path / "shop.jsonl"
    with subprocess.Popen(command, env=env, cwd=program, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE
        while not (log.exists() and "is started" in log.read_text()):
            assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    first = log.read_text().splitlines()[0]
    assert first.startswith("{") is (log_format == "json")
