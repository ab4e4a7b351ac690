import pytest

from results.events import StageEvent, Started, read_event
from results.pictures.prune_data import (
    filters_of,
    kept_share,
    parents_of,
    prune_trials,
    rank_correlation,
    ratio_panels,
)
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference

WHOLE = {"a": LayerBits(8, 8, 4), "b": LayerBits(4, 4, 8), "fc": LayerBits(8, 8, 10)}


def assignment(id, layers=WHOLE, **provenance):
    return BitAssignment(id, ModelReference("m", (1,)), layers, provenance=provenance)


def pruned(id, kept, ratios, kind="pruned", **more):
    layers = {**WHOLE, "b": LayerBits(4, 4, len(kept), kept)}
    units = {group: [round(8 * (1 - ratio)), 8] for group, ratio in ratios.items()}
    facts = {"parent": "s", "budget": "50%", "limits": {"size_bytes": 5}, "run": "prune-s"}
    return assignment(id, layers, kind=kind, ratios=ratios, kept_units=units, **{**facts, **more})


PRUNED = pruned("s-pruned-1", (0, 1, 5), {"a": 0.0, "b": 0.625})
UNIFORM = pruned("s-pruned-uniform-1", (0, 1, 2, 3), {"a": 0.5, "b": 0.5}, kind="pruned-uniform")
RUN = {item.id: item for item in (assignment("s", kind="search"), PRUNED, UNIFORM, assignment("u", kind="uniform"))}


def test_filters_that_stay():
    totals = {"a": 4, "b": 8, "fc": 10}
    assert kept_share(PRUNED.layers, totals) == (4 + 3 + 10) / 22
    assert kept_share(WHOLE, totals) is None
    assert filters_of(PRUNED, RUN["s"]) == {"b": (3, 8)}
    assert filters_of(PRUNED, None) == filters_of(RUN["s"], None) == {}
    assert {name: parent.id for name, parent in parents_of(RUN).items()} == {
        "s-pruned-1": "s",
        "s-pruned-uniform-1": "s",
    }
    assert parents_of({"s-pruned-1": PRUNED}) == {}


def test_ratios_with_the_uniform_control_of_the_same_budget():
    [panel] = ratio_panels(["s", "s-pruned-1", "u"], RUN)
    assert (panel.assignment, panel.budget) == ("s-pruned-1", "50%")
    assert [(entry.group, entry.ratio, entry.text) for entry in panel.groups] == [
        ("a", 0.0, "8/8"),
        ("b", 0.625, "3/8"),
    ]
    assert panel.uniform == {"a": 0.5, "b": 0.5}
    other = pruned("s-pruned-2", (0,), {"b": 0.875}, budget="20%")
    assert ratio_panels(["s-pruned-2"], {**RUN, "s-pruned-2": other})[0].uniform == {}


def test_ratios_of_a_file_without_units_have_no_text():
    bare = assignment("x", ratios={"b": 0.5}, kind="pruned", parent="s")
    assert ratio_panels(["x"], {"x": bare})[0].groups[0].text == ""


def trial(number, loss, budget=0, kind="bayesian", source="model", predicted=None, limit=100.0, size=90.0):
    mean, std = predicted or (None, None)
    proposal = {"number": number, "budget": budget, "limits": {"size_bytes": limit}, "source": source}
    proposal |= {"predicted_mean": mean, "predicted_std": std}
    measured = {"cost": {"size_bytes": size}, "loss": loss}
    trial = {"proposal": proposal, **measured}
    return read_event({"event": "trial", "run": "prune-s", "kind": kind, "trial": trial})


def test_the_best_so_far_of_every_proposer_and_budget():
    records = [
        StageEvent(stage="prune"),
        trial(0, 2.0, source="uniform"),
        trial(1, 5.0, budget=1, source="uniform", limit=50.0),
        trial(2, None),
        trial(3, 4.0, budget=1, limit=50.0),
        trial(4, 1.0),
        trial(6, 3.0),
        trial(0, 2.0, kind="random", source="uniform"),
        trial(2, 1.5, kind="random"),
        trial(2, 1.5, kind="random"),
    ]
    large, small = prune_trials(records)["prune-s"]
    assert (large.title, small.title) == ("size ≤ 100 B", "size ≤ 50 B")
    assert [(c.kind, c.losses, c.best) for c in large.curves] == [
        ("bayesian", (2.0, None, 1.0, 3.0), (2.0, 2.0, 1.0, 1.0)),
        ("random", (2.0, 1.5), (2.0, 1.5)),
    ]
    assert [c.best for c in small.curves] == [(5.0, 4.0)]
    assert (large.uniform, small.uniform) == (2.0, 5.0)
    assert (large.value_label, large.rises) == ("lowest loss so far", False)


def test_a_failed_start_has_no_best_yet():
    [only] = prune_trials([trial(0, None, source="uniform"), trial(1, 2.0)])["prune-s"]
    assert only.curves[0].best == (None, 2.0)
    assert only.uniform is None


def test_predictions_against_what_came():
    records = [
        trial(0, 2.0, source="uniform"),
        trial(1, 1.0, predicted=(1.5, 0.25)),
        trial(2, 3.0, predicted=(2.0, 0.5)),
        trial(3, None, predicted=(2.0, 0.5)),
        trial(4, 2.0, predicted=(2.5, 0.0)),
        trial(1, 9.0, kind="random"),
    ]
    [only] = prune_trials(records)["prune-s"]
    assert only.forecast.trials == (2, 3, 5)
    assert only.forecast.errors == (0.5, 1.0, 0.5)
    assert only.forecast.stds == (0.25, 0.5, 0.0)
    assert only.forecast.rank_correlation == 0.5  # ranks of the means 1 2 3, of the losses 1 3 2


def test_without_a_budget_the_dominated_area_counts():
    records = [
        trial(0, 4.0, limit=10.0, size=10.0, source="uniform"),
        trial(1, 2.0, limit=5.0, size=5.0, source="uniform"),
        trial(2, None, limit=7.0, size=7.0),
        trial(3, 3.0, limit=2.0, size=2.0),
    ]
    [only] = prune_trials(records)["prune-s"]
    # Of the rectangle 10 × 4: nothing at its corner, then 5 × 2, then 3 × 1 more.
    assert only.curves[0].best == (0.0, 10 / 40, 10 / 40, 13 / 40)
    assert (only.title, only.rises, only.uniform) == ("the whole front", True, None)
    failed = [trial(n, None, limit=float(n + 1)) for n in (0, 1)]
    assert prune_trials(failed)["prune-s"][0].curves[0].best == (None, None)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 1, 2, 3], [1, 1, 2, 3], 1.0),
        ([], [], None),
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(first, second) == expected


def test_a_run_without_pruning_has_nothing():
    assert prune_trials([Started()]) == {}
    assert ratio_panels(["u"], RUN) == []
