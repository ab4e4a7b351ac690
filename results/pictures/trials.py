"""Draw the trials of one prune run; see :func:`results.pictures.trial_data.prune_trials` for the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from results.pictures.figures import NORMAL, SCREEN, SMALL, Style, plain_axes
from results.pictures.trial_data import BAYESIAN, RANDOM, BudgetTrials, Losses
from search_spaces.errors import InputError

CURVE_STYLE = {
    BAYESIAN: ("#882255", "-", "o", "Bayesian optimization"),
    RANDOM: ("#999933", (0, (4, 1.5)), "<", "random + repair"),
}
UNIFORM = ("#56B4E9", "uniform ratio")
STD = "#E69F00"


def draw_trials(budgets: Sequence[BudgetTrials], style: Style = SCREEN) -> Figure:
    """Draw a column per budget: the best value over the trials, below it how far the surrogate's predictions were off.

    Raises :class:`InputError` without any trial.
    """
    if not budgets:
        raise InputError("there is no trial of pruning to draw yet")
    foretold = any(budget.forecast.trials for budget in budgets)
    rows = 2 if foretold else 1
    figure = style.figure(max(2.9 * len(budgets), 4.2) + 0.4, 2.6 * rows + 0.8)
    figure.suptitle(f"{budgets[0].run}: trials", fontsize=NORMAL + 1)
    grid = figure.subplots(rows, len(budgets), squeeze=False, sharex="col")
    for column, budget in enumerate(budgets):
        _draw_best(grid[0, column], budget)
        if foretold:
            _draw_forecast(grid[1, column], budget)
        grid[-1, column].set_xlabel("trial" if budget.rises else "trial at this budget", fontsize=NORMAL)
        grid[-1, column].set_xlim(0.5, max(len(curve.losses) for curve in budget.curves) + 0.5)
    grid[0, 0].set_ylabel(budgets[0].value_label, fontsize=NORMAL)
    if foretold:
        grid[1, 0].set_ylabel("error of the predicted loss", fontsize=NORMAL)
    _add_legend(figure, list(grid.flat), singles=not all(budget.rises for budget in budgets))
    return figure


def _draw_best(axes: Axes, budget: BudgetTrials) -> None:
    plain_axes(axes)
    axes.set_title(budget.title, fontsize=NORMAL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for curve in budget.curves:
        colour, dashes, marker, label = CURVE_STYLE[curve.kind]
        axes.step(
            *_known(curve.best), where="post", color=colour, linestyle=dashes, linewidth=1.6, label=label, zorder=4
        )
        if not budget.rises:
            style: dict[str, Any] = {
                "color": colour,
                "markersize": 3.5,
                "alpha": 0.5,
                "markeredgewidth": 0,
                "zorder": 3,
            }
            axes.plot(*_known(curve.losses), marker, **style)
    if budget.uniform is not None:
        axes.axhline(budget.uniform, color=UNIFORM[0], linewidth=1.2, linestyle=(0, (1, 1)), label=UNIFORM[1], zorder=2)


def _known(values: Losses) -> tuple[list[int], list[float]]:
    """The numbers of the trials that have a value, from 1, and the values."""
    found = {number: value for number, value in enumerate(values, start=1) if value is not None}
    return list(found), list(found.values())


def _draw_forecast(axes: Axes, budget: BudgetTrials) -> None:
    plain_axes(axes)
    forecast = budget.forecast
    axes.plot(forecast.trials, forecast.stds, color=STD, linewidth=1.2, marker="_", markersize=5, label="predicted std")
    axes.plot(forecast.trials, forecast.errors, "o", color="0.2", markersize=3.5, label="|prediction − loss|")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    correlation = forecast.rank_correlation
    words = "not known" if correlation is None else f"{correlation:.2f}"
    text = f"rank correlation {words} (n = {len(forecast.trials)})"
    axes.set_title(text, fontsize=SMALL, loc="right", color="0.2")


def _add_legend(figure: Figure, panels: Sequence[Axes], singles: bool) -> None:
    """One legend for all panels: every label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if singles:
        found["single trials"] = Line2D([], [], color="0.6", marker="o", markersize=3.5, linestyle="none")
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
