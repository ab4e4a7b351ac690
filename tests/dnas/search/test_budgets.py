"""One search per budget: each from the same warm supernet, its widths bounded by the larger budget where asked."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dnas.search.budgets import in_search_order, search_budgets
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.fields import Pair
from tests.toys import Net, build_supernet, seeded

SIZES = {"search-1": "55%", "search-2": "75%", "search-3": "62%"}


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("searched", [(), ("search-2",), ("search-2", "search-3")])
def test_every_budget_starts_warm_and_what_is_known_changes_nothing(monotone: bool, searched: tuple[str, ...]) -> None:
    supernet = build_supernet(
        Net(), weight_bits=(2, 4, 8), activation_bits=(8,), first_layer="search", last_layer="search"
    )
    budgets = {label: parse_budget({"size_bytes": size}, supernet.table) for label, size in SIZES.items()}
    ordered = in_search_order(budgets, supernet.table, monotone)
    assert list(ordered) == (["search-2", "search-3", "search-1"] if monotone else list(SIZES))
    warm = {name: value.clone() for name, value in supernet.state_dict().items()}
    trained: list[str] = []

    def train(label: str, budget: Budget) -> None:
        assert all(torch.equal(value, warm[name]) for name, value in supernet.state_dict().items())
        trained.append(label)
        with torch.no_grad():
            for theta in supernet.theta.parameters():
                theta.copy_(torch.randn(theta.shape, generator=seeded(int(label[-1]))))

    def widths(cells: Cells) -> list[Pair]:
        return [supernet.space.pair(*cell) for cell in cells]

    whole = dict(search_budgets(supernet, ordered, train, monotone=monotone))
    assert trained == list(ordered)
    assert all(budgets[label].met_by(supernet.table.cells_cost(cells)) for label, cells in whole.items())
    if monotone:
        chain = [widths(whole[label]) for label in ordered]
        for larger, smaller in pairwise(chain):
            assert all(w <= most_w and a <= most_a for (w, a), (most_w, most_a) in zip(smaller, larger, strict=True))
    supernet.load_state_dict(warm)
    known = {label: widths(whole[label]) for label in searched}
    again = dict(search_budgets(supernet, ordered, train, monotone=monotone, known=known))
    assert again == {label: cells for label, cells in whole.items() if label not in searched}


def test_a_search_without_a_budget_has_one_turn() -> None:
    supernet = build_supernet(Net(), weight_bits=(2, 8), activation_bits=(8,))
    assert in_search_order({"search-1": None}, supernet.table, True) == {"search-1": None}
    ((label, cells),) = search_budgets(supernet, {"search-1": None}, lambda label, budget: None)
    assert (label, cells) == ("search-1", supernet.decode())
