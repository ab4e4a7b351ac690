"""What to take: the cheapest net about as good as float and the best within each budget, in any metric and cost."""

from __future__ import annotations

from typing import Any

import pytest

from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.tables.advice import advice
from search_spaces.errors import InputError
from search_spaces.metrics import Metric

ERROR = Metric("mae", "smaller")


def point(id: str, kind: str, size: float, val: float, **changes: Any) -> FrontPoint:
    return FrontPoint(id, kind, size, 1000 - size, 5, Estimate(val), **changes)


def told(*points: FrontPoint, float_val: float | None = 0.98, x: str = "size_bytes") -> list[str]:
    reference = None if float_val is None else FloatReference(1000, float_val)
    return advice(ParetoFront.from_points(points, x, reference))


def budget(most: float, cost: str = "size_bytes") -> dict[str, Any]:
    return {"budget": f"{cost} {most}", "limits": {cost: float(most)}}


def test_the_smallest_within_one_point_of_float_is_taken() -> None:
    points = [point("s", "search", 20, 0.969), point("u", "uniform", 30, 0.97), point("best", "ilp", 40, 0.99)]
    assert told(*points) == [
        "take 'u' (30 B, 97.00 %): the smallest net within one point of float (98.00 % on validation)"
    ]
    assert told(*points, float_val=0.9999)[0].startswith("take 'best'")
    assert told(*points[:2], float_val=0.99)[0] == (
        "nothing is within one point of float (99.00 % on validation); the best is 'u' (30 B, 97.00 %)"
    )


def test_what_is_over_its_budget_or_shares_its_weights_is_not_taken() -> None:
    over = point("over", "ilp", 10, 0.99, feasible=False, **budget(5))
    profile = point("net-a", "switchable", 10, 0.99)
    assert told(over, profile, point("own", "uniform", 20, 0.98))[0].startswith("take 'own'")
    assert told(over, profile) == told() == []


def test_of_equal_ones_the_cheapest_then_the_search_is_taken() -> None:
    equal = [point("ilp-1", "ilp", 20, 0.98, **budget(40)), point("search-1", "search", 20, 0.98, **budget(40))]
    first, second = told(*equal, point("a", "uniform", 30, 0.98))
    assert first.startswith("take 'search-1' (20 B, 98.00 %)")
    assert second == "the best within each budget: size_bytes 40: 'search-1' (20 B, 98.00 %)"


def test_the_best_within_each_budget_may_come_from_anywhere() -> None:
    points = [
        point("search-2", "search", 90, 0.9, **budget(100)),
        point("search-1", "search", 18, 0.5, **budget(20)),
        point("u", "uniform", 19, 0.6),
        point("wide", "uniform", 120, 0.99),
        point("pruned", "pruned", 50, 0.95, **budget(70)),
    ]
    assert told(*points, float_val=None) == [
        "the best within each budget: size_bytes 20: 'u' (19 B, 60.00 %); size_bytes 100: 'pruned' (50 B, 95.00 %)"
    ]


def test_of_many_budgets_some_are_told_the_first_and_the_last_among_them() -> None:
    points = [point(f"s{n}", "search", 10 * n, 0.5 + 0.01 * n, **budget(10 * n)) for n in range(1, 31)]
    [sentence] = told(*points, float_val=None)
    assert sentence.startswith("the best within 6 of 30 budgets: size_bytes 10: 's1'")
    assert "size_bytes 300: 's30'" in sentence
    assert sentence.count("size_bytes") == 6


def test_a_budget_on_other_costs_is_met_in_these() -> None:
    points = [point("s", "search", 900, 0.9, **budget(150, "bitops")), point("u", "uniform", 800, 0.99)]
    first, second = told(*points, x="bitops")
    assert first.startswith("take 'u' (200 BitOps, 99.00 %): the cheapest (bitops) net")
    assert second == "the best within each budget: bitops 150: 's' (100 BitOps, 90.00 %)"


def test_costs_are_told_in_the_units_of_what_is_limited() -> None:
    both = {"size_bytes": 900.0, "bitops": 150.0}
    points = [
        point("s", "search", 900, 0.9, **budget(150, "bitops")),
        point("t", "search", 890, 0.8, budget="both", limits=both),
        point("l", "search", 800, 0.99, budget="ms", limits={"latency_ms": 3.0}, extra_costs={"latency_ms": 2.5}),
    ]
    first, second = told(*points)
    assert first.startswith("take 'l' (800 B, 2.5 ms, 200 BitOps, 99.00 %): the smallest net")
    for sentence in (
        "ms: 'l' (2.5 ms, 99.00 %)",
        "both: 's' (900 B, 100 BitOps, 90.00 %)",
        "bitops 150: 's' (100 BitOps, 90.00 %)",
    ):
        assert sentence in second


@pytest.mark.parametrize(("val", "near"), [(2.02, True), (2.03, False)])
def test_of_an_error_near_is_one_percent_of_that_of_float(val: float, near: bool) -> None:
    sentence = told(point("s", "search", 20, val, metric=ERROR), float_val=2.0)[0]
    assert sentence.startswith(
        "take 's' (20 B, 2.02)" if near else "nothing is within 1% of float (mae 2 on validation)"
    )


def test_what_is_no_front_is_refused() -> None:
    with pytest.raises(InputError, match="a front"):
        advice([])  # type: ignore[arg-type]
