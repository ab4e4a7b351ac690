"""What a page shows of a run: figures against brute force, files against `dnas export`, times and commands."""

from __future__ import annotations

import hashlib
import json
import shlex
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.config.file import load_job
from results.events import Event, FinaliseRequested, PruneRequested, read_event
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.report.assignments import Parts
from results.report.network import network_json
from results.report.points import points_json
from results.report.repeat import _toml, commands, differences, stage_seconds
from results.report.runs import report_json
from results.run.folder import Run
from results.tables.export import export_assignment
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY, Metric
from tests.made_runs import LAYERS, epochs, made_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def shown(run: Run) -> dict[str, Any]:
    return report_json([run])["runs"][0]


def test_the_points_of_every_front_are_those_that_no_other_one_beats(shown: dict[str, Any]) -> None:
    names = [cost["name"] for cost in shown["costs"]]
    assert names == ["size_bytes", "bitops", "macs", "latency_ms"]
    nets = [point for point in shown["points"] if point["kind"] != "switchable" and point["feasible"]]
    for column, name in enumerate(names):
        pairs = {point["id"]: (point["costs"][column], -point["val"]["mean"]) for point in nets}
        beaten = {
            a for a, one in pairs.items() for b, other in pairs.items()
            if a != b and other[0] <= one[0] and other[1] <= one[1] and other != one
        }  # fmt: skip
        assert set(shown["fronts"][name]["front"]) == set(pairs) - beaten
        first = shown["fronts"][name]["take"][0]
        assert f"'{shown['fronts'][name]['taken']}'" in first


@pytest.mark.parametrize(("metric", "near"), [(ACCURACY, 0.93), (Metric("mae", "smaller"), 0.5)])
def test_over_every_cost_the_axis_is_cut_before_what_lies_far_on_the_worse_side(metric: Metric, near: float) -> None:
    def shown(*outliers: dict[str, float]) -> Any:
        usual = [{"size_bytes": 1000.0 + 10 * at, "bitops": 500.0 - at} for at in range(7)]
        points = [
            FrontPoint(f"p{at}", "ilp", macs=1.0, val=Estimate(near + 0.002 * at), metric=metric, **costs)
            for at, costs in enumerate(usual)
        ]
        far = Estimate(0.2 if metric == ACCURACY else 40.0)
        points += [
            FrontPoint(f"far{at}", "ilp", macs=1.0, val=far, metric=metric, **c) for at, c in enumerate(outliers)
        ]
        return points_json(ParetoFront.from_points(points))

    found = shown({"size_bytes": 2000.0, "bitops": 1.0})
    side = found["metric"]["side"]
    assert side == (1 if metric == ACCURACY else -1)
    scores = [side * point["val"]["mean"] for point in found["points"]]
    floor = side * found["fronts"]["size_bytes"]["floor"]
    assert [score < floor for score in sorted(scores)] == [True] + 7 * [False]
    assert floor > min(scores) + 0.9 * (max(scores) - min(scores)), "what is left fills the picture"
    assert found["fronts"]["bitops"]["floor"] is None, "it is the cheapest, and on the front"
    assert shown()["fronts"]["size_bytes"]["floor"] is None


def test_a_cost_that_some_points_tell_is_theirs_alone_and_what_was_measured_stands_beside_it(run: Run) -> None:
    front = run.load_front()
    timed = [
        replace(point, extra_costs={**point.extra_costs, "energy": 1.0, "measured_latency_ms": 7.5})
        if point.kind == "search"
        else point
        for point in front.points
    ]
    told = points_json(ParetoFront.from_points(timed, reference=front.reference))
    names = [cost["name"] for cost in told["costs"]]
    assert names == ["size_bytes", "bitops", "macs", "latency_ms", "measured_latency_ms", "energy"]
    for point in told["points"]:
        known = point["kind"] == "search"
        assert point["costs"][4:] == ([7.5, 1.0] if known else [None, None])
        assert bool(point["cost_texts"][4]) is known
    assert told["fronts"]["measured_latency_ms"]["front"] == ["search-2"]


def test_figures_are_told_as_numbers_and_with_their_units(shown: dict[str, Any]) -> None:
    point = next(point for point in shown["points"] if point["id"] == "search-1")
    assert (point["val"]["mean"], point["val"]["text"]) == (pytest.approx(90.0), "90.00 ±1.00 %")
    assert point["cost_texts"] == ["6,500 B", "144 kBitOps", "4,000 MACs", "5.25 ms"]
    assert shown["float"]["cost_texts"][0] == "39.06 KiB"
    assert shown["float_score"] == pytest.approx(94.5)


@pytest.mark.parametrize("format", ["json", "csv"])
def test_the_files_in_a_page_are_those_that_export_writes(
    run: Run, shown: dict[str, Any], format: str, tmp_path: Path
) -> None:
    entries, parts = shown["assignments"]["entries"], shown["assignments"]["parts"]
    assert set(entries) == set(run.assignments())
    for name, assignment in run.assignments().items():
        export_assignment(assignment, format, tmp_path / "file")
        told = "".join(parts[number] for number in entries[name]["files"][format])
        assert told.encode() == (tmp_path / "file").read_bytes()


@given(st.text(alphabet="\n {}x", max_size=40))
def test_parts_make_up_any_text_and_no_entry_of_a_layer_is_cut(text: str) -> None:
    parts = Parts()
    own = [parts.texts[number] for number in parts.add(text) or ()]
    assert "".join(own) == text
    assert all(own)
    assert not any(part.startswith(" " * 5) for part in own[1:])


def test_parts_are_kept_once_and_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts()
    text = '{\n  "a": {\n    "x": 1,\n    "y": 2\n  }\n}\n'
    assert parts.add(text) == parts.add(text)
    assert "".join(parts.texts[number] for number in parts.add(text) or ()) == text
    assert parts.size == sum(map(len, set(parts.texts)))
    monkeypatch.setattr("results.report.assignments.MOST_CHARACTERS", parts.size)
    assert parts.add(text) is not None
    assert parts.add(text.replace("x", "z")) is None
    assert parts.size == sum(map(len, parts.texts))


def test_reading_changes_nothing(run: Run) -> None:
    def digests() -> dict[str, str]:
        files = [path for path in run.folder.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    report_json([run])
    assert digests() == before


def test_theta_is_told_by_epoch_decision_and_width(shown: dict[str, Any], tmp_path: Path) -> None:
    weights, inputs = shown["searches"][0]["theta"]
    assert (weights["widths"], weights["names"], weights["exact"]) == ([2, 4, 8], list(LAYERS[1:-1]), True)
    assert weights["values"][0] == [[375, 250, 375]] * 2
    assert weights["values"][2] == [[125, 750, 125]] * 2
    assert inputs["values"][1] == [[1000]] * 2
    older = report_json([made_run(tmp_path / "older", told=False)])["runs"][0]["searches"][0]["theta"][0]
    assert (older["exact"], older["widths"], older["values"][0]) == (False, [4], [[1000]] * 2)


def test_notes_stand_beside_their_search(shown: dict[str, Any]) -> None:
    assert shown["searches"][0]["notes"] == ["search-1: undecided: θ still has entropy"]
    assert "after epoch 3 θ has 25 % of the entropy" in shown["searches"][0]["told"]


def test_a_run_that_is_half_done_shows_what_is_measured_by_now(tmp_path: Path) -> None:
    half = report_json([made_run(tmp_path / "half", finished=False)])["runs"][0]
    assert not half["complete"]
    assert [point["id"] for point in half["points"]] == ["search-1"]
    assert half["fronts"]["size_bytes"]["taken"] == "search-1"
    assert (half["float"], half["float_score"], half["status"]["state"]) == (None, None, "interrupted")


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "", {}) as run:
        run.journal.append({"event": "started"})
    shown = report_json([Run.open(tmp_path / "run")])["runs"][0]
    assert (shown["points"], shown["fronts"], shown["searches"], shown["times"]) == ([], {}, [], [])
    assert json.loads(json.dumps(shown, allow_nan=False))


def test_what_cannot_be_read_is_told_and_hides_nothing_else(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for path in ("front.json", "assignments/uniform-8.json", "network.json", "sensitivity-hessian.json"):
        (run.folder / path).write_text("{")
    (run.folder / "environment.json").write_text("[]")
    shown = report_json([run])["runs"][0]
    for path in ("front.json", "uniform-8.json", "network.json", "sensitivity-hessian.json", "environment.json"):
        assert [problem for problem in shown["problems"] if path in problem]
    assert "search-1" in shown["assignments"]["entries"]
    assert [point["id"] for point in shown["points"]] == ["search-1"]
    (run.folder / "journal.jsonl").write_text("nothing\nof a journal\n")
    with pytest.raises(InputError, match="corrupt"):
        report_json([run])


def test_the_network_is_nodes_in_their_order_and_edges_between_them(run: Run) -> None:
    told = network_json(run.network(), LAYERS)
    names = [node["name"] for node in told["nodes"]]
    assert names == ["input", "stem", "block.first", "+", "block.second", "head"]
    assert [[names[a], names[b]] for a, b in told["edges"]] == [
        ["input", "stem"],
        ["stem", "block.first"],
        ["stem", "+"],
        ["block.first", "+"],
        ["+", "block.second"],
        ["block.second", "head"],
    ]
    assert [node["layer"] for node in told["nodes"]] == [None, 0, 1, None, 2, 3]
    without = network_json(None, LAYERS)
    assert ([node["layer"] for node in without["nodes"]], without["edges"]) == ([0, 1, 2, 3], [])
    assert "earlier version" in without["told"]


def timed(*moments: tuple[float, dict[str, Any]]) -> list[Event]:
    return [read_event({"time": time, **record}) for time, record in moments]


def test_wall_time_leaves_out_when_nobody_worked() -> None:
    begin = {"event": "stage", "stage": "search"}
    events = timed(
        (100.0, {"event": "started"}),
        (103.0, begin),
        (110.0, epochs("search-1", ["a"])[0]),
        (9000.0, {"event": "resumed"}),
        (9001.0, begin),
        (9005.0, {**begin, "state": "done"}),
        (9006.0, {"event": "stage", "stage": "test"}),
        (9010.0, {"event": "finished"}),
    )
    assert stage_seconds(events) == {"preparation": 3.0 + 1.0, "search": 7.0 + 1.0 + 4.0, "test": 4.0}


@pytest.mark.parametrize("value", ["a\nb\t\u0001", 'say "it" \\ once', "θ 😀", {"a b": [1, "c"]}, [True, 0.5, {}]])
def test_a_setting_is_written_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"value = {_toml(value)}") == {"value": value}


def test_the_commands_that_repeat_a_run_say_what_its_requests_said(tmp_path: Path) -> None:
    job = load_job("digits", ["prune.trials=7", "prune.budgets=[{size_bytes='70%'}]", "finalise.epochs=3"])
    prune, finalise = job.prune.model_dump(), job.finalise.model_dump()
    events = [
        PruneRequested(assignment="search-1", section=prune),
        PruneRequested(bits=1, section=prune),
        FinaliseRequested(section=finalise),
    ]
    search, *others = (shlex.split(line) for line in commands("runs/a b", events))
    assert search == ["dnas", "search", "runs/a b/job.toml", "--run", "runs/a b-again"]
    assert [words[:4] for words in others] == [
        ["dnas", "prune", "runs/a b-again", "search-1"],
        ["dnas", "prune", "runs/a b-again", "--bits"],
        ["dnas", "finalise", "runs/a b-again", "--set"],
    ]
    for words, section in zip(others, ("prune", "prune", "finalise"), strict=True):
        settings = [f"{section}.{word}" for before, word in pairwise(words) if before == "--set"]
        assert getattr(load_job("digits", settings), section) == getattr(job, section)


def test_settings_that_differ_between_runs() -> None:
    found = differences({"a": 'seed = 1\nname = "x"\n[search]\nepochs = 3\n', "b": 'seed = 2\nname = "x"\n'})
    assert found == [{"key": "seed", "values": ["1", "2"]}, {"key": "search.epochs", "values": ["3", ""]}]
    assert differences({"a": "seed = 1", "b": "not toml ["}) == [{"key": "seed", "values": ["1", ""]}]


def test_runs_of_one_name_are_told_apart(run: Run, tmp_path: Path) -> None:
    other = made_run(tmp_path / "run")
    names = [each["name"] for each in report_json([run, other])["runs"]]
    assert names == [str(run.folder), str(other.folder)]
