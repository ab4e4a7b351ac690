import csv
import io
import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront, hypervolume
from search_spaces.errors import InputError
from search_spaces.metrics import Metric

NAN, INFINITY = float("nan"), float("inf")


def point(id, size, top1, kind="search", **changes):
    return FrontPoint(id, kind, size, 10 * size, 5, Estimate(top1), **changes)


# Few distinct values, so that ties and dominance by one coordinate are common.
measured = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=9).map(
    lambda rows: [point(f"p{i}", size, top1 / 6, feasible=ok) for i, (size, top1, ok) in enumerate(rows)]
)


def brute_force(points):
    """Ids on the front by the definition, in O(n²): feasible, nothing better, no equal one with an earlier id."""

    def beats(a, b):
        no_worse = a.size_bytes <= b.size_bytes and a.val.mean >= b.val.mean
        equal = a.size_bytes == b.size_bytes and a.val.mean == b.val.mean
        return a.feasible and no_worse and (not equal or a.assignment < b.assignment)

    return {b.assignment for b in points if b.feasible and not any(beats(a, b) for a in points)}


def front_ids(points):
    return {p.assignment for p in ParetoFront.from_points(points).front}


@given(measured)
def test_the_front_is_that_of_the_definition(points):
    assert front_ids(points) == brute_force(points)


@given(measured, st.data())
def test_order_never_matters(points, data):
    assert ParetoFront.from_points(data.draw(st.permutations(points))) == ParetoFront.from_points(points)


@given(measured, st.integers(0, 5), st.integers(0, 3))
def test_a_dominated_point_never_moves_the_front(points, size_more, top1_less):
    front = ParetoFront.from_points(points).front
    assume(front and size_more + top1_less > 0)
    worse = point("zz", front[0].size_bytes + size_more, front[0].val.mean - top1_less)
    assert ParetoFront.from_points([*points, worse]).front == front


@pytest.mark.parametrize("scores", [(0.5, 0.575, 0.55, 0.525), (0.1, 0.2, 0.3, 0.0), (0.7, 0.1, 0.3, 0.5)])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("swap", [False, True])
def test_means_that_only_rounding_tells_apart_are_equal(scores, size, swap):
    """A net that costs more joins no front by the order in which its seeds were added up; a search leads a control."""
    means = [scores[0] / 2 + scores[1] / 2, (scores[2] + scores[3]) / 2]
    means.sort(reverse=swap)
    points = [point("a", size, means[0], kind="ilp"), point("z", 2, means[1])]
    assert front_ids(points) == {"z"}


@given(measured)
def test_marks_of_before_do_not_count(points):
    assert front_ids([replace(p, on_front=True) for p in points]) == front_ids(points)


@given(measured)
def test_json_round_trip(points):
    front = ParetoFront.from_points(points, "bitops", FloatReference(4000, 0.9, None))
    assert ParetoFront.from_json(json.loads(json.dumps(front.to_json(), allow_nan=False))) == front


def test_json_is_that_of_the_documentation():
    kept = {"budget": "40%", "limits": {"size_bytes": 160.0}, "extra_costs": {"latency_ms": 2.5}}
    kept |= {"parent": "search-1", "kept_filters": 0.625}
    rich = point("a", 100, 0.5, test=Estimate(0.25, 0.125, 3), **kept)
    front = ParetoFront.from_points([rich], reference=FloatReference(400, 0.75, 0.5, {"bitops": 9.0}))
    assert front.to_json() == {
        "schema": "dnas.front/1",
        "x": "size_bytes",
        "points": [
            {
                "assignment": "a",
                "kind": "search",
                "size_bytes": 100,
                "bitops": 1000,
                "macs": 5,
                "extra_costs": {"latency_ms": 2.5},
                "val_top1": {"mean": 0.5, "std": 0.0, "n": 1},
                "test_top1": {"mean": 0.25, "std": 0.125, "n": 3},
                "on_front": True,
                "feasible": True,
                "budget": "40%",
                "limits": {"size_bytes": 160.0},
                "parent": "search-1",
                "kept_filters": 0.625,
            }
        ],
        "metric": {"name": "top1", "direction": "larger", "scale": 100.0, "unit": "%", "title": "top-1"},
        "preprocessing": None,
        "float": {"size_bytes": 400, "val_top1": 0.75, "test_top1": 0.5, "costs": {"bitops": 9.0}},
    }
    assert ParetoFront.from_json(front.to_json()) == front
    old = front.to_json()
    del old["float"]["costs"]
    assert ParetoFront.from_json(old).reference == FloatReference(400, 0.75, 0.5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("points"),
        lambda data: data.pop("float"),
        lambda data: data["points"][0].pop("val_top1"),
        lambda data: data["points"][0].update(size_bytes=-5.0),
        lambda data: data["points"][0]["val_top1"].update(mean=7.5),
        lambda data: data["points"][0].update(size_bytes="big"),
        lambda data: data["points"][0].update(kind="magic"),
        lambda data: data["points"][0]["val_top1"].update(mean=None),
        lambda data: data.update(x="price"),
        lambda data: data.update(schema="dnas.front/2"),
        lambda data: data.update(points=7),
    ],
)
def test_a_damaged_front_file_is_refused(damage):
    data = ParetoFront.from_points([point("a", 1, 0.5)]).to_json()
    damage(data)
    with pytest.raises(InputError):
        ParetoFront.from_json(data)


def test_keys_may_be_added_to_a_front_file():
    front = ParetoFront.from_points([point("a", 1, 0.5)], reference=FloatReference(400, 0.75, 0.5))
    data = front.to_json()
    for entry in (data, data["points"][0], data["points"][0]["val_top1"], data["float"]):
        entry["colour"] = "red"
    assert ParetoFront.from_json(data) == front


@pytest.mark.parametrize("data", [None, [], "x", {}])
def test_what_is_no_front_file_is_refused(data):
    with pytest.raises(InputError, match="not a front file"):
        ParetoFront.from_json(data)


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
def test_numbers_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(InputError, match="point 'a' has size_bytes"):
        point("a", bad, 0.5)
    with pytest.raises(InputError, match="latency_ms"):
        point("a", 1, 0.5, extra_costs={"latency_ms": bad})
    with pytest.raises(InputError, match="not a measurement"):
        point("a", 1, bad)
    with pytest.raises(InputError, match="finite values"):
        Estimate.from_values([0.5, bad])
    with pytest.raises(InputError, match="finite numbers"):
        hypervolume([(1, bad)], (0, 0))
    with pytest.raises(InputError, match="finite numbers"):
        hypervolume([], (0, bad))
    with pytest.raises(InputError, match="has val = "):
        FloatReference(1, bad)


def test_other_nonsense_is_refused():
    with pytest.raises(InputError, match="not a kind of point; choose one of search,"):
        point("a", 1, 0.5, kind="magic")
    with pytest.raises(InputError, match="the search point 'a' is given twice"):
        ParetoFront.from_points([point("a", 1, 0.5), point("a", 2, 0.5)])
    with pytest.raises(InputError, match=r"no cost 'bitop'; it has .*; did you mean 'bitops'\?$"):
        ParetoFront.from_points([point("a", 1, 0.5)], x="bitop")
    with pytest.raises(InputError, match="finite values, at least one"):
        Estimate.from_values([])
    with pytest.raises(InputError, match="not a measurement"):
        Estimate(0.5, -0.1, 3)


def test_estimates():
    assert Estimate.from_values([0.25]) == Estimate(0.25, 0.0, 1)
    estimate = Estimate.from_values([1, 2, 4])
    assert estimate.std == pytest.approx(math.sqrt(7 / 3))
    assert (estimate.mean, estimate.n) == (pytest.approx(7 / 3), 3)


def test_another_cost_gives_another_front():
    points = [
        FrontPoint("a", "search", 1, 30, 1, Estimate(0.5), extra_costs={"latency_ms": 1}),
        FrontPoint("b", "search", 2, 20, 1, Estimate(0.5), extra_costs={"latency_ms": 2}),
    ]
    front = ParetoFront.from_points(points)
    assert [p.assignment for p in front.front] == ["a"]
    assert [p.assignment for p in front.by_cost("bitops").front] == ["b"]
    assert [p.assignment for p in front.by_cost("latency_ms").front] == ["a"]


def test_csv():
    points = [
        point("a,1", 100, 0.5, test=Estimate(0.25, 0.125, 3), budget="40 %"),
        point("b", 50, 0.25, kind="uniform", extra_costs={"latency_ms": 2.5}, feasible=False),
    ]
    rows = list(csv.DictReader(io.StringIO(ParetoFront.from_points(points).to_csv())))
    assert [row["assignment"] for row in rows] == ["b", "a,1"]
    assert rows[0]["latency_ms"] == "2.5"
    assert rows[0]["test_top1_mean"] == rows[0]["budget"] == rows[1]["latency_ms"] == ""
    assert (rows[0]["on_front"], rows[0]["feasible"], rows[1]["on_front"]) == ("false", "false", "true")
    assert (rows[1]["test_top1_std"], rows[1]["test_top1_n"], rows[1]["size_bytes"]) == ("0.125", "3", "100")
    assert rows[0]["parent"] == rows[0]["kept_filters"] == ""


def test_csv_tells_what_was_pruned():
    pruned = point("s-pruned-1", 50, 0.5, kind="pruned", parent="s", kept_filters=0.625)
    [row] = csv.DictReader(io.StringIO(ParetoFront.from_points([pruned]).to_csv()))
    assert (row["kind"], row["parent"], row["kept_filters"]) == ("pruned", "s", "0.625")


def test_a_front_of_before_pruning_is_read():
    data = ParetoFront.from_points([point("a", 1, 0.5)]).to_json()
    for key in ("parent", "kept_filters"):
        del data["points"][0][key]
    assert ParetoFront.from_json(data).points[0].parent is None


@pytest.mark.parametrize("share", [0, -0.5, 1.5, NAN])
def test_a_share_of_filters_that_cannot_be_is_refused(share):
    with pytest.raises(InputError, match="no share"):
        point("a", 1, 0.5, kept_filters=share)


def test_hypervolume_vectors():
    assert hypervolume([(1, 3), (2, 2), (3, 1)], (0, 0)) == 6.0
    assert hypervolume([], (0, 0)) == 0.0
    assert hypervolume([(1, 1), (1, 1)], (0, 0)) == 1.0
    assert hypervolume([(-1, 5), (5, -1), (0, 3)], (0, 0)) == 0.0
    front = ParetoFront.from_points([point("a", 10, 0.5), point("b", 20, 0.75)])
    assert front.hypervolume(30, 0.25) == pytest.approx(10 * 0.25 + 10 * 0.5)


@given(st.lists(st.tuples(st.integers(-2, 8), st.integers(-2, 8)), max_size=8), st.permutations(range(8)))
def test_hypervolume_counts_the_unit_squares_below_the_points(points, order):
    squares = {(x, y) for a, b in points for x in range(max(a, 0)) for y in range(max(b, 0))}
    shuffled = [points[index] for index in order if index < len(points)]
    assert hypervolume(points, (0, 0)) == hypervolume(shuffled, (0, 0)) == len(squares)


@given(measured, st.integers(1, 9), st.integers(0, 6))
def test_hypervolume_never_falls_with_a_point_more(points, size, top1):
    before = ParetoFront.from_points(points).hypervolume(10)
    assert ParetoFront.from_points([*points, point("zz", size, top1 / 6)]).hypervolume(10) >= before - 1e-12


def test_the_front_of_an_error_and_its_files():
    error = Metric("mae", "smaller", unit="cm")
    points = [point(name, size, value, metric=error) for name, size, value in (("a", 1, 3), ("b", 2, 2), ("c", 3, 2.5))]
    front = ParetoFront.from_points(points, reference=FloatReference(9, 1.0, 1.5))
    assert [p.assignment for p in front.front] == ["a", "b"]
    assert front.hypervolume(4, 4.0) == pytest.approx((4 - 1) * (4 - 3) + (4 - 2) * (3 - 2))
    data = front.to_json()
    assert data["points"][0]["val_mae"]["mean"] == 3
    assert data["float"]["val_mae"] == 1.0
    assert ParetoFront.from_json(data) == front
    assert "val_mae_mean" in front.to_csv().splitlines()[0]
