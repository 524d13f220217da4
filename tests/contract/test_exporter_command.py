"""`quantum-bus exporter`, as a process: scraped while Redis is filled by hand, killed and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from quantum_bus import names
from quantum_bus.demo.redis_server import RedisProcess
from quantum_bus.scraping import prometheus_name
from quantum_bus.streams import Keys
from tests.contract.conditions import PATIENCE
from tests.otlp import Collector

Figures = dict[str, float]
"""Values by metric, stream and group, as `quantum_bus_lag/orders/pay`."""


def prometheus(metric: str, unit: str = "") -> str:
    return prometheus_name(metric, unit)


UP = prometheus(names.METRIC_EXPORTER_UP)
LAG = prometheus(names.METRIC_LAG)


class ExporterProcess:
    """The running command; `events` are those of its log so far."""

    def __init__(self, *arguments: str, **env: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quantum_bus", "exporter", "--listen=127.0.0.1:0", "--interval=0.1", *arguments],
            env={**kept, **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: list[dict[str, Any]] = []
        self.started = self.wait_for(names.EVENT_SERVICE_STARTED)

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == event:
                return line
        raise AssertionError(f"no {event}: {self.lines}, {self.process.communicate()}")

    def scrape(self) -> Figures:
        with urllib.request.urlopen(f"http://{self.started['listen']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {}
        for name, labels, value in re.findall(r"^(quantum_bus_\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            parts = [label.get(prometheus(names.ATTR_DESTINATION)), label.get(prometheus(names.ATTR_GROUP))]
            found["/".join([name, *filter(None, parts)])] = float(value)
        return found

    def eventually(self, condition: Callable[[Figures], Any]) -> Figures:
        deadline = time.monotonic() + PATIENCE
        while not condition(found := self.scrape()):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=30)
        self.lines += map(json.loads, out.splitlines())
        return self.process.returncode, errors

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


@pytest.fixture
def export() -> Iterator[Callable[..., ExporterProcess]]:
    made: list[ExporterProcess] = []

    def start(*arguments: str, **env: str) -> ExporterProcess:
        made.append(ExporterProcess(*arguments, **env))
        return made[-1]

    yield start
    for exporter in made:
        exporter.process.kill()
        exporter.process.communicate()


def fill(client: redis.Redis) -> None:
    """Five orders: one handled, two in the hands of a dead consumer, two nobody has; a retry each way; dead letters."""
    keys = Keys.of("orders", "pay")
    for number in range(5):
        client.xadd("orders", {"n": number})
    client.xgroup_create("orders", "pay", "0")
    client.xgroup_create(keys.retry, "pay", "0", mkstream=True)
    first = client.xrange("orders", count=1)[0][0]
    client.xreadgroup("pay", "dead", {"orders": ">"}, count=3)
    client.xack("orders", "pay", first)
    client.xadd(keys.retry, {"n": 0})
    client.xadd(keys.retry, {"n": 1})
    client.xreadgroup("pay", "dead", {keys.retry: ">"}, count=1)
    client.zadd(keys.due, {"1-1": 1, "2-1": 9_999_999_999_999})
    client.zadd("{orders}:due", {"1-1": 9_999_999_999_999})
    client.xadd(keys.dead, {"n": 0})
    client.xadd(keys.dead, {"n": 1})


EXACT = {
    UP: 1,
    prometheus(names.METRIC_EXPORTER_LEFT_OUT): 0,
    prometheus(names.METRIC_EXPORTER_REFUSED): 0,
    f"{prometheus(names.METRIC_STREAM_LENGTH)}/orders": 5,
    f"{prometheus(names.METRIC_DEAD_LETTER_SIZE)}/orders": 2,
    f"{LAG}/orders/pay": 3,
    f"{prometheus(names.METRIC_PENDING)}/orders/pay": 3,
    f"{prometheus(names.METRIC_CONSUMERS)}/orders/pay": 1,
    f"{prometheus(names.METRIC_CONSUMERS_ALIVE)}/orders/pay": 1,  # it read a moment ago
    f"{prometheus(names.METRIC_SCHEDULED)}/orders": 1,
    f"{prometheus(names.METRIC_SCHEDULED)}/orders/pay": 2,
    f"{prometheus(names.METRIC_SCHEDULED_DUE)}/orders": 0,
    f"{prometheus(names.METRIC_SCHEDULED_DUE)}/orders/pay": 1,
}
AGES = {
    prometheus(names.METRIC_EXPORTER_LAST_SUCCESS, "s"),
    f"{prometheus(names.METRIC_LAG_AGE, 's')}/orders/pay",
    f"{prometheus(names.METRIC_PENDING_AGE, 's')}/orders/pay",
}


def test_every_figure_is_there_and_exact_with_no_consumer_alive(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess]
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        fill(client)
        exporter = export(f"--url={own_redis.url}")
        found = exporter.eventually(lambda seen: f"{LAG}/orders/pay" in seen)
        assert {name: value for name, value in found.items() if name not in AGES} == EXACT
        assert set(found) - set(EXACT) == AGES
        client.xadd("orders", {"n": 5})
        exporter.eventually(lambda seen: seen[f"{LAG}/orders/pay"] == 4)
        client.delete("orders")  # the side keys stay, and tell of it
        exporter.eventually(lambda seen: f"{prometheus(names.METRIC_DEAD_LETTER_SIZE)}/orders" in seen)
        gone = exporter.eventually(lambda seen: f"{LAG}/orders/pay" not in seen)
        assert f"{prometheus(names.METRIC_STREAM_LENGTH)}/orders" not in gone
    assert exporter.end() == (0, "")
    assert exporter.events[0] == names.EVENT_SERVICE_STARTED
    assert exporter.events[-1] == names.EVENT_SERVICE_STOPPED


def test_a_redis_that_dies_leaves_no_old_figure_and_is_found_again(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess]
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        fill(client)
    exporter = export(f"--url={own_redis.url}", "--stream=orders")
    exporter.eventually(lambda seen: f"{LAG}/orders/pay" in seen)
    own_redis.kill()
    away = exporter.eventually(lambda seen: seen[UP] == 0)
    assert set(away) == {UP, prometheus(names.METRIC_EXPORTER_LAST_SUCCESS, "s")}
    exporter.wait_for(names.EVENT_BUS_CONNECTION_LOST)
    own_redis.start(timeout=60.0)
    with redis.Redis.from_url(own_redis.url) as client:
        fill(client)
    exporter.eventually(lambda seen: seen.get(f"{LAG}/orders/pay") == 3)  # it may look while they are being written
    exporter.wait_for(names.EVENT_BUS_RECONNECTED)
    assert exporter.end() == (0, "")
    assert exporter.events.count(names.EVENT_BUS_CONNECTION_LOST) == 1


def test_a_redis_that_hangs_is_away_once_it_has_not_answered_in_time(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess]
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        fill(client)
    exporter = export(f"--url={own_redis.url}")
    exporter.eventually(lambda seen: f"{LAG}/orders/pay" in seen)
    own_redis.suspend()
    away = exporter.eventually(lambda seen: seen[UP] == 0)
    assert set(away) == {UP, prometheus(names.METRIC_EXPORTER_LAST_SUCCESS, "s")}
    own_redis.resume()
    assert exporter.eventually(lambda seen: seen[UP] == 1)[f"{LAG}/orders/pay"] == 3
    assert exporter.end() == (0, "")


def test_it_starts_without_a_redis_and_waits_for_one(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess]
) -> None:
    own_redis.stop()
    exporter = export(QUANTUM_BUS_URL=own_redis.url)
    assert exporter.eventually(lambda seen: UP in seen) == {UP: 0}
    own_redis.start(timeout=60.0)
    exporter.eventually(lambda seen: seen[UP] == 1)
    assert exporter.end(signal.SIGINT) == (0, "")


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_same_figures_are_sent_to_a_collector(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess], by: str
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        fill(client)
    collector = Collector()
    try:
        if by == "option":
            exporter = export(f"--url={own_redis.url}", f"--otlp={collector.url}")
        else:
            exporter = export(f"--url={own_redis.url}", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        deadline = time.monotonic() + PATIENCE
        while not (lags := [metric for metric in collector.metrics if metric.name == names.METRIC_LAG]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert exporter.end() == (0, "")
    finally:
        collector.close()
    [point] = lags[0].gauge.data_points
    assert point.as_int == 3
    assert collector.resources[0]["service.name"] == "quantum-bus-exporter"


def test_a_collector_that_is_away_is_told_of_once_and_holds_nothing_up(
    own_redis: RedisProcess, export: Callable[..., ExporterProcess]
) -> None:
    exporter = export(f"--url={own_redis.url}", "--otlp=http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="0.2")
    first = exporter.eventually(lambda seen: seen[UP] == 1)
    last_success = prometheus(names.METRIC_EXPORTER_LAST_SUCCESS, "s")
    exporter.wait_for(names.DEFAULT_EVENT)
    exporter.eventually(lambda seen: seen[last_success] > first[last_success] + 1)
    assert exporter.end() == (0, "")
    warnings = [line["msg"] for line in exporter.lines if line["level"] == "WARNING"]
    assert warnings == ["The collector does not take the metrics; trying again with the next ones"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no Redis to talk to"),
        (["--url=redis://127.0.0.1:1", "--listen=9464"], 2, "give an address and a port"),
        (["--url=redis://127.0.0.1:1", "--listen=none"], 2, "leaves nobody to tell"),
        (["--url=redis://127.0.0.1:1", "--stream={a"], 2, "stream='{a'"),
        (["--url=redis://127.0.0.1:1", "--log-level=loud"], 2, "level='loud'"),
        (["--url=redis://127.0.0.1:1", "--listen=192.0.2.1:80"], 1, "cannot listen on 192.0.2.1:80"),
    ],
)
def test_a_wrong_call_is_one_line_and_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    command = [sys.executable, "-m", "quantum_bus", "exporter", *arguments]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (code, 1), ended
    assert says in ended.stderr
