"""The promises of docs/guarantees.md: each test that is named behind one is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(test_\w+)`", GUARANTEES))


def defined() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_each_test_that_is_named_behind_a_promise_is_there() -> None:
    assert len(NAMED) > 50
    assert NAMED - defined() == set()
