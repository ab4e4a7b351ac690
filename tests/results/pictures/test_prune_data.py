from results.pictures.prune_data import (
    filters_of,
    parents_of,
    ratio_panels,
)
from results.points import kept_share
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference

WHOLE = {"a": LayerBits(8, 8, 4), "b": LayerBits(4, 4, 8), "fc": LayerBits(8, 8, 10)}


def assignment(id, layers=WHOLE, **provenance):
    return BitAssignment(id, ModelReference("m", (1,)), layers, provenance=provenance)


def pruned(id, kept, ratios, kind="pruned", **more):
    layers = {**WHOLE, "b": LayerBits(4, 4, len(kept), kept)}
    units = {group: [round(8 * (1 - ratio)), 8] for group, ratio in ratios.items()}
    facts = {"parent": "s", "budget": "50%", "limits": {"size_bytes": 5}, "run": "prune-s"}
    return assignment(id, layers, kind=kind, ratios=ratios, kept_units=units, **{**facts, **more})


PRUNED = pruned("s-pruned-1", (0, 1, 5), {"a": 0.0, "b": 0.625})
UNIFORM = pruned("s-pruned-uniform-1", (0, 1, 2, 3), {"a": 0.5, "b": 0.5}, kind="pruned-uniform")
RUN = {item.id: item for item in (assignment("s", kind="search"), PRUNED, UNIFORM, assignment("u", kind="uniform"))}


def test_filters_that_stay():
    totals = {"a": 4, "b": 8, "fc": 10}
    assert kept_share(PRUNED.layers, totals) == (4 + 3 + 10) / 22
    assert kept_share(WHOLE, totals) is None
    assert filters_of(PRUNED, RUN["s"]) == {"b": (3, 8)}
    assert filters_of(PRUNED, None) == filters_of(RUN["s"], None) == {}
    assert {name: parent.id for name, parent in parents_of(RUN).items()} == {
        "s-pruned-1": "s",
        "s-pruned-uniform-1": "s",
    }
    assert parents_of({"s-pruned-1": PRUNED}) == {}


def test_ratios_with_the_uniform_control_of_the_same_budget():
    [panel] = ratio_panels(["s", "s-pruned-1", "u"], RUN)
    assert ratio_panels(["u"], RUN) == []
    assert (panel.assignment, panel.budget) == ("s-pruned-1", "50%")
    assert [(entry.group, entry.ratio, entry.text) for entry in panel.groups] == [
        ("a", 0.0, "8/8"),
        ("b", 0.625, "3/8"),
    ]
    assert panel.uniform == {"a": 0.5, "b": 0.5}
    other = pruned("s-pruned-2", (0,), {"b": 0.875}, budget="20%")
    assert ratio_panels(["s-pruned-2"], {**RUN, "s-pruned-2": other})[0].uniform == {}


def test_ratios_of_a_file_without_units_have_no_text():
    bare = assignment("x", ratios={"b": 0.5}, kind="pruned", parent="s")
    assert ratio_panels(["x"], {"x": bare})[0].groups[0].text == ""
