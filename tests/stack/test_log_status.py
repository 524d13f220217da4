"""`scripts/log_status.sh` against one live stack: ten passes; and whatever is broken, exactly its check fails."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from scripts import log_status_verdicts as verdicts
from scripts.stack import (
    ROOT,
    SERVICES,
    Ports,
    Program,
    Stack,
    StackError,
    alertmanager,
    collector,
    demo_services,
    grafana_stand_in,
    loki,
    prometheus,
    redis,
    service,
    tool,
    wait_until,
    write_status_file,
)
from tests.stack.asking import get_good
from tests.stack.running import Running

SCRIPT = ROOT / "scripts/log_status.sh"
Environment = Mapping[str, str]
# Whose configuration is written when they are described: the committed one again, before they are started with it.
CONFIGURED: Mapping[str, Callable[[Stack], Program]] = {"prometheus": prometheus, "alertmanager": alertmanager}


@dataclass
class Deployment:
    """A stack that runs, and what `log_status.sh` says of it."""

    stack: Stack
    running: dict[str, Running]

    def check(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        bare = {name: value for name, value in os.environ.items() if not name.startswith("QUANTUM_")}
        return subprocess.run(
            ["bash", SCRIPT, "--env-file", self.stack.status_file, *arguments],
            capture_output=True, text=True, check=False, timeout=120, env={**bare, **environment},
        )  # fmt: skip

    def wait_holding(self, *arguments: str) -> str:
        """What it says once all ten checks hold: for a moment the collector may have sent nothing of what waits."""
        told: subprocess.CompletedProcess[str] | None = None

        def hold() -> bool:
            nonlocal told
            told = self.check(*arguments)
            return told.returncode == 0

        try:
            wait_until(hold, timeout=90, what="all ten checks hold")
        except StackError:
            pytest.fail(f"not all ten checks hold: {told}")
        assert told is not None
        assert told.stderr == ""
        return told.stdout

    def failing(self, environment: Environment, *arguments: str) -> dict[int, dict[str, Any]]:
        """The checks that fail, by number."""
        told = self.check("--json", *arguments, **environment)
        assert told.stderr == ""
        found = json.loads(told.stdout)
        failed = {check["number"]: check for check in found["checks"] if check["status"] == "FAIL"}
        assert (found["ok"], told.returncode) == (not failed, 1 if failed else 0)
        return failed

    def wait_failing(
        self, follows: Mapping[int, list[int]], environment: Environment, *arguments: str, says: str = ""
    ) -> dict[int, dict[str, Any]]:
        """Those checks fail and no others, each following from those named and saying so.

        Parts started again have a moment to find each other.
        """
        failed: dict[int, dict[str, Any]] = {}

        def as_wanted() -> bool:
            nonlocal failed
            failed = self.failing(environment, *arguments)
            found = {number: check["follows_from"] for number, check in failed.items()}
            return found == follows and all(says in check["reason"] for check in failed.values())

        wanted = f"{follows or 'nothing'} failing, saying {says!r}"
        try:
            wait_until(as_wanted, timeout=90, what=wanted)
        except Exception:
            pytest.fail(f"wanted {wanted}, and there fail: {failed}")
        return failed

    @contextmanager
    def instead(self, program: Program, *, ready: str | None = None) -> Iterator[Environment]:
        """`program` in place of the one of its name; `ready` is an address that answers, where its own does not."""
        was = self.running[program.name]
        was.stop()
        changed = Running(replace(program, ready=ready or program.ready), was.log)
        try:
            with changed:
                yield {}
                changed.stop()
        finally:
            if program.name in CONFIGURED:
                CONFIGURED[program.name](self.stack)
            was.start()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder, ports = tmp_path_factory.mktemp("stack"), Ports.free()
    stack = Stack(folder, ports, f"redis://127.0.0.1:{ports.redis}/0")
    stack.make_folders()
    write_status_file(stack)
    programs = [redis(stack), loki(stack), collector(stack), prometheus(stack), alertmanager(stack),
                grafana_stand_in(stack), *demo_services(stack)]  # fmt: skip
    with ExitStack() as live:
        running = {each.name: live.enter_context(Running(each, folder / f"{each.name}.out")) for each in programs}
        made = Deployment(stack, running)
        made.wait_failing({}, {})
        yield made


def test_ten_passes_on_the_live_stack(deployment: Deployment) -> None:
    told = deployment.wait_holding()
    rows = told.splitlines()
    assert [row.split()[:2] for row in rows[:-1]] == [["PASS", str(number)] for number in range(1, 11)]
    assert rows[-1] == "All 10 checks hold."
    found = json.loads(deployment.wait_holding("--json"))
    assert found["ok"] is True
    assert [check["what"] for check in found["checks"]] == list(verdicts.WHAT.values())
    assert (deployment.stack.secrets / "grafana_token").read_text() not in told


# --- broken, one after the other -----------------------------------------------------------------------------------


@contextmanager
def loki_that_is_not_ready(deployment: Deployment) -> Iterator[Environment]:
    program = loki(deployment.stack)
    slow = replace(program, argv=(*program.argv, "-ingester.min-ready-duration=1h"))
    with deployment.instead(slow, ready=f"{deployment.stack.loki_url}/loki/api/v1/status/buildinfo") as environment:
        yield environment


@contextmanager
def collector_that_does_not_tell_its_health(deployment: Deployment) -> Iterator[Environment]:
    overlay = deployment.stack.folder / "without-health.yaml"
    overlay.write_text("service: {extensions: [file_storage]}\n")
    metrics = f"http://127.0.0.1:{deployment.stack.ports.self_metrics}/metrics"
    with deployment.instead(collector(deployment.stack, overlay), ready=metrics) as environment:
        yield environment


@contextmanager
def collector_that_does_not_find_loki(deployment: Deployment) -> Iterator[Environment]:
    program = collector(deployment.stack)
    with deployment.instead(
        replace(program, env={**program.env, "QUANTUM_LOKI_URL": "http://127.0.0.1:1"})
    ) as environment:
        yield environment


@contextmanager
def grafana_without_loki(deployment: Deployment) -> Iterator[Environment]:
    with deployment.instead(grafana_stand_in(deployment.stack, loki=False)) as environment:
        yield environment


@contextmanager
def executor_that_logs_text(deployment: Deployment) -> Iterator[Environment]:
    program = service(deployment.stack, "auto_executor")
    with deployment.instead(replace(program, env={**program.env, "QUANTUM_BUS_LOG_FORMAT": "text"})) as environment:
        yield environment


@contextmanager
def service_without_correlation_ids(deployment: Deployment) -> Iterator[Environment]:
    """It has a logger of its own."""
    line = {"ts": "2099-01-01T00:00:00Z", "level": "INFO", "service": "legacy", "event": "LOG", "msg": "said"}
    (deployment.stack.logs / "legacy.jsonl").write_text(f"{json.dumps(line)}\n")
    # Its time to come is refused by Loki; what it said now is not.
    with (deployment.stack.logs / "legacy.log").open("a") as text:
        text.write("said\n")
    yield {"QUANTUM_SERVICES": f"{' '.join(SERVICES)} legacy"}


@contextmanager
def service_whose_lines_nobody_collects(deployment: Deployment) -> Iterator[Environment]:
    yield {"QUANTUM_SERVICES": f"{' '.join(SERVICES)} risk_engine"}


@contextmanager
def prometheus_with_an_older_file(deployment: Deployment) -> Iterator[Environment]:
    rules = deployment.stack.folder / "older"
    shutil.copytree(ROOT / "observability/prometheus/rules", rules)
    [file] = rules.glob("*.yml")
    file.write_text(file.read_text().replace("alert: HighErrorRate", "alert: ManyErrors"))
    with deployment.instead(prometheus(deployment.stack, rules=rules)) as environment:
        yield environment


@contextmanager
def alertmanager_that_mails_nobody(deployment: Deployment) -> Iterator[Environment]:
    with deployment.instead(
        alertmanager(deployment.stack, changes={"receiver: critical\n": "receiver: warning\n"})
    ) as environment:
        yield environment


@contextmanager
def runbook_that_is_missing(deployment: Deployment) -> Iterator[Environment]:
    runbooks = deployment.stack.folder / "runbooks"
    shutil.copytree(ROOT / "runbooks", runbooks)
    (runbooks / "HighErrorRate.md").unlink()
    yield {"QUANTUM_RUNBOOKS": str(runbooks)}


BREAKAGES: list[tuple[int, Callable[[Deployment], Any], str]] = [
    (1, loki_that_is_not_ready, "HTTP 503: Ingester not ready"),
    (2, collector_that_does_not_tell_its_health, "connect"),
    (3, collector_that_does_not_find_loki, "is its QUANTUM_LOKI_URL right?"),
    (4, grafana_without_loki, "no data source of type loki"),
    (5, executor_that_logs_text, "the newest line is no JSON"),
    (6, service_without_correlation_ids, "of legacy have no correlation_id"),
    (7, service_whose_lines_nobody_collects, "no lines of risk_engine"),
    (8, prometheus_with_an_older_file, "not loaded: p1b_logging_alerts/HighErrorRate; not in the file: "),
    (9, alertmanager_that_mails_nobody, "no e-mail for "),
    (10, runbook_that_is_missing, "HighErrorRate.md"),
]


@pytest.mark.parametrize(("number", "broken", "says"), BREAKAGES, ids=[each[1].__name__ for each in BREAKAGES])
def test_what_is_broken_fails_its_check_and_no_other(
    deployment: Deployment, number: int, broken: Callable[[Deployment], Any], says: str
) -> None:
    with broken(deployment) as environment:
        deployment.wait_failing({number: []}, environment, says=says)
    deployment.wait_failing({}, {})


def test_of_a_part_that_is_dead_the_checks_that_need_it_say_what_they_follow_from(deployment: Deployment) -> None:
    deployment.running["loki"].kill()
    try:
        deployment.wait_failing({1: [], 3: [1], 7: [1]}, {})
    finally:
        deployment.running["loki"].start()
    deployment.running["collector"].kill()
    try:
        deployment.wait_failing({2: [], 3: [2]}, {})
    finally:
        deployment.running["collector"].start()
    deployment.wait_failing({}, {})


def test_who_accepts_and_never_answers_fails_with_a_timeout(deployment: Deployment) -> None:
    with ExitStack() as silent:
        held = silent.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        names = ("LOKI", "COLLECTOR_HEALTH", "COLLECTOR_METRICS", "GRAFANA", "PROMETHEUS", "ALERTMANAGER")
        environment = dict.fromkeys((f"QUANTUM_{name}_URL" for name in names), address)
        deployment.wait_failing(
            {1: [], 2: [], 3: [2], 4: [], 7: [1], 8: [], 9: []},
            {**environment, "QUANTUM_STATUS_TIMEOUT": "0.5"},
            says="timed out after ",
        )


def test_without_a_token_grafanas_check_says_what_it_needs(deployment: Deployment, tmp_path: Path) -> None:
    lines = deployment.stack.status_file.read_text().splitlines()
    without = tmp_path / "status.env"
    without.write_text("".join(f"{line}\n" for line in lines if "TOKEN" not in line))
    failed = deployment.wait_failing({4: []}, {}, "--env-file", str(without), says="HTTP 401")
    assert "give QUANTUM_GRAFANA_TOKEN_FILE" in failed[4]["reason"]


@pytest.mark.parametrize("alert", sorted({rule.alert for rule in verdicts.rules_in(ROOT / "observability")}))
def test_alertmanagers_own_program_routes_as_the_check_does(deployment: Deployment, alert: str) -> None:
    """What is read of the running Alertmanager, against what amtool reads of the file."""
    [severity] = {rule.severity for rule in verdicts.rules_in(ROOT / "observability") if rule.alert == alert}
    labels = {"alertname": alert, "severity": severity}
    status = get_good(f"{deployment.stack.alertmanager_url}/api/v2/status").json()
    routed = subprocess.run(
        [tool("amtool"), "config", "routes", "test", f"--config.file={deployment.stack.folder / 'alertmanager.yml'}",
         *(f"{name}={value}" for name, value in labels.items())], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert verdicts.receivers_of(verdicts.block(status["config"]["original"])["route"], labels) == routed.stdout.split()
