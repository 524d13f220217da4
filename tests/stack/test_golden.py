"""What becomes of a line in the collector: every case of collector/golden, through the real one."""

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scripts.stack import ROOT, Program, Stack, collector
from tests.stack.asking import get_good, wait_until
from tests.stack.exported import whole_lines
from tests.stack.running import Running

GOLDEN = ROOT / "collector" / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
# Where each kind of input is written, and under which name.
PLACES = {
    "input.jsonl": "logs/auto_executor.jsonl",
    "input.log": "logs/auto_executor.log",
    "input.container.log": "containers/0123456789ab/0123456789ab-json.log",
}


class Placeholders:
    """Fills in a case's times and lengths, and finds them again in what came out."""

    def __init__(self) -> None:
        self._next = datetime.now(UTC)
        self._names: dict[str, str] = {}

    def fill(self, template: str) -> str:
        def fill_time(match: re.Match[str]) -> str:
            self._next += timedelta(microseconds=1)
            written = self._next.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self._names[written] = match[0]
            return written

        template = re.sub(r"\{\{(\w)\*(\d+)\}\}", lambda match: match[1] * int(match[2]), template)
        return re.sub(r"\{\{(?:ts|engine)\}\}", fill_time, template)

    def find(self, text: str) -> str:
        text = re.sub(r"(x)\1{999,}", lambda match: f"{{{{{match[1]}*{len(match[0])}}}}}", text)
        for written, name in self._names.items():
            text = text.replace(written, name)
        return text

    def source_of(self, time_ns: int) -> str:
        written = datetime.fromtimestamp(time_ns // 1000 / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return self._names.get(written, "arrival" if time_ns > 0 else "none")


def plain(value: dict[str, Any]) -> Any:
    """An OTLP/JSON value as JSON."""
    [(kind, inner)] = value.items()
    return int(inner) if kind == "intValue" else inner


def records(exported: list[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for line in exported:
        for resource in json.loads(line)["resourceLogs"]:
            about = {pair["key"]: plain(pair["value"]) for pair in resource["resource"].get("attributes", [])}
            for scope in resource["scopeLogs"]:
                for record in scope["logRecords"]:
                    yield about, record


def canonical(exported: list[str], placeholders: Placeholders) -> list[dict[str, Any]]:
    """The records in the order of their text, without what differs from run to run."""
    found = []
    for resource, record in records(exported):
        body = plain(record["body"])
        found.append(
            {
                "body": placeholders.find(body),
                "resource": resource,
                "attributes": {
                    pair["key"]: plain(pair["value"])
                    for pair in sorted(record.get("attributes", []), key=lambda pair: pair["key"])
                },
                "time": placeholders.source_of(int(record.get("timeUnixNano", 0))),
                "observed": record.get("observedTimeUnixNano", "0"),
                **{key: record[key] for key in ("severityText", "traceId", "spanId") if record.get(key)},
            }
        )
    return sorted(found, key=lambda record: record["body"])


def counted(stack: Stack) -> str:
    """What the collector offers Prometheus of the lines."""
    text = get_good(f"http://127.0.0.1:{stack.ports.metrics}/metrics").text
    series = [line for line in text.splitlines() if line.startswith("quantum_bus_log_") and "_sum{" not in line]
    return "".join(f"{line}\n" for line in series)


@pytest.mark.parametrize("case", CASES)
def test_each_golden_input_leaves_the_collector_as_expected(
    case: str, stack: Stack, start: Callable[[Program], Running], to_files: Path
) -> None:
    [source] = GOLDEN.joinpath(case).glob("input.*")
    expected_file = GOLDEN / case / "expected.json"
    placeholders = Placeholders()
    target = stack.folder / PLACES[source.name]
    target.parent.mkdir(exist_ok=True)
    target.write_text(placeholders.fill(source.read_text()))
    running = start(collector(stack, to_files))

    write = bool(os.environ.get("QUANTUM_GOLDEN_WRITE"))
    expected = [] if write else json.loads(expected_file.read_text())
    exported = stack.folder / "logs.json"

    def came_out() -> list[dict[str, Any]]:
        return canonical(whole_lines(exported), placeholders)

    if write:
        seconds = iter(range(80))
        wait_until(lambda: next(seconds) == 79, timeout=60, what="everything came out")
    else:
        wait_until(lambda: len(came_out()) >= len(expected), timeout=30, what=f"{len(expected)} records of {case}")
    counted_file = GOLDEN / case / "counted.txt"
    if counted_file.exists():
        if write:
            counted_file.write_text(counted(stack))
        wait_until(lambda: counted(stack) == counted_file.read_text(), timeout=30, what=f"the counts: {counted(stack)}")
    assert running.stop() == 0
    if write:
        expected_file.write_text(json.dumps(came_out(), indent=2, ensure_ascii=False) + "\n")
        return
    assert came_out() == expected
