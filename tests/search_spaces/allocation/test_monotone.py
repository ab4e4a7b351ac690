"""Bounded projections against brute force, the order of budgets, and what a bound can and cannot leave out of reach."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.allocation.monotone import check_bounds, from_largest, no_wider
from search_spaces.allocation.program import allocate, dominated, is_reachable
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from tests.search_spaces.allocation.brute_force import between, every, inside, utility, widths, within
from tests.toys import Net, plan


class TwoBranches(nn.Module):
    """Two residual branches, of two layers and of one, which can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.first, self.second, self.third = (nn.Conv2d(2, 2, size, padding="same") for size in (3, 1, 3))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.second(self.first(x).relu()) + x
        return self.head((self.third(x.relu()) + x).mean((2, 3)))


GRAPH, SPACE, TABLE = plan(Net(), weight_bits=(1, 3, 32), activation_bits=(2, 4), first_layer="search")
_, SKIPPING, SKIPPING_TABLE = plan(TwoBranches(), weight_bits=(0, 2, 32), activation_bits=(2, 4), granularity="block")
TABLES = (TABLE, SKIPPING_TABLE)
COSTS = ("size_bytes", "bitops", "peak_activation_bytes")
seeds = st.integers(0, 2**32 - 1)
tables = st.sampled_from(TABLES)
shares = st.dictionaries(st.sampled_from(COSTS), st.floats(0, 1), min_size=1)


def drawn_bound(table: CostTable, rng: np.random.Generator) -> list[Pair]:
    cells = every(table)
    return widths(table, cells[rng.integers(len(cells))])


@settings(max_examples=30, deadline=None)
@given(tables, seeds, shares)
def test_a_bounded_allocation_is_the_best_of_all_within_budget_and_bound(
    table: CostTable, seed: int, shares: dict[str, float]
) -> None:
    rng = np.random.default_rng(seed)
    utilities, bound, budget = (
        rng.normal(size=table.space.allowed.shape),
        drawn_bound(table, rng),
        between(table, shares),
    )
    bounded = [cells for cells in every(table) if inside(table, cells, bound)]
    fitting = within(table, budget, bound)
    assume(fitting)
    chosen = allocate(utilities, table, budget, bound)
    assert chosen in fitting
    assert utility(utilities, chosen) == pytest.approx(max(utility(utilities, cells) for cells in fitting), abs=1e-5)
    alone = allocate(utilities, table, None, bound)
    assert utility(utilities, alone) == pytest.approx(max(utility(utilities, cells) for cells in bounded), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(tables, seeds, shares)
def test_a_cell_is_dominated_within_the_bound_alone(table: CostTable, seed: int, shares: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    bound, budget = drawn_bound(table, rng), between(table, shares)
    assume(is_reachable(table, budget))
    left_out = dominated(table, budget, bound)
    chosen = allocate(np.where(left_out, -np.inf, 0.0), table, budget, bound)
    assert inside(table, chosen, bound)
    assert budget.met_by(table.cells_cost(chosen))


@settings(max_examples=20, deadline=None)
@given(tables, seeds, st.lists(shares, min_size=2, max_size=4))
def test_every_budget_that_can_be_met_is_met_within_the_bounds_of_the_larger_ones(
    table: CostTable, seed: int, drawn: list[dict[str, float]]
) -> None:
    rng = np.random.default_rng(seed)
    budgets = [budget for budget in (between(table, shares) for shares in drawn) if is_reachable(table, budget)]
    check_bounds(table, budgets)
    bound: list[Pair] | None = None
    for place in from_largest(budgets, table):
        chosen = allocate(rng.normal(size=table.space.allowed.shape), table, budgets[place], bound)
        assert budgets[place].met_by(table.cells_cost(chosen))
        assert bound is None or inside(table, chosen, bound)
        bound = widths(table, chosen)


def test_skipping_is_narrower_than_all_and_32_bits_are_the_widest() -> None:
    assert (SKIPPING.weight_bits, SKIPPING.activation_bits) == ((0, 2, 32), (2, 4))
    assert [decision.layers for decision in SKIPPING.decisions] == [("first", "second"), ("third",)]
    bounds: list[Pair] = [(32, 4), (32, 2), (2, 4), (0, 0)]
    found = [no_wider(SKIPPING, [bound, (32, 4)])[0].astype(int).tolist() for bound in bounds]
    assert found == [
        [[1, 1], [1, 1], [1, 1]],
        [[1, 1], [1, 0], [1, 0]],  # a skipped branch has no activation bits, whatever column it stands in
        [[1, 1], [1, 1], [0, 0]],
        [[1, 1], [0, 0], [0, 0]],
    ]


def ordered(*limits: dict[str, float]) -> list[int]:
    return from_largest([Budget(each, "") for each in limits], TABLE)


def test_budgets_are_ordered_by_the_first_cost_that_all_limit() -> None:
    assert ordered({"size_bytes": 5}, {"size_bytes": 9}, {"size_bytes": 7}) == [1, 2, 0]
    nested = ({"bitops": 3, "size_bytes": 5}, {"size_bytes": 9, "bitops": 1}, {"size_bytes": 7, "bitops": 2})
    assert ordered(*nested) == [0, 2, 1]
    assert ordered({"macs": 1, "size_bytes": 5}, {"size_bytes": 9}) == [1, 0]
    # Equal there: by the next cost, no limit being the largest; equal everywhere: as they are written.
    assert ordered({"size_bytes": 5, "bitops": 2}, {"size_bytes": 5, "bitops": 3}) == [1, 0]
    assert ordered({"size_bytes": 5, "bitops": 2}, {"size_bytes": 5}) == [1, 0]
    assert ordered({"size_bytes": 5}, {"size_bytes": 5}) == [0, 1]
    assert ordered() == []


def test_budgets_with_no_cost_in_common_are_ordered_by_the_share_of_the_dearest_choice() -> None:
    dearest = TABLE.cells_cost([(2, 1)] * len(SPACE.decisions))
    limits = [("size_bytes", 0.5), ("bitops", 0.7), ("peak_activation_bytes", 0.6)]
    assert ordered(*({name: share * dearest[name]} for name, share in limits)) == [1, 2, 0]
    tight = {"size_bytes": 0.9 * dearest["size_bytes"], "macs": 0.1 * dearest["macs"]}
    assert ordered(tight, {"bitops": 0.2 * dearest["bitops"]}) == [1, 0]


def pairs_table(*pairs: Pair) -> CostTable:
    return plan(Net(), pairing="pairs", pairs=pairs)[2]


def test_a_space_without_a_narrowest_choice_is_refused_by_name() -> None:
    two = [Budget({"bitops": 1e9}, "large"), Budget({"bitops": 1e8}, "small")]
    crossed = pairs_table((2, 8), (8, 2), (8, 8))
    message = "search.monotone: 'first' has no choice that is the narrowest in weights and in activations, so a smaller"
    with pytest.raises(InputError, match=re.escape(message)):
        check_bounds(crossed, two)
    check_bounds(crossed, two[:1])  # nothing bounds a budget alone
    check_bounds(pairs_table((2, 8), (8, 2), (2, 2)), two)
    # What the refusal is about: nothing is within a bound of 2 and 2 bits.
    least = TABLE.constants["size_bytes"]
    with pytest.raises(InputError, match=r"^budget 'small' cannot be met within the bound of a larger one$"):
        allocate(np.zeros(crossed.space.allowed.shape), crossed, Budget({"bitops": 1e9}, "small"), [(2, 2), (2, 2)])
    with pytest.raises(InputError, match=r"^budget 'none' cannot be met within the bound of a larger one$"):
        allocate(np.zeros(crossed.space.allowed.shape), crossed, None, [(2, 2), (2, 2)])
    with pytest.raises(InputError, match="the least possible is"):
        allocate(np.zeros(TABLE.space.allowed.shape), TABLE, Budget({"size_bytes": least / 2}, "small"), [(1, 2)] * 3)


def test_a_cost_that_falls_with_the_width_is_refused_where_it_is_limited() -> None:
    falling = replace(TABLE.costs["bitops"], name="latency", layer=lambda layer, w, a: 100.0 - w)
    table = CostTable(GRAPH, SPACE, [TABLE.costs["size_bytes"], falling])
    message = "search.monotone: the narrowest choice of 'stem' is not its cheapest in latency, so a smaller"
    with pytest.raises(InputError, match=re.escape(message)):
        check_bounds(table, [Budget({"size_bytes": 9}, ""), Budget({"size_bytes": 5, "latency": 5}, "")])
    check_bounds(table, [Budget({"size_bytes": 9}, ""), Budget({"size_bytes": 5}, "")])
