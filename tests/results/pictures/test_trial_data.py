import pytest

from results.events import StageEvent, Started, read_event
from results.pictures.trial_data import prune_trials, rank_correlation


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
