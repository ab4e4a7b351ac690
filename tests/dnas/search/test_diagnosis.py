"""What a finished search is told: collapse, indecision and leaning on the mixture; nothing when it is healthy."""

from __future__ import annotations

from typing import Any

import pytest

from dnas.search.diagnosis import diagnose
from dnas.search.records import EpochRecord
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from tests.toys import Net, plan

_, SPACE, TABLE = plan(Net(), weight_bits=(2, 4, 8), activation_bits=(2, 8))
CHEAPEST: Cells = [(0, 0), (0, 0)]
DEAREST: Cells = [(2, 1), (2, 1)]
BETWEEN: Cells = [(1, 1), (2, 0)]


def told(free: Cells, share: float, **values: Any) -> list[str]:
    """The diagnosis of a search under a budget at this share of the way from the cheapest to the dearest."""
    least, most = (TABLE.cells_cost(cells)["bitops"] for cells in (CHEAPEST, DEAREST))
    fields: dict[str, Any] = {"score": 0.8, "argmax_score": 0.79, "entropy": 0.4}
    record = EpochRecord(
        epoch=9, epochs=9, loss=1.0, expected={}, temperature=0.5, decision_entropy={}, bits={}, seconds=1.0,
        **{**fields, **values},
    )  # fmt: skip
    budget = Budget({"bitops": least + share * (most - least)}, "b")
    return diagnose("mine", record, free, TABLE, budget)


def test_a_healthy_search_is_told_nothing() -> None:
    assert told(BETWEEN, 0.6) == []
    assert told(CHEAPEST, 0.01) == []  # the budget allows nothing better
    assert told(DEAREST, 1.0) == []  # the budget allows it


@pytest.mark.parametrize(
    ("free", "values", "words"),
    [
        (CHEAPEST, {}, "collapse: every decision took its cheapest choice"),
        (DEAREST, {}, "collapse: every decision took its dearest choice"),
        (BETWEEN, {"entropy": 0.99}, "undecided: θ still has 99%"),
        (BETWEEN, {"score": 0.9, "argmax_score": 0.6}, "the mixture is 30 points more accurate"),
    ],
)
def test_each_illness_is_told_in_words(free: Cells, values: dict[str, float], words: str) -> None:
    (sentence,) = told(free, 0.5, **values)
    assert sentence.startswith("mine: ")
    assert words in sentence
