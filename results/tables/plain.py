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
INDENT = 2
_KEPT_BLANK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class _Column:
    heading: str
    right: bool
    fold: bool


@dataclass
class PlainTable:
    """Columns without lines between them, two blanks apart, under underlined headings (unless ``underlined`` is off).

    Where a terminal is too narrow, the widest of the columns that fold are folded between words; where that is not
    enough, every row is told in lines of its own, each figure behind its heading.
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
        if widths:
            yield from self._lines(headings, widths, console.get_style("underline" if self.underlined else "bold"))
        styles = {style: console.get_style(style) if style else None for _, style in self.rows}
        for cells, style in self.rows:
            if widths:
                yield from self._lines(cells, widths, styles[style])
            else:
                yield from self._told_apart(cells, options.max_width, styles[style])

    def _widths(self, rows: Sequence[tuple[str, ...]], room: int) -> list[int]:
        """What every column takes: its longest cell, but for the widest of those that fold where there is no room.

        Nothing where even their longest words have none.
        """
        columns = list(zip(*rows, strict=True))
        widths = [max(map(cell_len, cells)) for cells in columns]
        spare = room - sum(widths) - GAP * (len(widths) - 1)
        if spare >= 0:
            return widths
        least = [
            max(map(_longest_word, cells)) if column.fold else width
            for column, cells, width in zip(self.columns, columns, widths, strict=True)
        ]
        while spare < 0 and widths != least:
            widest = max((n for n, width in enumerate(widths) if width > least[n]), key=lambda n: widths[n])
            widths[widest] -= 1
            spare += 1
        return [] if spare < 0 else widths

    def _told_apart(self, cells: tuple[str, ...], room: int, style: Style | None) -> RenderResult:
        """A row in lines of its own: what it is of, and below that each cell that says something behind its heading."""
        told = [f"{column.heading} {cell}".strip() for column, cell in zip(self.columns, cells, strict=True) if cell]
        yield from _line(cells[0] or "-", style)
        for line in _listed(told[bool(cells[0]) :], max(1, room - INDENT)):
            yield from _line(INDENT * " " + line, style)

    def _lines(self, cells: tuple[str, ...], widths: Sequence[int], style: Style | None) -> RenderResult:
        """One line, or several where a cell is folded."""
        if all(cell_len(cell) <= width for cell, width in zip(cells, widths, strict=True)):
            yield from _line(self._text(cells, widths), style)
            return
        folded = [_wrapped(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            yield from _line(self._text(parts, widths), style)

    def _text(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        places = zip(cells, widths, self.columns, strict=True)
        return (GAP * " ").join(_filled(cell, width, column.right) for cell, width, column in places).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of so many letters; a word that is longer has one of its own."""
    return textwrap.wrap(text, width, break_long_words=False)


def _listed(items: Sequence[str], width: int) -> list[str]:
    """The items in lines of so many letters, each in one of them where it has room there."""
    together = ", ".join(item.replace(" ", _KEPT_BLANK) for item in items)
    lines = textwrap.wrap(together, width, break_long_words=False, break_on_hyphens=False)
    parts = (line.replace(_KEPT_BLANK, " ") for line in lines)
    return [each for part in parts for each in _wrapped(part, width)]


def _longest_word(cell: str) -> int:
    """How long what cannot be folded is: words, and the parts of an id between its hyphens."""
    return max(map(cell_len, _wrapped(cell, 1)), default=0)


def _filled(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks


def _line(text: str, style: Style | None) -> RenderResult:
    yield Segment(text, style)
    yield Segment.line()
