"""A command that computes ends with a dozen lines: the front, then what to take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dnas.commands.concluding import conclusion
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront


def front(on_front: int, controls: int, profiles: int = 0) -> ParetoFront:
    told = [("search", n, 0.5 + 0.01 * n) for n in range(on_front)] + [("ilp", n, 0.3) for n in range(controls)]
    told += [("switchable", n, 0.6) for n in range(profiles)]
    points = [
        FrontPoint(f"{kind}-{n}", kind, 100.0 + n, 1.0, 1.0, Estimate(val, 0.1, 2), budget=f"b{n}", limits={"macs": 2})
        for kind, n, val in told
    ]
    return ParetoFront.from_points(points, reference=FloatReference(1e4, 0.97))


def lines(found: ParetoFront) -> list[str]:
    out = io.StringIO()
    for part in conclusion(found, "runs/a"):
        Console(file=out, width=120, color_system=None).print(part, soft_wrap=isinstance(part, str))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("on_front", "controls", "profiles"), [(1, 0, 0), (3, 40, 2), (7, 7, 0), (60, 200, 9)])
def test_a_dozen_lines_at_most(on_front: int, controls: int, profiles: int) -> None:
    shown = lines(front(on_front, controls, profiles))
    assert len(shown) <= 12
    assert shown[0].split()[0] == "assignment"
    names = [line.split()[0] for line in shown[1 : shown.index("")]]
    assert len(names) == min(on_front, 7)
    assert {"search-0", f"search-{on_front - 1}"} <= set(names)
    assert not any("ilp" in name or "switchable" in name for name in names)
    assert shown[shown.index("") + 1].startswith(("take ", "nothing is within"))
    assert "dnas show runs/a" in shown[-1]
    assert ("dnas switch runs/a" in shown[-1]) == bool(profiles)
    assert (f"7 of {on_front} points of the front" in shown[-1]) == (on_front > 7)


def test_nothing_on_the_front() -> None:
    point = FrontPoint("a", "search", 10.0, 1.0, 1.0, Estimate(0.5), feasible=False)
    assert lines(ParetoFront.from_points([point]))[0] == "nothing that was measured is on the front"


def test_a_limited_cost_has_a_column_where_only_a_control_is_on_the_front() -> None:
    """A control has no budget of its own; what is best within one is told in the cost that it limits."""
    costs = {"extra_costs": {"energy": 0.5}}
    searched = FrontPoint("s", "search", 9.0, 1.0, 1.0, Estimate(0.5), budget="b", limits={"energy": 1.0}, **costs)
    control = FrontPoint("uniform-4", "uniform", 8.0, 1.0, 1.0, Estimate(0.6), **costs)
    shown = lines(ParetoFront.from_points([searched, control]))
    assert "energy" in shown[0].split()
    assert shown[1].split()[0] == "uniform-4"
