"""Names are a contract: complete, unique, documented, and written down nowhere else."""

import ast
import re
from pathlib import Path

import pytest

import quantum_bus
from quantum_bus import names

PACKAGE = Path(quantum_bus.__file__).parent
WIRE_FORMAT = Path(__file__).parents[2] / "docs" / "wire-format.md"


def values(prefix: str) -> dict[str, str]:
    return {name: value for name, value in vars(names).items() if name.startswith(prefix) and isinstance(value, str)}


@pytest.mark.parametrize(
    "prefix",
    [
        "FIELD_",
        "FOREIGN_",
        "DLQ_",
        "REPLAY_",
        "REASON_",
        "ATTR_",
        "OUTCOME_",
        "METRIC_",
        "EVENT_",
        "LOG_",
        "ENV_",
        "SUFFIX_",
    ],
)
def test_no_two_names_of_a_kind_are_the_same(prefix: str) -> None:
    found = values(prefix)
    assert found
    assert len(set(found.values())) == len(found)


def test_every_event_of_ours_may_be_a_label() -> None:
    assert set(names.LISTED_EVENTS) == {names.DEFAULT_EVENT, *values("EVENT_").values()} - {names.EVENT_OTHER}
    assert len(set(names.LISTED_EVENTS)) == len(names.LISTED_EVENTS)


def test_every_dead_letter_field_is_listed() -> None:
    assert set(values("DLQ_").values()) == names.DLQ_FIELDS
    assert set(values("REPLAY_").values()) == names.REPLAY_FIELDS


def test_metrics_and_attributes_are_the_conventions_or_ours() -> None:
    ours = r"(messaging|server|error|exception|quantum_bus)(\.[a-z_]+)+"
    for value in [*values("ATTR_").values(), *values("METRIC_").values()]:
        assert re.fullmatch(ours, value), value


def test_buckets_are_those_the_conventions_advise() -> None:
    assert list(names.DURATION_BUCKETS) == sorted(names.DURATION_BUCKETS)
    assert (names.DURATION_BUCKETS[0], names.DURATION_BUCKETS[-1]) == (0.005, 10.0)


@pytest.mark.parametrize(
    "name",
    sorted(
        [
            *values("FIELD_").values(),
            *values("FOREIGN_").values(),
            *names.DLQ_FIELDS,
            *names.REPLAY_FIELDS,
            *values("REASON_").values(),
        ]
    ),
)
def test_every_name_on_the_wire_is_documented(name: str) -> None:
    assert f"`{name}`" in WIRE_FORMAT.read_text(encoding="utf-8")


def test_the_documented_table_is_in_the_order_of_the_fields() -> None:
    rows = re.findall(r"^\| `([^`]+)`", WIRE_FORMAT.read_text(encoding="utf-8"), re.MULTILINE)
    listed = [*values("FIELD_").values(), f"{names.HEADER_PREFIX}<name>"]
    assert rows[: len(listed)] == listed


def test_names_stand_nowhere_else() -> None:
    """No string in the package spells a span's, metric's or dead-letter field's name out."""
    spelled = set(names.DLQ_FIELDS | names.REPLAY_FIELDS) | {
        v for p in ("ATTR_", "METRIC_", "EVENT_") for v in values(p).values() if v != names.EVENT_OTHER
    }
    for path in PACKAGE.rglob("*.py"):
        if path.name == "names.py" or "demo" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in spelled, f"{path.relative_to(PACKAGE)}:{node.lineno} spells {node.value!r} out"
