"""Alerting's configuration, asked of its own programs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.stack import ROOT, Stack, tool
from tests.stack.alerting import LOKI_RULES, PROMETHEUS_RULES, rules_of
from tests.stack.running import Running
from tests.unit.test_alert_rules import commands

RULES = {**rules_of(PROMETHEUS_RULES), **rules_of(LOKI_RULES)}
ROUTED = {"critical": "critical", "warning": "warning", "none": "watchdog"}


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
    "deploy/compose.yaml": ("cap_drop: [ALL]", "cap_dropped: [ALL]"),
    "deploy/collector/tls-loki.yaml": ("ca_file:", "authority:"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the check reads, to be broken."""
    for folder in ("collector", "deploy", "observability", "scripts", "tools"):
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
    checked = run(checkout / "scripts/check_configuration.sh", file)
    assert checked.returncode != 0, checked.stdout
    assert "not valid" in checked.stderr


def test_a_file_that_nothing_checks_is_no_success(checkout: Path) -> None:
    checked = run(checkout / "scripts/check_configuration.sh", "observability/loki/lokki.yaml")
    assert checked.returncode != 0
    assert "lokki.yaml: no configuration" in checked.stderr


def test_without_the_programs_the_check_fails_and_says_what_to_type(tmp_path: Path) -> None:
    checked = run(ROOT / "scripts/check_configuration.sh", QUANTUM_TOOLS_DIR=str(tmp_path))
    assert checked.returncode != 0
    assert "make tools" in checked.stderr


def test_every_question_to_the_log_in_a_runbook_is_understood_as_typed(stack: Stack, real_loki: Running) -> None:
    environment = {"LOKI_ADDR": stack.loki_url, "PATH": f"{Path(tool('logcli')).parent}:{os.environ['PATH']}"}
    typed = sorted({line for _, line in commands("logcli ")})
    assert len(typed) > 20
    for line in typed:
        asked = run("sh", "-c", line, **environment)
        assert asked.returncode == 0, f"{line}\n{asked.stderr}"
