"""Draw sensitivities: a cell for every layer and width, coloured by the logarithm of its increase of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from results.pictures.figures import NORMAL, SMALL, bar_place, new_figure
from results.pictures.plot_data import bit_text
from search_spaces.sensitivities import Sensitivities

ROW_INCHES, COLUMN_INCHES, LETTER_INCHES = 0.155, 0.46, 0.058
DECADES = 6.0
"""Increases are told apart down to this many decades below the largest."""


@dataclass(frozen=True)
class SensitivityPanel:
    """One heat map: what each layer's widths (columns, as written) cost in loss (layers, widths)."""

    title: str
    layers: tuple[str, ...]
    widths: tuple[str, ...]
    losses: np.ndarray

    @property
    def logarithms(self) -> np.ndarray:
        """The decimal logarithms; minus infinity where a width costs nothing, or less than that."""
        with np.errstate(divide="ignore"):
            return np.log10(np.maximum(self.losses, 0.0))


def sensitivity_panels(found: Sensitivities) -> list[SensitivityPanel]:
    """What is drawn: weights, then inputs where these have several widths."""

    def panel(title: str, rows: Mapping[str, Sequence[float]], bits: Sequence[int]) -> SensitivityPanel:
        return SensitivityPanel(title, tuple(rows), tuple(map(bit_text, bits)), np.array(list(rows.values())))

    panels = [panel("weight bits", found.weights, found.weight_bits)]
    if len(found.activation_bits) > 1:
        panels.append(panel("activation bits", found.inputs, found.activation_bits))
    return panels


def draw_sensitivities(found: Sensitivities) -> Figure:
    """Draw layers downwards and widths to the right, the figures written into the cells."""
    panels = sensitivity_panels(found)
    layers, columns = panels[0].layers, sum(max(len(panel.widths), 3) for panel in panels)
    width = LETTER_INCHES * max(map(len, layers)) + COLUMN_INCHES * columns + 1.3
    figure = new_figure(width, max(ROW_INCHES * len(layers), 1.2) + 0.8)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=[len(p.widths) for p in panels])[0]
    finite = np.concatenate([panel.logarithms[np.isfinite(panel.logarithms)] for panel in panels])
    top = float(finite.max()) if finite.size else 0.0
    scale = Normalize(max(top - DECADES, float(finite.min(initial=top)) - 1e-9), top + 1e-9)
    for axes, panel in zip(grid, panels, strict=True):
        image = _draw_panel(axes, panel, scale)
    grid[0].set_yticks(range(len(layers)), layers, fontsize=SMALL)
    bar = figure.colorbar(image, ax=list(grid), **bar_place(ROW_INCHES * len(layers)))
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    bar.set_label(f"log10 of loss, {found.kind}", fontsize=SMALL)
    return figure


def _draw_panel(axes: Axes, panel: SensitivityPanel, scale: Normalize) -> AxesImage:
    cells = np.clip(panel.logarithms, scale.vmin, scale.vmax)
    image = axes.imshow(cells, cmap="viridis", norm=scale, aspect="auto", interpolation="nearest")
    middle = (float(scale.vmin or 0.0) + float(scale.vmax or 0.0)) / 2
    for row, column in np.ndindex(*cells.shape):
        colour = "black" if cells[row, column] > middle else "white"
        text = loss_text(float(panel.losses[row, column]))
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=SMALL - 1.5)
    axes.set_title(panel.title, fontsize=NORMAL)
    axes.set_xticks(range(len(panel.widths)), panel.widths, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def loss_text(value: float) -> str:
    """An increase of the loss with two digits.

    >>> loss_text(0.0), loss_text(0.0123), loss_text(3.21e-5), loss_text(-0.5)
    ('0', '0.012', '3.2e-05', '-0.5')
    """
    return f"{value:.2g}"
