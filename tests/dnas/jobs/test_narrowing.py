"""Progressive narrowing: each arm from its widest budget down, with equal updates, and whole after any kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.narrowing import Course, chains_of, courses, keep_ranges
from dnas.jobs.run import run_job
from dnas.jobs.stages.measure import Measurer
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from results.events import Epoch, Measured
from results.run.folder import Run
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.provenance import Provenance, Pruned
from search_spaces.spaces import build_space
from tests.dnas.jobs.kills import history, killed_everywhere, outcome
from tests.toys import SHAPE, Net

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]


@pytest.fixture(scope="module")
def table() -> CostTable:
    graph = read_graph(Net(), SHAPE)
    return CostTable(graph, build_space(graph, SpaceOptions()), build_costs(False))


def assignment(name: str, kind: str, size: float, *, limits: dict[str, float] | None = None, **made: Any) -> Any:
    origin: dict[str, Any] = {"kind": kind, "run": name, "limits": limits or {}, **made}
    made_by = (Pruned if kind == "pruned" else Provenance)(**origin)
    cost = {"size_bytes": size, "bitops": size}
    return BitAssignment(name, ModelReference("x", SHAPE), {"a": LayerBits(4, 4)}, cost, {}, made_by)


def within(name: str, kind: str, limit: float, **made: Any) -> Any:
    return assignment(name, kind, limit - 1, limits={"size_bytes": limit}, **made)


def ids(chains: list[list[BitAssignment]]) -> list[list[str]]:
    return [[item.id for item in chain] for chain in chains]


def test_each_arm_is_a_chain_from_its_widest_budget_down(table: CostTable) -> None:
    """By what each was made for and by whom, never by its name."""
    given = [
        within("b", "search", 10),
        within("a", "search", 30),
        within("c", "search", 20),
        within("i1", "ilp", 10),
        within("i2", "ilp", 20),
        within("m1", "measured-ilp", 10),
        within("o1", "control", 10, run="mine:one"),
        within("o2", "control", 20, run="mine:one"),
        within("p1", "control", 10, run="mine:two"),
        assignment("u-small", "uniform", 5),
        assignment("u-large", "uniform", 50),
        within("q", "search", 15, parent="base"),
        within("x", "search", 25, parent="base"),
        assignment("s1", "sampled", 3),
        assignment("s2", "sampled", 4),
        within("gone", "pruned", 4, parent="a"),
        assignment("g", "given", 4),
    ]
    assert ids(chains_of(given, table)) == [
        ["a", "c", "b"],
        ["i2", "i1"],
        ["m1"],
        ["o2", "o1"],
        ["p1"],
        ["u-large", "u-small"],
        ["x", "q"],
        ["s1"],
        ["s2"],
        ["gone"],
        ["g"],
    ]


def test_random_draws_are_as_many_chains(table: CostTable) -> None:
    given = [within(f"r{limit}-{draw}", "random", limit) for limit in (10, 20) for draw in (1, 2, 3)]
    assert ids(chains_of(given, table)) == [[f"r20-{draw}", f"r10-{draw}"] for draw in (1, 2, 3)]


def test_every_chain_is_trained_as_long_in_all_as_the_longest(table: CostTable) -> None:
    given = [within(f"s{n}", "search", n) for n in (10, 20, 30)]
    given += [assignment(f"u{n}", "uniform", n) for n in (1, 2)] + [within("i", "ilp", 10)]
    assert courses(given, 5, table, narrows=True) == {
        "s30": Course(5),
        "s20": Course(5, "s30", 1),
        "s10": Course(5, "s20", 2),
        "u2": Course(8),
        "u1": Course(7, "u2", 1),
        "i": Course(15),
    }
    assert courses(given, 5, table, narrows=False) == {item.id: Course(5) for item in given}
    assert courses([], 5, table, narrows=True) == {}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("weights", "activations"), [("lsq", "pact"), ("dorefa", "dorefa"), ("nested", "pact")])
def test_ranges_are_kept_where_the_width_is_and_calibrated_where_it_changes(
    weights: str, activations: str, per_channel: bool
) -> None:
    model = Net()
    graph, choice = read_graph(model, SHAPE), QuantizerChoice(weights, activations, per_channel)
    names = [spec.name for spec in graph.layers]
    wide = {name: LayerBits(4, 4) for name in names}
    narrow = {**wide, names[0]: LayerBits(2, 4), names[1]: LayerBits(4, 3), names[2]: LayerBits(32, 32)}
    before, after, calibrated = (quantize_fixed(model, graph, layers, choice) for layers in (wide, narrow, narrow))
    for network in (before, after, calibrated):
        calibrate(network, [torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))])
    with torch.no_grad():
        for module in before.modules():
            if isinstance(module, TensorQuantizer):
                for tensor in (module.clip, module.gain):
                    tensor.mul_(1.5)
    keep_ranges(after, before)

    def quantizers(network: nn.Module) -> dict[str, TensorQuantizer]:
        return {name: module for name, module in network.named_modules() if isinstance(module, TensorQuantizer)}

    assert isinstance(after.get_submodule(names[0]), QuantizedLayer)
    for name, quantizer in quantizers(after).items():
        changed = name in (f"{names[0]}.quantize_weight", f"{names[1]}.quantize_input")
        kept = quantizers(calibrated if changed else before)[name]
        assert all(map(torch.equal, quantizer.state_dict().values(), kept.state_dict().values())), name


@pytest.fixture(scope="module")
def narrowed(smaller: Job) -> JobConfig:
    return smaller(
        "finetune.start=wider",
        "model.arguments={width=4}",
        "search.budgets=[{size_bytes='20%'},{size_bytes='25%'}]",
        "controls.uniform=[2,4,8]",
        "controls.random=1",
    )


@pytest.fixture(scope="module")
def fractions() -> list[float]:
    """The share of the job that was done at each step; filled by ``uninterrupted``."""
    return []


@pytest.fixture(scope="module")
def uninterrupted(
    narrowed: JobConfig, carried_out: CarriedOut, fractions: list[float], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    def report(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            fractions.append(round(event["fraction"], 9))

    return carried_out(narrowed, tmp_path_factory.mktemp("narrowed") / "run", report)


@pytest.mark.whole
def test_progress_counts_what_a_chain_takes(uninterrupted: Run, fractions: list[float]) -> None:
    assert uninterrupted.load_front().points
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.whole
def test_all_arms_of_a_job_have_equal_updates_and_tell_what_they_started_from(uninterrupted: Run) -> None:
    events = uninterrupted.journal.events()
    started = {event.assignment: event.start for event in events if isinstance(event, Measured)}
    trained: dict[str, int] = {}
    for event in events:
        if isinstance(event, Epoch) and event.stage == "finetune":
            trained[event.run] = trained.get(event.run, 0) + 1
    assert started == {
        **{"search-1": "search-2", "search-2": None},
        **{"uniform-2": "uniform-4", "uniform-4": "uniform-8", "uniform-8": None},
        **{"random-1-1": "random-2-1", "random-2-1": None},
    }
    arms = [["search-1", "search-2"], ["uniform-2", "uniform-4", "uniform-8"], ["random-1-1", "random-2-1"]]
    assert [sum(trained[name] for name in arm) for arm in arms] == [3, 3, 3]


@pytest.mark.whole
def test_an_assignment_starts_from_the_trained_weights_of_the_next_wider_one(
    narrowed: JobConfig, uninterrupted: Run
) -> None:
    context = JobContext(narrowed, Run.open(uninterrupted.folder), lambda event: None)
    measurer = Measurer(context)
    narrow, wide = (uninterrupted.assignment(name) for name in ("uniform-2", "uniform-4"))
    measurer._courses = {narrow.id: Course(1, wide.id, 2)}
    start, trained = measurer.fixed(narrow, 0).state_dict(), measurer.stored(wide, 0).state_dict()
    alike = {name for name in start if name in trained and ".quantize_" not in name}
    assert all(torch.equal(start[name], trained[name]) for name in alike)
    fresh = Measurer(context).fixed(narrow, 0).state_dict()
    assert not all(torch.equal(start[name], fresh[name]) for name in alike)


@pytest.mark.whole
def test_a_kill_around_any_entry_of_the_fine_tuning_changes_nothing(
    narrowed: JobConfig, uninterrupted: Run, tmp_path: Path
) -> None:
    def entry(record: dict[str, Any]) -> bool:
        return record["event"] == "measured" or (record["event"], record.get("stage")) == ("epoch", "finetune")

    run, kills = killed_everywhere(narrowed, tmp_path / "run", entry=entry)
    assert len(kills) == sum(map(entry, uninterrupted.journal.records())) > 15
    assert history(run) == history(uninterrupted)
    assert outcome(run) == outcome(uninterrupted)


@pytest.mark.whole
def test_a_lost_net_in_the_middle_of_a_chain_is_made_again(
    narrowed: JobConfig, uninterrupted: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    for name in ("uniform-4", "search-2"):
        (tmp_path / "run" / "checkpoints" / f"net-{name}-seed0.safetensors").unlink()
    with Run.open(tmp_path / "run", write=True) as run:
        run_job(narrowed, run, lambda event: None)
    assert outcome(run) == outcome(uninterrupted)
    for name in ("uniform-4", "search-2", "uniform-2"):
        one, other = (each.load_checkpoint(f"net-{name}-seed0") for each in (run, uninterrupted))
        assert one is not None
        assert other is not None
        assert all(torch.equal(one[0][key], other[0][key]) for key in other[0])
