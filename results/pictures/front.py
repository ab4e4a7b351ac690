"""Draw fronts: search against its controls; see :mod:`results.pictures.plot_data` for what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from results.kinds import POINT_KINDS
from results.pareto import ParetoFront
from results.pictures.bits import draw_bits as draw_bits
from results.pictures.curves import draw_search_curves as draw_search_curves
from results.pictures.figures import NORMAL, SCREEN, SMALL, Style, plain_axes
from results.pictures.figures import save_figure as save_figure
from results.pictures.naming import name_points
from results.pictures.plot_data import LOG_RATIO, FrontPicture, Series, front_picture
from results.pictures.ratios import draw_ratios as draw_ratios
from results.pictures.trials import draw_trials as draw_trials
from search_spaces.metrics import Metric

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_LINES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (1, 1)), (0, (7, 2)))
"""Fronts of several runs, for those who do not tell colours apart, and for equal ones, which would hide each other."""
OVER_BUDGET = "over budget"
MANY_POINTS, LEAST_MARKER_SCALE = 100, 0.35
"""From so many points on markers are smaller, down to this share of their size."""
LINK_STYLE: dict[str, Any] = {"linestyle": (0, (1, 1.5)), "linewidth": 0.9, "alpha": 0.8, "zorder": 1.5}


def draw_fronts(
    fronts: Mapping[str, ParetoFront], x: str = "size_bytes", show_test: bool = False, style: Style = SCREEN
) -> Figure:
    """Return the picture of these fronts by run name; raise :class:`InputError` where there is no point."""
    return draw_front_picture(front_picture(fronts, x, show_test), style)


def draw_front_picture(picture: FrontPicture, style: Style = SCREEN) -> Figure:
    """Draw one run coloured by kind, or several coloured by run."""
    figure = style.figure(5.2, 3.9, least_width=3.5)
    axes = figure.add_subplot()
    plain_axes(axes)
    colours = {run: RUN_COLOURS[index % len(RUN_COLOURS)] for index, run in enumerate(picture.runs)}
    lines = {run: RUN_LINES[index % len(RUN_LINES)] for index, run in enumerate(picture.runs)}
    several = len(colours) > 1
    for stairs in picture.staircases:
        colour = colours[stairs.run] if several else "0.25"
        line = lines[stairs.run] if several else "-"
        axes.step(stairs.x, stairs.y, where="post", color=colour, linestyle=line, linewidth=1.2, zorder=2)
    for link in picture.links:
        colour = colours[link.run] if several else POINT_KINDS["pruned"].colour
        axes.plot(*zip(link.start, link.end, strict=True), color=colour, **LINK_STYLE)
    scale = _marker_scale(sum(len(series.x) for series in picture.series))
    for series in picture.series:
        _draw_series(axes, series, colours[series.run] if several else POINT_KINDS[series.kind].colour, scale)
    for series in picture.test_series:
        colour = colours[series.run] if several else POINT_KINDS[series.kind].colour
        axes.plot(series.x, series.y, "_", color=colour, markersize=10, markeredgewidth=1.6, zorder=3)
    for run, level in picture.baselines.items():
        axes.axhline(level, color=colours[run] if several else "0.35", linestyle=(0, (5, 3)), linewidth=1, zorder=1)
    _label_axes(axes, picture)
    _mark_below(axes, picture, colours if several else {})
    handles = _legend(picture, colours if several else {}, lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), round(figure.get_figwidth() / 1.3)),
        fontsize=SMALL,
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.4,
    )
    name_points(figure, axes, picture)
    return figure


def _mark_below(axes: Axes, picture: FrontPicture, run_colours: Mapping[str, str]) -> None:
    """Cut the axis at the picture's floor; what is worse is an arrow there with its value in the metric's unit."""
    if picture.floor is None:
        return
    up = picture.side < 0
    axes.set_ylim(top=picture.floor) if up else axes.set_ylim(bottom=picture.floor)
    height, arrow = (0.98, r"$\uparrow$") if up else (0.02, r"$\downarrow$")
    for series, at in picture.below:
        colour = run_colours.get(series.run, POINT_KINDS[series.kind].colour)
        style: dict[str, Any] = {"color": colour, "transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(series.x[at], height, marker=arrow, linestyle="none", markersize=7, zorder=5, **style)
        axes.annotate(
            picture.metric.text(series.y[at] / picture.metric.scale, digits=1),
            (series.x[at], height),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, -4 if up else 1),
            textcoords="offset points",
            fontsize=SMALL - 1,
            color=colour,
        )


def _marker_scale(count: int) -> float:
    """How large the markers of so many points are: all of them together cover about the same share of the picture.

    >>> _marker_scale(30), _marker_scale(400)
    (1.0, 0.5)
    """
    return min(1.0, max(LEAST_MARKER_SCALE, (MANY_POINTS / count) ** 0.5))


def _draw_series(axes: Axes, series: Series, colour: str, scale: float) -> None:
    axes.errorbar(
        series.x,
        series.y,
        yerr=series.error if any(series.error) else None,
        fmt=POINT_KINDS[series.kind].marker,
        color=colour,
        **_face(series, colour, scale),
        markersize=scale * POINT_KINDS[series.kind].size,
        elinewidth=scale,
        capsize=2.5 * scale,
        zorder=4.5 if series.kind == "pruned" else 4,  # what is judged lies above its controls
    )
    if not series.feasible:
        axes.plot(series.x, series.y, "x", color=colour, markersize=4.5 * scale, markeredgewidth=scale, zorder=5)


def _face(series: Series, colour: str, scale: float) -> dict[str, Any]:
    """How a marker is filled: solid, a ring, or white where a budget is exceeded."""
    if POINT_KINDS[series.kind].ring:
        return {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.4 * scale}
    if series.feasible:  # white edges keep a few apart; of many they would leave nothing but white
        width = 0.6 if scale == 1 else 0.0
        return {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": width}
    return {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": scale}


def _label_axes(axes: Axes, picture: FrontPicture) -> None:
    axes.set_xlabel(picture.x_label, fontsize=NORMAL)
    axes.set_ylabel(picture.y_label, fontsize=NORMAL)
    axes.margins(x=0.06, y=0.08)
    _within_a_share(axes, picture)
    if picture.log_x:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        many = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axes.xaxis.set_major_locator(LogLocator(subs=many if high / low < LOG_RATIO else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _within_a_share(axes: Axes, picture: FrontPicture) -> None:
    """End the axis of a share where shares do: spreads reach further, and would label 102 % of all images."""
    values = [y for series in (*picture.series, *picture.test_series) for y in series.y]
    if picture.metric.unit == "%" and all(0 <= value <= 100 for value in values):
        low, high = axes.get_ylim()
        room = 0.03 * (high - low)  # for the markers
        axes.set_ylim(max(low, -room), min(high, 100 + room))


def _legend(picture: FrontPicture, run_colours: Mapping[str, str], lines: Mapping[str, Any]) -> list[Line2D]:
    """Return the legend's entries: several runs by colour and line, then kinds, then the other marks."""
    handles = [
        Line2D([], [], color=colour, linestyle=lines[run], linewidth=1.6, label=run)
        for run, colour in run_colours.items()
    ]
    drawn = {series.kind for series in picture.series}
    for name, kind in POINT_KINDS.items():
        if name in drawn:
            face = "0.35" if run_colours else kind.colour
            size = kind.size - 0.5
            ring = {"markerfacecolor": "none", "markeredgecolor": face}
            filled = {"markerfacecolor": face, "markeredgecolor": "white"}
            handles.append(_mark(kind.marker, face, kind.label, markersize=size, **(ring if kind.ring else filled)))
    if any(not series.feasible for series in picture.series):
        handles.append(_mark(r"$\otimes$", "0.35", OVER_BUDGET, markersize=8, markeredgewidth=0.3))
    if picture.test_series:
        handles.append(_mark("_", "0.35", "test", markeredgewidth=1.6))
    if picture.links:
        colour = "0.35" if run_colours else POINT_KINDS["pruned"].colour
        handles.append(Line2D([], [], color=colour, label="unpruned → pruned", **LINK_STYLE))
    if picture.staircases and not run_colours:
        handles.append(Line2D([], [], color="0.25", linewidth=1.2, label="front"))
    levels = {float(f"{level:.6g}") for level in picture.baselines.values()}
    if levels:
        name = f"float, {_level(picture.metric, levels.pop())}" if len(levels) == 1 else "float"
        handles.append(Line2D([], [], color="0.35", linestyle=(0, (5, 3)), linewidth=1, label=name))
    return handles


def _mark(marker: str, colour: str, label: str, **style: object) -> Line2D:
    style = {"markersize": 6, **style}
    return Line2D([], [], marker=marker, linestyle="none", color=colour, label=label, **style)  # type: ignore[arg-type]


def _level(metric: Metric, scaled: float) -> str:
    """A value that is in the metric's own unit already."""
    return metric.text(scaled / metric.scale)
