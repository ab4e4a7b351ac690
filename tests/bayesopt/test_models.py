"""The parts of the model proposer: the surrogate, the acquisition and its search, ParEGO's weighting, clusters."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from bayesopt.acquisition import log_expected_improvement, mutated, search
from bayesopt.chebyshev import Scalarisation
from bayesopt.model_proposer import ModelProposer
from bayesopt.proposers import CostRange, make_proposer
from bayesopt.ratios import RatioSpace
from bayesopt.surrogates import Surrogate
from search_spaces.errors import InputError
from tests.bayesopt.test_ratios import chain


def bowl(points: np.ndarray) -> np.ndarray:
    return np.sum((points - 0.3) ** 2, axis=1)


def test_the_surrogate_predicts_and_knows_where_it_does_not() -> None:
    points = np.random.default_rng(0).random((40, 3))
    surrogate = Surrogate(points, bowl(points), seed=0)
    means, spreads = surrogate.predict(points)
    assert means == pytest.approx(bowl(points), abs=0.02)
    assert surrogate.predict(np.full((1, 3), 3.0))[1][0] > 3 * spreads.max()


def test_a_believed_point_keeps_the_mean_and_takes_the_doubt() -> None:
    points = np.random.default_rng(0).random((15, 3))
    surrogate = Surrogate(points, bowl(points), seed=0)
    pending = np.array([[0.9, 0.1, 0.9]])
    before, after = surrogate.predict(pending), surrogate.believing(pending).predict(pending)
    assert after[0] == pytest.approx(before[0])
    assert after[1] < 0.7 * before[1]
    assert surrogate.predict(pending)[1] == before[1]


def test_equal_values_do_not_trouble_the_surrogate() -> None:
    means, spreads = Surrogate(np.eye(3), np.ones(3), seed=0).predict(np.zeros((1, 3)))
    assert means[0] == pytest.approx(1.0)
    assert np.isfinite(spreads).all()


def test_log_expected_improvement_is_right_near_and_far() -> None:
    z = np.array([3.0, 0.0, -0.99, -1.01, -5.0])
    exact = np.log(z * norm.cdf(z) + norm.pdf(z))
    assert log_expected_improvement(-2 * z, np.full(5, 2.0), 0.0) == pytest.approx(exact + np.log(2), rel=1e-6)
    far = log_expected_improvement(np.array([24.9, 25.1, 60.0, 1e4]), np.ones(4), 0.0)
    assert (np.diff(far) < 0).all()
    assert far[0] - far[1] == pytest.approx(5.0, abs=0.1)


def test_the_search_finds_the_best_point_within_its_projection() -> None:
    def project(points: np.ndarray) -> np.ndarray:
        return np.clip(points, 0.4, 1.0)

    found = search(lambda p: -bowl(p), project, np.full((1, 6), 0.9), np.random.default_rng(0))
    assert found[0] == pytest.approx(np.full(6, 0.4), abs=0.05)
    assert (np.diff(-bowl(found)) <= 0).all()


def test_mutations_stay_in_the_cube_and_always_move() -> None:
    parents = np.full((2, 5), 0.5)
    children = mutated(parents, 200, np.random.default_rng(0))
    assert ((children >= 0) & (children <= 1)).all()
    assert (children != 0.5).any(axis=1).all()


def test_the_loss_to_beat_is_where_the_weighted_score_equals_the_best() -> None:
    losses, costs = np.array([1.0, 0.6, 0.2]), np.array([2.0, 4.0, 8.0])
    for weight in (0.1, 0.5, 0.9):
        known = Scalarisation(losses, costs, 2.0, 8.0, weight)
        at_stake = np.array([2.0, 3.0, 5.0])
        bar = known.loss_to_beat(at_stake)
        loss = weight * (bar - 0.2) / 0.8
        cost = (1 - weight) * (at_stake - 2.0) / 6.0
        assert np.maximum(loss, cost) + 0.05 * (loss + cost) == pytest.approx(np.full(3, known.best))


@pytest.mark.whole
def test_a_front_search_finds_both_ends() -> None:
    space = chain((16, 32, 32, 64))

    def loss(counts: dict[str, int]) -> float:
        return float(np.sum((1 - np.array(list(counts.values())) / (16, 32, 32, 64)) ** 2 * (8, 1, 1, 1)))

    proposer = make_proposer("scikit-optimize", space, CostRange("size_bytes", 250.0, 600.0), seed=0, first=6)
    for _ in range(30):
        (proposal,) = proposer.ask()
        proposer.tell(proposal, loss(proposal.counts))
    for amount in (300.0, 450.0, 600.0):
        limits = {"size_bytes": amount}
        found = [p for p in proposer._asked.values() if space.meets(tuple(p.counts.values()), limits)]
        assert min(loss(p.counts) for p in found) < 0.95 * loss(space.named(space.uniform(limits)))


def test_many_groups_share_ratios_and_the_user_is_told() -> None:
    names = tuple(f"g{row}" for row in range(70))
    space = RatioSpace(names, (8,) * 70, lambda kept: {"size_bytes": float(sum(kept.values()))}, 0.75)
    proposer = make_proposer("scikit-optimize", space, [{"size_bytes": 300.0}], seed=0, first=3)
    assert isinstance(proposer, ModelProposer)
    assert "70 channel groups" in proposer.notes[0]
    for step in range(5):
        (proposal,) = proposer.ask()
        assert sum(proposal.counts.values()) == 300
        proposer.tell(proposal, float(step))
    assert proposal.source == "model"
    assert make_proposer("scikit-optimize", chain(), [{"bitops": 900.0}], seed=0).notes == ()


def test_an_unknown_proposer_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown proposer 'scikit-optimise'; .*did you mean 'scikit-optimize'"):
        make_proposer("scikit-optimise", chain(), [{"bitops": 900.0}], seed=0)


def test_a_missing_extra_is_refused_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'dnas\[optuna\]'"):
        make_proposer("optuna", chain(), [{"bitops": 900.0}], seed=0)


def test_an_empty_cost_range_is_refused() -> None:
    with pytest.raises(InputError, match="range of bitops is empty"):
        CostRange("bitops", 5.0, 5.0)
