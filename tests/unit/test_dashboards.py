"""Grafana's dashboards and provisioning: as generated, by the schema, and about what is emitted.

No Grafana runs here. What it would do with the files is held to its SDK's schema and to its documentation.
"""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.grafana import generate
from quantum_bus import names
from quantum_bus.scraping import prometheus_name
from tests.dashboards import FOLDER, Question, dashboards, panels, questions
from tests.unit.test_alert_rules import ALERTS, COUNTED, LEVELS, OF_PROGRAMS, emitted, load, metrics_of

DASHBOARDS = dashboards()
QUESTIONS = questions()
OF_PROMETHEUS = [question for question in QUESTIONS if question.datasource == "prometheus"]
DATASOURCES = load("observability/grafana/provisioning/datasources/quantum-bus.yaml")
PROVIDERS = load("observability/grafana/provisioning/dashboards/quantum-bus.yaml")
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
each_dashboard = pytest.mark.parametrize("uid", sorted(DASHBOARDS))

# What Grafana's documentation of provisioning names, as far as it is used here or could be.
OF_DATASOURCE = {"name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth", "basicAuthUser",
                 "withCredentials", "isDefault", "jsonData", "secureJsonData", "version", "editable"}  # fmt: skip
OF_JSON_DATA = {
    "loki": {"maxLines", "timeout", "derivedFields", "manageAlerts", "alertmanagerUid"},
    "prometheus": {"httpMethod", "prometheusType", "prometheusVersion", "timeInterval", "queryTimeout", "cacheLevel",
                   "manageAlerts", "alertmanagerUid", "incrementalQuerying", "customQueryParameters"},
}  # fmt: skip
OF_DERIVED_FIELD = {"name", "matcherType", "matcherRegex", "url", "urlDisplayLabel", "datasourceUid", "targetBlank"}
OF_PROVIDER = {"name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds",
               "allowUiUpdates", "options"}  # fmt: skip


def test_what_is_committed_is_what_the_script_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == {
        path.name: text for path, text in generate.texts().items()
    }
    assert FILES == ["p1b_log_aggregation.json", "quantum_bus.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_dashboard_is_canonically_formatted(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def test_a_change_by_hand_fails_the_check_and_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    changed = tmp_path / "quantum_bus.json"
    changed.write_text(changed.read_text().replace("quantum_bus_lag_age_seconds", "quantum_bus_lag_age"))
    assert generate.main(["--check"]) == 1
    assert "make dashboards" in capsys.readouterr().err


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Where `kept`, read by the schema and written again, is not what was given."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [at for key in given for at in lost(given[key], kept.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            at for number, pair in enumerate(zip(given, kept, strict=True)) for at in lost(*pair, f"{path}[{number}]")
        ]
    return [] if given == kept else [path]


def read_again(given: dict[str, Any]) -> dict[str, Any]:
    encoded = json.dumps(Dashboard.from_json(given), cls=generate.JSONEncoder)
    made: dict[str, Any] = json.loads(encoded)
    return made


@each_dashboard
def test_the_schema_knows_every_key_of_a_dashboard(uid: str) -> None:
    register_default_plugins()  # of panels and queries; others would be kept as they are
    given = DASHBOARDS[uid]
    assert lost(given, read_again(given)) == []
    mistaken = json.loads(json.dumps(given).replace('"legendFormat"', '"legend"').replace('"fillOpacity"', '"fill"'))
    found = lost(mistaken, read_again(mistaken))
    assert {at.rpartition(".")[2] for at in found} == {"legend", "fill"}


def test_the_log_dashboard_has_its_four_panels_and_a_box_for_a_correlation_id() -> None:
    board = DASHBOARDS["p1b-log-aggregation"]
    assert [panel["title"] for panel in panels(board)] == [
        "Errors by level, over 15 minutes", "Errors by service", "Order events", "Order flow"
    ]  # fmt: skip
    types = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert types["correlation_id"] == "textbox"
    [flow] = [question for question in QUESTIONS if question.panel == "Order flow"]
    assert "correlation_id" in flow.variables


@each_dashboard
def test_panels_say_what_they_show_have_numbers_of_their_own_and_do_not_overlap(uid: str) -> None:
    board = DASHBOARDS[uid]
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in board["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)


@each_dashboard
def test_every_variable_in_a_query_is_one_of_the_dashboard_or_of_grafana(uid: str) -> None:
    own = {variable["name"] for variable in DASHBOARDS[uid].get("templating", {}).get("list", [])}
    used = {name for question in QUESTIONS if question.dashboard == uid for name in question.variables}
    assert used - {"__rate_interval", "__auto"} == own


# --- about what is emitted -------------------------------------------------------------------------


def test_every_series_in_a_dashboard_is_emitted() -> None:
    known = set(emitted()) | OF_PROGRAMS | {names.RECORDED_LOST_LINES}
    used = {question.panel: metrics_of(question.expr) for question in OF_PROMETHEUS}
    assert {panel: series - known for panel, series in used.items() if series - known} == {}
    assert used["Lag, in seconds"] == {"quantum_bus_lag_age_seconds"}
    assert used["Discarded by Loki, in 5 minutes"] == {"loki_discarded_samples_total", "up"}


def test_every_event_level_job_and_exporter_in_a_dashboard_exists() -> None:
    text = "\n".join(question.expr for question in QUESTIONS)
    events = "|".join(re.findall(r'\bevent=~?"([^"$]+)"', text)).split("|")
    assert set(events) >= set(generate.ORDER_EVENTS)
    assert set(events) <= set(names.LISTED_EVENTS)
    assert set("|".join(re.findall(r'\blevel=~?"([^"]+)"', text)).split("|")) <= LEVELS
    jobs = {job["job_name"] for job in load("observability/prometheus/prometheus.yml")["scrape_configs"]}
    assert set(re.findall(r'\bjob="([^"]+)"', text)) <= jobs
    exporters = set(load("collector/config.yaml")["exporters"])
    assert set(re.findall(r'\bexporter="([^"]+)"', text)) <= exporters


def labels_of(question: Question) -> set[str]:
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", question.expr))
    for listed in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", question.expr):
        used |= set(re.findall(r"\w+", listed))
    return used


def test_every_label_in_a_query_or_its_legend_is_one_its_series_has() -> None:
    of_bus = {prometheus_name(name) for name in (names.ATTR_DESTINATION, names.ATTR_GROUP, names.ATTR_ERROR_TYPE)}
    of_counts = {attribute["key"] for metric in COUNTED.values() for attribute in metric["attributes"]}
    of_programs = {"receiver", "exporter", "reason", "job", "le", "service_instance_id"}
    of_loki = {"service", "event", "level", "correlation_id", "msg"}
    for question in QUESTIONS:
        known = of_loki if question.datasource == "loki" else of_bus | of_counts | of_programs
        assert labels_of(question) <= known, question.panel
    for board in DASHBOARDS.values():
        for panel in panels(board):
            for target in panel["targets"]:
                told = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
                assert told <= of_bus | of_counts | of_programs | of_loki, panel["title"]
                grouped = re.match(r"sum by \(([^)]*)\)", target["expr"])
                assert grouped is None or told <= set(re.findall(r"\w+", grouped[1])), panel["title"]


# --- where alerts lead -----------------------------------------------------------------------------


# Those whose rule asks for something else than one looks at.
SHOWN_BY = {
    "MessagesLost": {"quantum_bus_lost_total"},  # the bus's own counter of what the rule counts in the log
    "LogLinesLostToRotation": {names.RECORDED_LOST_LINES},
    "ServiceLogsMissing": {"quantum_bus_log_records_total"},
}


def about(alert: str) -> set[str]:
    """The events and levels of a rule, and the series that are not only their count."""
    expr = ALERTS[alert]["expr"]
    words = {word for found in re.findall(r'\b(?:event|level)=~?"([^"]+)"', expr) for word in found.split("|")}
    series = set() if "count_over_time" in expr and "{event" in expr else metrics_of(expr)
    return SHOWN_BY.get(alert) or words | (series - {"quantum_bus_log_records_total"})


@pytest.mark.parametrize("alert", sorted(set(ALERTS) - {"Watchdog"}))
def test_an_alert_leads_to_a_dashboard_that_shows_what_it_is_about(alert: str) -> None:
    url = ALERTS[alert]["annotations"]["dashboard_url"]
    found = re.fullmatch(r"http://127\.0\.0\.1:3001/d/([a-z0-9-]+)", url)
    assert found, url
    assert found[1] in DASHBOARDS, f"{alert} leads to a dashboard that is not there: {url}"
    shown = " ".join(question.expr for question in QUESTIONS if question.dashboard == found[1])
    assert [word for word in about(alert) if re.search(rf"\b{word}\b", shown)], f"nothing there of {about(alert)}"


def test_watchdog_leads_to_a_dashboard() -> None:
    assert ALERTS["Watchdog"]["annotations"]["dashboard_url"].rpartition("/")[2] in DASHBOARDS


# --- provisioning ----------------------------------------------------------------------------------


def test_the_datasources_have_the_uids_that_dashboards_name_and_only_documented_keys() -> None:
    assert DATASOURCES["apiVersion"] == 1
    sources = {source["uid"]: source for source in DATASOURCES["datasources"]}
    assert {uid: source["type"] for uid, source in sources.items()} == {"loki": "loki", "prometheus": "prometheus"}
    assert {question.datasource for question in QUESTIONS} == set(sources)
    assert [uid for uid, source in sources.items() if source.get("isDefault")] == ["loki"]
    for source in sources.values():
        assert set(source) <= OF_DATASOURCE
        assert set(source["jsonData"]) <= OF_JSON_DATA[source["type"]]
        assert source["access"] == "proxy"
    scraped = load("observability/prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert sources["prometheus"]["jsonData"]["timeInterval"] == scraped


def test_every_id_in_a_lines_details_leads_to_all_lines_that_have_it() -> None:
    [loki] = [source for source in DATASOURCES["datasources"] if source["uid"] == "loki"]
    fields = {field["matcherRegex"].strip("^$"): field for field in loki["jsonData"]["derivedFields"]}
    assert set(fields) == {"correlation_id", "order_id", "trace_id"}
    for name, field in fields.items():
        assert set(field) <= OF_DERIVED_FIELD
        assert field["matcherType"] == "label", "the ids are structured metadata, not text of the line"
        assert re.fullmatch(field["matcherRegex"], name)
        assert field["datasourceUid"] == "loki"
        assert field["url"].replace("$$", "$") == f'{{service_name=~".+"}} | {name}="${{__value.raw}}"'


def test_the_provider_reads_the_folder_where_the_files_are_mounted() -> None:
    assert PROVIDERS["apiVersion"] == 1
    [provider] = PROVIDERS["providers"]
    assert set(provider) <= OF_PROVIDER
    assert provider["type"] == "file"
    assert provider["options"] == {"path": "/var/lib/grafana/dashboards"}


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_provisioning_asks_grafanas_environment_for_the_two_addresses_and_nothing_else() -> None:
    """`$$` is one `$`, and a `$` at the end stays one."""
    asked = {name for text in strings([DATASOURCES, PROVIDERS])
             for name in re.findall(r"\$\{?(\w*)", text.replace("$$", "").removesuffix("$"))}  # fmt: skip
    assert asked == {"QUANTUM_LOKI_URL", "QUANTUM_PROMETHEUS_URL"}


def test_provisioning_is_where_grafana_looks_and_nowhere_else() -> None:
    root = FOLDER.parent / "provisioning"
    assert {str(path.relative_to(root)) for path in root.rglob("*.*")} == {
        "datasources/quantum-bus.yaml", "dashboards/quantum-bus.yaml"
    }  # fmt: skip
    assert all(yaml.safe_load(path.read_text()) for path in root.rglob("*.yaml"))
