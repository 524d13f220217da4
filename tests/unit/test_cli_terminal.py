import io
import sys

import pytest

from quantum_bus.cli import terminal
from quantum_bus.cli.terminal import Bar, wide_console


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "after", "shown"),
    [(Screen(), 0.0, True), (Screen(), 3600.0, False), (io.StringIO(), 0.0, False)],
    ids=["terminal", "at once", "pipe"],
)
def test_a_bar_is_shown_on_a_terminal_and_only_once_it_takes_a_while(
    monkeypatch: pytest.MonkeyPatch, file: io.StringIO, after: float, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(terminal, "BAR_AFTER", after)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("reading") as bar:
        for done in range(0, 3_000, 1_000):
            bar.at(done, 3_000)
    assert ("reading" in file.getvalue()) is shown


def test_in_a_pipe_no_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    wide_console().print("x" * 390)
    assert file.getvalue() == f"{'x' * 390}\n"


@pytest.mark.parametrize(
    ("file", "env", "styled"),
    [(Screen(), {}, True), (io.StringIO(), {}, False), (io.StringIO(), {"FORCE_COLOR": "1"}, True)],
    ids=["terminal", "pipe", "a pipe that is to be coloured"],
)
def test_only_a_terminal_is_written_to_with_styles(
    monkeypatch: pytest.MonkeyPatch, file: io.StringIO, env: dict[str, str], styled: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", file)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (terminal.terminal() is not None) is styled
