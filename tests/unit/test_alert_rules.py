"""Alert rules hold to the names that are emitted, and every alert has its runbook."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from quantum_bus import names
from quantum_bus.cli.app import app
from quantum_bus.demo.trading import AUTO_EXECUTOR
from quantum_bus.scraping import prometheus_name

ROOT = Path(__file__).resolve().parent.parent.parent
RUNBOOKS = ROOT / "runbooks"
# Runbooks of what is no single alert.
OF_SEVERAL = {"P0_execution_stuck", "P1B_logging_stack", "alerts"}
GROUPS = {"p1b_logging_alerts", "p1b_execution_alerts", "p1b_infrastructure_alerts"}
LEVELS = {"TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
# What the pipeline's own programs emit: tests/stack/test_questions.py asks them.
OF_PROGRAMS = {
    "up", "otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity",
    "otelcol_receiver_refused_log_records_total", "otelcol_receiver_failed_log_records_total",
    "otelcol_exporter_send_failed_log_records_total",
    "loki_discarded_samples_total", "loki_prometheus_rule_evaluation_failures_total",
    "prometheus_rule_evaluation_failures_total", "alertmanager_notifications_failed_total",
}  # fmt: skip
_WORDS = {"sum", "by", "rate", "unless", "or", "and", "on", "increase", "offset", "histogram_quantile", "min_over_time",
          "absent", "vector", "count", "count_over_time", "keep", "max", "label_replace"}  # fmt: skip


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def groups(path: str) -> dict[str, list[dict[str, Any]]]:
    return {group["name"]: group["rules"] for group in load(path)["groups"]}


PROMETHEUS = groups("observability/prometheus/rules/p1b_alerts.yml")
LOKI = groups("observability/loki/rules/fake/p1b_alerts.yml")
RULES = [
    (name, rule) for source in (PROMETHEUS, LOKI) for name, rules in source.items() for rule in rules if "alert" in rule
]
ALERTS = {rule["alert"]: rule for _, rule in RULES}
COLLECTOR = load("collector/config.yaml")
COUNTED = {metric["name"]: metric for metric in COLLECTOR["connectors"]["signal_to_metrics"]["logs"]}
each_alert = pytest.mark.parametrize("alert", sorted(ALERTS))


def bare(expr: str) -> str:
    """An expression without the text in its quotes."""
    return re.sub(r'"[^"]*"', '""', expr)


def metrics_of(expr: str) -> set[str]:
    """The names of series in a PromQL expression: what is no function, label, duration or keyword."""
    left = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on)\s*\([^)]*\)|\boffset\s+\w+", " ", bare(expr))
    return {word for word in re.findall(r"(?<![\w:])[a-zA-Z_][\w:]*", left) if word not in _WORDS}


def emitted() -> Iterator[str]:
    """Every series of the SDK's, the exporter's and the collector's counting, as Prometheus sees it."""
    for attribute, name in vars(names).items():
        if attribute.startswith("METRIC_"):
            for unit in ("", "s"):
                yield from (
                    prometheus_name(name, unit) + suffix for suffix in ("", "_total", "_bucket", "_sum", "_count")
                )


def test_the_named_alerts_stand_in_their_groups() -> None:
    wanted = {
        "p1b_logging_alerts": {"HighErrorRate", "ContainerRestartLoop", "ServiceLogsMissing", "LogQueueNearlyFull",
                               "LogLinesLostToRotation"},
        "p1b_execution_alerts": {"OrderSubmitWithoutResponse", "ExecutionLatencyHigh", "NoOrdersSubmitted",
                                 "ConsumerLagHigh", "PendingTooOld", "DeadLettersArriving", "MessagesLost"},
        "p1b_infrastructure_alerts": {"RedisConnectionLoss", "LokiDown", "CollectorDown", "PrometheusRuleFailures",
                                      "LokiRuleFailures", "Watchdog"},
    }  # fmt: skip
    found = {group: {rule["alert"] for name, rule in RULES if name == group} for group in GROUPS}
    for group, alerts in wanted.items():
        assert alerts <= found[group]
    assert {name for name, _ in RULES} == GROUPS
    assert len(ALERTS) == len(RULES), "two rules of one name"


@each_alert
def test_every_alert_says_how_bad_it_is_what_is_so_and_where_to_look(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ({"none"} if alert == "Watchdog" else {"critical", "warning"})
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "$value" in told["description"]
    assert told["runbook_url"].endswith(f"/runbooks/{alert}.md")
    assert re.search(r"/d/[a-z0-9-]+$", told["dashboard_url"])


@each_alert
def test_every_alert_has_a_runbook_of_four_parts_and_a_line_in_the_catalogue(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n\nSeverity: {ALERTS[alert]['labels']['severity']}.")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert f"| [{alert}]({alert}.md) | {ALERTS[alert]['labels']['severity']} |" in (RUNBOOKS / "alerts.md").read_text()


def test_every_runbook_has_its_alert_and_every_link_its_file() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*")} == set(ALERTS) | OF_SEVERAL
    for path in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_every_series_in_a_rule_is_emitted() -> None:
    known = set(emitted()) | OF_PROGRAMS
    used = {rule["alert"]: metrics_of(rule["expr"]) for rules in PROMETHEUS.values() for rule in rules}
    assert {name: series - known for name, series in used.items() if series - known} == {}
    assert used["HighErrorRate"] == {"quantum_bus_log_records_total"}
    assert used["LogRecordsRefused"] == {f"otelcol_receiver_{kind}_log_records_total" for kind in ("refused", "failed")}


def test_what_is_recorded_of_lost_lines_is_what_is_alarmed_on() -> None:
    [recorded] = [rule for rules in LOKI.values() for rule in rules if "record" in rule]
    assert recorded["record"] == names.RECORDED_LOST_LINES
    assert ALERTS["LogLinesLostToRotation"]["expr"] == f"{recorded['expr']} > 0"


@pytest.mark.parametrize("alert", sorted({alert for alert in ALERTS if "event" in ALERTS[alert]["expr"]}))
def test_every_event_in_a_rule_is_a_label(alert: str) -> None:
    for value in re.findall(r'\bevent=~?"([^"]+)"', ALERTS[alert]["expr"]):
        assert set(value.split("|")) <= set(names.LISTED_EVENTS)


def test_every_level_job_exporter_and_group_in_a_rule_exists() -> None:
    text = "\n".join(rule["expr"] for _, rule in RULES)
    levels = re.findall(r'\blevel=~?"([^"]+)"', text)
    assert levels
    assert set("|".join(levels).split("|")) <= LEVELS
    jobs = {job["job_name"] for job in load("observability/prometheus/prometheus.yml")["scrape_configs"]}
    assert set(re.findall(r'\bjob="([^"]+)"', text)) <= jobs
    assert set(re.findall(r'\bexporter="([^"]+)"', text)) <= set(COLLECTOR["exporters"])
    assert set(re.findall(r'messaging_consumer_group_name="([^"]+)"', text)) == {AUTO_EXECUTOR}


def test_every_label_in_a_rule_or_its_text_is_one_its_series_has() -> None:
    of_bus = {prometheus_name(name) for name in (names.ATTR_DESTINATION, names.ATTR_GROUP)}
    of_counts = {attribute["key"] for metric in COUNTED.values() for attribute in metric["attributes"]}
    of_programs = {"receiver", "exporter", "reason", "integration", "rule_group", "instance", "job", "le"}
    of_loki = {"service", "event", "order_id", "chain", "lines", "__error__"}
    for _, rule in RULES:
        told = " ".join(rule["annotations"].values())
        used = set(re.findall(r"\$labels\.(\w+)", told)) | set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", rule["expr"]))
        used |= {label for listed in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", rule["expr"])
                 for label in re.findall(r"\w+", listed)}  # fmt: skip
        assert used <= of_bus | of_counts | of_programs | of_loki, rule["alert"]


def test_what_the_collector_counts_is_named_as_the_sdk_names_it_and_in_few_labels() -> None:
    assert set(COUNTED) == {names.METRIC_LOG_RECORDS, names.METRIC_LOG_ORDER_LATENCY}
    assert COUNTED[names.METRIC_LOG_RECORDS]["sum"]["monotonic"] is True
    assert COUNTED[names.METRIC_LOG_ORDER_LATENCY]["unit"] == "s"
    for metric in COUNTED.values():
        assert {attribute["key"] for attribute in metric["attributes"]} <= {"service", "level", "event"}
        assert [attribute["key"] for attribute in metric["include_resource_attributes"]] == ["service.name"]
    pipelines = COLLECTOR["service"]["pipelines"]
    for name, pipeline in pipelines.items():
        if name.startswith("logs/"):
            assert pipeline["exporters"] == ["otlp_http/loki", "signal_to_metrics"]
            assert pipeline["processors"].index("transform/labels") >= 0
    assert pipelines["metrics/counted"]["processors"][-1] == "deltatocumulative"
    assert COLLECTOR["connectors"]["signal_to_metrics"]["error_mode"] == "ignore"
    assert COLLECTOR["processors"]["deltatocumulative"]["max_stale"] == "24h"
    assert COLLECTOR["exporters"]["prometheus"]["metric_expiration"] == "24h"


def commands(beginning: str) -> list[tuple[str, str]]:
    """The lines of the runbooks' blocks that begin so, each with its file's name."""
    found = []
    for path in sorted(RUNBOOKS.glob("*.md")):
        for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
            found += [(path.name, line.strip()) for line in block.splitlines() if line.strip().startswith(beginning)]
    return found


@pytest.mark.parametrize("typed", sorted({line for _, line in commands("quantum-bus ")}))
def test_every_quantum_bus_command_of_a_runbook_is_understood_as_typed(typed: str) -> None:
    command: Any = get_command(app)
    words = typed.split()[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(typed, words, resilient_parsing=False)


def test_alertmanager_names_only_alerts_that_exist() -> None:
    config = load("observability/alertmanager/alertmanager.yml")
    matchers = [matcher for rule in config["inhibit_rules"] for side in ("source_matchers", "target_matchers")
                for matcher in rule[side]]  # fmt: skip
    matchers += [matcher for route in config["route"]["routes"] for matcher in route["matchers"]]
    named = {name for matcher in matchers if matcher.startswith("alertname")
             for name in re.findall(r'"([^"]+)"', matcher)[0].split("|")}  # fmt: skip
    assert named <= set(ALERTS)


def test_no_secret_stands_in_alertmanagers_configuration() -> None:
    text = (ROOT / "observability/alertmanager/alertmanager.yml").read_text()
    assert not re.search(r"^\s*-?\s*(?:\w*password|\w*secret|url|api_url):", text, re.MULTILINE)
    assert set(re.findall(r"(\w+_file): ", text)) == {"smtp_auth_password_file", "url_file"}
