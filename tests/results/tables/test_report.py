import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.tables.report import front_rows, render_table
from results.tables.verdicts import compare_pruned, compare_with_controls, pooled_std, verdicts
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY, Metric


def point(id, kind, kib, top1, std=0.01, n=3, **changes):
    return FrontPoint(id, kind, 1024 * kib, 2e9 * kib, 5, Estimate(top1, std, n), **changes)


def sentences(*points, x="size_bytes"):
    return verdicts(ParetoFront.from_points(points, x))


def test_a_win_and_a_loss_are_told_in_points_against_the_spread():
    told = sentences(
        point("s", "search", 20, 0.92, budget="40%"),
        point("i", "ilp", 19, 0.90, budget="40%"),
        point("u4", "uniform", 20, 0.95),
        point("u8", "uniform", 40, 0.99),
    )
    assert told == [
        "budget 40%: search 's' (20 KiB, 92.00 ±1.00 %) beats ILP 'i' (19 KiB, 90.00 ±1.00 %) "
        "by 2.00 points (spread 1.00).",
        "budget 40%: search 's' (20 KiB, 92.00 ±1.00 %) loses to uniform 'u4' (20 KiB, 95.00 ±1.00 %) "
        "by 3.00 points (spread 1.00).",
    ]


def test_within_the_spread_on_either_side():
    for top1, gain in ((0.905, "-0.50"), (0.895, r"+0.50")):
        told = sentences(point("s", "search", 20, 0.9, budget="b"), point("i", "ilp", 20, top1, budget="b"))
        assert f"is within the spread of ILP 'i' (20 KiB, {100 * top1:.2f} ±1.00 %): {gain} points" in told[0]


@pytest.mark.parametrize("n", [1, 2])
def test_means_that_only_rounding_tells_apart_are_equal(n):
    """0.5 and 0.575 are 0.55 and 0.525 together: no -0.00 points, and nobody loses by 0.00."""
    first, second = (0.5 + 0.575) / 2, (0.55 + 0.525) / 2
    assert first < second
    spread = 0.01 * (n - 1)
    for one, other in ((first, second), (second, first)):
        told = sentences(
            point("s", "search", 20, one, spread, n, budget="b"), point("i", "ilp", 20, other, spread, n, budget="b")
        )
        assert ("equals ILP 'i'" if n == 1 else "%): +0.00 points") in told[0]


def test_one_seed_each_has_no_spread():
    told = sentences(point("s", "search", 20, 0.9, 0, 1, budget="b"), point("i", "ilp", 20, 0.8, 0, 1, budget="b"))
    assert "beats ILP 'i' (20 KiB, 80.00 %) by 10.00 points (one seed each, so the spread is not known)" in told[0]
    told = sentences(point("s", "search", 20, 0.9, 0, 1, budget="b"), point("i", "ilp", 20, 0.9, 0, 1, budget="b"))
    assert "equals ILP 'i'" in told[0]


def test_only_a_uniform_point_that_costs_no_more_is_a_fair_control():
    told = sentences(point("s", "search", 20, 0.9, budget="b"), point("u", "uniform", 20.5, 0.8))
    assert told == [
        "budget b: search 's' has no ILP control to compare with: no ILP control was measured at this budget.",
        "budget b: search 's' has no uniform control to compare with: "
        "no uniform assignment that was measured meets it.",
    ]
    assert "no uniform control was measured" in sentences(point("s", "search", 20, 0.9, budget="b"))[1]


def test_a_uniform_point_that_meets_every_limit_of_the_budget_is_a_fair_control():
    limits = {"size_bytes": 1024 * 22, "bitops": 2e9 * 21}
    search = point("s", "search", 20, 0.9, budget="b", limits=limits)
    within, over = point("u", "uniform", 20.5, 0.8), point("over", "uniform", 21.5, 0.95)
    assert "beats uniform 'u'" in sentences(search, within, over)[1]


def test_each_budget_has_its_own_controls_and_the_best_of_each():
    comparisons = compare_with_controls(
        ParetoFront.from_points(
            [
                point("s-large", "search", 40, 0.95, budget="large"),
                point("s-small", "search", 20, 0.90, budget="small"),
                point("s-worse", "search", 19, 0.80, budget="small"),
                point("s-over", "search", 30, 0.99, budget="small", feasible=False),
                point("i-large", "ilp", 40, 0.94, budget="large"),
                point("i-small", "ilp", 20, 0.88, budget="small"),
                point("u2", "uniform", 10, 0.70),
                point("u4", "uniform", 20, 0.89),
                point("u8", "uniform", 35, 0.85),
                point("r", "random", 5, 0.99),
            ]
        )
    )
    assert [(c.search.assignment, c.control.assignment) for c in comparisons] == [
        ("s-small", "i-small"),
        ("s-small", "u4"),
        ("s-large", "i-large"),
        ("s-large", "u4"),
    ]


def test_the_measured_program_is_compared_with_where_it_was_measured():
    search, ilp = point("s", "search", 20, 0.9, budget="b"), point("i", "ilp", 20, 0.8, budget="b")
    measured = [point(n, "measured-ilp", 20, top1, budget=b) for n, top1, b in (("m", 0.95, "b"), ("o", 0.99, "c"))]
    told = sentences(search, ilp, *measured)
    assert len(told) == 3
    assert "beats ILP 'i'" in told[0]
    assert "loses to measured ILP 'm'" in told[1]
    assert not any("measured ILP" in sentence for sentence in sentences(search, ilp))


def test_a_search_over_bit_operations_is_compared_by_them():
    told = sentences(
        point("s", "search", 20, 0.9, budget="b"),
        point("u", "uniform", 15, 0.8),
        point("i", "ilp", 20, 0.8),
        x="bitops",
    )
    assert "search 's' (40 GBitOps, 90.00 ±1.00 %) beats uniform 'u' (30 GBitOps" in told[1]


def pruned(id, kind, kib, top1, budget="50%", parent="s", **changes):
    kept = None if kind == "fewer-bits" else 0.625
    return point(id, kind, kib, top1, budget=budget, parent=parent, **{"kept_filters": kept, **changes})


PRUNED = (
    pruned("s-pruned-1", "pruned", 10, 0.90),
    pruned("s-pruned-uniform-1", "pruned-uniform", 10, 0.80),
    pruned("s-pruned-random-1", "pruned-random", 10, 0.895),
    pruned("s-fewer-bits-1", "fewer-bits", 10, 0.95),
)


def test_what_was_pruned_is_compared_with_its_controls_win_or_lose():
    assert sentences(*PRUNED) == [
        "s, budget 50%: pruned 's-pruned-1' (10 KiB, 90.00 ±1.00 %) beats pruned-uniform 's-pruned-uniform-1' "
        "(10 KiB, 80.00 ±1.00 %) by 10.00 points (spread 1.00).",
        "s, budget 50%: pruned 's-pruned-1' (10 KiB, 90.00 ±1.00 %) is within the spread of pruned-random "
        "'s-pruned-random-1' (10 KiB, 89.50 ±1.00 %): +0.50 points (spread 1.00).",
        "s, budget 50%: pruned 's-pruned-1' (10 KiB, 90.00 ±1.00 %) loses to fewer-bits 's-fewer-bits-1' "
        "(10 KiB, 95.00 ±1.00 %) by 5.00 points (spread 1.00).",
    ]


def test_pruning_changes_no_verdict_of_the_search():
    searched = [point("s", "search", 20, 0.92, budget="40%"), point("i", "ilp", 19, 0.90, budget="40%")]
    assert sentences(*searched, *PRUNED)[:2] == sentences(*searched)


def test_controls_of_another_parent_or_budget_or_over_it_do_not_count():
    others = [
        pruned("t-pruned-uniform-1", "pruned-uniform", 10, 0.99, parent="t"),
        pruned("s-pruned-random-2", "pruned-random", 5, 0.99, budget="25%"),
        pruned("s-fewer-bits-1", "fewer-bits", 30, 0.99, feasible=False),
    ]
    comparisons = compare_pruned(ParetoFront.from_points([PRUNED[0], *others]))
    assert [(c.kind, c.control) for c in comparisons] == [
        ("pruned-uniform", None),
        ("pruned-random", None),
        ("fewer-bits", None),
    ]
    assert sentences(PRUNED[0])[2] == (
        "s, budget 50%: pruned 's-pruned-1' has no fewer-bits control to compare with: "
        "all filters at fewer bits were not measured at this budget."
    )


def test_of_several_at_one_budget_the_best_is_compared():
    worse = [replace(p, assignment=f"{p.assignment}-more", val=Estimate(0.5, 0.01, 3)) for p in PRUNED]
    assert sentences(*PRUNED, *worse) == sentences(*PRUNED)


def test_without_a_budget_the_control_is_what_costs_no_more_with_all_its_filters():
    found = [pruned(f"s-pruned-{n}", "pruned", 10 * n, 0.9, budget=None) for n in (1, 2)]
    told = sentences(*found, point("u", "uniform", 15, 0.95), point("r", "random", 20, 0.5))
    assert told == [
        "s: pruned 's-pruned-1' has no unpruned control to compare with: nothing as small keeps all its filters.",
        "s: pruned 's-pruned-2' (20 KiB, 90.00 ±1.00 %) loses to unpruned 'u' (15 KiB, 95.00 ±1.00 %) "
        "by 5.00 points (spread 1.00).",
    ]


def test_the_table_shows_the_share_of_filters_in_80_columns():
    out = io.StringIO()
    front = ParetoFront.from_points([*PRUNED, point("s", "search", 20, 0.9)], reference=FloatReference(1024 * 80))
    Console(file=out, width=80, color_system=None).print(render_table(front_rows(front)))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0][:2] == ["assignment", "kept"]
    assert ["s-pruned-1", "62", "%", "10", "8.0x", "20", "90.00", "±1.00"] in lines
    assert ["s-fewer-bits-1", "all", "10", "8.0x", "20", "95.00", "±1.00", "yes"] in lines
    assert front_rows(front)[0]["parent"] == "s"


@pytest.mark.parametrize(
    ("costs", "shown"), [((2e-7, 3e-7), ["2e-07", "3e-07"]), ((0.02, 3.0), ["0.02000", "3.00000"])]
)
def test_the_table_loses_no_cost_however_small(costs, shown):
    points = [
        point(f"s{i}", "search", 20 + i, 0.9, limits={"joule": 1.0}, extra_costs={"joule": each})
        for i, each in enumerate(costs)
    ]
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(render_table(front_rows(ParetoFront.from_points(points))))
    assert [text for text in shown if text in out.getvalue().split()] == shown


def test_nothing_searched_says_nothing():
    assert sentences(point("u", "uniform", 10, 0.9)) == []
    assert sentences() == []


def test_pooled_std_weighs_by_degrees_of_freedom():
    assert pooled_std(Estimate(0, 1.0, 2), Estimate(0, 3.0, 4)) == pytest.approx(math.sqrt((1 + 3 * 9) / 4))
    assert pooled_std(Estimate(0, 0.0, 1), Estimate(0, 3.0, 4)) == pytest.approx(3.0)
    assert pooled_std(Estimate(0), Estimate(1)) is None


@pytest.fixture
def front():
    points = [
        point("large", "search", 40, 0.95, test=Estimate(0.94, 0.02, 3)),
        point("small", "ilp", 10, 0.90, n=1, std=0.0),
        point("over", "search", 20, 0.93, feasible=False, budget="15 KiB"),
    ]
    return ParetoFront.from_points(points, "bitops", FloatReference(1024 * 80))


def test_rows_are_sorted_by_size_and_in_their_units(front):
    rows = front_rows(front)
    assert [row["id"] for row in rows] == ["small", "over", "large", "float"]
    assert rows[2] == {
        "id": "large",
        "kind": "search",
        "budget": None,
        "size_kib": 40,
        "times_smaller": 2,
        "times_smaller_without_index": None,
        "gbitops": 80,
        "val_top1": 0.95,
        "val_std": 0.01,
        "test_top1": 0.94,
        "test_std": 0.02,
        "test_seeds": 3,
        "seeds": 3,
        "parent": None,
        "kept_filters": None,
        "on_front": True,
        "feasible": True,
        "costs": {"size_bytes": 40960, "bitops": 8e10, "macs": 5},
        "limits": {},
        "metric": ACCURACY.to_json(),
    }
    assert front_rows(ParetoFront.from_points(front.points))[0]["times_smaller"] is None


def test_the_table_fits_into_80_columns(front):
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(render_table(front_rows(front), "the front"))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["small", "ILP", "10", "8.0x", "20", "90.00", "yes"] in lines
    assert ["over", "search", "20", "4.0x", "40", "93.00", "±1.00", "over"] in lines
    assert ["large", "search", "40", "2.0x", "80", "95.00", "±1.00", "94.00", "±2.00", "yes"] in lines


def shown(front):
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(render_table(front_rows(front)))
    return [line.split("  ") for line in out.getvalue().splitlines()], out.getvalue()


def test_the_float_network_has_a_row_with_all_that_is_known_of_it(front):
    costs = {"size_bytes": 81920.0, "bitops": 1.28e12, "macs": 1e9}
    known = ParetoFront.from_points(front.points, reference=FloatReference(81920, 0.975, 0.96, costs))
    row = front_rows(known)[-1]
    assert (row["id"], row["kind"], row["times_smaller"], row["gbitops"]) == ("float", "float", 1.0, 1280.0)
    assert shown(known)[1].splitlines()[-1].split() == ["float", "float", "80", "1.0x", "1,280", "97.50", "96.00"]
    # Files of earlier versions know its size alone.
    assert shown(front)[1].splitlines()[-1].split() == ["float", "float", "80", "1.0x"]
    assert "float" not in shown(ParetoFront.from_points(front.points))[1]


@pytest.mark.parametrize(
    ("name", "value", "heading", "text"),
    [
        ("latency_ms", 0.4321, "latency ms", "0.4321"),
        ("peak_activation_bytes", 20480.0, "peak activation memory KiB", "20"),
        ("weight_bits", 123456.0, "weight bits", "123,456"),
        ("my_energy", 12.5, "my energy", "12.50"),
    ],
)
def test_every_cost_that_a_budget_limits_has_a_column_and_is_told_in_the_verdict(name, value, heading, text):
    limited = point("s", "search", 20, 0.9, budget="b", limits={name: 2 * value}, extra_costs={name: value})
    other = point("i", "ilp", 20, 0.8, budget="b", limits={name: 2 * value}, extra_costs={name: 1.5 * value})
    front = ParetoFront.from_points([limited, other])
    lines, whole = shown(front)
    assert heading in whole.splitlines()[0]
    assert any(text in cells for cells in ([cell.strip() for cell in line] for line in lines)), whole
    told = verdicts(front)[0]
    assert f"'s' ({text.rstrip('0')}" in told or f"'s' ({text}" in told  # and not its size, which nothing limits


def test_a_verdict_is_in_the_costs_of_its_own_budget():
    front = ParetoFront.from_points(
        [
            point("s-1", "search", 20, 0.9, budget="bitops 5%", limits={"bitops": 5e10}),
            point("i-1", "ilp", 19, 0.8, budget="bitops 5%", limits={"bitops": 5e10}),
            point("s-2", "search", 30, 0.95, budget="both", limits={"size_bytes": 1024 * 40, "bitops": 7e10}),
            point("i-2", "ilp", 31, 0.9, budget="both", limits={"size_bytes": 1024 * 40, "bitops": 7e10}),
        ]
    )
    told = [sentence for sentence in verdicts(front) if "ILP" in sentence]
    assert "'s-1' (40 GBitOps, 90.00 ±1.00 %) beats ILP 'i-1' (38 GBitOps, " in told[0]
    assert "'s-2' (30 KiB, 60 GBitOps, 95.00 ±1.00 %) beats ILP 'i-2' (31 KiB, 62 GBitOps, " in told[1]


def test_figures_of_a_column_have_the_same_decimals():
    front = ParetoFront.from_points([point("a", "search", 1.25, 0.9), point("b", "search", 300.003, 0.95)])
    lines = shown(front)[1].splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["1,280", "307,203"]
    assert [line.split()[3] for line in lines[1:]] == ["2,500", "600,006"]
    front = ParetoFront.from_points([replace(a, bitops=a.bitops / 16.05) for a in front.points])
    assert [line.split()[3] for line in shown(front)[1].splitlines()[1:]] == ["155.8", "37,383.6"]


def test_of_an_error_the_smaller_is_better():
    error = Metric("mae", "smaller", title="mean absolute error")
    points = [
        point("s", "search", 20, 0.25, budget="b", metric=error),
        point("i", "ilp", 20, 0.5, budget="b", metric=error),
        point("u", "uniform", 10, 0.125, metric=error, limits={"size_bytes": 2e4}),
    ]
    whole = ParetoFront.from_points(points)
    assert [p.assignment for p in whole.front] == ["u"]
    told = verdicts(whole)
    assert "search 's' (20 KiB, 0.25 ±0.01) beats ILP 'i' (20 KiB, 0.5 ±0.01) by 0.25 (spread 0.01)" in told[0]
    assert "loses to uniform 'u' (10 KiB, 0.125 ±0.01) by 0.125" in told[1]
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(render_table(front_rows(whole)))
    assert "val mae" in out.getvalue()
    assert "0.125 ±0.01" in out.getvalue()
    with pytest.raises(InputError, match="different metrics"):
        ParetoFront.from_points([*points, point("a", "search", 5, 0.9)])
