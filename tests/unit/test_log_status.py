"""`scripts/log_status.sh` without a deployment: how it is called, what it reads, how answers are judged.

tests/stack/test_log_status.py has it check real programs, and breaks each.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import log_status_verdicts as verdicts

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts/log_status.sh"
PROMETHEUS_RULES = ROOT / "observability/prometheus/rules"
LOKI_RULES = ROOT / "observability/loki/rules"
NOBODY = "http://127.0.0.1:1"
DOWN = {
    f"QUANTUM_{name}_URL": NOBODY
    for name in ("LOKI", "COLLECTOR_HEALTH", "COLLECTOR_METRICS", "GRAFANA", "PROMETHEUS", "ALERTMANAGER")
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("QUANTUM_")}
    return subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=25, env=bare | environment
    )


# --- calls -------------------------------------------------------------------------------------------------------


def test_everything_down_is_ten_times_fail_with_a_reason_each_and_no_traces(tmp_path: Path) -> None:
    told = run(**DOWN, QUANTUM_LOG_DIR=str(tmp_path), QUANTUM_RUNBOOKS=str(tmp_path))
    assert (told.returncode, told.stderr) == (1, "")
    rows = told.stdout.splitlines()
    assert [re.match(r"FAIL +(\d+)  \S.* {2,}\S", row)[1] for row in rows[:-1]] == [str(n) for n in range(1, 11)]  # type: ignore[index]
    assert "Traceback" not in told.stdout
    assert "\033" not in told.stdout, "no colours where nobody looks"
    assert rows[-1] == "10 of 10 checks fail; begin with 1, 2, 4, 8, 9, 10."


def test_json_says_the_same_as_the_lines(tmp_path: Path) -> None:
    environment = {**DOWN, "QUANTUM_LOG_DIR": str(tmp_path)}
    lines, told = run(**environment), run("--json", **environment)
    assert told.returncode == lines.returncode == 1
    found = json.loads(told.stdout)
    assert found["ok"] is False
    assert [check["number"] for check in found["checks"]] == list(range(1, 11))
    for check, row in zip(found["checks"], lines.stdout.splitlines(), strict=False):
        assert row.startswith(check["status"])
        assert check["what"] in row
        # How long it took to be refused is another each time.
        assert re.sub(r"after \d+ ms", "", check["reason"]) in re.sub(r"after \d+ ms", "", row)
    assert {check["number"]: check["follows_from"] for check in found["checks"] if check["follows_from"]} == {
        3: [2], 5: [1], 6: [1], 7: [1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--jsn"], {}, "there is no --jsn; see --help"),
        (["--env-file"], {}, "--env-file needs a file"),
        (["--env-file=/nowhere"], {}, "/nowhere: cannot be read"),
        ([], {"QUANTUM_STATUS_TIMEOUT": "0"}, "give seconds above 0"),
        ([], {"QUANTUM_STATUS_TIMEOUT": "soon"}, "give seconds above 0"),
        ([], {"QUANTUM_STATUS_WINDOW": "1h"}, "give whole seconds"),
        ([], {"QUANTUM_SERVICES": 'a"b'}, "QUANTUM_SERVICES: give names"),
        ([], {"QUANTUM_GRAFANA_TOKEN_FILE": "/nowhere"}, "/nowhere: cannot be read"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(arguments: list[str], environment: dict[str, str], says: str) -> None:
    told = run(*arguments, **environment)
    assert (told.returncode, told.stdout) == (2, "")
    [line] = told.stderr.splitlines()
    assert line.startswith("log_status: ")
    assert says in line


@pytest.mark.parametrize("missing", ["curl", "python3"])
def test_what_it_needs_and_is_not_here_is_named(missing: str, tmp_path: Path) -> None:
    for program in {"bash", "dirname", "curl", "python3"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program) or sys.executable)
    told = run(PATH=str(tmp_path))
    assert (told.returncode, told.stderr) == (2, f"log_status: it needs {missing}, which is not here: install it\n")


def test_no_answer_may_take_longer_than_the_timeout_that_is_given(tmp_path: Path) -> None:
    said = tmp_path / "said"
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$*" >>{said}\n')
    curl.chmod(0o755)
    run(PATH=f"{tmp_path}:{os.environ['PATH']}", QUANTUM_LOG_DIR=str(tmp_path), QUANTUM_STATUS_TIMEOUT="0.7")
    calls = said.read_text().splitlines()
    assert len(calls) == 11, "eight questions, and one for each service that has no file"
    assert [call for call in calls if " --max-time 0.7 " not in call] == []


def test_help_names_every_variable_that_is_read() -> None:
    told = run("--help")
    assert told.returncode == 0
    read = set(re.findall(r"QUANTUM_[A-Z_]*[A-Z]", SCRIPT.read_text())) - {"QUANTUM_NAME"}
    assert read == set(re.findall(r"QUANTUM_[A-Z_]*[A-Z]", told.stdout))


def test_a_file_says_what_the_environment_does_not(tmp_path: Path) -> None:
    file = tmp_path / "status.env"
    file.write_text(f"# where\n\nQUANTUM_LOKI_URL={NOBODY}/of-file\nQUANTUM_GRAFANA_URL={NOBODY}/of-file\n")
    told = run("--env-file", str(file), **{**DOWN, "QUANTUM_LOKI_URL": "", "QUANTUM_GRAFANA_URL": f"{NOBODY}/of-env"})
    assert "/of-file/ready" in told.stdout
    assert "/of-env/api/health" in told.stdout
    file.write_text("PATH=/nowhere\n")
    assert run("--env-file", str(file)).returncode == 2


def test_it_runs_on_pythons_that_servers_have() -> None:
    ast.parse((ROOT / "scripts/log_status_verdicts.py").read_text(), feature_version=(3, 9))


def test_no_password_of_an_address_and_no_credential_is_shown() -> None:
    secret = "s3cret"
    told = run(
        **dict.fromkeys(DOWN, f"http://user:{secret}@127.0.0.1:1"),
        QUANTUM_GRAFANA_TOKEN=secret,
    )
    assert secret not in told.stdout + told.stderr
    assert "http://***@127.0.0.1:1" in told.stdout


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [PROMETHEUS_RULES, LOKI_RULES])
def test_the_rules_are_read_as_yaml_reads_them(folder: Path) -> None:
    wanted = [
        (group["name"], rule["alert"], rule["labels"]["severity"], rule["annotations"]["runbook_url"])
        for file in sorted(folder.rglob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule  # others record
    ]
    assert wanted
    assert [tuple(rule) for rule in verdicts.rules_in(folder)] == wanted


CONFIG = """\
route:
  receiver: nobody
  continue: false
  routes:
  - receiver: watchdog
    matchers:
    - alertname="Watchdog"
    continue: false
  - receiver: critical
    matchers:
    - severity=~"critical|fatal"
    - alertname!="Quiet"
    continue: true
    routes:
    - match:
        service: auto_executor
      receiver: trading
      continue: false
  - receiver: archive
    continue: false
receivers:
- name: critical
  email_configs:
  - to: on-call@localhost
    headers:
      Subject: '[{{ .Status }}] it''s {{ .CommonLabels.alertname }} and a long line goes
        on here'
    text: |-
      receivers:
      - name: fooled
  webhook_configs:
  - url: <secret>
- name: watchdog
  webhook_configs: []
templates: []
"""


def test_alertmanagers_configuration_is_read_as_yaml_reads_it() -> None:
    read, wanted = verdicts.block(CONFIG), yaml.safe_load(CONFIG)
    assert read["route"]["routes"][1]["matchers"] == wanted["route"]["routes"][1]["matchers"]
    assert read["route"]["routes"][1]["routes"][0]["match"] == {"service": "auto_executor"}
    assert [sorted(each) for each in read["receivers"]] == [sorted(each) for each in wanted["receivers"]]
    mail = read["receivers"][0]["email_configs"][0]
    assert mail["headers"] == wanted["receivers"][0]["email_configs"][0]["headers"]


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ({"alertname": "Watchdog", "severity": "none"}, ["watchdog"]),
        ({"alertname": "X", "severity": "critical"}, ["critical", "archive"]),
        ({"alertname": "X", "severity": "critically"}, ["archive"]),
        ({"alertname": "Quiet", "severity": "critical"}, ["archive"]),
        ({"alertname": "X", "severity": "fatal", "service": "auto_executor"}, ["trading", "archive"]),
    ],
)
def test_an_alert_goes_where_alertmanager_would_send_it(labels: dict[str, str], receivers: list[str]) -> None:
    assert verdicts.receivers_of(verdicts.block(CONFIG)["route"], labels) == receivers


# --- how it is judged --------------------------------------------------------------------------------------------


@pytest.fixture
def gathered(tmp_path: Path) -> verdicts.Gathered:
    env = {
        "QUANTUM_LOKI_URL": "http://loki", "QUANTUM_COLLECTOR_METRICS_URL": "http://collector/metrics",
        "QUANTUM_GRAFANA_URL": "http://grafana", "QUANTUM_LOG_DIR": "/logs", "QUANTUM_SERVICES": "auto_executor",
        "QUANTUM_STATUS_WINDOW": "900", "QUANTUM_ALERTMANAGER_URL": "http://alertmanager",
        "QUANTUM_PROMETHEUS_URL": "http://prometheus", "QUANTUM_PROMETHEUS_RULES": str(PROMETHEUS_RULES),
        "QUANTUM_LOKI_RULES": str(LOKI_RULES), "QUANTUM_RUNBOOKS": str(ROOT / "runbooks"),
    }  # fmt: skip
    return verdicts.Gathered(tmp_path, env)


def give(gathered: verdicts.Gathered, name: str, body: Any, status: int = 200) -> None:
    (gathered.folder / f"{name}.status").write_text(str(status))
    (gathered.folder / f"{name}.body").write_text(body if isinstance(body, str) else json.dumps(body))


def metrics(**values: int) -> str:
    names = {"sent": "sent_log_records_total", "failed": "send_failed_log_records_total", "waiting": "queue_size"}
    return "".join(
        f'otelcol_exporter_{names[name]}{{exporter="{exporter}",data_type="logs"}} {value if exporter else 7}\n'
        for name, value in values.items()
        for exporter in (verdicts.LOKI_EXPORTER, "")
    )


@pytest.mark.parametrize(
    ("before", "after", "holds", "says"),
    [
        ({"sent": 5, "waiting": 0}, {"sent": 5, "waiting": 0}, True, "5 lines sent, 0 failed, 0 bytes wait"),
        ({"sent": 5, "waiting": 9}, {"sent": 6, "waiting": 9}, True, "6 lines sent"),
        ({"sent": 5, "failed": 2, "waiting": 0}, {"sent": 5, "failed": 2, "waiting": 0}, True, "2 failed"),
        ({"sent": 5, "waiting": 9}, {"sent": 5, "waiting": 9}, False, "what waits is not taken"),
        ({"sent": 5, "failed": 2, "waiting": 0}, {"sent": 6, "failed": 3, "waiting": 0}, False, "lines fail right now"),
        ({"failed": 3, "waiting": 0}, {"failed": 3, "waiting": 0}, False, "Loki has taken none"),
        ({"waiting": 0}, {"waiting": 0}, False, "there was nothing to send yet"),
        ({"waiting": 0}, {"waiting": 9}, False, "what waits is not taken"),
        ({}, {}, False, "has no counters of the exporter"),
    ],
)
def test_the_collectors_own_counters_decide_whether_its_lines_get_to_loki(
    gathered: verdicts.Gathered, before: dict[str, int], after: dict[str, int], holds: bool, says: str
) -> None:
    give(gathered, "collector_metrics", metrics(**before))
    give(gathered, "collector_metrics_again", metrics(**after))
    verdict = verdicts.collector_to_loki(gathered)
    assert (verdict.holds, says in verdict.reason) == (holds, True), verdict


@pytest.mark.parametrize(
    ("health", "sources", "status", "says"),
    [
        ({"database": "ok"}, [{"name": "L", "type": "loki", "url": "http://u:p@loki"}], 200, None),
        ({"database": "ok"}, [{"name": "P", "type": "prometheus", "url": "http://p"}], 200, "it has P (prometheus)"),
        ({"database": "ok"}, [], 200, "it has none"),
        ({"database": "ok"}, {"message": "Unauthorized"}, 401, "give QUANTUM_GRAFANA_TOKEN_FILE"),
        ({"database": "ok"}, "<html>", 200, "no list of data sources"),
        ({"database": "failing"}, [], 200, "its database is not ok"),
        ("no JSON", [], 200, "its database is not ok"),
    ],
)
def test_grafanas_answers_are_read(
    gathered: verdicts.Gathered, health: Any, sources: Any, status: int, says: str | None
) -> None:
    give(gathered, "grafana_health", health)
    give(gathered, "grafana_datasources", sources, status)
    verdict = verdicts.grafana_datasource(gathered)
    assert verdict.holds is (says is None)
    assert (says or "L at http://***@loki") in verdict.reason


LINE = {"ts": "2099-01-01T00:00:00.000000Z", "level": "INFO", "service": "auto_executor", "event": "LOG",
        "correlation_id": "c", "msg": "m"}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "json_holds", "id_holds"),
    [
        (["plain text", json.dumps(LINE)], True, True),
        ([json.dumps(LINE), "plain text"], False, True),
        ([json.dumps(LINE | {"ts": "2001-01-01T00:00:00.000000Z"})], False, False),
        ([json.dumps(LINE | {"ts": "yesterday"})], False, False),
        ([json.dumps({name: value for name, value in LINE.items() if name != "correlation_id"})], True, False),
        ([json.dumps(LINE | {"correlation_id": None})], True, False),
        ([json.dumps({name: value for name, value in LINE.items() if name != "msg"})], False, True),
        ([json.dumps(LINE | {"service": "portfolio"})], False, True),
        (["[1]"], False, False),
        ([], False, False),
    ],
)
def test_lines_are_judged_by_what_is_in_them(
    gathered: verdicts.Gathered, lines: list[str], json_holds: bool, id_holds: bool
) -> None:
    (gathered.folder / "lines_auto_executor.file").write_text("\n".join(lines) + "\n")
    assert verdicts.executor_json(gathered).holds is json_holds
    assert verdicts.correlation_id(gathered).holds is id_holds


def test_where_there_is_no_file_loki_is_asked_for_the_lines(gathered: verdicts.Gathered) -> None:
    stream = {"stream": {}, "values": [["2", json.dumps(LINE)], ["1", "plain text"]]}
    give(gathered, "lines_auto_executor", {"data": {"result": [stream]}})
    assert verdicts.executor_json(gathered).holds
    give(gathered, "lines_auto_executor", {"data": {"result": []}})
    assert verdicts.executor_json(gathered).after == ("loki_ingesting",)


def loaded(**changes: Any) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {"of the operator's": [{"name": "More", "health": "ok"}]}
    for rule in verdicts.rules_in(PROMETHEUS_RULES):
        groups.setdefault(rule.group, []).append({"name": rule.alert, "health": "ok"})
    for rules in groups.values():
        rules[:] = [rule | changes.get(rule["name"], {}) for rule in rules if changes.get(rule["name"], {}) is not None]
    return {"data": {"groups": [{"name": name, "rules": rules} for name, rules in groups.items()]}}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (loaded(), "3 groups"),
        (loaded(Watchdog=None), "not loaded: p1b_infrastructure_alerts/Watchdog"),
        (loaded(Watchdog={"name": "Dog"}), "not in the file: p1b_infrastructure_alerts/Dog"),
        (loaded(Watchdog={"health": "err"}), "cannot be evaluated: Watchdog"),
        ({"data": {"groups": []}}, "not loaded: "),
        ("no JSON", "answers what is no rules"),
    ],
)
def test_the_rules_that_prometheus_has_are_those_of_the_file(
    gathered: verdicts.Gathered, answer: Any, says: str
) -> None:
    give(gathered, "prometheus_rules", answer)
    verdict = verdicts.prometheus_rules(gathered)
    assert (verdict.holds, says in verdict.reason) == (says == "3 groups", True), verdict


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("receiver: nobody", "receiver: nobody"), None),
        (("  webhook_configs:\n  - url: <secret>\n", ""), "no webhook for "),
        (("email_configs", "slack_configs"), "no e-mail for "),
        (('severity=~"critical|fatal"', 'severity="fatal"'), "the receiver is archive"),
        (("receivers:\n- name: critical", "receiver:\n- name: critical"), "no configuration that can be read"),
    ],
)
def test_critical_alerts_have_to_reach_a_webhook_and_a_mail_address(
    gathered: verdicts.Gathered, changed: tuple[str, str], says: str | None
) -> None:
    give(gathered, "alertmanager_status", {"config": {"original": CONFIG.replace(*changed)}})
    verdict = verdicts.alertmanager_critical(gathered)
    assert (verdict.holds, (says or "critical alerts go to archive, critical") in verdict.reason) == (
        says is None, True
    ), verdict  # fmt: skip
