"""docs/commands.md tells what the commands do; here it is held to them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from quantum_bus.cli.examples import EXAMPLES
from quantum_bus.cli.lag import lag
from quantum_bus.cli.publish import publish
from quantum_bus.cli.status import status
from quantum_bus.cli.tail import LOOK_AGAIN, PAGE, tail
from quantum_bus.cli.trace import trace
from quantum_bus.flow_index import MOST_BYTES, SHARDS
from quantum_bus.known import MOST_FLOWS, MOST_MESSAGES
from quantum_bus.pace import SAMPLE
from quantum_bus.search import BESIDE_INDEX

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = (DOCS / "commands.md").read_text(encoding="utf-8")


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "lag": (),
    "publish": ("stream", "payload"),
    "status": (),
    "tail": ("streams",),
    "trace": ("wanted_id", "more_logs"),
}


def section(title: str) -> str:
    return COMMANDS.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("command", [lag, publish, status, tail, trace])
def test_every_option_is_documented(command: Callable[..., None]) -> None:
    text = section(command.__name__) + section("What all of them do")
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name in ("return", *ARGUMENTS[command.__name__]):
            continue
        [option] = get_args(hint)[1:]
        # in an Annotated typer keeps the first of an option's own names where a default would be
        names = [given for given in (option.default, *(option.param_decls or ())) if str(given).startswith("--")]
        declared = names[0] if names else f"--{name.replace('_', '-')}"
        assert declared in text, declared


@pytest.mark.parametrize("command", ["lag", "publish", "status", "tail", "trace"])
def test_the_pages_examples_are_those_of_the_help(command: str) -> None:
    for example in re.findall(r"^(?:echo|quantum-bus) .*$", section(command), re.MULTILINE):
        assert example in EXAMPLES[command]


def test_limits_are_those_that_are_documented() -> None:
    assert f"{MOST_MESSAGES:,} messages of a flow" in COMMANDS
    assert MOST_FLOWS == 10
    assert "ten flows of one id" in COMMANDS
    assert f"at most {PAGE} entries of a stream" in COMMANDS
    assert f"within {LOOK_AGAIN:g} s" in COMMANDS
    assert f"the newest {SAMPLE} entries" in COMMANDS
    decision = (DOCS / "decisions/0016-an-index-of-flows-by-the-hour.md").read_text(encoding="utf-8")
    assert f"each of {SHARDS} shards" in decision
    assert f"{MOST_BYTES // 1024} KiB" in decision
    assert f"{BESIDE_INDEX:,} entries" in decision
