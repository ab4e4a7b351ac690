"""Jobs with a measured latency table: budgets in ms for bits and filters, and nets timed beside what was predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import load_job
from dnas.config.job import JobConfig, SearchSection
from dnas.jobs.api import search_bits
from dnas.jobs.job import load_splits
from dnas.jobs.planning import plan_job
from dnas.jobs.run import run_job
from dnas.jobs.stages.timing import measured_latencies
from dnas.latency.engines import processor_name
from dnas.latency.places import Place
from results.events import Note, Timed
from results.report.points import points_json
from results.run.folder import Run
from results.units import MEASURED_LATENCY
from search_spaces.costs.latency import LatencyRow, LatencyTable, channels_of
from search_spaces.errors import InputError
from search_spaces.models.zoo import tiny_resnet
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
SPEED = {(8, 8): 1.0, (32, 32): 3.0}
WIDTH = 16
SETTINGS = (
    f"model.arguments={{width={WIDTH}}}",
    "space.weight_bits=[8,32]",
    "space.activation_bits=[8,32]",
    "search.budgets=[{latency_ms='60% of fp32'},{latency_ms='70% of fp32',size_bytes='60%'}]",
    "controls.uniform=[8]",
    "finetune.epochs=0",
    "pretrain.epochs=0",
    "prune.enabled=true",
    "prune.assignments=['search-1']",
    "prune.budgets=[{latency_ms='80%'}]",
    "prune.round_to=8",
    "prune.trials=3",
    "prune.batchnorm_batches=2",
    "prune.finalists=1",
    "prune.finetune_epochs=0",
    "prune.controls=['uniform']",
)


def table_of(**changes: object) -> LatencyTable:
    """Layers that take what their multiplications take, three times faster in integers; PyTorch is said to run it."""
    graph, rows = read_graph(tiny_resnet(width=WIDTH), (1, 8, 8)), []
    for spec in graph.layers:
        whole = channels_of(spec)
        sizes = [sorted({n, max(1, n // 2)}) if n > 10 else [n] for n in whole]
        for (w, a), speed in SPEED.items():
            for i in sizes[0]:
                for f in sizes[1]:
                    ms = 1e-5 * speed * spec.macs * i * f / (whole[0] * whole[1])
                    row = {"layer": spec.name, "inputs": i, "filters": f, "weight_bits": w, "activation_bits": a}
                    rows.append(LatencyRow.read({**row, "latency_ms": ms}))
    known = {
        "runtime": "torch", "version": "1", "device": "cpu", "processor": processor_name(Place()), "threads": 1,
        "model": "zoo:tiny_resnet", "input_shape": (1, 8, 8), "rounds": 3, "spread": 0.0, "rest_ms": 0.01,
        "rows": tuple(rows),
    }  # fmt: skip
    return LatencyTable.model_validate({**known, **changes})


def written(folder: Path, table: LatencyTable) -> str:
    path = folder / "latency.json"
    path.write_text(json.dumps(table.to_json()))
    return f"costs.latency_table={str(path)!r}"


@pytest.fixture(scope="module")
def run(smaller: Job, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("latency")
    return carried_out(smaller(*SETTINGS, written(folder, table_of())), folder / "run")


@pytest.mark.whole
def test_budgets_in_milliseconds_are_met_alone_and_with_size(run: Run) -> None:
    front = run.load_front()
    points = {point.assignment: point for point in front.points}
    fp32 = front.reference.costs["latency_ms"] if front.reference else 0.0
    assert front.x == "latency_ms"
    assert points["search-1"].cost("latency_ms") <= 0.6 * fp32
    assert points["search-2"].cost("latency_ms") <= 0.7 * fp32
    assert points["search-2"].limits.keys() == {"latency_ms", "size_bytes"}
    assert points["search-2"].feasible


@pytest.mark.whole
def test_filters_go_under_a_budget_in_milliseconds_in_whole_multiples(run: Run) -> None:
    parent, pruned = run.assignment("search-1"), run.assignment("search-1-pruned-1")
    assert pruned.cost["latency_ms"] <= 0.8 * parent.cost["latency_ms"]
    kept = {name: len(b.kept_channels) for name, b in pruned.layers.items() if b.kept_channels is not None}
    assert kept
    assert {count % 8 for count in kept.values()} == {0}


@pytest.mark.whole
def test_every_net_is_timed_beside_what_was_predicted(run: Run) -> None:
    points = run.load_front().points
    timed = {event.assignment: event for event in run.journal.events() if isinstance(event, Timed)}
    assert set(timed) == {point.assignment for point in points}
    assert all(point.cost(MEASURED_LATENCY) == timed[point.assignment].latency_ms > 0 for point in points)
    assert {event.where for event in timed.values()} == {"torch on cpu with 1 thread"}
    shown = CliRunner().invoke(app, ["show", str(run.folder)]).stdout
    assert "measured latency ms" in shown
    labels = [cost["label"] for cost in points_json(run.load_front())["costs"]]
    assert {"latency (ms)", "measured latency (ms)"} <= set(labels)
    assert MEASURED_LATENCY in (run.folder / "front.csv").read_text().splitlines()[0]


@pytest.mark.whole
def test_a_finished_run_is_not_timed_again(run: Run) -> None:
    before = run.journal.path.read_bytes().count(b'"timed"')
    with Run.open(run.folder, write=True) as again:
        front = run_job(load_job(run.job_file()), again, lambda event: None)
    assert run.journal.path.read_bytes().count(b'"timed"') == before
    assert all(MEASURED_LATENCY in point.costs for point in front.points)


@pytest.mark.whole
def test_a_run_is_timed_by_the_command_and_keeps_it(run: Run, tmp_path: Path) -> None:
    before = sum(isinstance(event, Timed) for event in run.journal.events())
    arguments = ["bench-latency", str(run.folder), "--runtime", "torch", "--rounds", "3", "--nets", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "t.json"), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    points = {point.assignment: point for point in run.load_front().points}
    assert set(found["nets"]) == set(points)
    assert sum(isinstance(event, Timed) for event in run.journal.events()) == before + len(points)
    assert all(points[name].cost(MEASURED_LATENCY) == net["measured_ms"] for name, net in found["nets"].items())


@pytest.mark.whole
def test_the_table_of_a_run_is_not_written_over(run: Run) -> None:
    own = Path(load_job(run.job_file()).costs.latency_table or "")
    before = own.read_bytes()
    arguments = ["bench-latency", str(run.folder), "--runtime", "torch", "--rounds", "3", "--nets", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(own)])
    assert result.exit_code == 2
    assert "goes by; name another file with --out" in result.stderr
    assert own.read_bytes() == before


def timed(name: str, ms: float, processor: str, where: str = "torch on cpu with 1 thread") -> Timed:
    return Timed(assignment=name, where=where, processor=processor, latency_ms=ms, spread=0.1, rounds=3)


def test_times_of_another_processor_do_not_stand_for_those_of_the_table() -> None:
    table = table_of(processor="this one")
    events = [timed("a", 1.0, "this one"), timed("a", 5.0, "another"), timed("b", 6.0, "another")]
    assert measured_latencies(events, table) == {"a": 1.0}
    assert measured_latencies(events, None) == {"a": 5.0, "b": 6.0}
    assert measured_latencies([*events, timed("c", 2.0, "another", "packed on cpu with 1 thread")], None) == {"c": 2.0}
    assert measured_latencies([], None) == {}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"processor": "another one"}, "and the table is of a another one"),
        ({"runtime": "tvm"}, "unknown runtime 'tvm'"),
        ({"runtime": "packed", "threads": 2}, "one thread"),
        ({"processor": "another one", "threads": 2}, "with: dnas bench-latency RUN --runtime torch --threads 2"),
    ],
)
def test_nets_are_not_timed_elsewhere_and_that_is_told(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    job = smaller(*SETTINGS, "prune.enabled=false", written(tmp_path, table_of(**changes)))
    run = carried_out(job, tmp_path / "run")
    notes = [event.text for event in run.journal.events() if isinstance(event, Note)]
    (note,) = [text for text in notes if "not timed" in text]
    assert told.replace("RUN", str(run.folder)) in note
    assert f"dnas bench-latency {run.folder} --runtime {changes.get('runtime', 'torch')}" in note
    assert not any(MEASURED_LATENCY in point.costs for point in run.load_front().points)


def test_a_search_from_python_takes_the_table(tmp_path: Path) -> None:
    written(tmp_path, table_of())
    section, space = SearchSection(warmup_epochs=0, epochs=1), SpaceOptions((8, 32), (8, 32))
    budget = {"latency_ms": "60% of fp32"}
    data = load_job("digits", ["data.train_limit=80", "data.test_limit=40"])
    (found,) = search_bits(
        tiny_resnet(width=WIDTH),
        load_splits(data),
        budget,
        space=space,
        section=section,
        latency=tmp_path / "latency.json",
    )
    assert found.cost["latency_ms"] <= 0.6 * sum(r.latency_ms for r in whole_rows(table_of(), (32, 32))) + 0.006


def whole_rows(table: LatencyTable, pair: tuple[int, int]) -> list[LatencyRow]:
    """The rows of whole layers at these widths."""
    own = [row for row in table.rows if (row.weight_bits, row.activation_bits) == pair]
    return [row for row in own if row.latency_ms == max(r.latency_ms for r in own if r.layer == row.layer)]


def test_a_table_of_another_network_is_refused_before_any_training(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    job = smaller(*SETTINGS, "model.arguments={width=24}", written(tmp_path, table_of()))
    with pytest.raises(InputError, match="and not of one with 24 and 24"):
        carried_out(job, tmp_path / "run")


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        ("{runtime='openvino'}", "with runtime = 'torch', and costs.deployment.runtime is 'openvino'"),
        ("{runtime='torch',threads=2}", "with threads = 1, and costs.deployment.threads is 2"),
        ("{device='cuda'}", "with device = 'cpu', and costs.deployment.device is 'cuda'"),
        ("{version='2'}", "with version = '1', and costs.deployment.version is '2'"),
        ("{processor='cortex'}", "and costs.deployment.processor is 'cortex'"),
    ],
)
def test_a_table_of_another_place_than_the_job_says_is_refused(
    smaller: Job, tmp_path: Path, deployment: str, told: str
) -> None:
    job = smaller(*SETTINGS, written(tmp_path, table_of()), f"costs.deployment={deployment}")
    network = tiny_resnet(width=WIDTH)
    with pytest.raises(InputError, match=told):
        plan_job(job, network, (1, 8, 8))


def test_a_table_of_the_place_that_the_job_says_is_taken(smaller: Job, tmp_path: Path) -> None:
    part = processor_name(Place())[:4].lower()
    deployment = f"costs.deployment={{runtime='torch',version='1',device='cpu',threads=1,processor={part!r}}}"
    plan = plan_job(smaller(*SETTINGS, written(tmp_path, table_of()), deployment), tiny_resnet(width=WIDTH), (1, 8, 8))
    assert "latency_ms" in plan.table.costs


@pytest.mark.parametrize(
    ("latency", "told"), [("", "and there is no costs.latency_table"), ("mine.csv", "does not tell where")]
)
def test_a_place_needs_a_table_that_tells_one(smaller: Job, tmp_path: Path, latency: str, told: str) -> None:
    given = [f"costs.latency_table={str(tmp_path / latency)!r}"] if latency else []
    if latency:
        (tmp_path / latency).write_text("layer,weight_bits,activation_bits,latency_ms\nconv1,8,8,0.1\n")
    with pytest.raises(InputError, match=told):
        plan_job(smaller(*given, "costs.deployment={threads=1}"), tiny_resnet(), (1, 8, 8))


@pytest.mark.whole
def test_sparse_nets_are_priced_by_their_widths_and_timed(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    settings = (
        "compression=squantizer",
        "search.budgets=[]",
        f"model.arguments={{width={WIDTH}}}",
        "squantizer.weight_bits=[3]",
        "squantizer.sigma=[]",
        "squantizer.trials=2",
        "squantizer.budgets=[{size_bytes='30%',latency_ms='95% of fp32'}]",
        "finetune.epochs=0",
        "controls.uniform=[]",
        "squantizer.activation_bits=8",
        written(tmp_path, table_of()),
    )
    points = carried_out(smaller(*settings), tmp_path / "run").load_front().points
    assert {point.assignment for point in points} == {"sq3-budget1", "sq3-layers1"}
    assert len({point.cost("latency_ms") for point in points}) == 1
    assert all(point.feasible and point.cost(MEASURED_LATENCY) > 0 for point in points)
