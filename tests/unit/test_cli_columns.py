import io
import re

import pytest
from rich.console import Console

from quantum_bus.cli.columns import Column, Columns

CODES = re.compile(r"\x1b\[[0-9;]*m")


def printed(table: Columns, width: int, *, colours: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="standard" if colours else None)
    table.show(console)
    return file.getvalue().splitlines()


def table(*rows: tuple[str, str, str], style: str = "") -> Columns:
    made = Columns([Column("stream", names=True), Column("lag"), Column("dead")])
    for row in rows:
        made.add(*((text, style) for text in row))
    return made


def test_names_stand_to_the_left_and_figures_to_the_right_with_nothing_blank_behind_them() -> None:
    made = table(("orders", "1,234", ""), ("a", "-", "7"))
    made.caption = "2 streams"
    assert printed(made, 80) == [
        "stream   lag dead",
        "orders 1,234",
        "a          -    7",
        "2 streams",
    ]  # fmt: skip


def test_a_table_without_rows_has_its_header() -> None:
    assert printed(table(), 80) == ["stream lag dead"]


def test_a_character_of_two_columns_counts_as_two() -> None:
    assert printed(table(("日本", "1", "2"), ("orders", "3", "4")), 80)[1:] == ["日本     1    2", "orders   3    4"]


def test_where_a_name_does_not_fit_it_is_folded_and_no_figure_is() -> None:
    assert printed(table(("a" * 12 + "日本" * 4, "1,234", "56")), 23) == [
        "stream         lag dead",
        "aaaaaaaaaaaa 1,234   56",
        "日本日本日本",
        "日本",
    ]


def test_no_figure_is_cut_where_the_terminal_is_too_narrow_for_all() -> None:
    made = Columns([Column("stream", names=True), *[Column("lag")] * 4])
    made.add(("orders", ""), *[("1,234,567", "")] * 4)
    assert printed(made, 20)[1] == "orders 1,234,567 1,234,567 1,234,567 1,234,567"


def test_of_several_names_the_widest_gives_way() -> None:
    made = Columns([Column("stream", names=True), Column("group", names=True), Column("lag")])
    made.add(("s" * 30, ""), ("g" * 10, ""), ("5", ""))
    assert printed(made, 30)[1] == f"{'s' * 15} {'g' * 10}   5"


def test_a_style_colours_its_cell_and_changes_no_text() -> None:
    made = table(("orders", "12", "3"))
    made.add(("payments", "green"), ("7", "red"), ("", ""))
    coloured = printed(made, 80, colours=True)
    assert "\x1b[31m  7\x1b[0m" in coloured[2]
    assert [CODES.sub("", line).rstrip() for line in coloured] == printed(made, 80)


def test_without_a_console_it_is_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    made = table(("orders", "1,234", ""), ("日本", "-", "7"), ("n" * 100, "1", ""), style="green")
    made.caption = "3 streams"
    made.show()
    assert capsys.readouterr().out.splitlines() == printed(made, 400)
    made.caption = ""
    made.show()
    assert capsys.readouterr().out.splitlines() == printed(made, 400)
