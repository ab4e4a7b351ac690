"""What a step of the warm-up runs: the widest, the narrowest, and assignments that cost about what a budget allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnas.search.sandwich import Sandwich, cell_probabilities
from search_spaces.allocation.program import dominated
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.models.zoo import resnet20
from tests.toys import Net, plan, seeded

SPACES: list[dict[str, Any]] = [
    {"weight_bits": (1, 2, 4, 8), "activation_bits": (2, 4, 8), "first_layer": "search"},
    {"weight_bits": (0, 2, 8), "activation_bits": (4, 32), "granularity": "block", "include": ("first", "second")},
    {"pairing": "pairs", "pairs": ((1, 4), (2, 4), (3, 3), (8, 8)), "first_layer": "search"},
    {"pairing": "tied", "weight_bits": (2, 4, 8), "activation_bits": (2, 4, 8), "first_layer": "search"},
]


def table_of(**options: Any) -> CostTable:
    return plan(Net(), **options)[2]


def cost_of(table: CostTable, shares: np.ndarray, name: str) -> float:
    """The expected cost, written out cell by cell."""
    sums = [sum(float(p) * c for p, c in zip(own.flat, cells.flat, strict=True) if p) for own, cells in
            zip(shares, table.entries[name], strict=True)]  # fmt: skip
    whole = max(sums) if table.costs[name].combine == "max" else sum(sums)
    return max(whole, table.constants[name]) if table.costs[name].combine == "max" else whole + table.constants[name]


def between(table: CostTable, name: str, share: float) -> float:
    sandwich = Sandwich(table, (), 1)
    low, high = (table.cells_cost(cells)[name] for cells in (sandwich.narrowest, sandwich.widest))
    return low + share * (high - low)


@pytest.mark.parametrize("options", SPACES, ids=range(4))
def test_a_step_runs_the_widest_the_narrowest_and_allowed_cells_between(options: dict[str, Any]) -> None:
    table = table_of(**options)
    sandwich = Sandwich(table, (), 3)
    widest, *drawn, narrowest = sandwich.draw(seeded())
    assert len(drawn) == 3
    for cells in (widest, *drawn, narrowest):
        assert all(table.space.allowed[d][cell] for d, cell in enumerate(cells))
    for cells, wanted in ((widest, np.max), (narrowest, np.min)):
        found = [table.space.widths[cell] for cell in cells]
        assert found == [wanted(table.space.widths[allowed]) for allowed in table.space.allowed]
    assert sandwich.draw(seeded(1)) == sandwich.draw(seeded(1)) != sandwich.draw(seeded(2))


@pytest.mark.parametrize("options", SPACES, ids=range(4))
@pytest.mark.parametrize("names", [("size_bytes",), ("bitops",), ("size_bytes", "bitops"), ("peak_activation_bytes",)])
def test_the_tightest_limit_is_met_in_expectation(options: dict[str, Any], names: tuple[str, ...]) -> None:
    table = table_of(**options)
    for share in (0.15, 0.6):
        budget = Budget({name: between(table, name, share) for name in names}, "")
        if len(names) == 1 and budget.limits[names[0]] == between(table, names[0], 0.0):
            continue  # this cost is the same whatever is chosen
        shares = cell_probabilities(table, budget)
        np.testing.assert_allclose(shares.sum((1, 2)), 1)
        assert not shares[~table.space.allowed | dominated(table, budget)].any()
        ratios = [cost_of(table, shares, name) / limit for name, limit in budget.limits.items()]
        assert max(ratios) == pytest.approx(1, rel=1e-6)


def test_of_all_with_that_cost_the_distribution_has_the_most_entropy() -> None:
    """The closed form: log p is linear in the cost, with one slope for all decisions."""
    table = table_of(weight_bits=(1, 2, 4, 8), activation_bits=(8,), first_layer="search")
    shares = cell_probabilities(table, Budget({"size_bytes": between(table, "size_bytes", 0.3)}, ""))[:, :, 0]
    prices = table.entries["size_bytes"][:, :, 0]
    slopes = np.diff(np.log(shares), axis=1) / np.diff(prices, axis=1)
    np.testing.assert_allclose(slopes, slopes[0, 0], rtol=1e-6)
    assert slopes[0, 0] < 0


@pytest.mark.parametrize(("limit", "extreme"), [(1.0, "narrowest"), (1e12, "widest")])
def test_a_limit_out_of_reach_gives_an_end(limit: float, extreme: str) -> None:
    table = table_of(**SPACES[0])
    sandwich = Sandwich(table, [Budget({"size_bytes": limit, "bitops": limit}, "")], 1)
    assert sandwich.draw(seeded())[1] == getattr(sandwich, extreme)


def test_what_is_drawn_costs_about_what_the_budgets_are() -> None:
    _, _, table = plan(resnet20(), (3, 32, 32), weight_bits=(1, 2, 3, 4, 6, 8), activation_bits=(8,))
    limits = [between(table, "size_bytes", share) for share in (0.2, 0.5)]
    sandwich = Sandwich(table, [Budget({"size_bytes": limit}, "") for limit in limits], 400)
    spent = np.array([table.cells_cost(cells)["size_bytes"] for cells in sandwich.draw(seeded())[1:-1]])
    low = spent < sum(limits) / 2
    for side, limit in ((low, limits[0]), (~low, limits[1])):
        assert spent[side].mean() == pytest.approx(limit, rel=0.05)
        assert 0.4 < side.mean() < 0.6
