"""Draw pruning ratios by channel group; see :func:`results.pictures.prune_data.ratio_panels` for the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from results.pictures.figures import NORMAL, SCREEN, SMALL, Style, plain_axes
from results.pictures.prune_data import GroupRatio, RatioPanel
from search_spaces.errors import InputError

BAR = "#882255"
ROW_INCHES, LETTER_INCHES, PANEL_INCHES = 0.17, 0.058, 1.75
MOST_ACROSS, MOST_PANELS = 4, 12
TEXT_WIDTH = 24.0
"""What the text beside a bar takes of an axis of 100 %."""


def draw_ratios(panels: Sequence[RatioPanel], style: Style = SCREEN) -> Figure:
    """Draw one panel per assignment, a bar per channel group in each, with how many of how many units stay.

    Of more than twelve assignments, twelve are drawn, evenly spread. Raises :class:`InputError` without any.
    """
    if not panels:
        raise InputError("there is no pruned assignment to draw yet")
    panels = _spread(panels)
    groups = list(dict.fromkeys(entry.group for panel in panels for entry in panel.groups))
    across = min(len(panels), MOST_ACROSS)
    down = math.ceil(len(panels) / across)
    names = LETTER_INCHES * max(map(len, groups))
    figure = style.figure(names + PANEL_INCHES * max(across, 1.6) + 0.3, down * (ROW_INCHES * len(groups) + 0.75) + 0.4)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index < len(panels):
            _draw_panel(axes, panels[index], groups)
            lowest = index + across >= len(panels)
            axes.tick_params(labelbottom=lowest)
            axes.set_xlabel("units removed (%)" if lowest else "", fontsize=NORMAL)
        else:
            axes.set_visible(False)
    grid[0, 0].set_yticks(range(len(groups)), groups)
    grid[0, 0].set_ylim(len(groups) - 0.4, -0.6)
    _add_legend(figure, panels)
    return figure


def _draw_panel(axes: Axes, panel: RatioPanel, groups: Sequence[str]) -> None:
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title(panel.assignment + (f"\n{panel.budget}" if panel.budget else ""), fontsize=SMALL + 0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100])
    rows = [groups.index(entry.group) for entry in panel.groups]
    axes.barh(rows, [100 * entry.ratio for entry in panel.groups], height=0.66, color=BAR)
    for row, entry in zip(rows, panel.groups, strict=True):
        _write_units(axes, row, entry, 100 * panel.uniform.get(entry.group, 0.0))
        if entry.group in panel.uniform:
            x = 100 * panel.uniform[entry.group]
            axes.plot([x, x], [row - 0.42, row + 0.42], color="0.85", linewidth=3.2, solid_capstyle="butt")
            axes.plot([x, x], [row - 0.42, row + 0.42], color="black", linewidth=1.2, solid_capstyle="butt")


def _write_units(axes: Axes, row: int, entry: GroupRatio, control: float) -> None:
    """Units kept of all: behind the bar and the control's mark where there is room, else between them or in the bar."""
    style: dict[str, Any] = {"va": "center", "fontsize": SMALL - 0.5}
    removed = 100 * entry.ratio
    if max(removed, control) + TEXT_WIDTH <= 100:
        axes.text(max(removed, control) + 3, row, entry.text, color="0.2", **style)
    elif removed + TEXT_WIDTH <= control:
        axes.text(removed + 3, row, entry.text, color="0.2", **style)
    else:
        inside = min(removed, control) if TEXT_WIDTH <= control < removed else removed
        axes.text(inside - 3, row, entry.text, color="white", ha="right", **style)


def _add_legend(figure: Figure, panels: Sequence[RatioPanel]) -> None:
    handles: list[Patch | Line2D] = [
        Patch(color=BAR, label="removed, units kept/all (a unit: filters that go together)")
    ]
    if any(panel.uniform for panel in panels):
        handles.append(
            Line2D([], [], color="black", marker="|", linestyle="none", markersize=8, label="control with one ratio")
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=1 if len(panels) < 3 else 2, fontsize=SMALL, frameon=False
    )


def _spread(panels: Sequence[RatioPanel]) -> list[RatioPanel]:
    if len(panels) <= MOST_PANELS:
        return list(panels)
    return [panels[round(i * (len(panels) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]
