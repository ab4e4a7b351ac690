"""What is learned of losses: the posterior of a linear model worked out by hand, and it finds what no table tells."""

from __future__ import annotations

import numpy as np
import pytest

from dnas.search.learning import Learned, Seen
from search_spaces.allocation.program import Cells
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.table import CostTable
from tests.dnas.search.test_pool import SPACES, middle, table_of


def drawn(table: CostTable, count: int, seed: int) -> list[Cells]:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.2, 0.8, size=count)
    return [allocate_widest(rng.random(table.space.allowed.shape), table, middle(table, share)) for share in shares]


def learned(space: str, count: int = 12, seed: int = 0) -> Learned:
    table = table_of(space)
    rng = np.random.default_rng(seed)
    tables = [rng.random(table.space.allowed.shape) for _ in range(2)]
    seen = [
        Seen(cells, f"search-{number % 2}", float(np.exp(rng.normal() + number % 2)))
        for number, cells in enumerate(drawn(table, count, seed))
    ]
    return Learned(table.space, seen, tables)


def test_what_is_learned_of_other_budgets_tells_of_one_whose_nets_all_diverged() -> None:
    model = learned("independent")
    without = Learned(model.space, [Seen(s.cells, s.group, s.loss) for s in model.seen], ())
    unseen = model.worth("search-9")
    assert unseen.shape == without.worth("search-9").shape == model.space.allowed.shape
    assert np.isfinite(unseen).all()
    assert np.ptp(unseen) > 0


def of_choice(worth: np.ndarray, cells: Cells) -> float:
    return sum(float(worth[index, *cell]) for index, cell in enumerate(cells))


def by_hand(model: Learned, group: str, cells: list[Cells]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what the choices are worth, by regression on the features themselves."""
    table_variance, cell_variance, noise = model._variances
    space, places = model.space, {cell: n for n, cell in enumerate(np.ndindex(*model.space.widths.shape))}
    logs = np.log2([[max(w, 0.5), a] for w in space.weight_bits for a in space.activation_bits])
    alike = np.exp(-np.abs(logs[:, None] - logs[None]).sum(2))
    groups = ["search-0", "search-1"]
    sums = {g: [[of_choice(t, s.cells) for t in model.tables] for s in model.seen if s.group == g] for g in groups}

    def features(each: Cells, own: str, centre: bool) -> np.ndarray:
        told = np.array([of_choice(t, each) for t in model.tables]) - centre * np.mean(sums[own], 0)
        hot = np.zeros((len(each), len(places)))
        for index, cell in enumerate(each):
            hot[index, places[cell]] = 1
        return np.concatenate([told / np.std(sums[own], 0), hot.ravel(), [centre * (own == g) for g in groups]])

    x = np.stack([features(s.cells, s.group, True) for s in model.seen])
    logs_of = np.log([s.loss for s in model.seen])
    y = logs_of - [np.mean([np.log(o.loss) for o in model.seen if o.group == s.group]) for s in model.seen]
    prior = np.zeros((x.shape[1], x.shape[1]))
    prior[:2, :2] = table_variance * np.eye(2)
    prior[2:-2, 2:-2] = np.kron(np.eye(len(space.decisions)), alike) * cell_variance / len(space.decisions)
    prior[-2:, -2:] = 10 * np.eye(2)
    gain = prior @ x.T @ np.linalg.inv(x @ prior @ x.T + noise * np.eye(len(y)))
    asked = np.stack([features(each, group, False) for each in cells])
    return -asked @ gain @ (y / y.std()), asked @ (prior - gain @ x @ prior) @ asked.T


@pytest.mark.parametrize("space", ["independent", "one width of activations", "tied", "skipping"])
def test_the_worth_of_a_choice_is_its_posterior_mean(space: str) -> None:
    model, asked = learned(space), drawn(table_of(space), 5, seed=3)
    for group in ("search-0", "search-1"):
        found = [of_choice(model.worth(group), cells) for cells in asked]
        assert found == pytest.approx(by_hand(model, group, asked)[0], abs=1e-6)


def test_samples_are_those_of_the_posterior() -> None:
    model, asked = learned("one width of activations"), drawn(table_of("one width of activations"), 3, seed=3)
    rng = np.random.default_rng(1)
    samples = [model.worth("search-1", rng) for _ in range(3000)]
    values = np.array([[of_choice(worth, cells) for cells in asked] for worth in samples])
    mean, covariance = by_hand(model, "search-1", asked)
    assert np.abs(values.mean(0) - mean).max() < 4 * np.sqrt(covariance.max() / len(values))
    np.testing.assert_allclose(np.cov(values.T), covariance, atol=0.1 * covariance.max())


@pytest.mark.parametrize("seed", range(3))
def test_what_no_table_tells_is_learned(seed: int) -> None:
    """Half of the true loss is in no table; after some choices the program over what was learned is better."""
    table = table_of("one width of activations")
    rng = np.random.default_rng(seed)
    told, hidden = (rng.random(table.space.allowed.shape)[:, ::-1].cumsum(1)[:, ::-1] for _ in range(2))
    budget = middle(table, 0.5)
    truth = told + 3 * hidden

    def loss(cells: Cells) -> float:
        return float(np.exp(of_choice(truth, cells) / 5))

    choices = [allocate_widest(rng.random(told.shape), table, budget) for _ in range(25)]
    model = Learned(table.space, [Seen(cells, "search-1", loss(cells)) for cells in choices], [told])
    best = allocate_widest(model.worth("search-1"), table, budget)
    assert loss(best) <= min(loss(allocate_widest(-told, table, budget)), np.mean([loss(cells) for cells in choices]))


def test_a_few_or_equal_losses_teach_nothing_and_a_table_that_says_nothing_does_no_harm() -> None:
    model = learned("independent")
    assert model.is_enough
    assert not Learned(model.space, model.seen[:3]).is_enough
    assert not Learned(model.space, [Seen(each.cells, each.group, 0.5) for each in model.seen]).is_enough
    flat = Learned(model.space, model.seen, [np.zeros(model.space.allowed.shape)])
    bare = Learned(model.space, model.seen)
    np.testing.assert_allclose(flat.worth("search-0"), bare.worth("search-0"), atol=1e-9)


def test_every_kind_of_space_is_learned_of() -> None:
    for space in set(SPACES) - {"one choice"}:
        worth = learned(space).worth("search-0", np.random.default_rng(0))
        assert worth.shape == table_of(space).space.allowed.shape
        assert np.isfinite(worth).all()
