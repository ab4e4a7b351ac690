from itertools import combinations, pairwise

import pytest

from results.kinds import POINT_KINDS
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.pictures.front import draw_fronts, draw_ratios, draw_trials
from results.pictures.prune_data import GroupRatio, RatioPanel
from results.pictures.trial_data import BudgetTrials, Forecast, TrialCurve
from search_spaces.errors import InputError
from search_spaces.provenance import KINDS


def point(id, kind, kib, top1, **changes):
    return FrontPoint(id, kind, 1024 * kib, 1e6, 5, Estimate(top1, 0.01, 3), **changes)


def pruned_front():
    parent = {"parent": "s", "budget": "50%"}
    pruned = [
        point(f"s-{kind}", kind, 10 + n, 0.5 + n / 10, kept_filters=0.5, **parent)
        for n, kind in enumerate(("pruned", "pruned-uniform", "pruned-random"))
    ]
    return ParetoFront.from_points(
        [point("s", "search", 40, 0.9), *pruned, point("s-f", "fewer-bits", 15, 0.6, **parent)]
    )


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_pruned_points_have_a_style_of_their_own_and_a_line_to_their_parent():
    figure = draw_fronts({"a": pruned_front()})
    assert texts(figure.legends[0]) == [
        "search",
        "pruned",
        "pruned, one ratio",
        "pruned, random",
        "fewer bits, unpruned",
        "unpruned → pruned",
        "front",
    ]
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert [[40.0, 90.0], [10.0, 50.0]] in lines
    assert "unpruned → pruned" in texts(draw_fronts({"a": pruned_front(), "b": pruned_front()}).legends[0])


def test_no_two_kinds_look_alike():
    assert set(POINT_KINDS) == set(KINDS)
    for part in ("colour", "marker", "label"):
        assert len({getattr(kind, part) for kind in POINT_KINDS.values()}) == len(KINDS)


def panel(name, count=3, uniform=None):
    groups = tuple(GroupRatio(f"layer{n}.conv", n / 40, f"{40 - n}/40") for n in range(count))
    return RatioPanel(name, "size_bytes 50%", groups, uniform or {})


def test_every_group_has_a_bar_its_name_and_how_many_stay():
    figure = draw_ratios([panel("one", uniform={"layer0.conv": 0.25}), panel("two", 2)])
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0, 2.5, 5]
    assert [text.get_text() for text in left.texts] == ["40/40", "39/40", "38/40"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["layer0.conv", "layer1.conv", "layer2.conv"]
    assert len(right.patches) == 2
    assert (left.get_title(), right.get_title()) == ("one\nsize_bytes 50%", "two\nsize_bytes 50%")
    removed = "removed, units kept/all (a unit: filters that go together)"
    assert texts(figure.legends[0]) == [removed, "control with one ratio"]
    assert texts(draw_ratios([panel("one")]).legends[0]) == [removed]


@pytest.mark.parametrize(("panels", "groups"), [(1, 1), (4, 12), pytest.param(7, 37, marks=pytest.mark.whole)])
def test_ratios_are_laid_out_without_overlap(panels, groups):
    figure = draw_ratios([panel(f"search-1-pruned-{n}", groups) for n in range(panels)])
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == panels
    boxes = [axes.get_tightbbox() for axes in shown]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    rows = sorted((text.get_window_extent() for text in shown[0].texts), key=lambda box: -box.y0)
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(rows))
    inside = shown[0].get_window_extent()
    assert all(text.get_window_extent().x1 <= inside.x1 for text in shown[0].texts)


def test_many_assignments_are_thinned_out_with_both_ends():
    titles = [axes.get_title() for axes in draw_ratios([panel(f"p{n}") for n in range(40)]).axes]
    assert len(titles) == 12
    assert (titles[0], titles[-1]) == ("p0\nsize_bytes 50%", "p39\nsize_bytes 50%")


def trials(**changes):
    facts = {
        "run": "prune-s",
        "title": "size ≤ 5 KiB",
        "value_label": "lowest loss so far",
        "rises": False,
        "curves": (
            TrialCurve("bayesian", (2.0, None, 1.0), (2.0, 2.0, 1.0)),
            TrialCurve("random", (2.0, 3.0, 1.5), (2.0, 2.0, 1.5)),
        ),
        "uniform": 2.0,
        "forecast": Forecast((2, 3), (0.5, 0.25), (0.1, 0.2), 0.625),
    }
    return BudgetTrials(**(facts | changes))


def test_trials_are_drawn_with_the_controls_and_the_error_of_the_surrogate():
    figure = draw_trials([trials(), trials(title="size ≤ 2 KiB", uniform=None)])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["size ≤ 5 KiB", "size ≤ 2 KiB"]
    assert figure.axes[2].get_title(loc="right") == "rank correlation 0.62 (n = 2)"
    assert texts(figure.legends[0]) == [
        "Bayesian optimization",
        "random + repair",
        "uniform ratio",
        "predicted std",
        "|prediction − loss|",
        "single trials",
    ]
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_trials_without_a_prediction_have_one_row():
    bare = trials(forecast=Forecast((), (), (), None), uniform=None, rises=True, value_label="share")
    figure = draw_trials([bare])
    assert [axes.get_ylabel() for axes in figure.axes] == ["share"]
    assert texts(figure.legends[0]) == ["Bayesian optimization", "random + repair"]
    few = trials(forecast=Forecast((2,), (0.5,), (0.1,), None))
    assert draw_trials([few]).axes[1].get_title(loc="right") == "rank correlation not known (n = 1)"


def test_trials_that_all_failed_can_be_drawn():
    failed = (TrialCurve("bayesian", (None, None), (None, None)),)
    draw_trials([trials(curves=failed, uniform=None)]).draw_without_rendering()


def test_nothing_to_draw_is_told():
    for draw in (draw_ratios, draw_trials):
        with pytest.raises(InputError, match="to draw yet"):
            draw([])
