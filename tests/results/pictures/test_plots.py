import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from results.events import read_event
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.pictures.curve_data import search_curves
from results.pictures.curves import MOVED
from results.pictures.figures import PAPER, PNG_DPI, SCREEN, bar_place
from results.pictures.front import draw_bits, draw_fronts, draw_ratios, draw_search_curves, save_figure
from results.pictures.prune_data import GroupRatio, RatioPanel
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.metrics import Metric

ROOT = Path(__file__).parents[3]


def front(scale=1.0):
    kinds = ("search", "uniform", "ilp", "random", "sampled")
    points = [
        FrontPoint(f"{kind}-{i}", kind, scale * 1024 * (3 * i + 9**i), 1e6 * i, 5, Estimate(0.5 + i / 9, 0.01, 3))
        for i in (1, 2, 3)
        for kind in kinds
    ]
    over = FrontPoint("over", "search", 4096, 1e6, 5, Estimate(0.9), test=Estimate(0.8), feasible=False)
    return ParetoFront.from_points([*points, over], reference=FloatReference(1e6, 0.9))


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_what_is_drawn():
    assert texts(draw_fronts({"a": front()}, show_test=True)) == [
        "search",
        "uniform",
        "ILP",
        "random",
        "sampled",
        "over budget",
        "test",
        "front",
        "float, 90.00 %",
    ]
    assert texts(draw_fronts({"a": front(), "b": front(2)}))[:3] == ["a", "b", "search"]


def test_labels_do_not_overlap():
    figure = draw_fronts({"a": front()})
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    shown = sorted((box for box in boxes if box.width), key=lambda box: box.x0)
    assert len(shown) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(shown))
    assert figure.legends[0].get_window_extent().y1 <= axes.xaxis.label.get_window_extent().y0


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_the_suffix_chooses_the_format_and_bytes_repeat(tmp_path, suffix):
    heads = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    figure = Figure((1, 1))
    figure.add_subplot().plot([1, 2], label="a")
    one, two = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
    save_figure(figure, one)
    save_figure(figure, two)
    assert one.read_bytes().startswith(heads[suffix.lower()])
    assert one.read_bytes() == two.read_bytes()


def test_an_unknown_suffix_is_refused_and_leaves_nothing(tmp_path):
    for name in ("a.jpeg", "a"):
        with pytest.raises(InputError, match=r"none of \.png, \.svg, \.pdf"):
            save_figure(draw_fronts({"a": front()}), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def written(axes):
    """What stands in each cell (column, row)."""
    return {tuple(place): line.get_label() for line in axes.lines for place in line.get_xydata()}


def test_every_cell_of_the_heat_map_shows_its_bits():
    layers = {"conv1": LayerBits(8, 8), "a": LayerBits(0, 0), "b": LayerBits(2, 32)}
    figure = draw_bits([BitAssignment("one", ModelReference("m", (1,)), layers)])
    left, right = figure.axes[:2]
    assert written(left) == {(0, 0): "8", (0, 1): "skip", (0, 2): "2"}
    assert written(right) == {(0, 0): "8", (0, 1): "skip", (0, 2): "fp32"}
    bar = figure.axes[2]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["skip", "2", "8", "fp32"]


def record(epoch, **changes):
    known = {
        "event": "epoch",
        "stage": "search",
        "run": "search-1",
        "epoch": epoch,
        "top1": 0.5,
        "argmax_top1": 0.25 if epoch % 2 else None,
        "expected": {"size_bytes": 2000.0},
        "budget": {"size_bytes": 1000.0},
        "temperature": 5.0 / epoch**2,
        "entropy": 0.5,
        "decision_entropy": {"conv1": 0.25, "fc": 0.75},
        "bits": {"conv1": [4, 8], "fc": [0, 0]},
    }
    return read_event(known | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": None},
        {"bits": {}},
        {"budget": {}},
        {"expected": {}, "budget": {}},
        {"budget": {"size_bytes": 1e3, "bitops": 5}, "expected": {"size_bytes": 2e3, "bitops": 6}},
        {"bits": {f"layer{i}": [2, 4] for i in range(150)}},
    ],
)
def test_curves_of_any_search_can_be_drawn(changes):
    for epochs in (1, 5):
        records = [record(epoch, **changes) for epoch in range(1, epochs + 1)]
        figure = draw_search_curves(search_curves(records)["search-1"])
        assert figure.get_size_inches().max() < 15


def test_curves_are_laid_out_without_overlap():
    figure = draw_search_curves(search_curves([record(epoch) for epoch in (1, 2)])["search-1"])
    # The layout warns, and a warning is an error here, where the panels do not fit.
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_names_of_many_decisions_are_thinned_out():
    many = {f"layer{i}": [2, 4] for i in range(150)}
    figure = draw_search_curves(search_curves([record(1, bits=many)])["search-1"])
    assert 30 <= len(figure.axes[4].get_yticklabels()) <= 75


def test_long_names_of_decisions_take_no_room_from_the_curves():
    named = {"encoder.stages.0.blocks.0.attention.projection_of_values_and_keys.pointwise": [2, 4]}
    figure = draw_search_curves(search_curves([record(epoch, bits=named) for epoch in (1, 2)])["search-1"])
    figure.draw_without_rendering()
    for panel in figure.axes[:4]:
        legend = panel.get_legend()
        assert panel.get_window_extent().width / figure.dpi > 2
        assert legend is None or legend.get_window_extent().width < panel.get_window_extent().width


@pytest.mark.parametrize("inches", [0, 0.5, 3, 6, 23, 200])
def test_the_bar_of_colours_stays_narrow_beside_any_number_of_layers(inches):
    place = bar_place(inches, 0.9)
    assert inches * place["shrink"] / place["aspect"] < 0.15
    assert 0 < place["shrink"] <= 0.9


def test_drawing_changes_no_global_state(tmp_path):
    before = dict(mpl.rcParams)
    save_figure(draw_fronts({"a": front()}), tmp_path / "a.svg")
    assert dict(mpl.rcParams) == before


def test_importing_results_loads_neither_torch_nor_matplotlib():
    code = "import sys, results; results.ParetoFront; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def crowd(count, top1=lambda i: 0.9 + i / 200):
    return [FrontPoint(f"search-{i}", "search", 1000.0 + 40 * i, 1e6, 5, Estimate(top1(i))) for i in range(count)]


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_names_of_the_front_cover_neither_a_point_nor_each_other(count):
    points = [*crowd(count), *(FrontPoint(f"u{i}", "uniform", 1500.0 + i, 1e6, 5, Estimate(0.8)) for i in range(9))]
    figure = draw_fronts({"a": ParetoFront.from_points(points)})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(note, renderer) for note in axes.texts]
    assert boxes
    assert all(text.get_text().startswith("search-") for text in axes.texts)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    places = axes.transData.transform([(p.size_bytes, 100 * p.val.mean) for p in points])
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)


@pytest.mark.parametrize("last", [76.2, 76.3, 76.4, 76.5, 76.7])
def test_names_of_the_front_leave_its_line_and_error_bars_free_where_there_is_room(last):
    """Of a segmentation: the first place that is tried for the last name may be on the long step before it."""
    found = {"u2": (6768, 71.06, 0.7), "s1": (8720, 74.55, 0.8), "u3": (9440, 75.36, 0.5), "u4": (12112, 76.17, 0.4)}
    found["uniform-8"] = (22800, last, 0.7)
    points = [
        FrontPoint(name, "uniform", float(size), 1e6, 5, Estimate(value / 100, spread / 100, 3))
        for name, (size, value, spread) in found.items()
    ]
    figure = draw_fronts({"a": ParetoFront.from_points(points)})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {note.get_text(): Text.get_window_extent(note) for note in axes.texts}
    assert boxes.keys() == found.keys()
    places = np.array([(size / 1024, value) for size, value, _ in found.values()])
    for box in boxes.values():
        for (x, y), (next_x, next_y) in pairwise(places):
            along = [(x + (next_x - x) * share, y) for share in np.linspace(0, 1, 200)]
            up = [(next_x, y + (next_y - y) * share) for share in np.linspace(0, 1, 50)]
            assert not any(box.contains(*place) for place in axes.transData.transform([*along, *up]))
        for size, value, spread in found.values():
            bar = [(size / 1024, value + spread * share) for share in np.linspace(-1, 1, 50)]
            assert not any(box.contains(*place) for place in axes.transData.transform(bar))


@pytest.mark.parametrize("name", ["search-4-pruned-uniform-{}", "WWW-{}-WWW", "il.il.il.{}", "θ-µ-Ø-{}", "a_b=c+d.{}"])
@pytest.mark.parametrize("style", [SCREEN, PAPER])
def test_names_stay_within_the_axes_of_the_picture_that_is_saved(name, style):
    points = [replace(point, assignment=name.format(number)) for number, point in enumerate(crowd(12))]
    figure = draw_fronts({"a": ParetoFront.from_points(points)}, style=style)
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(note, figure.canvas.get_renderer()) for note in axes.texts]
    assert boxes
    assert all(axes.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 for box in boxes)


def test_several_runs_are_told_apart_by_colour_and_line_and_not_named():
    figure = draw_fronts({"a": front(), "b": front(2)})
    stairs = [line.get_linestyle() for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert len(stairs) == len(set(stairs)) == 2
    assert not [text for text in figure.axes[0].texts if text.get_text()]


def test_a_point_below_the_axis_is_an_arrow_with_its_accuracy():
    outlier = FrontPoint("ilp-1", "ilp", 1100, 1e6, 5, Estimate(0.2))
    figure = draw_fronts({"a": ParetoFront.from_points([*crowd(12), outlier])})
    (axes,) = figure.axes
    assert axes.get_ylim()[0] > 80
    assert "20.0 %" in [text.get_text() for text in axes.texts]


def test_a_point_above_the_axis_of_an_error_is_an_arrow_in_its_own_unit():
    error = Metric("mae", "smaller", unit="K")
    points = [FrontPoint(f"ilp-{i}", "ilp", 1000 + i, 1e6, 5, Estimate(0.5 + i / 100), metric=error) for i in range(9)]
    outlier = FrontPoint("uniform-2", "uniform", 1100, 1e6, 5, Estimate(40.0), metric=error)
    (axes,) = draw_fronts({"a": ParetoFront.from_points([*points, outlier])}).axes
    assert axes.get_ylim()[1] < 1
    assert "40 K" in [text.get_text() for text in axes.texts]


def test_the_axis_of_a_share_ends_where_shares_do():
    points = [FrontPoint(f"s{i}", "search", 1000 + i, 1, 5, Estimate(y, 0.05, 2)) for i, y in enumerate((0.01, 0.99))]
    (axes,) = draw_fronts({"a": ParetoFront.from_points(points)}).axes
    low, high = axes.get_ylim()
    assert low > -4
    assert high < 104


@pytest.mark.parametrize("control", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_the_axis_of_ratios_ends_at_100_percent_and_holds_its_texts(control):
    ratios = [0.0, 0.1, 0.45, 0.76, 0.8, 0.95, 1.0]
    groups = tuple(GroupRatio(f"layer{i}", ratio, "12/16") for i, ratio in enumerate(ratios))
    panel = RatioPanel("search-1-pruned-1", "60%", groups, {group.group: control for group in groups})
    figure = draw_ratios([panel, panel])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xlim() == (0, 100)
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == len(ratios)
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 1 for box in boxes)
        assert axes.get_xlabel() == "units removed (%)"
    assert "units kept/all" in texts(figure)[0]


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_curves_mark_what_the_projection_moved_and_no_more(moved, chosen):
    """What the choice took from elsewhere was moved by no projection."""
    record = {"event": "epoch", "time": 1.0, "stage": "search", "run": "search-1", "seed": 0, "epochs": 2, "loss": 1.0}
    record |= {"top1": 0.9, "bits": {"conv": [4, 8], "block": [2, 2]}}
    events = [read_event({**record, "epoch": epoch}) for epoch in (1, 2)]
    pool = {"event": "pool", "time": 2.0, "run": "search-1", "images": 10}
    pool |= {"proposals": {"pool-1-ilp-1": ["ilp-1"], "pool-1-theta": ["theta", "draw-1"]}}
    events += [read_event(pool)] if chosen else []
    of_theta = {"conv": LayerBits(4, 8), "block.a": LayerBits(1 if moved else 2, 2), "other": LayerBits(8, 8)}
    layers = {"pool-1-theta": of_theta, "search-1": {**of_theta, "conv": LayerBits(3, 3)} if chosen else of_theta}
    made = {id: BitAssignment(id, ModelReference("m", (1, 8, 8)), bits) for id, bits in layers.items()}
    curves = search_curves(events, made)["search-1"]
    assert curves.projected_bits == {"conv": (4, 8), "block": (1 if moved else 2, 2)}
    assert curves.final_bits == {**curves.projected_bits, **({"conv": (3, 3)} if chosen else {})}
    assert curves.unlike_last(curves.projected_bits) == {"conv": (False, False), "block": (moved, False)}
    figure = draw_search_curves(curves)
    assert len(figure.legends) == moved
    diamonds = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == MOVED["marker"]]
    assert len(diamonds) == moved
    headings = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert headings & {"budget", "kept"} == ({"budget", "kept"} if chosen else {"kept"})
    assert not search_curves(events)["search-1"].projected_bits
