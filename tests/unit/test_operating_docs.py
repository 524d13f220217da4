"""docs/operating.md tells what the commands do; here it is held to them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from quantum_bus import names
from quantum_bus.checkup import DEFAULT_LIMITS, SAMPLE
from quantum_bus.cli.doctor import doctor
from quantum_bus.cli.exporter import exporter
from quantum_bus.exporter import DEFAULT_INTERVAL, DEFAULT_MAX_GROUPS, DEFAULT_MAX_STREAMS
from quantum_bus.findings import CHECKS
from quantum_bus.scraping import prometheus_name
from quantum_bus.state import COUNT_LIMIT
from scripts.log_status_verdicts import WHAT

DOCS = Path(__file__).parents[2] / "docs"
OPERATING = (DOCS / "operating.md").read_text(encoding="utf-8")
PIPELINE = (DOCS / "pipeline.md").read_text(encoding="utf-8")
TELEMETRY = (DOCS / "telemetry.md").read_text(encoding="utf-8")

METRICS = {value for name, value in vars(names).items() if name.startswith("METRIC_")}
OF_REDIS = {
    names.METRIC_LAG, names.METRIC_LAG_AGE, names.METRIC_PENDING, names.METRIC_PENDING_AGE, names.METRIC_CONSUMERS,
    names.METRIC_CONSUMERS_ALIVE,
    names.METRIC_SCHEDULED, names.METRIC_SCHEDULED_DUE, names.METRIC_STREAM_LENGTH, names.METRIC_DEAD_LETTER_SIZE,
    names.METRIC_EXPORTER_UP, names.METRIC_EXPORTER_LAST_SUCCESS, names.METRIC_EXPORTER_LEFT_OUT,
    names.METRIC_EXPORTER_REFUSED,
}  # fmt: skip
# Counted by the collector.
OF_LINES = {names.METRIC_LOG_RECORDS, names.METRIC_LOG_ORDER_LATENCY}


def rows(text: str) -> list[str]:
    return re.findall(r"^\| `((?:quantum_bus|messaging)\.[a-z_.]+)` \| [^|]*\| ", text, re.MULTILINE)


def test_every_metric_of_the_exporter_is_in_its_table() -> None:
    assert sorted(rows(OPERATING)) == sorted(OF_REDIS)


def test_every_metric_of_a_process_is_in_the_table_of_telemetry() -> None:
    section = TELEMETRY.split("## Metrics")[1].split("\n## ")[0]
    assert sorted(rows(section)) == sorted(METRICS - OF_REDIS - OF_LINES)


def test_every_metric_of_the_lines_is_in_the_table_of_the_pipeline() -> None:
    counted = re.findall(r"^\| `(quantum_bus\.[a-z_.]+)` \(`(\w+)`\)", PIPELINE, re.MULTILINE)
    assert {name for name, _ in counted} == OF_LINES
    for name, series in counted:
        assert series.startswith(prometheus_name(name))


def test_every_check_of_the_doctor_is_in_its_table_in_order() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| (?:error|warning|info)", OPERATING, re.MULTILINE) == list(CHECKS)


@pytest.mark.parametrize("command", [exporter, doctor])
def test_every_option_is_documented(command: Callable[..., None]) -> None:
    options = {name.replace("_", "-") for name in command.__annotations__} - {"return", "url", "debug", "log-level"}
    for option in options:
        assert f"--{ {'streams': 'stream', 'groups': 'group', 'as-json': 'json'}.get(option, option) }" in OPERATING


def test_limits_of_the_doctor_are_those_that_are_documented() -> None:
    assert (DEFAULT_LIMITS.dead_after, DEFAULT_LIMITS.forgotten_after, DEFAULT_LIMITS.overdue_after) == (300, 7_200, 60)
    assert f"The oldest {SAMPLE} of a group" in OPERATING
    assert f"`--cap` ({DEFAULT_LIMITS.length:,} entries)" in OPERATING


def test_defaults_are_those_that_are_documented() -> None:
    assert f"`--interval` ({DEFAULT_INTERVAL:g} s)" in OPERATING
    assert f"`--max-groups N` | {DEFAULT_MAX_STREAMS}, {DEFAULT_MAX_GROUPS} |" in OPERATING
    assert f"{COUNT_LIMIT:,} entries are counted" in OPERATING


def test_the_words_of_probes_and_the_checks_of_the_logging_stack_are_documented() -> None:
    section = OPERATING.split("## Probes")[1]
    for name, value in vars(names).items():
        if name.startswith(("PATH_", "HEALTH_", "DOING_")):
            assert f"`{value}`" in section, name
    stack = OPERATING.split("## Is the logging stack well?")[1].split("\n## ")[0]
    assert re.findall(r"^PASS +\d+  (\S.*?) {2,}", stack, re.MULTILINE)[:10] == list(WHAT.values())
    assert re.findall(r"^\| (\d+) \| ", stack, re.MULTILINE) == [str(number) for number in range(1, 11)]
