"""Pictures for print, and the numbers of every picture as a table: read off the figure itself."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.pictures.bits import draw_bit_map
from results.pictures.curve_data import Curve, SearchCurves
from results.pictures.curves import draw_search_curves
from results.pictures.drawn import bit_rows, csv_of, curve_rows, front_rows, ratio_rows, trial_rows
from results.pictures.figures import PAPER, SCREEN, save_figure
from results.pictures.front import draw_front_picture
from results.pictures.plot_data import BitMap, FrontPicture, front_picture
from results.pictures.prune_data import GroupRatio, RatioPanel
from results.pictures.ratios import draw_ratios
from results.pictures.trial_data import BudgetTrials, Forecast, TrialCurve
from results.pictures.trials import draw_trials
from search_spaces.metrics import ACCURACY


def point(id: str, kind: str, kib: float, top1: float, **changes: Any) -> FrontPoint:
    return FrontPoint(id, kind, 1024 * kib, 1e6, 5, Estimate(top1, 0.01, 3), **changes)


def picture() -> FrontPicture:
    points = [
        point("s", "search", 40, 0.9, test=Estimate(0.85)),
        point("u", "uniform", 20, 0.6),
        point("p", "pruned", 10, 0.5, parent="s", budget="50%", kept_filters=0.5),
        point("o", "search", 5, 0.7, feasible=False),
    ]
    return front_picture({"a": ParetoFront.from_points(points, reference=FloatReference(1e6, 0.95))}, show_test=True)


BITS = BitMap(("conv", "linear"), ("s", "u"), ((2, 4), (8, None)), ((8, 8), (0, 32)))
CURVES = SearchCurves(
    label="search-1",
    metric=ACCURACY,
    epochs=(1, 2),
    soft=(50.5, 60.25),
    argmax=(None, 40.75),
    costs=(Curve("size (B)", (3000.0, 2000.0), 1500.0),),
    temperature=(1.0, 0.5),
    entropy=(0.75, 0.25),
    decision_entropy={"conv": (0.625, 0.125)},
    weight_bits={"conv": (2, 4)},
    activation_bits={"conv": (8, 8)},
    final_bits={"conv": (3, 8)},
)
PANELS = [RatioPanel("s-pruned", "50%", (GroupRatio("conv", 0.375, "5/8"),), {"conv": 0.25})]
TRIALS = [
    BudgetTrials(
        "prune-s",
        "size ≤ 1 KiB",
        "lowest loss so far",
        False,
        (TrialCurve("bayesian", (0.875, None, 0.5), (0.875, 0.875, 0.5)), TrialCurve("random", (1.25,), (1.25,))),
        1.125,
        Forecast((2, 3), (0.0625, 0.03125), (0.1875, 0.21875), None),
    )
]
PICTURES: Sequence[tuple[str, Any, Any, Any]] = [
    ("front", draw_front_picture, front_rows, picture()),
    ("bits", draw_bit_map, bit_rows, BITS),
    ("curves", draw_search_curves, curve_rows, CURVES),
    ("ratios", draw_ratios, ratio_rows, PANELS),
    ("trials", draw_trials, trial_rows, TRIALS),
]


def read_off(name: str, figure: Figure) -> set[float]:
    """What can be read off the axes: the second coordinates of lines (levels too); of ratios the lengths of bars."""
    if name == "ratios":
        lines = (np.ravel(line.get_xdata()) for axes in figure.axes for line in axes.lines)
        return {float(x) for line in lines for x in line} | {
            float(bar.get_width()) for axes in figure.axes for bar in axes.patches if isinstance(bar, Rectangle)
        }
    panels = figure.axes[:4] if name == "curves" else figure.axes  # below them rows are numbered
    lines = (np.ravel(line.get_ydata()) for axes in panels for line in axes.lines)
    return {float(y) for line in lines for y in line if np.isfinite(y)}


def numbers(rows: Iterable[Mapping[str, object]]) -> set[float]:
    values = (value for row in rows for value in row.values())
    return {float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)}


LINES = [each for each in PICTURES if each[0] != "bits"]


@pytest.mark.parametrize(("name", "draw", "rows", "data"), LINES, ids=[name for name, *_ in LINES])
def test_every_number_that_can_be_read_off_is_in_the_table(name: str, draw: Any, rows: Any, data: Any) -> None:
    told = numbers(rows(data))
    if name == "ratios":
        told |= {100 * value for value in told}
    if name == "front":  # error bars, whose ends are a mean and its std
        told |= {y + end for y in told for end in (-1.0, 1.0)}
    missing = [value for value in read_off(name, draw(data)) if not any(np.isclose(value, each) for each in told)]
    assert not missing


def test_the_cells_of_bits_are_all_told_once() -> None:
    found = {(row["layer"], row["assignment"]): (row["weight_bits"], row["activation_bits"]) for row in bit_rows(BITS)}
    assert found == {
        ("conv", "s"): (2, 8),
        ("conv", "u"): (4, 8),
        ("linear", "s"): (8, 0),
        ("linear", "u"): (None, 32),
    }


def test_a_table_reads_back_as_its_rows() -> None:
    rows = list(front_rows(picture()))
    again = list(csv.DictReader(io.StringIO(csv_of(rows))))
    assert len(again) == len(rows)
    for row, read in zip(rows, again, strict=True):
        assert {key: str(value) for key, value in row.items() if value is not None} == {
            key: value for key, value in read.items() if value
        }


@pytest.mark.parametrize(("name", "draw", "rows", "data"), PICTURES, ids=[name for name, *_ in PICTURES])
def test_on_paper_a_picture_is_as_wide_as_a_column(name: str, draw: Any, rows: Any, data: Any) -> None:
    assert draw(data, PAPER).get_figwidth() in PAPER.columns
    assert draw(data).get_figwidth() == draw(data, SCREEN).get_figwidth()


def test_what_no_column_holds_keeps_its_size_and_what_shrinks_stays_readable() -> None:
    assert PAPER.figure(9.0, 4.0).get_size_inches().tolist() == [9.0, 4.0]
    assert PAPER.figure(5.2, 4.0, least_width=3.5).get_size_inches().tolist() == [3.5, 3.0]
    assert SCREEN.figure(5.2, 4.0, least_width=3.5).get_size_inches().tolist() == [5.2, 4.0]


@pytest.mark.whole
def test_letters_are_in_the_file(tmp_path: Path) -> None:
    """In a .pdf as an embedded font, in an .svg for print as shapes."""
    figure = draw_front_picture(picture(), PAPER)
    save_figure(figure, tmp_path / "a.pdf", PAPER)
    save_figure(figure, tmp_path / "a.svg", PAPER)
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert re.search(rb"/FontFile2", pdf)
    assert b"/Type3" not in pdf
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<text" not in svg
    assert "<path" in svg
    save_figure(draw_front_picture(picture()), tmp_path / "b.svg")
    assert "<text" in (tmp_path / "b.svg").read_text(encoding="utf-8")
