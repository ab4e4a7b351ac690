"""The pool of a budget: whatever the space offers, each proposal is there once, within the budget and the bound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dnas.search.controls import Evidence
from dnas.search.pool import Proposers
from search_spaces.allocation.program import allocate
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair
from tests.search_spaces.allocation.brute_force import single_widenings
from tests.toys import Net, plan

SPACES: dict[str, dict[str, Any]] = {
    "independent": {"weight_bits": (1, 2, 4, 8), "activation_bits": (2, 4, 8)},
    "one width of activations": {"weight_bits": (1, 2, 4, 8), "activation_bits": (8,)},
    "float": {"weight_bits": (2, 8, 32), "activation_bits": (8, 32)},
    "tied": {"pairing": "tied", "weight_bits": (1, 3, 8)},
    "pairs": {"pairing": "pairs", "pairs": ((1, 4), (4, 1), (4, 4), (8, 8))},
    "skipping": {"granularity": "block", "include": ("first", "second"), "weight_bits": (0, 2, 8)},
    "one choice": {"weight_bits": (4,), "activation_bits": (4,)},
}


def table_of(space: str) -> CostTable:
    return plan(Net(), **{"first_layer": "search", "last_layer": "search", **SPACES[space]})[2]


def middle(table: CostTable, share: float = 0.5) -> Budget:
    """A budget between the cheapest and the dearest choice."""
    costs = [table.cells_cost(allocate(sign * table.entries["size_bytes"], table))["size_bytes"] for sign in (-1, 1)]
    return Budget({"size_bytes": costs[0] + share * (costs[1] - costs[0])}, "between")


def proposers(table: CostTable, budget: Budget, **changes: Any) -> Proposers:
    rng = np.random.default_rng(0)
    losses = [np.abs(rng.normal(size=table.space.allowed.shape)) for _ in range(2)]
    evidence = cast(Evidence, SimpleNamespace(table=table, sensitivities=losses[0], measured=losses[1]))
    worth = [allocate_widest(rng.random(table.space.allowed.shape), table, budget) for _ in range(3)]
    within = {f"draw-{number}": pairs_of(table, cells) for number, cells in enumerate(worth)}
    other = pairs_of(table, allocate(table.entries["size_bytes"], table))
    return Proposers(evidence, budget, 3, within, {"search-2": other}, **{"programs": 2, **changes})


def pairs_of(table: CostTable, cells: Any) -> list[Pair]:
    return [table.space.pair(*cell) for cell in cells]


def cells_of(table: CostTable, widths: tuple[Pair, ...]) -> list[tuple[int, int]]:
    grid = list(np.ndindex(*table.space.widths.shape))
    open_cells = [[cell for cell in grid if allowed[cell]] for allowed in table.space.allowed]
    return [
        next(cell for cell in cells if table.space.pair(*cell) == pair)
        for cells, pair in zip(open_cells, widths, strict=True)
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("space", SPACES)
def test_each_is_there_once_meets_the_budget_and_spends_it(space: str, share: float) -> None:
    table = table_of(space)
    budget = middle(table, share)
    pool = proposers(table, budget).pool()
    assert len({proposal.widths for proposal in pool}) == len(pool)
    for proposal in pool:
        cells = cells_of(table, proposal.widths)
        assert budget.met_by(table.cells_cost(cells))
        assert not single_widenings(table, cells, budget, None)
    sources = [source for proposal in pool for source in proposal.sources]
    assert len(set(sources)) == len(sources)
    assert {"draw-0", "draw-1", "draw-2", "ilp-3", "measured-ilp-3", "search-2"} <= set(sources)
    uniform = sum(bits > 0 for bits in table.space.weight_bits)
    assert sum(source.startswith("uniform-") for source in sources) == min(2, uniform)


def test_the_first_program_is_that_of_the_control() -> None:
    table = table_of("independent")
    budget = middle(table)
    found = proposers(table, budget)
    by_source = {source: proposal.widths for proposal in found.pool() for source in proposal.sources}
    for name, losses in (("ilp-3", found.evidence.sensitivities), ("measured-ilp-3", found.evidence.measured)):
        assert by_source[name] == tuple(pairs_of(table, allocate_widest(-losses, table, budget)))


def test_without_programs_no_sensitivities_are_asked_for() -> None:
    table = table_of("independent")
    found = proposers(table, middle(table), programs=0)
    bare = cast(Evidence, SimpleNamespace(table=table))
    pool = Proposers(bare, found.budget, 3, found.within, found.elsewhere, 0).pool()
    assert not any("ilp" in source for proposal in pool for source in proposal.sources)


@pytest.mark.parametrize("space", ["independent", "tied", "skipping"])
def test_nothing_is_wider_than_the_bound_and_what_was_is_called_narrowed(space: str) -> None:
    table = table_of(space)
    bound = pairs_of(table, allocate(table.entries["size_bytes"], table))
    bound[0] = min(
        table.space.pair(*cell) for cell in np.ndindex(*table.space.widths.shape) if table.space.allowed[0][cell]
    )
    pool = proposers(table, middle(table, 0.8), bound=bound).pool()
    assert all((np.array(proposal.widths) <= np.array(bound)).all() for proposal in pool)
    sources = {source for proposal in pool for source in proposal.sources}
    assert any(source.endswith("-narrowed") for source in sources)
