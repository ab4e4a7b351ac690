"""Fronts of thousands of points: what is done for them grows as they do, not as their square; nothing is left out."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from matplotlib.text import Annotation
from rich.console import Console
from scipy.stats import spearmanr

from results.events import Decoded, Epoch, Event, Measured, Started
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.pictures.front import draw_fronts
from results.pictures.trial_data import rank_correlation
from results.run.status import status_of
from results.tables.advice import advice
from results.tables.plain import PlainTable
from results.tables.report import front_rows, render_table
from results.tables.verdicts import verdicts
from results.tables.within import Within

KINDS = ("search", "ilp", "uniform", "pruned", "squantizer")


def large_front(count: int, share: float = 1.0) -> ParetoFront:
    draw = random.Random(count)
    points = []
    for number in range(count):
        kind, first = KINDS[number % len(KINDS)], f"point-{number - number % len(KINDS)}"
        size, loss = 1000.0 + 10 * number, 0.0 if draw.random() < share else 0.2
        facts: dict[str, Any] = {"budget": f"size_bytes {size}", "limits": {"size_bytes": size}}
        facts = {} if kind in ("uniform", "squantizer") else facts
        facts |= {"parent": first, "kept_filters": 0.5} if kind == "pruned" else {}
        top1 = Estimate(0.5 + 0.4 * number / count - loss, 0.01, 2)
        points.append(FrontPoint(f"point-{number}", kind, size, 100 * size, 1e6, top1, **facts))
    return ParetoFront.from_points(points, reference=FloatReference(1e5, 0.95))


def told(count: int) -> list[Event]:
    events: list[Event] = [Started()]
    for number in range(count):
        events += [Decoded(assignment=f"a{number}", kind="search", run="s"), Epoch(stage="measure", run="a", epoch=1)]
        events += [Measured(assignment=f"a{number}", seed=0, val=0.5)]
    return events


def printed(front: ParetoFront) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(render_table(front_rows(front)))
    return out.getvalue()


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


MADE: dict[str, Callable[[int], Any]] = {"status": told, "reading": lambda count: large_front(count).to_json()}
WORK: dict[str, Callable[[Any], object]] = {
    "marking": lambda front: front.by_cost("bitops"),
    "reading": ParetoFront.from_json,
    "verdicts": verdicts,
    "advice": advice,
    "table": printed,
    "picture": lambda front: draw_fronts({"a": front}),
    "status": lambda events: status_of(events, False),
}


@pytest.mark.whole
@pytest.mark.parametrize("what", WORK)
def test_four_times_the_points_take_about_four_times_the_calls(what: str) -> None:
    small, few, many = (MADE.get(what, large_front)(count) for count in (40, 100, 400))
    WORK[what](small)  # what is loaded and remembered at first use
    assert calls(lambda: WORK[what](many)) < 5.5 * calls(lambda: WORK[what](few))


@pytest.mark.whole
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_every_point_is_drawn_and_no_name_covers_another(share: float) -> None:
    front = large_front(300, share)
    figure = draw_fronts({"a": front})
    (axes,) = figure.axes
    drawn = sum(len(each.lines[0].get_xdata()) for each in axes.containers)
    assert drawn == len(front.points)
    figure.draw_without_rendering()
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert len(names) > 20
    boxes = [name.get_window_extent() for name in names]
    lines = axes.collections[-1].get_segments()  # the last one drawn: from points to names
    assert len(lines) <= len(names)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        inner = box.padded(-1.5)
        for (x0, y0), (x1, y1) in (axes.transData.transform(line) for line in lines):
            shares = [step / 50 for step in range(51)]
            assert not any(inner.contains(x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in shares)


@pytest.mark.whole
def test_a_name_with_a_dollar_is_no_formula() -> None:
    [point] = large_front(1).points
    named = ParetoFront.from_points([FrontPoint("a$x_1$", "search", 10.0, 1.0, 1.0, point.val)])
    [name] = draw_fronts({"a": named}).axes[0].texts
    assert name.get_text() == "a$x_1$"
    assert not name.get_parse_math()


def order(point: FrontPoint) -> tuple[float, str]:
    return -point.gain, point.assignment


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(5))
def test_the_best_within_limits_is_that_of_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    points = []
    for number in range(30):
        extra = {"latency_ms": float(draw.randrange(9))} if draw.random() < 0.7 else {}
        val = Estimate(draw.randrange(6) / 10)
        size, bitops = float(draw.randrange(20)), float(draw.randrange(20))
        points.append(FrontPoint(f"p{number}", "search", size, bitops, 1.0, val, extra_costs=extra))
    within = Within(points, order)
    wanted: Sequence[dict[str, float]] = [
        {},
        *({"size_bytes": float(most)} for most in range(-1, 21)),
        *({"latency_ms": float(most)} for most in range(-1, 9)),
        *({"size_bytes": float(draw.randrange(20)), "latency_ms": float(draw.randrange(9))} for _ in range(20)),
        {"unknown": 5.0},
    ]
    for limits in wanted:
        meeting = [p for p in points if all(name in p.costs and p.costs[name] <= m for name, m in limits.items())]
        assert within.best(limits) == min(meeting, key=order, default=None)


@pytest.mark.whole
def test_ranks_are_those_of_scipy() -> None:
    draw = random.Random(0)
    for _ in range(20):
        first, second = ([float(draw.randrange(6)) for _ in range(12)] for _ in range(2))
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-11)


@pytest.mark.whole
def test_a_table_folds_its_widest_cells_where_the_terminal_is_narrow() -> None:
    table = PlainTable("title")
    table.add_column("name", fold=True)
    table.add_column("number", right=True)
    table.add_column("words", fold=True)
    table.add_row("-".join(["aaaa"] * 6), "7", "several words that go on")
    table.add_row("é漢字", "1,234", "few")
    out = io.StringIO()
    Console(file=out, width=40, color_system=None).print(table)
    lines = out.getvalue().splitlines()
    assert lines[0] == "title"
    assert lines[1].split() == ["name", "number", "words"]
    assert max(map(len, lines)) <= 40
    assert "".join(line[:16].strip() for line in lines[2:-1]) == "-".join(["aaaa"] * 6)
    assert " ".join(" ".join(line.split()[-2:]) for line in lines[2:4]).count("words") == 1
    assert lines[-1].split() == ["é漢字", "1,234", "few"]
    wide = io.StringIO()
    Console(file=wide, width=200, color_system=None).print(table)
    assert len(wide.getvalue().splitlines()) == 4
