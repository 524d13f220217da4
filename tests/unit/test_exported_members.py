"""The façades export what they import, sorted, and nothing is documented under a name it does not have."""

import ast
import inspect
from pathlib import Path

import pytest

import quantum_bus
import quantum_bus.sync


@pytest.mark.parametrize("facade", [quantum_bus, quantum_bus.sync])
def test_every_name_the_facade_imports_is_exported_and_the_list_is_sorted(facade: object) -> None:
    source = Path(inspect.getfile(facade)).read_text(encoding="utf-8")  # type: ignore[arg-type]
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module not in ("__future__", "typing")
        for alias in node.names
    }
    exported = facade.__all__  # type: ignore[attr-defined]
    assert set(exported) == {name for name in imported if not name.startswith("_")}
    assert exported == sorted(exported)
    assert all(hasattr(facade, name) for name in exported)


def test_the_facade_holds_no_logic() -> None:
    source = Path(inspect.getfile(quantum_bus)).read_text(encoding="utf-8")
    kinds = {type(node) for node in ast.parse(source).body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}


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
