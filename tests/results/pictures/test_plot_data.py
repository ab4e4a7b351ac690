import pytest

from results.events import Epoch, Started, read_event
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.pictures.curve_data import search_curves
from results.pictures.plot_data import bit_map, bit_text, front_picture
from results.units import scaled_unit
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.metrics import Metric


def point(id, kind, kib, top1, std=0.0, n=1, **changes):
    return FrontPoint(id, kind, 1024 * kib, 1e6 * kib, 5, Estimate(top1, std, n), **changes)


def front(*points, reference=None):
    return ParetoFront.from_points(points, reference=reference)


def test_the_picture_holds_every_point_once_in_its_unit():
    picture = front_picture(
        {
            "digits": front(
                point("a", "search", 20, 0.5, 0.01, 3),
                point("b", "search", 30, 0.75),
                point("c", "uniform", 40, 0.25),
                point("d", "search", 25, 0.9, feasible=False),
                reference=FloatReference(1024 * 100, 0.875),
            )
        }
    )
    found = {(s.kind, s.feasible): (s.x, s.y, s.error) for s in picture.series}
    assert found == {
        ("search", True): ((20, 30), (50, 75), (1, 0)),
        ("search", False): ((25,), (90,), (0,)),
        ("uniform", True): ((40,), (25,), (0,)),
    }
    assert picture.staircases[0].x == (20, 30, 40)
    assert picture.staircases[0].y == (50, 75, 75)
    assert picture.baselines == {"digits": 87.5}
    assert (picture.x_label, picture.y_label, picture.log_x) == ("size (KiB)", "validation top-1 accuracy (%)", False)
    assert picture.test_series == ()


def test_pruned_points_are_linked_to_what_they_were_made_from():
    parent = {"parent": "a", "budget": "50%"}
    picture = front_picture(
        {
            "r": front(
                point("a", "search", 40, 0.75),
                point("a-pruned-1", "pruned", 20, 0.5, kept_filters=0.5, **parent),
                point("a-pruned-2", "pruned", 10, 0.25, kept_filters=0.25, **parent),
                point("a-pruned-uniform-1", "pruned-uniform", 20, 0.4, kept_filters=0.5, **parent),
                point("a-fewer-bits-1", "fewer-bits", 20, 0.45, **parent),
                point("b-pruned-1", "pruned", 30, 0.5, kept_filters=0.5, parent="gone"),
            )
        }
    )
    assert [(link.run, link.start, link.end) for link in picture.links] == [
        ("r", (40, 75), (10, 25)),
        ("r", (40, 75), (20, 50)),
    ]
    assert [series.kind for series in picture.series] == ["search", "pruned", "pruned-uniform", "fewer-bits"]


def test_test_accuracy_is_drawn_only_if_asked():
    fronts = {"r": front(point("a", "search", 20, 0.5, test=Estimate(0.25)), point("b", "search", 30, 0.6))}
    assert front_picture(fronts).test_series == ()
    tested = front_picture(fronts, show_test=True)
    assert [(s.x, s.y) for s in tested.test_series] == [((20,), (25,))]
    assert tested.y_label == "top-1 accuracy (%)"


def test_several_runs_share_the_axes():
    picture = front_picture(
        {"small": front(point("a", "search", 20, 0.5)), "large": front(point("a", "search", 20 * 1024, 0.9))}
    )
    assert picture.runs == ("small", "large")
    assert picture.x_label == "size (MiB)"
    assert picture.log_x
    assert [s.x for s in picture.series] == [(20 / 1024,), (20,)]


def test_another_cost_is_another_front():
    points = [FrontPoint("a", "search", 1, 30e9, 1, Estimate(0.5)), FrontPoint("b", "ilp", 2, 20e9, 1, Estimate(0.5))]
    picture = front_picture({"r": front(*points)}, x="bitops")
    assert picture.x_label == "bit operations (GBitOps)"
    assert picture.staircases[0].x == (20, 30)


def test_nothing_feasible_has_no_staircase_and_nothing_at_all_is_told():
    assert front_picture({"r": front(point("a", "search", 1, 0.5, feasible=False))}).staircases == ()
    for fronts in ({}, {"r": front()}):
        with pytest.raises(InputError, match="no measured point"):
            front_picture(fronts)


@pytest.mark.parametrize(
    ("cost", "largest", "label"),
    [
        ("size_bytes", 9, "size (B)"),
        ("size_bytes", 10 * 1024, "size (KiB)"),
        ("bitops", 5e12, "bit operations (GBitOps)"),
        ("latency_ms", 0.1, "latency (ms)"),
        ("energy_per_frame", 5, "energy per frame"),
        ("macs", 0, "multiply-accumulates (MACs)"),
    ],
)
def test_units(cost, largest, label):
    assert scaled_unit(cost, largest).axis_label == label


def assignment(id, **bits):
    return BitAssignment(id, ModelReference("m", (1,)), {name: LayerBits(*pair) for name, pair in bits.items()})


def test_bit_map():
    table = bit_map([assignment("a", x=(0, 0), y=(4, 8)), assignment("b", y=(2, 32), z=(3, 3))])
    assert table.layers == ("x", "y", "z")
    assert table.assignments == ("a", "b")
    assert table.weight_bits == ((0, None), (4, 2), (None, 3))
    assert table.activation_bits == ((0, None), (8, 32), (None, 3))
    assert table.levels == (0, 2, 3, 4, 8, 32)
    assert [bit_text(bits) for bits in (0, 1, 32, None)] == ["skip", "1", "fp32", ""]
    with pytest.raises(InputError, match="no assignment"):
        bit_map([])


def epoch(number, **changes):
    record = {
        "event": "epoch",
        "stage": "search",
        "run": "search-1",
        "seed": 0,
        "epoch": number,
        "epochs": 3,
        "loss": 1.0,
        "top1": 0.5,
        "argmax_top1": None,
        "expected": {"size_bytes": 20 * 1024, "bitops": 5.0},
        "budget": {"size_bytes": 10 * 1024},
        "temperature": 2.0,
        "entropy": 0.5,
        "decision_entropy": {"conv1": 0.25},
        "bits": {"conv1": [4, 8]},
        "seconds": 1.0,
    }
    return read_event(record | changes)


def test_curves_of_one_search():
    curves = search_curves(
        [
            Started(),
            epoch(1, stage="warmup"),
            epoch(1),
            epoch(2, argmax_top1=0.25, bits={"conv1": [2, 8], "fc": [4, 4]}),
        ]
    )["search-1"]
    assert curves.epochs == (1, 2)
    assert curves.soft == (50, 50)
    assert curves.argmax == (None, 25)
    assert [(c.label, c.values, c.budget) for c in curves.costs] == [("size (KiB)", (20, 20), 10)]
    assert curves.weight_bits == {"conv1": (4, 2), "fc": (None, 4)}
    assert curves.activation_bits == {"conv1": (8, 8), "fc": (None, 4)}
    assert curves.decision_entropy == {"conv1": (0.25, 0.25)}


def test_an_epoch_repeated_after_a_resume_counts_once():
    curves = search_curves([epoch(1), epoch(2, top1=0.1), epoch(2, top1=0.75)])["search-1"]
    assert curves.soft == (50, 75)


def test_several_budgets_are_shares_and_no_budget_is_the_first_cost():
    two = search_curves([epoch(1, budget={"size_bytes": 10 * 1024, "bitops": 10.0})])["search-1"]
    assert [(c.label, c.values, c.budget) for c in two.costs] == [
        ("size / budget", (2.0,), 1.0),
        ("bit operations / budget", (0.5,), 1.0),
    ]
    none = search_curves([epoch(1, budget={})])["search-1"]
    assert [(c.label, c.budget) for c in none.costs] == [("size (KiB)", None)]


def test_searches_are_told_apart_by_label_and_seed():
    found = search_curves([epoch(1), epoch(1, run="search-2"), epoch(1, run="search-2", seed=1)])
    assert list(found) == ["search-1", "search-2 (seed 0)", "search-2 (seed 1)"]
    assert search_curves([]) == {}


def test_missing_fields_are_gaps():
    bare = Epoch(stage="search", run="s", epoch=1, budget=None)
    curves = search_curves([bare])["s"]
    assert (curves.temperature, curves.entropy, curves.costs, dict(curves.weight_bits)) == ((None,), (None,), (), {})


def accuracies(*top1, costs=None):
    costs = costs or [1000.0 + 10 * i for i in range(len(top1))]
    points = [
        FrontPoint(f"p{i}", "ilp", cost, 1, 1, Estimate(y)) for i, (cost, y) in enumerate(zip(costs, top1, strict=True))
    ]
    return front_picture({"a": ParetoFront.from_points(points)})


def test_one_outlier_does_not_squeeze_the_axis_of_accuracy():
    near = [0.95, 0.94, 0.93, 0.96, 0.945, 0.955, 0.935]
    cut = accuracies(*near, 0.2)
    assert cut.floor is not None
    assert 85 < cut.floor < 93
    assert [series.y[at] for series, at in cut.below] == [20.0]
    assert accuracies(*near).floor is None
    assert accuracies(*near).below == ()
    assert accuracies(0.2).floor is None
    assert accuracies(0.5, 0.5).floor is None
    assert accuracies(*(i / 10 for i in range(10))).floor is None  # spread out, none is far from all others


def test_of_an_error_an_outlier_lies_above():
    near = [0.5, 0.52, 0.51, 0.53, 0.49, 0.505, 0.515]
    points = [
        FrontPoint(f"p{i}", "ilp", 1000.0 + 10 * i, 1, 1, Estimate(y), metric=Metric("mae", "smaller"))
        for i, y in enumerate([*near, 40.0])
    ]
    cut = front_picture({"a": ParetoFront.from_points(points)})
    assert cut.floor is not None
    assert 0.53 < cut.floor < 0.6
    assert [series.y[at] for series, at in cut.below] == [40.0]
    assert front_picture({"a": ParetoFront.from_points(points[:-1])}).floor is None


def test_a_point_of_the_front_is_never_cut():
    assert accuracies(0.2, 0.95, 0.94, 0.93, 0.96, 0.945, 0.955, 0.935).floor is None  # the cheapest is on the front


def test_a_cost_far_from_all_others_makes_the_axis_logarithmic():
    near = [1000.0, 1010.0, 1020.0, 1030.0, 1040.0]
    assert not accuracies(*[0.9] * 5, costs=near).log_x
    assert accuracies(*[0.9] * 6, costs=[*near, 5000.0]).log_x
    assert not accuracies(*[0.9] * 6, costs=[*near, 2500.0]).log_x
    assert not accuracies(*[0.9] * 6, costs=[0.0, *near]).log_x


def test_the_points_of_one_front_are_named():
    picture = accuracies(0.5, 0.4, 0.6)
    assert [(label.text, label.point) for label in picture.labels] == [("p0", (1000.0, 50.0)), ("p2", (1020.0, 60.0))]
