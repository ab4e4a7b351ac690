"""`dnas bench-latency`: what it writes is what a job reads; wrong input is one sentence."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.latency import measure
from dnas.latency.clock import Clock, take_turns
from dnas.latency.engines import Run
from dnas.latency.shapes import shapes_by_layer
from search_spaces.costs.latency import read_table
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.models.zoo import tiny_resnet
from search_spaces.options import SpaceOptions, read_capability
from search_spaces.spaces import build_space
from tests.known import known_graph

FAST = ("--rounds", "3", "--nets", "2")


def bench(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench-latency", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_what_is_written_prices_a_space(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    code, told, _ = bench("zoo:tiny_resnet", "--runtime", "torch", "--out", str(out), *FAST)
    assert code == 0
    assert "in torch on cpu with 1 thread" in told
    assert "no faster than wider widths: W8/A8" in told
    table, capability = read_table(out), tmp_path / "t.capability.json"
    assert (table.runtime, table.threads, table.model, len(table.checked)) == ("torch", 1, "zoo:tiny_resnet", 2)
    assert read_capability(capability) == {"*": ((32, 32),)}
    graph = known_graph(tiny_resnet(), table.input_shape)
    ends = {"first_layer": "search", "last_layer": "search"}
    space = build_space(graph, SpaceOptions((8, 32), (8, 32), capability=str(capability), **ends))
    costs = CostTable(graph, space, build_costs(latency=out))
    whole = {name: max(r.latency_ms for r in table.rows if r.layer == name) for name in graph.by_name}
    assert costs.uniform(32)["latency_ms"] == pytest.approx(sum(whole.values()) + table.rest_ms)
    assert costs.uniform(4)["latency_ms"] == costs.uniform(32)["latency_ms"]  # nobody is credited with less


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("zoo:tiny_resnet", "--runtime", "tvm"), "unknown runtime 'tvm'"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--device", "tpu"), "unknown device 'tpu'"),
        (("zoo:tiny_resnet", "--runtime", "packed", "--device", "cuda"), "take --device cpu"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--threads", "0"), "--threads 0"),
        (("zoo:tiny_resnt", "--runtime", "torch"), "tiny_resnt"),
        (("runs/nowhere", "--runtime", "torch"), "is not of the form"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--out", "table.csv"), "ends in .json"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--out", "nowhere/t.json"), "there is no folder nowhere"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--input-shape", "3,8,8"), "does not run on an input of shape"),
        (("zoo:tiny_resnet", "--runtime", "torch", "--input-shape", "big"), "is not a shape"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = bench(*arguments, *FAST)
    assert code == 2
    assert told in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_capability_file_that_cannot_be_written_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "t.capability.json").mkdir()
    code, _, error = bench("zoo:tiny_resnet", "--runtime", "torch", "--out", str(tmp_path / "t.json"), *FAST)
    assert code == 2
    assert "t.capability.json is a folder" in error
    assert not (tmp_path / "t.json").exists()


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "take_turns", interrupted)
    code, _, error = bench("zoo:tiny_resnet", "--runtime", "torch", "--out", str(tmp_path / "t.json"), *FAST)
    assert (code, error.splitlines()[-1]) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "exit_code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.whole), (signal.SIGTERM, 143)]
)
def test_a_stopped_measurement_tells_how_to_go_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int
) -> None:
    out, times = tmp_path / "t.json", tmp_path / "t.unfinished.json"
    arguments = ("zoo:tiny_resnet", "--runtime", "torch", "--out", str(out))
    begun = stopped_at(monkeypatch, 3, number)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    try:
        code, _, error = bench(*arguments, *FAST)
    finally:
        signal.signal(signal.SIGINT, before)
    words = f"interrupted; what was timed is kept in {times}, and the same command goes on with it"
    assert (code, error.splitlines()[-1], len(begun)) == (exit_code, words, 3)
    assert [path.name for path in tmp_path.iterdir()] == [times.name]
    begun = stopped_at(monkeypatch, 0, number)
    assert bench(*arguments, *FAST)[0] == 0
    network = tiny_resnet()
    shapes = set(shapes_by_layer(network, known_graph(network, (1, 8, 8))).values())
    assert len(begun) == len(shapes) + 3 - 2  # uniform nets, those that calibrate and those that check; two are known
    assert {path.name for path in tmp_path.iterdir()} == {"t.json", "t.capability.json"}


def stopped_at(monkeypatch: pytest.MonkeyPatch, count: int, number: int) -> list[int]:
    """Send this signal where the timing of so many groups begins; hears how many take turns in each."""
    begun: list[int] = []

    def turned(runs: Mapping[object, Run], rounds: int, clock: Clock) -> object:
        begun.append(len(runs))
        if len(begun) == count:
            os.kill(os.getpid(), number)
        return take_turns(runs, rounds, clock)

    monkeypatch.setattr(measure, "take_turns", turned)
    return begun


@pytest.mark.parametrize("content", ["{", "{}", '{"schema": "dnas.latency-times/1", "of": {}, "turns": {"a": [{}]}}'])
def test_kept_times_that_cannot_be_read_are_told_and_left(tmp_path: Path, content: str) -> None:
    times = tmp_path / "t.unfinished.json"
    times.write_text(content)
    code, _, error = bench("zoo:tiny_resnet", "--runtime", "torch", "--out", str(tmp_path / "t.json"), *FAST)
    assert code == 2
    assert f"move {times} away to measure from the start" in error
    assert len(error.splitlines()) == 1
    assert times.read_text() == content


@pytest.mark.whole
def test_json_is_one_document(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    code, told, _ = bench("zoo:tiny_resnet", "--runtime", "torch", "--out", str(out), *FAST, "--json")
    found = json.loads(told)
    assert code == 0
    assert found["file"] == str(out)
    assert found["rows"] == json.loads(out.read_text())["rows"]
    assert found["nets"] == {}
