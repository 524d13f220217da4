"""The wheel as a user gets it: built from the sdist, installed from the lock into environments of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
Install = Callable[..., Path]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Its standard output; fails the test with all it printed where it fails."""
    # A user's interpreter knows nothing of this checkout: no path and no virtual environment may leak into it.
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist that is built from the checkout, so that a file missing from either is missed here."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, CHECKOUT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Install:
    """`install("base.txt")` makes an environment with what that lock names, and the wheel; returns its Python."""

    def make(lock: str, interpreter: str = sys.executable) -> Path:
        environment = tmp_path_factory.mktemp("environment")
        run(interpreter, "-m", "venv", environment, cwd=environment)
        python = environment / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        locked = CHECKOUT / "requirements" / lock
        run(*pip, "--require-hashes", "--only-binary=:all:", "-r", locked, cwd=environment)
        run(*pip, "--no-deps", wheel, cwd=environment)
        return python

    return make


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without the package: what the tests in it import is what is installed."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name == "__pycache__"}
        return hidden | {"quantum_bus", "build", "dist"} if Path(folder) == CHECKOUT else hidden

    copy = tmp_path_factory.mktemp("suite") / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=left_out)
    return copy
