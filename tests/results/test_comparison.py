"""Several fronts beside each other, against counting every cell of a grid."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from results.comparison import Reference, compare_fronts
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.pictures.plot_data import front_picture
from search_spaces.errors import InputError
from search_spaces.metrics import Metric

ERROR = Metric("mae", "smaller")


def drawn(seed: int, metric: Metric, count: int = 8) -> ParetoFront:
    draw = random.Random(seed)
    points = []
    for number in range(count):
        val, feasible = Estimate(float(draw.randrange(12))), draw.random() < 0.9
        size = float(draw.randrange(12))
        points.append(FrontPoint(f"p{number}", "search", size, 1.0, 1.0, val, feasible=feasible, metric=metric))
    return ParetoFront.from_points(points)


def beats(one: FrontPoint, other: FrontPoint) -> bool:
    better = one.size_bytes < other.size_bytes or one.gain > other.gain
    return one.size_bytes <= other.size_bytes and one.gain >= other.gain and better


def cells(points: list[FrontPoint], corner: Reference, metric: Metric) -> int:
    """How many unit cells between the corner and cost 0 some point dominates; all figures are whole numbers."""
    levels = range(12) if metric.direction == "larger" else range(-12, 0)
    low = metric.gain(corner.value)
    return sum(
        any(point.size_bytes <= cost and point.gain >= level + 1 for point in points if point.feasible)
        for cost in range(int(corner.cost))
        for level in levels
        if level >= low
    )


def test_equal_runs_are_equally_good() -> None:
    front = drawn(3, ERROR)
    marked: dict[str, list[bool]] = {"a": [], "b": []}
    for each in compare_fronts({"a": front, "b": front}).points:
        marked[each.run].append(each.best)
    assert marked["a"] == marked["b"] == [True] * len(front.front)


@pytest.mark.parametrize("metric", [Metric("score"), ERROR])
@pytest.mark.parametrize("seed", range(8))
def test_areas_are_the_cells_that_points_dominate(seed: int, metric: Metric) -> None:
    fronts = {"a": drawn(seed, metric), "b": drawn(seed + 100, metric)}
    every = [point for front in fronts.values() for point in front.points]
    feasible = [point for point in every if point.feasible]
    found = compare_fronts(fronts, "size_bytes", Reference(12.0, metric.gain(-12.0 if metric == ERROR else 0.0)))
    together = cells(every, found.reference, metric)
    for run, front in fronts.items():
        area = cells(list(front.points), found.reference, metric)
        assert found.volumes[run] == area
        assert found.shares[run] == pytest.approx(area / together if together else 0.0)
    for each in found.points:
        beaten = any(beats(other, each.point) for other in feasible)
        assert not (each.best and beaten)
        twin = any(
            (p.size_bytes, p.gain) == (each.point.size_bytes, each.point.gain) for p in feasible if p != each.point
        )
        assert each.best or beaten or twin


def test_a_given_reference_counts() -> None:
    point = FrontPoint("p", "search", 4.0, 10.0, 1.0, Estimate(0.75))
    found = compare_fronts({"a": ParetoFront.from_points([point])}, "size_bytes", Reference(10.0, 0.5))
    assert found.volumes == {"a": 6.0 * 0.25}
    assert found.to_json()["reference"] == {"size_bytes": 10.0, "top1": 0.5}
    assert compare_fronts({"a": ParetoFront.from_points([point])}, "bitops").reference.cost == 11.0


@pytest.mark.parametrize(("metric", "value"), [(Metric("score"), 2.0 - 0.6), (ERROR, 8.0 + 0.6)])
def test_the_reference_lies_a_tenth_beyond_the_worst(metric: Metric, value: float) -> None:
    points = [
        FrontPoint(name, "search", size, 1.0, 1.0, Estimate(val), metric=metric, feasible=feasible)
        for name, size, val, feasible in (("a", 10.0, 2.0, True), ("b", 30.0, 8.0, True), ("over", 99.0, 5.0, False))
    ]
    fronts = {"a": ParetoFront.from_points(points[:1]), "b": ParetoFront.from_points(points[1:])}
    reference = compare_fronts(fronts).reference
    assert (reference.cost, reference.value) == (32.0, pytest.approx(value))
    alone = compare_fronts({"a": fronts["a"]})
    assert alone.volumes["a"] == pytest.approx(1.0 * 0.2)
    assert alone.shares == {"a": 1.0}


def test_what_cannot_be_compared_is_refused() -> None:
    point = FrontPoint("p", "search", 4.0, 10.0, 1.0, Estimate(0.75))
    error = FrontPoint("p", "search", 4.0, 10.0, 1.0, Estimate(0.75), metric=ERROR)
    fronts = {"a": ParetoFront.from_points([point]), "b": ParetoFront.from_points([error])}
    with pytest.raises(InputError, match="b was measured by mae and a by top-1"):
        compare_fronts(fronts)
    with pytest.raises(InputError, match="no measured point"):
        compare_fronts({"a": ParetoFront.from_points([]), "b": ParetoFront.from_points([])})
    with pytest.raises(InputError, match="no cost 'latency'"):
        compare_fronts({"a": fronts["a"]}, "latency")


@pytest.mark.parametrize("over", [compare_fronts, front_picture])
def test_the_run_that_lacks_a_cost_is_named(over: Callable[..., object]) -> None:
    plain = FrontPoint("p", "search", 4.0, 10.0, 1.0, Estimate(0.75))
    timed = FrontPoint("q", "search", 5.0, 10.0, 1.0, Estimate(0.75), extra_costs={"latency_ms": 2.0})
    fronts = {"first": ParetoFront.from_points([timed]), "second": ParetoFront.from_points([plain])}
    every = "all of these runs have bitops, macs, size_bytes"
    with pytest.raises(InputError, match=f"^second has no cost 'latency_ms'; {every}$"):
        over(fronts, "latency_ms")
    with pytest.raises(InputError, match=r"^first has no cost 'latency_ns'; all"):
        over(fronts, "latency_ns")
    fronts["second"] = ParetoFront.from_points([plain, timed])
    with pytest.raises(InputError, match=r"^second has no cost 'latency_ms' of 'p'"):
        over(fronts, "latency_ms")
    with pytest.raises(InputError, match=r"^alone has no cost 'bitop'; it has b.*; did you mean 'bitops'\?$"):
        over({"alone": fronts["second"]}, "bitop")
