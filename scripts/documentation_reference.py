"""Griffe's extension, for the reference: docstrings as Markdown, and defaults by value.

Docstrings are written in reStructuredText's manner: ``:class:`~quantum_bus.Retry` `` becomes `` `Retry` ``, double
backticks single ones, and what follows a ``::`` a Python block. A default that is a named constant is shown by value.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
_LITERAL = re.compile(r"^(?P<before>[^\n]*?)::\n\n(?P<code>(?:(?P<indent> {4,})[^\n]*\n|\n)+)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring for Markdown."""

    def block(match: re.Match[str]) -> str:
        code = textwrap.dedent(match["code"]).strip("\n")
        before = f"{match['before']}:\n\n" if match["before"].strip() else ""
        return f"{before}```python\n{code}\n```\n\n"

    text = _LITERAL.sub(block, f"{text}\n").rstrip("\n")
    text = _ROLE.sub(lambda match: f"`{match[1].rsplit('.', 1)[-1]}`", text)
    return re.sub(r"``([^`\n]+)``", r"`\1`", text)


class ForReaders(griffe.Extension):
    """Rewrites what a reader of the reference could not read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called when the whole package is known, constants of other modules included."""
        waiting: list[griffe.Object | griffe.Alias] = [pkg]
        while waiting:
            obj = waiting.pop()
            if isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = _value(parameter.default, pkg)
            elif not obj.is_alias:
                waiting += obj.members.values()


def _value(default: str | griffe.Expr | None, package: griffe.Module) -> str | griffe.Expr | None:
    if isinstance(default, griffe.ExprName | griffe.ExprAttribute):
        path = default.canonical_path.removeprefix(f"{package.path}.")
        with contextlib.suppress(KeyError):  # of another package
            constant = package[path]
            if isinstance(constant, griffe.Attribute) and constant.value is not None:
                return str(constant.value)
    return default
