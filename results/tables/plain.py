"""Tables of plain text in columns: a line a row, written at once, where rich's own takes seconds for thousands of rows.

Rich prints them: ``Console().print(table)``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

GAP = 2
LEAST_WIDTH = 8
"""What a column that folds is left with at least; where that is too much still, lines are longer than the terminal."""


@dataclass(frozen=True)
class _Column:
    heading: str
    right: bool
    fold: bool


@dataclass
class PlainTable:
    """Columns without lines between them, two blanks apart, under underlined headings (unless ``underlined`` is off).

    Where a terminal is too narrow, the widest of the columns that fold are folded.
    """

    title: str = ""
    underlined: bool = True
    columns: list[_Column] = field(default_factory=list)
    rows: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def add_column(self, heading: str, *, right: bool = False, fold: bool = False) -> None:
        """Add a column, its cells on the ``right`` or the left."""
        self.columns.append(_Column(heading, right, fold))

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row in a style of rich."""
        self.rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headings = tuple(column.heading for column in self.columns)
        widths = self._widths([headings, *(cells for cells, _ in self.rows)], options.max_width)
        if self.title:
            yield from _line(self.title, console.get_style("table.title"))
        yield from self._lines(headings, widths, console.get_style("underline" if self.underlined else "bold"))
        styles = {style: console.get_style(style) if style else None for _, style in self.rows}
        for cells, style in self.rows:
            yield from self._lines(cells, widths, styles[style])

    def _widths(self, rows: Sequence[tuple[str, ...]], room: int) -> list[int]:
        """What every column takes: its longest cell, but for the widest of those that fold where there is no room."""
        widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
        folding = [number for number, column in enumerate(self.columns) if column.fold]
        while folding and sum(widths) + GAP * (len(widths) - 1) > room:
            widest = max(folding, key=lambda number: widths[number])
            if widths[widest] <= LEAST_WIDTH:
                break
            widths[widest] -= 1
        return widths

    def _lines(self, cells: tuple[str, ...], widths: Sequence[int], style: Style | None) -> RenderResult:
        """One line, or several where a cell is folded."""
        if all(cell_len(cell) <= width for cell, width in zip(cells, widths, strict=True)):
            yield from _line(self._text(cells, widths), style)
            return
        folded = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            yield from _line(self._text(parts, widths), style)

    def _text(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        places = zip(cells, widths, self.columns, strict=True)
        return (GAP * " ").join(_filled(cell, width, column.right) for cell, width, column in places).rstrip()


def _filled(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks


def _line(text: str, style: Style | None) -> RenderResult:
    yield Segment(text, style)
    yield Segment.line()
