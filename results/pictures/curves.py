"""Draw the course of one search; see :mod:`results.pictures.curve_data` for the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from results.pictures.bits import LETTER_INCHES, add_bit_bar, draw_cells
from results.pictures.curve_data import Column, SearchCurves
from results.pictures.figures import NORMAL, SCREEN, SMALL, Style, bit_colours, plain_axes

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
COST_COLOURS = (BLUE, GREEN, "#CC79A7", "#56B4E9")
MOVED: dict[str, Any] = {
    **{"marker": "D", "color": RED, "linestyle": "none"},
    **{"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.7},
}
DECISION_INCHES, MOST_DECISION_INCHES, NAME_INCHES = 0.13, 9.0, 1.0


def draw_search_curves(curves: SearchCurves, style: Style = SCREEN) -> Figure:
    """Draw accuracy, cost against its budget, temperature, θ entropy, and below them the bits chosen over time."""
    decisions = list(curves.weight_bits)
    images = _cell_inches(decisions)
    # Names beyond the usual room would take theirs from the panels, whose legends then lie over the curves.
    names = max(0.0, LETTER_INCHES * max(map(len, decisions), default=0) - NAME_INCHES)
    figure = style.figure(7.0 + names, 4.4 + (images + 0.5 if decisions else 0.0))
    figure.suptitle(f"{curves.label}: course of the search", fontsize=NORMAL + 1)
    grid = figure.add_gridspec(3 if decisions else 2, 2, height_ratios=[2, 2, images][: 3 if decisions else 2])
    panels = [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (0, 1)]
    for panel in panels:
        plain_axes(panel)
        panel.set_xlabel("epoch", fontsize=NORMAL)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_accuracy(panels[0], curves)
    _draw_costs(panels[1], curves)
    _draw_temperature(panels[2], curves)
    _draw_entropy(panels[3], curves)
    if decisions:
        left = figure.add_subplot(grid[2, 0])
        right = figure.add_subplot(grid[2, 1], sharey=left)
        _draw_bits_over_time(figure, left, right, curves)
    return figure


def _cell_inches(decisions: Sequence[str]) -> float:
    """How high the cells of so many decisions are."""
    return min(max(DECISION_INCHES * len(decisions), 1.3), MOST_DECISION_INCHES) if decisions else 0.0


def _draw_accuracy(axes: Axes, curves: SearchCurves) -> None:
    _line(axes, curves.epochs, curves.soft, BLUE, "soft (mixture)")
    _line(axes, curves.epochs, curves.argmax, ORANGE, "argmax")
    metric = curves.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_ylabel(f"validation {metric.label}{unit}", fontsize=NORMAL)
    axes.legend(fontsize=SMALL, frameon=False)


def _draw_costs(axes: Axes, curves: SearchCurves) -> None:
    several = len(curves.costs) > 1
    for curve, colour in zip(curves.costs, COST_COLOURS * len(curves.costs), strict=False):
        _line(axes, curves.epochs, curve.values, colour, curve.label if several else "expected")
    for budget in sorted({curve.budget for curve in curves.costs if curve.budget is not None}):
        axes.axhline(budget, color=RED, linestyle=(0, (5, 3)), linewidth=1.2, label="budget")
    axes.set_ylabel("expected cost / budget" if several else _first_label(curves), fontsize=NORMAL)
    if curves.costs:
        axes.legend(fontsize=SMALL, frameon=False)


def _first_label(curves: SearchCurves) -> str:
    return f"expected {curves.costs[0].label}" if curves.costs else "expected cost"


def _draw_temperature(axes: Axes, curves: SearchCurves) -> None:
    axes.set_ylabel("Gumbel temperature", fontsize=NORMAL)
    values = [value for value in curves.temperature if value is not None]
    if not values:
        axes.text(0.5, 0.5, "no temperature in this search", ha="center", transform=axes.transAxes, fontsize=SMALL)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    _line(axes, curves.epochs, curves.temperature, BLUE)
    if min(values) > 0 and max(values) / min(values) > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_entropy(axes: Axes, curves: SearchCurves) -> None:
    for index, values in enumerate(curves.decision_entropy.values()):
        label = "each decision" if index == 0 else None
        gaps = [math.nan if value is None else value for value in values]
        axes.plot(curves.epochs, gaps, color=BLUE, alpha=0.3, linewidth=0.7, label=label)
    _line(axes, curves.epochs, curves.entropy, "black", "mean", width=2.0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("θ entropy (1 = undecided)", fontsize=NORMAL)
    axes.legend(fontsize=SMALL, frameon=False)


def _draw_bits_over_time(figure: Figure, left: Axes, right: Axes, curves: SearchCurves) -> None:
    decisions = list(curves.weight_bits)
    tables = [list(curves.weight_bits.values()), list(curves.activation_bits.values())]
    ends = {
        pair[side] for bits in (curves.projected_bits, curves.final_bits) for pair in bits.values() for side in (0, 1)
    }
    levels = tuple(sorted(ends.union(bits for table in tables for row in table for bits in row if bits is not None)))
    for side, (axes, title) in enumerate(((left, "weight bits"), (right, "activation bits"))):
        image = draw_cells(axes, tables[side], levels, numbers=False, first_column=curves.epochs[0])
        axes.set_title(f"likeliest {title}" + (", and kept" if curves.final_bits else ""), fontsize=NORMAL)
        axes.set_xlabel("epoch", fontsize=NORMAL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=SMALL)
        _draw_ends(axes, curves, side)
    # More names than fit at this size would overlap: then only every n-th is written.
    step = math.ceil(len(decisions) * DECISION_INCHES / MOST_DECISION_INCHES)
    left.set_yticks(range(0, len(decisions), step), decisions[::step], fontsize=SMALL - 0.5)
    right.tick_params(labelleft=False, left=False)
    add_bit_bar(figure, image, [left, right], levels, _cell_inches(decisions))
    if any(any(sides) for sides in curves.unlike_last(curves.projected_bits).values()):
        mark = Line2D([], [], **MOVED, label="moved by the projection onto the budget")
        figure.legend(handles=[mark], fontsize=SMALL, frameon=False, loc="outside lower center")


def _draw_ends(axes: Axes, curves: SearchCurves, side: int) -> None:
    """Columns behind the last epoch: the bits on the budget, marked where that moved them, and those kept instead."""
    ends = {"kept": curves.final_bits} if curves.final_bits else {}
    if curves.projected_bits not in ({}, curves.final_bits):
        ends = {"budget": curves.projected_bits, **ends}
    last = curves.epochs[-1]
    width = max(1.0, 0.05 * len(curves.epochs), 0.14 * len(curves.epochs) * (len(ends) - 1))
    start = last + 0.5
    moved = curves.unlike_last(curves.projected_bits)
    for heading, bits_of in ends.items():
        start += 0.5 * width
        for row, name in enumerate(curves.weight_bits):
            if name not in bits_of:
                continue
            colour = bit_colours()[bits_of[name][side]]
            axes.add_patch(Rectangle((start, row - 0.5), width, 1.0, facecolor=colour, linewidth=0))
            if bits_of == curves.projected_bits and moved[name][side]:
                axes.plot(start + width / 2, row, **MOVED)
        place = axes.get_xaxis_transform()
        axes.text(start + width / 2, -0.06, heading, transform=place, fontsize=SMALL, ha="center", va="top")
        start += width
    if ends:
        axes.set_xlim(curves.epochs[0] - 0.5, start)
        ticks = MaxNLocator(integer=True, nbins=6).tick_values(1, last)
        axes.set_xticks([tick for tick in ticks if 1 <= tick <= last])


def _line(
    axes: Axes, epochs: Sequence[int], values: Column, colour: str, label: str | None = None, width: float = 1.5
) -> None:
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    # One or two epochs would be invisible as a line.
    marker = "o" if len(known) < 25 else ""
    x, y = [epoch for epoch, _ in known], [value for _, value in known]
    axes.plot(x, y, color=colour, linewidth=width, marker=marker, markersize=2.5, label=label)
