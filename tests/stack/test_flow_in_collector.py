"""One flow of the three services, each with a real SDK, as the real collector receives it: spans, metrics, logs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.stack import SERVICES, Program, Stack, collector, wait_until
from tests.stack.exported import whole_lines
from tests.stack.running import Running

INTENT, EXECUTION = "quantum:stream:intent", "quantum:stream:execution"


def objects(path: Path, *names: str) -> Iterator[dict[str, Any]]:
    """What lies under `names` in each of the collector's lines, with its resource's attributes under "resource"."""
    for line in whole_lines(path):
        for resource in json.loads(line)[names[0]]:
            about = {pair["key"]: next(iter(pair["value"].values())) for pair in resource["resource"]["attributes"]}
            for scope in resource[names[1]]:
                for item in scope[names[2]]:
                    yield {**item, "resource": about}


def attributes(item: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in item.get("attributes", ())}


def test_a_flow_is_one_trace_with_the_right_parents_and_links_and_its_logs_name_it(
    stack: Stack, start: Callable[[Program], Running], to_files: Path, tmp_path: Path
) -> None:
    start(collector(stack, to_files))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTUM_", "OTEL_"))}
    demo = subprocess.run(
        [sys.executable, "-m", "quantum_bus", "demo", "--json", f"--dir={tmp_path / 'demo'}"],
        env=env | {"OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_url},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    told = json.loads(demo.stdout)
    correlation_id = told["correlation_id"]
    for name, file in told["files"].items():
        (stack.logs / f"{name}.jsonl").write_bytes(Path(file).read_bytes())

    traces, metrics, logs = (stack.folder / f"{signal}.json" for signal in ("traces", "metrics", "logs"))

    def spans() -> dict[str, dict[str, Any]]:
        found = objects(traces, "resourceSpans", "scopeSpans", "spans")
        return {span["name"]: span for span in found if span["traceId"] == correlation_id}

    wait_until(lambda: len(spans()) == 5, timeout=20, what="the five spans of one flow")
    flow = spans()
    chain = ["create intent", f"send {INTENT}", f"process {INTENT}", f"send {EXECUTION}", f"process {EXECUTION}"]
    for parent, child in pairwise(chain):
        assert flow[child]["parentSpanId"] == flow[parent]["spanId"], f"{child} follows from {parent}"
        assert attributes(flow[child])["messaging.message.conversation_id"] == correlation_id
    for sent, processed in ((chain[1], chain[2]), (chain[3], chain[4])):
        assert [link["spanId"] for link in flow[processed]["links"]] == [flow[sent]["spanId"]]
    assert [flow[name]["resource"]["service.name"] for name in chain] == [
        "ai_engine", "ai_engine", "auto_executor", "auto_executor", "portfolio"
    ]  # fmt: skip

    def counted() -> set[tuple[str, str]]:
        found = objects(metrics, "resourceMetrics", "scopeMetrics", "metrics")
        return {(metric["resource"]["service.name"], metric["name"]) for metric in found}

    wanted = {
        ("ai_engine", "messaging.client.sent.messages"),
        ("ai_engine", "messaging.client.operation.duration"),
        ("auto_executor", "messaging.process.duration"),
        ("portfolio", "messaging.client.consumed.messages"),
    }
    wait_until(lambda: wanted <= counted(), timeout=20, what="the services' metrics")

    def said() -> list[dict[str, Any]]:
        found = objects(logs, "resourceLogs", "scopeLogs", "logRecords")
        return [record for record in found if attributes(record).get("correlation_id") == correlation_id]

    wait_until(lambda: {attributes(record)["service"] for record in said()} == set(SERVICES), timeout=20, what="logs")
    span_ids = {span["spanId"] for span in flow.values()}
    for record in said():
        assert record["traceId"] == correlation_id
        assert record["spanId"] in span_ids, "each line names the span it was written in"
