"""One search for every budget, each from the same warm supernet; with ``monotone`` each bounded by the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from dnas.search.supernet import Supernet
from search_spaces.allocation.monotone import check_bounds, from_largest
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair

Limits = TypeVar("Limits", Budget, Budget | None)


def in_search_order(budgets: Mapping[str, Limits], table: CostTable, monotone: bool) -> dict[str, Limits]:
    """The budgets by label, the largest first where the search is ``monotone``; no budget may be there alone.

    Raises :class:`InputError` where bounding one budget by another could leave it without any choice.
    """
    limited = [budget for budget in budgets.values() if budget is not None]
    if not monotone or not limited:
        return dict(budgets)
    check_bounds(table, limited)
    labels = list(budgets)
    return {labels[place]: budgets[labels[place]] for place in from_largest(limited, table)}


def search_budgets(
    supernet: Supernet,
    budgets: Mapping[str, Limits],
    train: Callable[[str, Limits], None],
    *,
    monotone: bool = False,
    known: Mapping[str, list[Pair]] | None = None,
) -> Iterator[tuple[str, Cells]]:
    """Yield each label with the cells decoded for its budget, in the order of ``budgets`` (:func:`in_search_order`).

    The supernet comes warm, and is put back to that before ``train(label, budget)`` trains its θ. ``known`` gives the
    widths, (weight bits, activation bits) per decision, of labels that were searched before: these are left out.
    """
    known = known or {}
    warm = {name: value.clone() for name, value in supernet.state_dict().items()}
    bound: list[Pair] | None = None
    for label, budget in budgets.items():
        if label in known:
            bound = known[label]
            continue
        supernet.load_state_dict(warm)
        train(label, budget)
        cells = supernet.decode(budget, bound if monotone else None)
        yield label, cells
        bound = [supernet.space.pair(*cell) for cell in cells]
