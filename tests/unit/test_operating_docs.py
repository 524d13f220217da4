"""docs/operating.md tells what the commands do; here it is held to them."""

import re
from pathlib import Path

from quantum_bus import names
from quantum_bus.cli.exporter import exporter
from quantum_bus.exporter import DEFAULT_INTERVAL, DEFAULT_MAX_GROUPS, DEFAULT_MAX_STREAMS
from quantum_bus.state import COUNT_LIMIT

DOCS = Path(__file__).parents[2] / "docs"
OPERATING = (DOCS / "operating.md").read_text(encoding="utf-8")
TELEMETRY = (DOCS / "telemetry.md").read_text(encoding="utf-8")

METRICS = {value for name, value in vars(names).items() if name.startswith("METRIC_")}
OF_REDIS = {
    names.METRIC_LAG, names.METRIC_LAG_AGE, names.METRIC_PENDING, names.METRIC_PENDING_AGE, names.METRIC_CONSUMERS,
    names.METRIC_SCHEDULED, names.METRIC_SCHEDULED_DUE, names.METRIC_STREAM_LENGTH, names.METRIC_DEAD_LETTER_SIZE,
    names.METRIC_EXPORTER_UP, names.METRIC_EXPORTER_LAST_SUCCESS, names.METRIC_EXPORTER_LEFT_OUT,
    names.METRIC_EXPORTER_REFUSED,
}  # fmt: skip


def rows(text: str) -> list[str]:
    return re.findall(r"^\| `((?:quantum_bus|messaging)\.[a-z_.]+)` \| [^|]*\| ", text, re.MULTILINE)


def test_every_metric_of_the_exporter_is_in_its_table() -> None:
    assert sorted(rows(OPERATING)) == sorted(OF_REDIS)


def test_every_metric_of_a_process_is_in_the_table_of_telemetry() -> None:
    section = TELEMETRY.split("## Metrics")[1].split("\n## ")[0]
    assert sorted(rows(section)) == sorted(METRICS - OF_REDIS)


def test_defaults_are_those_that_are_documented() -> None:
    assert f"`--interval` ({DEFAULT_INTERVAL:g} s)" in OPERATING
    assert f"`--max-groups N` | {DEFAULT_MAX_STREAMS}, {DEFAULT_MAX_GROUPS} |" in OPERATING
    assert f"{COUNT_LIMIT:,} entries are counted" in OPERATING


def test_every_option_of_the_exporter_is_documented() -> None:
    options = {name.replace("_", "-") for name in exporter.__annotations__} - {"return", "url", "debug", "log-level"}
    for option in options:
        assert f"--{option.removesuffix('s') if option == 'streams' else option}" in OPERATING
