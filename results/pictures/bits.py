"""Draw bits per layer and assignment as a heat map; see :func:`results.pictures.plot_data.bit_map` for the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from results.pictures.figures import NORMAL, SCREEN, SMALL, Style, bar_place, bit_colour_map, bit_colours
from results.pictures.plot_data import BitMap, bit_map, bit_text
from search_spaces.assignments import BitAssignment

ROW_INCHES, COLUMN_INCHES, LETTER_INCHES = 0.155, 0.34, 0.058


def draw_bits(assignments: Sequence[BitAssignment], style: Style = SCREEN) -> Figure:
    """Return the heat map of these assignments, weights beside activations; raise InputError without any."""
    return draw_bit_map(bit_map(assignments), style)


def draw_bit_map(data: BitMap, style: Style = SCREEN) -> Figure:
    """Draw two panels, layers downwards and assignments to the right, with the bits written into the cells."""
    columns = max(len(data.assignments), 3)
    names = LETTER_INCHES * max(map(len, data.layers))
    below = LETTER_INCHES * max(map(len, data.assignments))
    figure = style.figure(
        names + 2 * COLUMN_INCHES * columns + 1.1, max(ROW_INCHES * len(data.layers) + below, 1.6) + 0.6
    )
    left, right = figure.subplots(1, 2, sharey=True)
    image = draw_cells(left, data.weight_bits, data.levels, numbers=True)
    draw_cells(right, data.activation_bits, data.levels, numbers=True)
    for axes, title in ((left, "weight bits"), (right, "activation bits")):
        axes.set_title(title, fontsize=NORMAL)
        axes.set_xticks(range(len(data.assignments)), data.assignments, rotation=90, fontsize=SMALL)
        axes.tick_params(length=0)
    left.set_yticks(range(len(data.layers)), data.layers, fontsize=SMALL)
    add_bit_bar(figure, image, [left, right], data.levels, ROW_INCHES * len(data.layers))
    return figure


def draw_cells(
    axes: Axes, rows: Sequence[Sequence[int | None]], levels: tuple[int, ...], *, numbers: bool, first_column: int = 0
) -> AxesImage:
    """Draw one cell per entry in its bit-width's colour; ``first_column`` is where the x axis starts counting."""
    rank = {level: index for index, level in enumerate(levels)}
    cells = np.array([[np.nan if bits is None else rank[bits] for bits in row] for row in rows])
    height, width = cells.shape
    image = axes.imshow(
        np.ma.masked_invalid(cells),
        cmap=bit_colour_map(levels),
        vmin=-0.5,
        vmax=len(levels) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(first_column - 0.5, first_column + width - 0.5, height - 0.5, -0.5),
    )
    if numbers:
        _write_numbers(axes, rows)
        axes.set_xticks(np.arange(first_column - 0.5, first_column + width), minor=True)
        axes.set_yticks(np.arange(-0.5, height), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return image


def add_bit_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], levels: tuple[int, ...], inches: float) -> None:
    """Add the discrete colour bar that names each bit-width, beside cells of so many ``inches`` in height."""
    bar = figure.colorbar(image, ax=list(axes), ticks=list(range(len(levels))), **bar_place(inches, 0.9))
    bar.ax.set_yticklabels([bit_text(level) for level in levels], fontsize=SMALL)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    bar.set_label("bits", fontsize=NORMAL)


def _write_numbers(axes: Axes, rows: Sequence[Sequence[int | None]]) -> None:
    """One mark per bit-width, drawn in all its cells at once: thousands of texts take seconds."""
    cells: dict[int, list[tuple[int, int]]] = {}
    for y, row in enumerate(rows):
        for x, bits in enumerate(row):
            if bits is not None:
                cells.setdefault(bits, []).append((x, y))
    colours = bit_colours()
    for bits, places in cells.items():
        red, green, blue, _ = colours[bits]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = bit_text(bits)
        mark, size = _mark(text)
        style: dict[str, Any] = {"linestyle": "none", "markersize": size, "markeredgewidth": 0, "label": text}
        axes.plot(
            *zip(*places, strict=True),
            marker=mark,
            color="white" if dark else "black",
            scalex=False,
            scaley=False,
            **style,
        )


def _mark(text: str) -> tuple[Path, float]:
    """The outline of a text around its middle, and the size at which a mark of it is as large as the text."""
    outline = TextPath((0, 0), text, size=SMALL - 1)
    box = outline.get_extents()
    centred = outline.transformed(Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2))
    return centred, 2 * float(np.abs(centred.vertices).max())
