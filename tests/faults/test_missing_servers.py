"""A suite that quietly tests less than it promises is worse than none: in CI what is missing is a failure."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


ONE_TEST_PER_SERVER = "tests/faults/test_redis_server.py::test_answers_and_is_gone_afterwards"


def test_a_missing_server_fails_in_ci(tmp_path: Path) -> None:
    done = run_pytest(ONE_TEST_PER_SERVER, CI="true", PATH=str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "no redis-server of series 7.0" in done.stdout


def test_elsewhere_one_server_is_enough(tmp_path: Path) -> None:
    done = run_pytest(ONE_TEST_PER_SERVER, CI="", PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_skip_fails_in_ci_and_only_there(tmp_path: Path) -> None:
    skipping = tmp_path / "test_skipping.py"
    skipping.write_text("import pytest\ndef test_one(): pytest.skip('nothing to test with')\n", encoding="utf-8")
    whole_module = tmp_path / "test_module.py"
    whole_module.write_text("import pytest\npytest.importorskip('no_such_module')\n", encoding="utf-8")
    plugin = ["-p", "tests.conftest", "-c", str(CHECKOUT / "pyproject.toml"), f"--rootdir={tmp_path}"]
    for tests in (skipping, whole_module):
        assert run_pytest(*plugin, str(tests), CI="").returncode in {0, 5}
        in_ci = run_pytest(*plugin, str(tests), CI="true")
        assert in_ci.returncode not in {0, 5}, in_ci.stdout
        assert "skipped, which CI does not allow" in in_ci.stdout
