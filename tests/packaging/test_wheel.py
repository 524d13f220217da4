"""The wheel without extras: small, typed, complete."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import CHECKOUT, Install, run

# Their own third parties come with an extra; the message that says so is tested where they are. `sdk_spans` and
# `flow_ids` are imported where the tracer is the SDK's.
NEEDS_AN_EXTRA = {"cli", "demo", "flow_ids", "otel", "otlp", "scraping", "sdk_spans", "testing"}
MOST_PACKAGES = 9


@pytest.fixture(scope="module")
def base(install: Install) -> Path:
    return install("base.txt")


def test_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = CHECKOUT / "quantum_bus"
    expected = {
        str(path.relative_to(CHECKOUT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "quantum_bus/py.typed" in held


def test_installs_few_packages(base: Path, tmp_path: Path) -> None:
    listed = json.loads(run(base, "-m", "pip", "list", "--format=json", cwd=tmp_path))
    names = sorted({package["name"] for package in listed} - {"pip", "setuptools"})
    assert "quantum-bus" in names
    assert len(names) <= MOST_PACKAGES, names


def test_fits_its_own_requirements(base: Path, tmp_path: Path) -> None:
    run(base, "-m", "pip", "check", cwd=tmp_path)


def test_every_module_imports_without_extras_and_without_a_warning(base: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, quantum_bus\n"
        "for module in pkgutil.walk_packages(quantum_bus.__path__, 'quantum_bus.'):\n"
        f"    if module.name.split('.')[1] not in {NEEDS_AN_EXTRA!r}:\n"
        "        importlib.import_module(module.name)\n"
        "print(quantum_bus.__file__)\n"
    )
    imported_from = Path(run(base, "-W", "error", "-c", program, cwd=tmp_path).strip())
    assert imported_from.is_relative_to(base.parents[1]), "the installed one, not the checkout's"


def test_has_its_own_version_and_licence(base: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.metadata import metadata, files\n"
        "told = metadata('quantum-bus')\n"
        "print(told['Version'], told['License-Expression'], any(f.name == 'LICENSE' for f in files('quantum-bus')))\n"
    )
    assert run(base, "-c", program, cwd=tmp_path).split() == ["0.1.0", "Apache-2.0", "True"]


def test_a_strictly_checked_program_sees_its_types(base: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from quantum_bus.config import Retry\nattempts: str = Retry().max_attempts\n", encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={base}", program]
    with pytest.raises(pytest.fail.Exception) as failed:
        run(*mypy, cwd=tmp_path)
    # Both an untyped package ("missing py.typed") and an `Any` would hide this mistake.
    assert 'expression has type "int", variable has type "str"' in str(failed.value)
