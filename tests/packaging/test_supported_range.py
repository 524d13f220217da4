"""The installed wheel keeps its promises over the range it declares: other Pythons, and the oldest dependencies."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.packaging.conftest import CHECKOUT, Install, run

TIERS = ("tests/unit", "tests/contract")
LONG = "--ignore=tests/contract/test_memory.py"  # 200,000 messages, whose memory no setting changes
NEWEST = ("-k", "not 6.2 and not fakeredis")  # what a setting changes shows on one server
SIDE_BY_SIDE = ("--numprocesses=2", "--dist=worksteal")  # most tests wait most of the time
# A test that hangs then fails, where "thread" ends the worker with all that it has yet to tell.
HUNG = ("-o", "timeout_method=signal")


@cache
def other_pythons() -> dict[str, str]:
    """The interpreter of each supported minor version but this one."""
    found = subprocess.run(
        [CHECKOUT / "scripts" / "find_python.sh", "--all"], capture_output=True, text=True, check=True
    ).stdout.split()
    program = "import sys; print('python%d.%d' % sys.version_info[:2])"
    named = {subprocess.check_output([path, "-c", program], text=True).strip(): path for path in found}
    named.pop(f"python{sys.version_info.major}.{sys.version_info.minor}", None)
    return named


def settings() -> dict[str, tuple[str, str]]:
    """By name: a lock, and the interpreter to install it under."""
    return {
        "oldest-dependencies": ("lowest.txt", sys.executable),
        **{name: ("test.txt", path) for name, path in other_pythons().items()},
    }


@pytest.mark.parametrize("setting", settings())
def test_unit_and_contract_tiers_pass(setting: str, install: Install, suite: Path) -> None:
    """One setting after the other: the tests have times to keep, which side by side they would take from each other."""
    lock, interpreter = settings()[setting]
    python = install(lock, interpreter)
    imported_from = run(python, "-c", "import quantum_bus; print(quantum_bus.__file__)", cwd=suite).strip()
    assert Path(imported_from).is_relative_to(python.parents[1]), "the installed package, not the checkout's"
    options = ("-q", "-p", "no:cacheprovider", *HUNG, *SIDE_BY_SIDE, *NEWEST, LONG)
    assert " passed" in run(python, "-m", "pytest", *options, *TIERS, cwd=suite)
