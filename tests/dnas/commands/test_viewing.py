"""What is shown and drawn of a run that has pruned: an assignment layer by layer, its pictures, where it stands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnas.commands import compare_view, plotting, status_view, viewing
from dnas.config.file import dump_job, load_job
from dnas.jobs.planning import cost_table
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.run.folder import Run
from results.run.ids import told_unknown
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.stored import costs_by_layer
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.models.zoo import tiny_resnet
from search_spaces.network.graph import read_graph
from search_spaces.spaces import build_space

KEPT = {"layer2.0.conv1": tuple(range(4)), "layer3.0.conv2": tuple(range(4))}


@pytest.fixture(scope="module")
def table() -> CostTable:
    config = load_job()
    graph = read_graph(tiny_resnet(width=4), (1, 8, 8))
    return cost_table(graph, build_space(graph, config.space), config.costs, config.quantizer.per_channel)


def assignment(name: str, table: CostTable, kept: Mapping[str, tuple[int, ...]], **facts: Any) -> BitAssignment:
    rows = kept_rows(table.graph.channels, kept)
    layers = {
        spec.name: LayerBits(4, 8, len(rows.get(spec.name, range(spec.out_channels))), rows.get(spec.name))
        for spec in table.graph.layers
    }
    reference = ModelReference("zoo:tiny_resnet", (1, 8, 8))
    return BitAssignment(name, reference, layers, table.price(layers), provenance=facts)


def point(found: BitAssignment, kind: str, top1: float, **changes: Any) -> FrontPoint:
    size, bitops, macs = (found.cost[name] for name in ("size_bytes", "bitops", "macs"))
    return FrontPoint(found.id, kind, size, bitops, macs, Estimate(top1, 0.01, 2), **changes)


def trials() -> Sequence[Mapping[str, Any]]:
    found = []
    for number in range(4):
        proposal = {"number": number, "budget": 0, "limits": {"size_bytes": 5000.0}, "source": "model"}
        proposal |= {"predicted_mean": 0.5, "predicted_std": 0.1}
        trial = {"proposal": proposal, "cost": {"size_bytes": 4900.0}, "loss": 1.0 / (1 + number)}
        found.append({"event": "trial", "run": "prune-search-1", "kind": "bayesian", "trial": trial})
    return found


@pytest.fixture
def folder(tmp_path: Path, table: CostTable) -> Path:
    ratios = {"layer2.0.conv1": 0.5, "layer3.0.conv2": 0.5}
    units = {"layer2.0.conv1": [4, 8], "layer3.0.conv2": [4, 8]}
    whole = assignment("search-1", table, {}, kind="search")
    facts = {"kind": "pruned", "parent": "search-1", "ratios": ratios, "kept_units": units, "budget": "60%"}
    pruned = assignment("search-1-pruned-1", table, KEPT, **facts)
    points = [
        point(whole, "search", 0.9),
        point(pruned, "pruned", 0.85, parent="search-1", kept_filters=0.8, budget="60%"),
    ]
    with Run.create(tmp_path / "run", dump_job(load_job()), {}) as run:
        for found in (whole, pruned):
            run.save_assignment(found)
        run.save_front(ParetoFront.from_points(points, reference=FloatReference(32000.0, 0.99)))
        for record in ({"event": "started"}, {"event": "stage", "stage": "prune", "state": "start"}, *trials()):
            run.journal.append(dict(record))
    return tmp_path / "run"


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_pruned_assignment_is_priced_in_the_pruned_network(
    folder: Path, table: CostTable, capsys: pytest.CaptureFixture[str]
) -> None:
    viewing.show_assignment(folder, "search-1-pruned", as_json=False)
    out, err = capsys.readouterr()
    assert err == ""
    shown = rows(out)
    assert shown[0][:6] == ["layer", "weights", "inputs", "filters", "removed", "size_bytes"]
    found = {row[0]: row for row in shown if row}
    # 4 filters of 4 × 3 × 3 weights in four planes, two scales, a folded BatchNorm of 4 channels.
    assert found["layer2.0.conv1"][1:9] == ["4", "8", "4", "of", "8", "50", "%", str(4 * 18 + 8 + 32)]
    assert found["layer2.0.conv2"][1:5] == ["4", "8", "8", str(4 * 36 + 8 + 64)]
    viewing.show_assignment(folder, "search-1-pruned-1", as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["filters"]["layer2.0.conv1"] == {"kept": 4, "of": 8, "ratio": 0.5}
    sizes = [costs["size_bytes"] for costs in data["layer_costs"].values()]
    assert sum(sizes) + table.graph.other_bytes == data["cost"]["size_bytes"]


def test_an_assignment_that_says_what_its_layers_cost_is_shown_like_one_that_is_priced_again(
    folder: Path, table: CostTable, capsys: pytest.CaptureFixture[str]
) -> None:
    viewing.show_assignment(folder, "search-1-pruned-1", as_json=False)
    priced_again = capsys.readouterr().out
    with Run.open(folder, write=True) as run:
        found = run.assignment("search-1-pruned-1")
        run.save_assignment(replace(found, layer_costs=costs_by_layer(table, found.layers)))
    (folder / "job.toml").write_text('[model]\nsource = "nowhere:net"\n')  # it is not needed any more
    viewing.show_assignment(folder, "search-1-pruned-1", as_json=False)
    assert capsys.readouterr().out == priced_again


def test_what_only_reads_a_run_waits_for_no_heavy_library(folder: Path, table: CostTable) -> None:
    with Run.open(folder, write=True) as run:
        found = run.assignment("search-1")
        run.save_assignment(replace(found, layer_costs=costs_by_layer(table, found.layers)))
    code = (
        "import os, sys\n"
        "from dnas.commands.cli import app\n"
        "os.chdir(sys.argv[1])\n"
        "for words in sys.argv[2:]:\n"
        "    app(words.split(), standalone_mode=False)\n"
        "    loaded = [m for m in ('torch', 'scipy', 'matplotlib', 'skopt', 'networkx') if m in sys.modules]\n"
        "    print('after', words, *loaded)"
    )
    told = [
        *("status .", "show .", "show . search-1", "show . float", "logs .", "clean . --dry-run", "presets"),
        *("init own.toml", "export . search-1 --out bits.json", "export . search-1 --format csv --out bits.csv"),
        "report . --out page.html",
    ]
    done = subprocess.run([sys.executable, "-c", code, str(folder), *told], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("after ")] == [
        f"after {words}" for words in told
    ]


def test_an_unpruned_assignment_has_no_column_for_filters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    viewing.show_assignment(folder, "search-1", as_json=False)
    assert rows(capsys.readouterr().out)[0][:4] == ["layer", "weights", "inputs", "size_bytes"]


def test_the_table_of_bits_marks_what_is_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    viewing.show_run(folder, as_json=False)
    shown = capsys.readouterr().out
    assert "bits (weights/inputs), filters kept" in shown
    found = {row[0]: row[1:] for row in rows(shown) if row}
    assert found["layer2.0.conv1"] == ["4/8,", "4", "of", "8", "4/8"]
    assert found["layer1.0.conv1"] == ["4/8", "4/8"]


def test_the_pictures_of_a_run_that_has_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plotting.plot([folder], "size_bytes", None, ["front", "ratios", "trials"], as_json=True)
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(file).name for file in files] == ["front.png", "ratios.png", "trials-prune-search-1.png"]
    assert all(Path(file).stat().st_size for file in files)


def test_fronts_are_drawn_and_compared_over_the_cost_of_their_budgets(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(folder, write=True) as run:
        run.save_front(run.load_front().by_cost("bitops"))
    twin = tmp_path / "twin"
    shutil.copytree(folder, twin)
    plotting.plot([folder], None, None, ["front"], as_json=False, with_data=True)
    assert "bit operations" in (folder / "front.data.csv").read_text(encoding="utf-8")
    capsys.readouterr()
    compare_view.compare([folder, twin], None, None, tmp_path / "c.png", as_json=True)
    assert json.loads(capsys.readouterr().out)["x"] == "bitops"
    with Run.open(twin, write=True) as run:
        run.save_front(run.load_front().by_cost("macs"))
    compare_view.compare([folder, twin], None, None, tmp_path / "c.png", as_json=True)
    assert json.loads(capsys.readouterr().out)["x"] == "size_bytes"


def test_a_run_without_pruning_is_drawn_without_a_word_of_it(
    folder: Path, tmp_path: Path, table: CostTable, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = assignment("search-1", table, {}, kind="search")
    with Run.create(tmp_path / "plain", "", {}) as run:
        run.save_assignment(whole)
        run.save_front(ParetoFront.from_points([point(whole, "search", 0.9)]))
    plain = tmp_path / "plain"
    plotting.plot([plain], "size_bytes", None, ["front", "bits", "ratios", "trials"], as_json=True)
    out, err = capsys.readouterr()
    assert [Path(file).name for file in json.loads(out)["files"]] == ["front.png", "bits.png"]
    assert err == ""
    for kind in ("ratios", "trials"):
        with pytest.raises(InputError, match="plain: there is no"):
            plotting.plot([plain], "size_bytes", None, [kind], as_json=False)


def test_pruned_assignments_that_are_beaten_are_drawn_where_none_is_on_the_front(folder: Path) -> None:
    with Run.open(folder, write=True) as run:
        points = run.load_front().points
        beaten = [replace(p, val=Estimate(0.1), size_bytes=1e9) if p.parent else p for p in points]
        run.save_front(ParetoFront.from_points(beaten))
    plotting.plot([folder], "size_bytes", None, ["ratios"], as_json=False)
    assert (folder / "ratios.png").exists()


def test_status_tells_the_trial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status_view.status([folder], folder.parent, as_json=False)
    assert "prune search-1 trial 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "; it has none yet, go on with: dnas resume 'my run'"),
        (2, "; it has a-0, a-1"),
        (40, "; see all 40 with: dnas show 'my run'"),
    ],
)
def test_an_unknown_assignment_is_told_with_those_there_are(count: int, told: str) -> None:
    ids = [f"a-{number}" for number in range(count)]
    assert told_unknown("zz", ids, Path("my run")) == f"my run has no assignment 'zz'{told}"
