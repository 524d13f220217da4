"""The façades export what they import, sorted, and nothing is documented under a name it does not have."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import quantum_bus
import quantum_bus.jsonlog
import quantum_bus.sync
from quantum_bus.lazily import exports

LAZY = [quantum_bus, quantum_bus.jsonlog]
NOT_EXPORTED = ("__future__", "typing", "lazily", "quantum_bus.lazily")


@pytest.mark.parametrize("facade", [*LAZY, quantum_bus.sync])
def test_every_name_the_facade_imports_is_exported_and_the_list_is_sorted(facade: ModuleType) -> None:
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree_of(facade))
        if isinstance(node, ast.ImportFrom) and node.module not in NOT_EXPORTED
        for alias in node.names
    }
    assert set(facade.__all__) == {name for name in imported if not name.startswith("_")}
    assert facade.__all__ == sorted(facade.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(facade, name) for name in facade.__all__)


@pytest.mark.parametrize("facade", LAZY)
def test_what_the_facade_loads_later_is_what_type_checkers_see(facade: ModuleType) -> None:
    seen = {
        alias.name: node.module
        for node in ast.walk(tree_of(facade))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    for name in facade.__all__:
        home = import_module(f"{facade.__name__}.{seen[name]}")
        assert facade.__getattr__(name) is getattr(home, name)


@pytest.mark.parametrize("facade", LAZY)
def test_the_facade_holds_no_logic(facade: ModuleType) -> None:
    kinds = {type(node) for node in tree_of(facade).body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign, ast.If}


@pytest.mark.parametrize("facade", LAZY)
def test_modules_are_attributes_and_what_is_not_there_is_told_as_python_does(facade: ModuleType) -> None:
    assert facade.__getattr__("names" if facade is quantum_bus else "orders").__name__.startswith(facade.__name__)
    for absent in ("no_such_name", "__no_such_name__", "_private"):
        with pytest.raises(AttributeError, match=f"module '{facade.__name__}' has no attribute '{absent}'"):
            getattr(facade, absent)
    assert {*facade.__all__} <= {*dir(facade)}


def test_a_module_whose_own_import_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "package/broken.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("package")
    get, _ = exports("package", {})
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        get("broken")


def tree_of(facade: ModuleType) -> ast.Module:
    return ast.parse(Path(inspect.getfile(facade)).read_text(encoding="utf-8"))


def test_the_errors_are_one_tree_and_all_are_exported() -> None:
    tree = {
        name: member
        for name, member in vars(quantum_bus.errors).items()
        if inspect.isclass(member) and member.__module__ == quantum_bus.errors.__name__
    }
    assert all(issubclass(member, quantum_bus.QuantumBusError) for member in tree.values())
    assert set(tree) <= set(quantum_bus.__all__)


@pytest.mark.parametrize("method", ["__init__", "subscriber", "publish", "publish_many", "stop", "run"])
def test_the_twins_take_the_same_arguments(method: str) -> None:
    def parameters(bus: type) -> dict[str, tuple[object, object]]:
        signature = inspect.signature(getattr(bus, method))
        return {name: (item.kind, item.default) for name, item in signature.parameters.items()}

    assert parameters(quantum_bus.EventBus) == parameters(quantum_bus.sync.EventBus)


def test_the_twins_have_the_same_methods() -> None:
    def public(bus: type) -> set[str]:
        return {name for name in vars(bus) if not name.startswith("_")}

    assert public(quantum_bus.EventBus) == public(quantum_bus.sync.EventBus)


@pytest.mark.parametrize("name", quantum_bus.__all__)
def test_everything_exported_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(quantum_bus, name))
