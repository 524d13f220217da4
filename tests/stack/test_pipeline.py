"""How a line is found in Loki, what else the collector takes, and what must not be open to others."""

import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from quantum_bus import names
from scripts import stack as stack_module
from scripts.stack import ROOT, Program, Stack, StackError, collector, loki, tool
from tests.stack.asking import SECONDS, get_good, wait_until
from tests.stack.exported import whole_lines
from tests.stack.loki_reader import DAY_NS, HOUR_NS, Entry, LokiReader
from tests.stack.running import Running


def line(service: str, event: str, correlation_id: str | None, *, ts_ns: int | None = None, **fields: Any) -> str:
    moment = datetime.fromtimestamp((ts_ns or time.time_ns()) / 1e9, UTC)
    known = {
        "ts": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": "INFO", "service": service, "event": event,
        "correlation_id": correlation_id, "msg": "said",
    }  # fmt: skip
    return json.dumps(known | fields, separators=(",", ":")) + "\n"


def write(stack: Stack, name: str, *lines: str) -> None:
    with (stack.logs / name).open("a") as file:
        file.writelines(lines)


def wait_found(stack: Stack, logql: str, count: int) -> list[Entry]:
    """The entries of the last day that match, once there are `count`."""
    reader, found = LokiReader(stack.loki_url), list[Entry]()

    def enough() -> bool:
        nonlocal found
        found = reader.query(logql, start_ns=time.time_ns() - DAY_NS, end_ns=time.time_ns() + HOUR_NS, limit=1000)
        return len(found) >= count

    wait_until(enough, timeout=30, what=f"{count} entries for {logql}")
    assert len(found) == count, "\n".join(f"{entry.time_ns} {entry.line[:300]} {entry.labels}" for entry in found)
    return found


def labels_of(stack: Stack) -> set[str]:
    answer = get_good(f"{stack.loki_url}/loki/api/v1/labels", start=time.time_ns() - DAY_NS)
    return set(answer.json()["data"])


def test_one_correlation_id_finds_an_orders_lines_in_every_service(
    stack: Stack, real_loki: Running, real_collector: Running
) -> None:
    flow, other = secrets.token_hex(16), secrets.token_hex(16)
    ids = {"trace_id": flow, "span_id": "00f067aa0ba902b7", "order_id": "order_1", "intent_id": "intent_1"}
    write(stack, "ai_engine.jsonl", line("ai_engine", "INTENT_CREATED", flow))
    write(stack, "auto_executor.jsonl", line("auto_executor", "ORDER_SUBMIT", flow, **ids))
    write(stack, "auto_executor.jsonl", line("auto_executor", "ORDER_SUBMIT", other))
    write(stack, "portfolio.jsonl", line("portfolio", "ORDER_FILLED", flow), line("portfolio", "MY_OWN", flow))
    found = wait_found(stack, f'{{service_name=~".+"}} |= "ORDER_" | correlation_id="{flow}"', 2)
    assert {entry.labels["service_name"] for entry in found} == {"auto_executor", "portfolio"}
    assert len(wait_found(stack, f'{{service_name=~".+"}} | correlation_id="{flow}"', 4)) == 4
    [submitted] = wait_found(stack, '{event="ORDER_SUBMIT"} | order_id="order_1"', 1)
    assert submitted.labels == {
        "service_name": "auto_executor", "service": "auto_executor", "level": "INFO", "event": "ORDER_SUBMIT",
        "correlation_id": flow, "severity_text": "INFO", **ids,
    }  # fmt: skip
    assert submitted.line + "\n" == (stack.logs / "auto_executor.jsonl").read_text().splitlines(keepends=True)[0]
    [unlisted] = wait_found(stack, '{event="OTHER"}', 1)
    assert unlisted.labels["event_original"] == "MY_OWN"


def test_the_events_that_are_labels_are_those_the_sdk_lists() -> None:
    text = (ROOT / "collector/config.yaml").read_text()
    [listed] = re.findall(r'not IsMatch\(log\.attributes\["event"\], "\^\(\?:([A-Z_|]+)\)\$"\)', text)
    assert set(listed.split("|")) == set(names.LISTED_EVENTS) - {names.EVENT_OTHER}


def test_only_what_has_few_values_is_a_label(stack: Stack, real_loki: Running, real_collector: Running) -> None:
    folder = stack.containers / "c0ffee"
    folder.mkdir()
    written = line("auto_executor", "ORDER_SUBMIT", "c-1", order_id="o-1", intent_id="i-1")
    envelope = {"log": written, "stream": "stdout", "attrs": {"tag": "qb-executor"}, "time": "2026-01-03T10:15:23Z"}
    (folder / "c0ffee-json.log").write_text(json.dumps(envelope, separators=(",", ":")) + "\n")
    [found] = wait_found(stack, '{container="qb-executor"} | correlation_id="c-1"', 1)
    assert found.line + "\n" == written
    assert labels_of(stack) == {"service_name", "service", "level", "event", "container"}


def test_a_long_line_arrives_whole_and_a_longer_one_in_pieces(
    stack: Stack, real_loki: Running, real_collector: Running
) -> None:
    long = line("ai_engine", "LOG", "long", text="x" * 300_000)
    write(stack, "ai_engine.jsonl", long, line("ai_engine", "LOG", "longer", text="y" * 1_500_000))
    write(stack, "ai_engine.jsonl", line("ai_engine", "LOG", "next"))
    [whole] = wait_found(stack, '{service_name="ai_engine"} | correlation_id="long"', 1)
    assert whole.line + "\n" == long
    assert whole.labels["line_bytes"] == str(len(long) - 1)
    [first] = wait_found(stack, '{service_name="ai_engine"} | correlation_id="longer"', 1)
    assert first.labels["line_state"] == "incomplete"
    [rest] = wait_found(stack, '{service_name="ai_engine"} |= "yyy" | correlation_id=""', 1)
    assert (first.line + rest.line).count("y") == 1_500_000
    wait_found(stack, '{service_name="ai_engine"} | correlation_id="next"', 1)


def test_lines_of_ten_hours_ago_are_taken_after_newer_ones_and_found(
    stack: Stack, real_loki: Running, real_collector: Running
) -> None:
    write(stack, "portfolio.jsonl", line("portfolio", "LOG", "new"))
    wait_found(stack, '{service_name="portfolio"} | correlation_id="new"', 1)
    write(stack, "portfolio.jsonl.1", line("portfolio", "LOG", "old", ts_ns=time.time_ns() - 10 * HOUR_NS))
    wait_found(stack, '{service_name="portfolio"} | correlation_id="old"', 1)


def test_the_same_line_sent_twice_is_kept_once(stack: Stack, real_loki: Running, real_collector: Running) -> None:
    repeated = line("portfolio", "LOG", "twice")
    # Two files, so that the collector itself has no reason to see one line; and between the two more than one of its
    # batches, which with Loki's default is further back than it looks.
    between = [line("portfolio", "LOG", "between", text="x" * 1000) for _ in range(8000)]
    write(stack, "portfolio-1.jsonl", line("portfolio", "LOG", "first"), repeated, *between)
    wait_found(stack, '{service_name="portfolio"} | correlation_id="twice"', 1)
    wait_until(lambda: LokiReader(stack.loki_url).count('{service_name="portfolio"}') >= 8002, timeout=30, what="all")
    write(stack, "portfolio-2.jsonl", line("portfolio", "LOG", "second"), repeated, line("portfolio", "LOG", "last"))
    wait_found(stack, '{service_name="portfolio"} | correlation_id="last"', 1)
    wait_found(stack, '{service_name="portfolio"} | correlation_id="twice"', 1)


def attributes(**values: str) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]


def post(stack: Stack, signal: str, name: str, scopes: str, records: list[dict[str, Any]]) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "portfolio"}}]}
    body = {f"resource{name}": [{"resource": resource, f"scope{name}": [{"scope": {"name": "test"}, scopes: records}]}]}
    httpx.post(f"{stack.otlp_url}/v1/{signal}", json=body, timeout=SECONDS).raise_for_status()


def test_spans_metrics_and_logs_sent_by_otlp_come_through(
    stack: Stack, start: Callable[[Program], Running], to_files: Path
) -> None:
    start(collector(stack, to_files))
    now, trace, parent, span = str(time.time_ns()), secrets.token_hex(16), secrets.token_hex(8), secrets.token_hex(8)
    link = {"traceId": trace, "spanId": parent}
    post(stack, "traces", "Spans", "spans", [
        {"traceId": trace, "spanId": span, "parentSpanId": parent, "name": "process quantum:stream:intent", "kind": 5,
         "startTimeUnixNano": now, "endTimeUnixNano": now, "links": [link]}
    ])  # fmt: skip
    point = {"asInt": "3", "startTimeUnixNano": now, "timeUnixNano": now}
    post(stack, "metrics", "Metrics", "metrics", [
        {"name": "messaging.client.sent.messages",
         "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}}
    ])  # fmt: skip
    post(stack, "logs", "Logs", "logRecords", [
        {"timeUnixNano": now, "severityText": "WARN", "body": {"stringValue": "said"}, "traceId": trace,
         "attributes": attributes(event="NOT_LISTED")}
    ])  # fmt: skip

    def exported(signal: str) -> list[str]:
        return whole_lines(stack.folder / f"{signal}.json")

    wait_until(lambda: all(map(exported, ("traces", "metrics", "logs"))), timeout=20, what="three signals")
    [spans] = json.loads(exported("traces")[0])["resourceSpans"]
    [got] = spans["scopeSpans"][0]["spans"]
    assert (got["traceId"], got["parentSpanId"], got["links"][0]["spanId"]) == (trace, parent, parent)
    assert any("messaging.client.sent.messages" in line for line in exported("metrics"))
    [logs] = json.loads(exported("logs")[0])["resourceLogs"]
    [record] = logs["scopeLogs"][0]["logRecords"]
    assert {pair["key"]: pair["value"]["stringValue"] for pair in record["attributes"]} == {
        "event": "OTHER", "event_original": "NOT_LISTED", "level": "WARNING", "service": "portfolio"
    }  # fmt: skip


def test_metrics_sent_by_otlp_can_be_fetched_by_prometheus(stack: Stack, real_collector: Running) -> None:
    now = str(time.time_ns())
    point = {"asInt": "3", "startTimeUnixNano": now, "timeUnixNano": now}
    post(stack, "metrics", "Metrics", "metrics", [
        {"name": "quantum_bus.retries",
         "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}}
    ])  # fmt: skip
    url = f"http://127.0.0.1:{stack.ports.metrics}/metrics"
    wait_until(lambda: "quantum_bus_retries_total{" in get_good(url).text, timeout=20, what="the counter")


def test_the_collector_counts_its_own_work(stack: Stack, real_collector: Running) -> None:
    url = f"http://127.0.0.1:{stack.ports.self_metrics}/metrics"
    wait_until(lambda: "otelcol_exporter_queue_size" in get_good(url).text, timeout=20, what="its own metrics")


def listening(running: Running) -> set[str]:
    """The local addresses, as the kernel writes them, on which the process listens."""
    sockets = set(running.open_files())
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{running.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def test_nothing_listens_beyond_loopback(stack: Stack, real_loki: Running, real_collector: Running) -> None:
    for running in (real_loki, real_collector):
        assert listening(running) == {"0100007F"}, running.program.name


def test_the_configurations_are_valid(stack: Stack) -> None:
    for program, arguments in ((loki(stack), ["-verify-config"]), (collector(stack), [])):
        command = [program.argv[0], *(["validate"] if not arguments else []), *program.argv[1:], *arguments]
        checked = subprocess.run(command, env=program.environment(), capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_missing_program_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTUM_TOOLS_DIR", str(tmp_path))
    with pytest.raises(StackError, match="make tools"):
        stack_module.tool("loki")
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_builds_nothing() -> None:
    tool("loki")
    again = subprocess.run([ROOT / "scripts/tools.sh"], capture_output=True, text=True, check=True)
    assert "building" not in again.stdout
    shown = subprocess.run([ROOT / "scripts/tools.sh", "--path"], capture_output=True, text=True, check=True)
    assert again.stdout.split()[-1] == shown.stdout.strip()


def test_every_program_is_built_and_says_its_version() -> None:
    for name in ("otelcol-quantum", "loki", "logcli", "lokitool", "prometheus", "promtool", "alertmanager", "amtool"):
        asked = ["version"] if name == "lokitool" else ["--version"]
        answer = subprocess.run([tool(name), *asked], capture_output=True, text=True, check=False, cwd=ROOT)
        assert answer.returncode == 0, answer.stderr
