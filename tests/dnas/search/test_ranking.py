"""Kendall's τ of losses with scores, and the assignments and losses that it is of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice
from dnas.search import ranking
from dnas.search.ranking import random_assignments, rank_correlation, supernet_loss
from dnas.training.device import CPU, Device
from dnas.training.task import CLASSIFICATION
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from tests.dnas.search.test_supernet import calibrated, fixed_twin, random_cells
from tests.toys import Net, images, inputs, plan

HERE = Device.of(CPU)


@pytest.mark.parametrize("seed", range(4))
def test_tau_counts_the_pairs_that_are_in_order(seed: int) -> None:
    """Written out: concordant minus discordant pairs over all, ties taken out of either side (τ_b)."""
    generator = np.random.default_rng(seed)
    losses, scores = generator.integers(0, 6, 12).astype(float), generator.integers(0, 6, 12).astype(float)
    signs = [(np.sign(b - a), np.sign(d - c)) for (a, c), (b, d) in
             itertools.combinations(zip(losses, scores, strict=True), 2)]  # fmt: skip
    both = sum(-first * second for first, second in signs)
    untied = math.prod(sum(pair[side] != 0 for pair in signs) for side in (0, 1)) ** 0.5
    found = rank_correlation(losses.tolist(), scores.tolist())
    assert found["tau"] == pytest.approx(both / untied)


def test_the_interval_holds_the_true_tau_19_times_in_20() -> None:
    """Of two normals with correlation r the true τ is 2/π asin r (Greiner's relation)."""
    generator, hits, errors, taus = np.random.default_rng(0), 0, list[float](), list[float]()
    for _ in range(600):
        first, noise = generator.standard_normal((2, 14))
        second = 0.7 * first + (1 - 0.7**2) ** 0.5 * noise
        found: Any = rank_correlation((-first).tolist(), second.tolist())
        hits += found["low"] <= 2 / math.pi * math.asin(0.7) <= found["high"]
        errors.append(found["error"])
        taus.append(found["tau"])
    assert 0.92 < hits / 600 < 0.98
    assert np.mean(errors) == pytest.approx(np.std(taus), rel=0.2)


def test_a_perfect_or_reversed_order_is_sure_and_stays_within_one() -> None:
    values = [float(value) for value in range(10)]
    for scores, tau in ((values[::-1], 1.0), (values, -1.0)):
        found: Any = rank_correlation(values, scores)
        assert found["tau"] == tau
        assert -1 <= found["low"] <= tau <= found["high"] <= 1
        assert min(abs(found["low"]), abs(found["high"])) > 0.8


def test_what_is_no_number_is_the_worst_and_what_is_all_equal_tells_nothing() -> None:
    losses = [0.1, 0.2, 0.3, 0.4, math.nan, math.inf]
    scores = [0.9, 0.8, 0.7, 0.6, math.nan, -math.inf]
    assert rank_correlation(losses, scores)["tau"] == 1
    for equal in ((losses, [0.5] * 6), ([0.5] * 6, scores)):
        assert set(rank_correlation(*equal).values()) == {None}
    with pytest.raises(InputError, match="of 4 assignments has no standard error; take 5 or more"):
        rank_correlation(losses[:4], scores[:4])


def test_assignments_are_all_different_spend_the_budget_and_more_begin_with_the_same() -> None:
    _, _, table = plan(Net(), weight_bits=(1, 2, 3, 4, 8), activation_bits=(2, 3, 4, 8), first_layer="search")
    budget = Budget({"bitops": 0.3 * table.cells_cost([(4, 3)] * 3)["bitops"]}, "30%")
    found = random_assignments(table, budget, 12, seed=3)
    assert len({tuple(cells) for cells in found}) == 12
    assert found[:5] == random_assignments(table, budget, 5, seed=3)
    assert found != random_assignments(table, budget, 12, seed=4)
    for cells in found:
        assert budget.met_by(table.cells_cost(cells))
        for place, (row, column) in enumerate(cells):
            for wider in ((row + 1, column), (row, column + 1)):
                if wider[0] < 5 and wider[1] < 4:
                    assert not budget.met_by(table.cells_cost([*cells[:place], wider, *cells[place + 1 :]]))
    least = table.cells_cost([(0, 0)] * 3)["bitops"]
    for many in (6, 99_999_999_999):
        with pytest.raises(InputError, match=f"^tight allows 1 assignment that spends it, not {many}; name another"):
            random_assignments(table, Budget({"bitops": least}, "tight"), many, seed=0)


@pytest.mark.parametrize(("costs", "share"), [(("size_bytes",), 0.93), (("bitops", "size_bytes"), 0.06)], ids=str)
def test_every_assignment_that_spends_a_budget_is_found_and_no_more(costs: tuple[str, ...], share: float) -> None:
    _, _, table = plan(Net(), weight_bits=(1, 4, 8), activation_bits=(2, 8), first_layer="search")
    every = [list(cells) for cells in itertools.product(itertools.product(range(3), range(2)), repeat=3)]
    least, most = (table.cells_cost(cells) for cells in (every[0], every[-1]))
    budget = Budget({name: least[name] + share * (most[name] - least[name]) for name in costs}, "some")
    meeting = [cells for cells in every if budget.met_by(table.cells_cost(cells))]
    spent = [one for one in meeting if not any(_wider(other, one) for other in meeting)]
    assert sorted(random_assignments(table, budget, len(spent), seed=1)) == sorted(spent)
    told = "1 assignment that spends" if len(spent) == 1 else f"{len(spent)} different assignments that spend"
    with pytest.raises(InputError, match=f"some allows {told} it"):
        random_assignments(table, budget, len(spent) + 1, seed=1)


def test_where_wider_may_be_cheaper_draws_tell_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, table = plan(Net(), weight_bits=(2, 4), activation_bits=(2, 8), first_layer="search")
    table.entries["bitops"][0, 1] = 0.5 * table.entries["bitops"][0, 0]
    monkeypatch.setattr(ranking, "_MOST_IN_VAIN", 5)
    tight = Budget({"bitops": table.cells_cost([(1, 0), (0, 0), (0, 0)])["bitops"]}, "tight")
    with pytest.raises(
        InputError, match=r"^\d+ draws within tight gave (1 assignment|\d different assignments), not 9;"
    ):
        random_assignments(table, tight, 9, seed=0)


def _wider(one: Cells, other: Cells) -> bool:
    return one != other and all(a >= c and b >= d for (a, b), (c, d) in zip(one, other, strict=True))


@pytest.mark.parametrize("seed", range(2))
def test_the_loss_is_that_of_the_fixed_net_with_its_own_statistics(seed: int) -> None:
    supernet = calibrated(weight_bits=(2, 4, 8), activation_bits=(2, 8), first_layer="search")
    cells, batches, judged = random_cells(supernet, seed), [inputs(seed=5), inputs(seed=6)], images(30)
    loss = supernet_loss(supernet, cells, batches, judged, batch_size=8, device=HERE, task=CLASSIFICATION)
    fixed = fixed_twin(supernet, cells, QuantizerChoice())
    recalibrate_batchnorm(fixed, batches)
    x, y = next(judged.batches(30))
    with torch.no_grad():
        assert loss == pytest.approx(F.cross_entropy(fixed(x), y).item(), rel=1e-6)
    other = supernet_loss(
        supernet, random_cells(supernet, seed + 7), batches, judged, batch_size=8, device=HERE, task=CLASSIFICATION
    )
    assert (
        other != loss == supernet_loss(supernet, cells, batches, judged, batch_size=8, device=HERE, task=CLASSIFICATION)
    )
