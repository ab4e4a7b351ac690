"""Draw bits per layer and assignment as a heat map; see :func:`results.pictures.plot_data.bit_map` for the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from results.pictures.figures import NORMAL, SMALL, bit_colour_map, bit_colours, new_figure
from results.pictures.plot_data import BitMap, bit_map, bit_text
from search_spaces.assignments import BitAssignment

ROW_INCHES, COLUMN_INCHES, LETTER_INCHES = 0.155, 0.34, 0.058


def draw_bits(assignments: Sequence[BitAssignment]) -> Figure:
    """Return the heat map of these assignments, weights beside activations; raise InputError without any."""
    return draw_bit_map(bit_map(assignments))


def draw_bit_map(data: BitMap) -> Figure:
    """Draw two panels, layers downwards and assignments to the right, with the bits written into the cells."""
    columns = max(len(data.assignments), 3)
    names = LETTER_INCHES * max(map(len, data.layers))
    below = LETTER_INCHES * max(map(len, data.assignments))
    figure = new_figure(
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
    add_bit_bar(figure, image, [left, right], data.levels)
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


def add_bit_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], levels: tuple[int, ...]) -> None:
    """Add the discrete colour bar that names each bit-width."""
    bar = figure.colorbar(image, ax=list(axes), ticks=list(range(len(levels))), shrink=0.9, pad=0.02, aspect=30)
    bar.ax.set_yticklabels([bit_text(level) for level in levels], fontsize=SMALL)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    bar.set_label("bits", fontsize=NORMAL)


def _write_numbers(axes: Axes, rows: Sequence[Sequence[int | None]]) -> None:
    colours = bit_colours()
    for y, row in enumerate(rows):
        for x, bits in enumerate(row):
            if bits is None:
                continue
            red, green, blue, _ = colours[bits]
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ink = "white" if dark else "black"
            axes.text(x, y, bit_text(bits), ha="center", va="center", fontsize=SMALL - 1, color=ink)
