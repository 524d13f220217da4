"""Alerting's configuration, asked of its own programs."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts.stack import (
    ROOT,
    SERVICES,
    Program,
    Stack,
    StackError,
    alertmanager,
    exporter,
    prometheus,
    redis,
    service,
    tool,
    wait_until,
)
from tests.stack.alerting import FETCHING, LOKI_RULES, PROMETHEUS_RULES, rules_of
from tests.stack.running import Running
from tests.unit.test_alert_rules import OF_PROGRAMS, commands, metrics_of

RULES = {**rules_of(PROMETHEUS_RULES), **rules_of(LOKI_RULES)}
ROUTED = {"critical": "critical", "warning": "warning", "none": "watchdog"}
# Counters that are not there before the first of what they count.
WHEN_SOMETHING_IS_WRONG = {"otelcol_exporter_send_failed_log_records_total", "loki_discarded_samples_total"}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("alert", sorted(RULES))
def test_every_alert_goes_to_the_receiver_of_its_severity(alert: str) -> None:
    labels = {"alertname": alert, **RULES[alert]["labels"]}
    receiver = ROUTED[labels["severity"]]
    routed = run(
        tool("amtool"), "config", "routes", "test", "--config.file=observability/alertmanager/alertmanager.yml",
        f"--verify.receivers={receiver}", *(f"{name}={value}" for name, value in labels.items()),
    )  # fmt: skip
    assert routed.returncode == 0, routed.stdout + routed.stderr
    assert routed.stdout.split() == [receiver]


def test_critical_is_posted_and_mailed_and_warning_is_posted_only() -> None:
    config = yaml.safe_load((ROOT / "observability/alertmanager/alertmanager.yml").read_text())
    ways = {receiver["name"]: set(receiver) - {"name"} for receiver in config["receivers"]}
    assert ways["critical"] == {"webhook_configs", "email_configs"}
    assert ways["warning"] == ways["watchdog"] == {"webhook_configs"}


@pytest.mark.parametrize("alert", sorted(rules_of(PROMETHEUS_RULES)))
def test_every_rule_of_prometheus_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    expected: list[bool] = []
    for file in (ROOT / "observability/prometheus/tests").glob("*.yml"):
        cases: list[dict[str, Any]] = yaml.safe_load(file.read_text())["tests"]
        checks = [check for case in cases for check in case["alert_rule_test"] if check["alertname"] == alert]
        expected += [bool(check["exp_alerts"]) for check in checks]
    assert True in expected
    assert False in expected or alert == "Watchdog"


BROKEN = {
    "collector/config.yaml": ("error_mode: ignore", "error_mode: sometimes"),
    "observability/loki/loki.yaml": ("retention_enabled: true", "retention_enabled: sometimes"),
    "observability/loki/rules/fake/p1b_alerts.yml": ("unless on (order_id)", "unless on order_id"),
    "observability/prometheus/prometheus.yml": ("scrape_interval: 15s", "scrape_interval: often"),
    "observability/prometheus/rules/p1b_alerts.yml": ("sum by (service) (rate(", "sum by (service) (rat("),
    "observability/prometheus/tests/logging_test.yml": ("20 errors a second for", "21 errors a second for"),
    "observability/alertmanager/alertmanager.yml": ("receiver: warning", "receiver: nobody"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the check reads, to be broken."""
    for folder in ("collector", "observability", "scripts", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_the_configurations_as_they_stand_pass_the_check(checkout: Path) -> None:
    checked = run(checkout / "scripts/check_configuration.sh")
    assert checked.returncode == 0, checked.stderr
    assert {line.partition(":")[0] for line in checked.stdout.splitlines()} >= {
        "collector/config.yaml", "observability/loki/loki.yaml", "observability/alertmanager/alertmanager.yml"
    }  # fmt: skip


@pytest.mark.parametrize("file", sorted(BROKEN))
def test_a_mistake_in_any_configuration_fails_the_check(file: str, checkout: Path) -> None:
    text = (checkout / file).read_text()
    assert BROKEN[file][0] in text
    (checkout / file).write_text(text.replace(*BROKEN[file]))
    checked = run(checkout / "scripts/check_configuration.sh")
    assert checked.returncode != 0, checked.stdout
    assert "not valid" in checked.stderr


def test_without_the_programs_the_check_fails_and_says_what_to_type(tmp_path: Path) -> None:
    checked = run(ROOT / "scripts/check_configuration.sh", QUANTUM_TOOLS_DIR=str(tmp_path))
    assert checked.returncode != 0
    assert "make tools" in checked.stderr


def test_every_series_of_a_program_in_a_rule_is_one_that_it_emits(
    stack: Stack, start: Callable[[Program], Running], real_loki: Running, real_collector: Running
) -> None:
    start(redis(stack))
    start(exporter(stack, interval=0.5))
    start(alertmanager(stack))
    start(prometheus(stack, changes=FETCHING))
    (stack.logs / "svc.jsonl").write_text('{"level":"INFO","service":"svc","event":"LOG"}\n')

    def missing() -> set[str]:
        answer = httpx.get(f"{stack.prometheus_url}/api/v1/label/__name__/values").raise_for_status()
        return OF_PROGRAMS - WHEN_SOMETHING_IS_WRONG - set(answer.json()["data"])

    wait_until(lambda: not missing(), timeout=60, what=f"the series {OF_PROGRAMS}", interval=0.5)
    # And these two, when something is wrong: Loki refuses a line that is older than it keeps them.
    body = {"streams": [{"stream": {"service": "svc"}, "values": [[str(time.time_ns() - 800 * 3600 * 10**9), "old"]]}]}
    refused = httpx.post(f"{stack.loki_url}/loki/api/v1/push", json=body)
    assert refused.status_code == httpx.codes.BAD_REQUEST
    metrics = httpx.get(f"{stack.loki_url}/metrics").text
    assert re.search(r"^loki_discarded_samples_total\{.*reason=.* 1$", metrics, re.MULTILINE)


def selectors(expr: str) -> set[str]:
    """The series that a PromQL expression asks for, as it asks for them."""
    found = re.findall(r"\b(\w+)(\{[^}]*\})?", re.sub(r'"[^"]*"', lambda text: text[0].replace(" ", ""), expr))
    return {name + braces for name, braces in found if name in metrics_of(expr)}


def pipelines(expr: str) -> set[str]:
    """The log queries in a LogQL expression."""
    return set(re.findall(r"count_over_time\((\{[^[]+)\[", expr))


# What only fails, or is lost, has.
TROUBLE = re.compile(r"ERROR|BUS_MESSAGE_LOST|send_failed|loki_discarded")


def test_every_question_in_a_rule_has_an_answer_while_the_demos_services_run(
    stack: Stack, start: Callable[[Program], Running], real_loki: Running, real_collector: Running
) -> None:
    """Without an order_id on the demo's ORDER_SUBMIT, OrderSubmitWithoutResponse asked for lines that nobody wrote."""
    for program in (redis(stack), alertmanager(stack), *(service(stack, name) for name in SERVICES)):
        start(program)
    portfolio = stack.logs / "portfolio.jsonl"
    wait_until(lambda: portfolio.exists() and "POSITION_UPDATED" in portfolio.read_text(), timeout=60, what="a flow")
    start(exporter(stack, interval=0.5))  # it looks for streams once a minute
    start(prometheus(stack, changes=FETCHING))
    of_prometheus = {asked for rule in rules_of(PROMETHEUS_RULES).values() for asked in selectors(rule["expr"])}
    of_loki = {asked for rule in rules_of(LOKI_RULES).values() for asked in pipelines(rule["expr"])}
    assert len(of_prometheus) > 20
    assert len(of_loki) == 3

    def unanswered() -> set[str]:
        left = set()
        for url, asked in ((f"{stack.prometheus_url}/api/v1/query", of_prometheus),
                           (f"{stack.loki_url}/loki/api/v1/query", of_loki)):  # fmt: skip
            for each in asked:
                query = each if asked is of_prometheus else f"sum(count_over_time({each}[1h]))"
                answer = httpx.get(url, params={"query": query})
                if answer.status_code != httpx.codes.OK or not answer.json()["data"]["result"]:
                    left.add(each)
        return {each for each in left if not TROUBLE.search(each)}

    try:
        wait_until(lambda: not unanswered(), timeout=60, what="an answer to each question", interval=1)
    except StackError as error:
        raise AssertionError(f"no answer to {sorted(unanswered())}") from error


def test_every_question_to_the_log_in_a_runbook_is_understood_as_typed(stack: Stack, real_loki: Running) -> None:
    environment = {"LOKI_ADDR": stack.loki_url, "PATH": f"{Path(tool('logcli')).parent}:{os.environ['PATH']}"}
    typed = sorted({line for _, line in commands("logcli ")})
    assert len(typed) > 20
    for line in typed:
        asked = run("sh", "-c", line, **environment)
        assert asked.returncode == 0, f"{line}\n{asked.stderr}"
