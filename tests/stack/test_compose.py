"""deploy/compose.yaml: valid for the specification's own loader, and each service's command works as it is written.

No container is started: there is no engine where these tests run. What only one could show (what is in the images, how
the engine handles users, capabilities and read-only roots, how names are found) is not shown here.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from scripts.stack import ROOT, Ports, Program, Stack, alertmanager, collector, loki, prometheus, tool
from tests.stack.asking import SECONDS, get_good, wait_until
from tests.stack.composed import COMPOSE, Composed, Engine, model
from tests.stack.loki_reader import HOUR_NS, LokiReader
from tests.stack.running import Running

# As uid 0 without any capability, which is what compose.yaml gives the collector.
NO_CAPABILITY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


def free_ports() -> Iterator[int]:
    while True:
        ports = Ports.free()
        yield from (getattr(ports, name) for name in Ports.__slots__)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Composed:
    folder = tmp_path_factory.mktemp("composed")
    stack = Stack(folder, Ports.free(), "")
    stack.make_folders()
    return Composed.load(stack, free_ports())


@pytest.fixture(scope="module")
def up(composed: Composed) -> Iterator[dict[str, Running]]:
    """Every service but Grafana, in the order they wait for each other; those on the bus log through the engine."""
    with ExitStack() as running:
        started: dict[str, Running] = {}
        for name in ("redis", "alertmanager", "prometheus", "loki", "collector", "exporter"):
            program = composed.program(name)
            if name == "collector" and os.geteuid() == 0:
                program = Program(name, (*NO_CAPABILITY, *program.argv), program.env, program.ready)
            started[name] = running.enter_context(Running(program, composed.folder / f"{name}.log"))
            if name == "redis":
                wait_until(lambda: healthy(composed, "redis"), timeout=30, what="Redis")
        for name in ("auto_executor", "portfolio", "ai_engine"):
            program = composed.program(name)
            process = subprocess.Popen(
                program.argv, env=program.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            engine = Engine(process, composed.folder / "containers", composed.services[name])
            running.callback(engine.join)  # it closes the pipe, once the process has gone
            running.callback(process.wait)
            running.callback(process.kill)
        yield started


def healthy(composed: Composed, name: str) -> bool:
    return subprocess.run(composed.health(name), capture_output=True, check=False, timeout=30).returncode == 0


def test_the_file_is_one_for_the_specifications_own_loader() -> None:
    assert set(model()["services"]) >= {
        "redis",
        "collector",
        "loki",
        "prometheus",
        "alertmanager",
        "grafana",
        "exporter",
    }


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "readonly: true"),
        ("depends_on:\n    redis: {condition", "depends_on:\n    reddis: {condition"),
        ("secrets: [redis_users]", "secrets: [redis_user]"),
        ('ports: ["127.0.0.1:3100:3100"]', 'ports: ["127.0.0.1:3100:many"]'),
    ],
)
def test_a_mistake_in_the_file_is_seen(right: str, wrong: str, tmp_path: Path) -> None:
    text = COMPOSE.read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong, 1))
    read = subprocess.run([tool("compose-check"), tmp_path / "compose.yaml"], capture_output=True, check=False)
    assert read.returncode != 0


@pytest.mark.parametrize("name", ["collector", "loki", "prometheus", "alertmanager"])
def test_no_option_that_make_stack_gives_a_program_is_missing_here_or_in_its_unit(name: str, stack: Stack) -> None:
    make = {"collector": collector, "loki": loki, "prometheus": prometheus, "alertmanager": alertmanager}[name]

    def options(words: Iterable[str]) -> set[str]:
        return {word.partition("=")[0] for word in words if word.startswith("-")} - {"--log.level"}

    unit = (ROOT / f"deploy/systemd/quantum-{name}.service").read_text()
    typed = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert options(make(stack).argv) <= options(model()["services"][name]["command"])
    assert options(make(stack).argv) <= options(typed.split())


def test_the_services_log_is_found_in_loki_under_the_containers_name(
    composed: Composed, up: dict[str, Running]
) -> None:
    reader = LokiReader(f"http://{composed.address('loki', 3100)}")

    def lines(container: str) -> list[Any]:
        now = time.time_ns()
        query = f'{{container="{container}"}}'
        return reader.query(query, start_ns=now - HOUR_NS, end_ns=now + HOUR_NS, limit=100)

    for name, event in (
        ("ai_engine", "INTENT_CREATED"),
        ("auto_executor", "ORDER_RESPONSE"),
        ("portfolio", "POSITION_UPDATED"),
    ):
        container = composed.services[name]["container_name"]
        assert container == f"quantum_{name}"

        def found(container: str = container, event: str = event) -> bool:
            return any(f'"event":"{event}"' in entry.line for entry in lines(container))

        wait_until(found, timeout=60, what=f"{event} of {container}", interval=0.5)
        assert {entry.labels["service"] for entry in lines(container)} == {name}


def test_every_health_check_holds_and_fails_without_its_service(composed: Composed, up: dict[str, Running]) -> None:
    checked = [name for name, service in composed.services.items() if "test" in service.get("healthcheck", {})]
    checked.remove("grafana")  # not built here: its check is the one line of wget that the collector's is, too
    assert len(checked) == 8
    for name in checked:
        wait_until(lambda name=name: healthy(composed, name), timeout=60, what=f"{name} healthy", interval=0.5)
    for name in ("alertmanager", "exporter", "collector", "prometheus", "loki"):
        up[name].stop()
        assert not healthy(composed, name), name
        up[name].start()


def test_prometheus_fetches_from_all_of_them(composed: Composed, up: dict[str, Running]) -> None:
    def all_up() -> bool:
        answer = get_good(f"http://{composed.address('prometheus', 9090)}/api/v1/query", query="up").json()
        found = {one["metric"]["job"]: one["value"][1] for one in answer["data"]["result"]}
        return found == dict.fromkeys(("prometheus", "alertmanager", "loki", "collector", "services", "exporter"), "1")

    wait_until(all_up, timeout=90, what="every target up", interval=1)


def test_prometheus_takes_what_lokis_ruler_records_at_the_address_that_loki_has(
    composed: Composed, up: dict[str, Running]
) -> None:
    url = f"{up['loki'].program.env['QUANTUM_PROMETHEUS_URL']}/api/v1/write"
    written = httpx.post(url, content=b"nothing", timeout=SECONDS)
    assert written.status_code == httpx.codes.BAD_REQUEST, written.text  # 404 where it takes nothing
    assert "corrupt" in written.text


def test_redis_lets_in_nobody_without_a_password(composed: Composed, up: dict[str, Running]) -> None:
    host, _, port = composed.address("redis", 6379).partition(":")
    with redis.Redis(host=host, port=int(port)) as nobody, pytest.raises(redis.exceptions.RedisError):
        nobody.ping()
    with redis.Redis(host=host, port=int(port), username="health", password="-") as health:
        assert health.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            health.get("x")


def test_the_collector_reads_what_only_root_may_without_any_capability(
    composed: Composed, up: dict[str, Running]
) -> None:
    """The engine's folder and its files are root's; where this test is not root, they are its own."""
    folder = composed.folder / "containers"
    assert folder.stat().st_mode & 0o777 == 0o710
    if os.geteuid() == 0:
        status = Path(f"/proc/{up['collector'].pid}/status").read_text()
        capabilities = [
            line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd"))
        ]
        assert {int(value, 16) for value in capabilities} == {0}
        assert "NoNewPrivs:\t1" in status
