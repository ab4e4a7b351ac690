"""Jobs that prune: what they find meets its budget beside its controls, in any order of stages, killed or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayesopt.criteria import rankings
from dnas import apply
from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.run import evaluate_assignment
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.net_search import NetSearch
from dnas.jobs.stages.pruning import removal_orders
from dnas.quantization.layers import QuantizedLayer
from dnas.training.task import CLASSIFICATION
from dnas.training.trainer import evaluate
from results.run.folder import Run
from results.run.status import run_status
from search_spaces.assignments import BitAssignment, kept_rows_of
from search_spaces.channels.slicing import remove_filters
from search_spaces.groups import ChannelGroups, kept_units
from tests.dnas.jobs.kills import Event, identity, killed_everywhere, outcome

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
PASSING = ("started", "resumed", "stage", "failed")
PRUNE = (
    "model.arguments={width=4,stages=2}",
    "controls.ilp=false",
    "prune.enabled=true",
    "prune.assignments=['search-*','uniform-4']",
    "prune.budgets=[{size_bytes='70%'}]",
    "prune.trials=3",
    "prune.batchnorm_batches=2",
    "prune.finalists=2",
    "prune.finetune_epochs=1",
    "prune.controls=[]",
)
FIRST = ("pipeline=['prune']", "prune.assignments=['uniform-4']")
GROUPS = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2"]


@pytest.fixture(scope="module")
def pruning(smaller: Job) -> Job:
    return lambda *settings: smaller(*PRUNE, *settings)


@pytest.fixture(scope="module")
def seen() -> list[Event]:
    """Every event of the whole job, progress included; filled by ``whole``."""
    return []


@pytest.fixture(scope="module")
def whole(pruning: Job, carried_out: CarriedOut, seen: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Search, then prune what was found at two budgets, beside all controls."""
    config = pruning(
        "prune.assignments=['search-*']",
        "prune.budgets=[{size_bytes='70%'},{macs='60%',size_bytes='90%'}]",
        "prune.controls=['uniform','random','fewer-bits']",
        "prune.proxy_images=15",
    )
    return carried_out(config, tmp_path_factory.mktemp("whole") / "run", seen.append)


@pytest.fixture(scope="module")
def batched(pruning: Job) -> JobConfig:
    """A short job with everything in it that a kill of the stage `prune` could leave half done."""
    more = ("prune.batch=2", "prune.finetune_epochs=2", "prune.controls=['random']", "data.crop_padding=1")
    return pruning(*FIRST, *more)


@pytest.fixture(scope="module")
def uninterrupted(batched: JobConfig, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(batched, tmp_path_factory.mktemp("batched") / "run")


def points(run: Run) -> list[Event]:
    return json.loads((run.folder / "front.json").read_text())["points"]


def ids(run: Run) -> set[str]:
    return {point["assignment"] for point in points(run)}


def events(run: Run, kind: str) -> list[Event]:
    return [record for record in run.journal.records() if record["event"] == kind]


def history(run: Run) -> list[str]:
    return [identity(record) for record in run.journal.records() if record["event"] not in PASSING]


def context_of(run: Run, config: JobConfig) -> JobContext:
    return JobContext(config, Run.open(run.folder), lambda event: None)


def pruned(run: Run) -> list[BitAssignment]:
    found = (run.assignment(name) for name in sorted(ids(run)))
    return [assignment for assignment in found if assignment.provenance.kind.startswith("pruned")]


def units_of(assignment: BitAssignment, channels: ChannelGroups) -> dict[str, tuple[int, ...]]:
    return kept_units(channels, kept_rows_of(assignment.layers))


def job_of(run: Run) -> JobConfig:
    return load_job(str(run.folder / "job.toml"))


@pytest.mark.whole
def test_every_kind_is_measured_at_every_budget(whole: Run) -> None:
    assert {(point["assignment"], point["kind"], point["parent"]) for point in points(whole)} == {
        ("search-1", "search", None),
        ("uniform-4", "uniform", None),
        *((f"search-1-pruned-{n}", "pruned", "search-1") for n in (1, 2)),
        *((f"search-1-pruned-uniform-{n}", "pruned-uniform", "search-1") for n in (1, 2)),
        *((f"search-1-pruned-random-{n}", "pruned-random", "search-1") for n in (1, 2)),
        ("search-1-fewer-bits-1", "fewer-bits", "search-1"),
    }
    (note,) = (r["text"] for r in events(whole, "note") if "fewer bits" in r["text"])
    assert "macs 60%" in note  # which no bits can save


@pytest.mark.whole
def test_every_budget_is_a_share_of_the_parents_cost_and_is_met(whole: Run) -> None:
    parent = whole.assignment("search-1")
    shares = {"1": {"size_bytes": 0.7}, "2": {"macs": 0.6, "size_bytes": 0.9}}
    for point in (point for point in points(whole) if point["parent"]):
        wanted = {name: share * parent.cost[name] for name, share in shares[point["assignment"][-1]].items()}
        assert point["limits"] == pytest.approx(wanted)
        assert all(point[name] <= limit for name, limit in wanted.items())
        assert point["feasible"]
    assert all(not point["limits"] for point in points(whole) if point["kind"] == "uniform")


@pytest.mark.whole
def test_pruned_assignments_say_which_filters_stay(whole: Run) -> None:
    parent, table = whole.assignment("search-1"), context_of(whole, job_of(whole)).job.plan.table
    channels = table.graph.channels
    for assignment in pruned(whole):
        assert assignment.pairs == parent.pairs
        assert assignment.cost == table.price(assignment.layers)
        assert list(assignment.provenance.kept_units) == GROUPS
        stays = {name: set(units) for name, units in units_of(assignment, channels).items()}
        for name, (kept, units) in assignment.provenance.kept_units.items():
            assert assignment.provenance.ratios[name] == 1 - kept / units
            assert len(stays.get(name, range(units))) == kept
        for layer, bits in assignment.layers.items():
            gone = {
                row
                for group in channels.groups
                for row, unit in enumerate(group.rows.get(layer, ()))
                if unit >= 0 and unit not in stays.get(group.name, {unit})
            }
            whole_width = parent.layers[layer].out_channels or 0
            left = tuple(row for row in range(whole_width) if row not in gone)
            assert (bits.kept_channels, bits.out_channels) == (left if gone else None, len(left))
        point = next(p for p in points(whole) if p["assignment"] == assignment.id)
        stay = sum(bits.out_channels or 0 for bits in assignment.layers.values())
        assert point["kept_filters"] == stay / sum(bits.out_channels or 0 for bits in parent.layers.values()) < 1
    bits = whole.assignment("search-1-fewer-bits-1")
    assert not any(entry.kept_channels for entry in bits.layers.values())
    assert all(bits.cost[name] <= parent.cost[name] for name in ("size_bytes", "bitops"))


@pytest.mark.whole
def test_trials_are_journaled_and_the_best_finalist_is_kept(whole: Run) -> None:
    for kind, results in (("bayesian", "pruned"), ("random", "pruned-random")):
        trials = [record["trial"] for record in events(whole, "trial") if record["kind"] == kind]
        assert [trial["proposal"]["number"] for trial in trials] == list(range(6))
        for trial in trials:
            assert all(trial["cost"][name] <= limit for name, limit in trial["proposal"]["limits"].items())
        for number in (1, 2):
            name = f"search-1-{results}-{number}"
            assignment = whole.assignment(name)
            within: dict[str, Event] = {}
            for trial in sorted(trials, key=lambda trial: trial["loss"]):
                if all(trial["cost"][cost] <= limit for cost, limit in assignment.provenance.limits.items()):
                    within.setdefault(json.dumps(trial["proposal"]["counts"]), trial)
            best = list(within.values())[:2]
            finalists = [r for r in events(whole, "finalist") if r["run"].startswith(f"{name}-finalist-")]
            if len(best) > 1:
                assert [r["number"] for r in finalists] == [trial["proposal"]["number"] for trial in best]
                scores = [(r["top1"], -r["loss"]) for r in finalists]
                best = [best[scores.index(max(scores))]]
            kept = {group: kept for group, (kept, _) in assignment.provenance.kept_units.items()}
            assert kept == best[0]["proposal"]["counts"]
    uniform = [r["trial"]["proposal"] for r in events(whole, "trial") if r["trial"]["proposal"]["source"] == "uniform"]
    for proposal in uniform[:2]:
        control = whole.assignment(f"search-1-pruned-uniform-{1 + proposal['budget']}")
        assert {name: kept for name, (kept, _) in control.provenance.kept_units.items()} == proposal["counts"]


@pytest.mark.whole
def test_the_progress_rises_to_one(whole: Run, seen: list[Event]) -> None:
    fractions = [event["fraction"] for event in seen if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    stages = [event["stage"] for event in seen if event["event"] == "progress"]
    assert stages.count("prune") >= 12
    assert run_status(whole).state == "finished"
    checkpoints = {path.stem for path in (whole.folder / "checkpoints").iterdir()}
    assert not [name for name in checkpoints if "finalist" in name]


@pytest.mark.whole
def test_the_stored_net_of_a_pruned_assignment_is_the_smaller_one(whole: Run) -> None:
    made = context_of(whole, job_of(whole))
    assignment = whole.assignment("search-1-pruned-1")
    stored = assignment.metrics.get("same_as", assignment.id)
    weights, _ = whole.load_checkpoint(f"net-{stored}-seed0") or ({}, {})
    fresh = apply(made.job.network, BitAssignment.loads(json.dumps(assignment.to_json())))
    fresh.load_state_dict(weights)
    for name, bits in assignment.layers.items():
        assert len(fresh.get_submodule(name).weight) == bits.out_channels
    point = next(p for p in points(whole) if p["assignment"] == assignment.id)
    for split, images in (("val", made.job.data.val), ("test", made.job.data.test)):
        assert evaluate(fresh.eval(), images, 32).top1 == point[f"{split}_top1"]["mean"]
        again = evaluate_assignment(whole, assignment.id, split, lambda event: None)
        assert again["top1"]["mean"] == point[f"{split}_top1"]["mean"]
        packed = evaluate_assignment(whole, assignment.id, split, lambda event: None, packed=True)
        assert packed["top1"]["mean"] == pytest.approx(again["top1"]["mean"], abs=0.02)


@pytest.mark.whole
def test_fine_tuning_starts_from_the_parents_trained_net(whole: Run) -> None:
    made = context_of(whole, job_of(whole))
    measurer, parent = Measurer(made), whole.assignment("search-1")
    trained = measurer.stored(parent, 0)
    for name in ("search-1-pruned-1", "search-1-pruned-uniform-2", "search-1-fewer-bits-1"):
        assignment = whole.assignment(name)
        expected = remove_filters(
            trained, made.job.plan.graph.channels, units_of(assignment, made.job.plan.graph.channels)
        )
        start = dict(measurer.fixed(assignment, 0).named_parameters())
        for key, value in expected.named_parameters():
            assert torch.equal(start[key], value) or (".quantize_" in key and "fewer-bits" in name)


@pytest.mark.whole
@pytest.mark.parametrize("criterion", ["auto", "hamming", "geometric", "latent_l1", "bn_scale", "taylor", "random"])
def test_filters_go_in_the_order_of_the_criterion(whole: Run, criterion: str) -> None:
    config = job_of(whole)
    made = context_of(whole, config)
    parent, measurer = whole.assignment("search-1"), Measurer(made)
    binary = {**parent.layers, "layer2.0.conv1": replace(parent.layers["layer2.0.conv1"], weight_bits=1)}
    section = config.prune.model_copy(update={"criterion": criterion})
    network = measurer.stored(parent, 0)
    orders = removal_orders(made.job, network, replace(parent, layers=binary), section)
    batches = made.job.labelled_batches("importance", 2)
    for name, order in orders.items():
        own = {"auto": "hamming" if name == "layer2.0.conv1" else "geometric"}.get(criterion, criterion)
        found = rankings(
            network,
            made.job.plan.graph.channels,
            own,
            batches=batches,
            loss_sum=CLASSIFICATION.loss_sum,
            seed=config.seed,
        )
        assert order == found[name].order
    assert list(orders) == GROUPS


@pytest.mark.whole
def test_a_search_after_pruning_starts_from_the_first_pruned_net(
    pruning: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    config = pruning(
        "pipeline=['prune','search']",
        "prune.assignments=['uniform-*']",
        "prune.criterion=taylor",
        "prune.exclude=['layer2.0.conv2']",
        "prune.fix={'layer2.0.conv1'=0.5}",
        "prune.budgets=[{size_bytes='90%'}]",
        "search.budgets=[{size_bytes='18%'}]",
    )
    run = carried_out(config, tmp_path / "run")
    assert ids(run) == {"uniform-4", "uniform-4-pruned-1", "pruned-search-1"}
    base, found = run.assignment("uniform-4-pruned-1"), run.assignment("pruned-search-1")
    assert [*base.provenance.kept_units] == GROUPS[:3]  # the excluded ones are no ratios to report
    assert base.provenance.kept_units["layer2.0.conv1"] == (4, 8)
    kept = {name: bits.kept_channels for name, bits in base.layers.items()}
    assert any(kept.values())
    assert {name: bits.kept_channels for name, bits in found.layers.items()} == kept
    assert found.provenance.parent == base.id
    made = context_of(run, config)
    assert units_of(base, made.job.plan.graph.channels).keys() <= {*GROUPS[:3]}
    assert found.cost == made.job.plan.table.price(found.layers)
    assert found.cost["size_bytes"] <= 0.18 * made.job.plan.table.uniform(32)["size_bytes"]
    start = dict(NetSearch(made, base)._network().named_parameters())
    trained = Measurer(made).stored(base, 0)
    for name, module in trained.named_modules():
        if isinstance(module, QuantizedLayer):
            assert torch.equal(start[f"{name}.weight"], module.weight)
    (warmup,) = (record for record in events(run, "epoch") if record["stage"] == "warmup")
    assert warmup["run"] == "pruned-warmup"


@pytest.mark.whole
def test_search_prune_and_search_again(pruning: Job, carried_out: CarriedOut, tmp_path: Path) -> None:
    same = ("space.weight_bits=[4]", "space.activation_bits=[4]", "prune.assignments=['uniform-4']", "prune.trials=1")
    fractions: list[float] = []
    config = pruning("pipeline=['search','prune','search']", *same, "prune.finalists=1")
    run = carried_out(config, tmp_path / "run", lambda event: fractions.append(event.get("fraction", 0.0)))
    assert ids(run) == {"uniform-4", "search-1", "uniform-4-pruned-1", "pruned-search-1"}
    # A parent whose net was measured under another name is pruned like any other.
    assert run.assignment("uniform-4").metrics["same_as"] == "search-1"
    assert max(fractions) == pytest.approx(1.0)
    kept = [
        {n: b.kept_channels for n, b in run.assignment(a).layers.items()}
        for a in ("pruned-search-1", "uniform-4-pruned-1")
    ]
    assert kept[0] == kept[1]
    assert not any(bits.kept_channels for bits in run.assignment("search-1").layers.values())


@pytest.mark.whole
def test_the_whole_front_by_ones_own_criterion(
    pruning: Job, carried_out: CarriedOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_criterion.py").write_text(
        "def last_go_first(network, group):\n    return [-n for n in range(group.units)]\n"
    )
    settings = (
        "prune.budgets=[]",
        "prune.criterion='own_criterion:last_go_first'",
        "prune.trials=5",
        "prune.controls=['uniform','random']",
    )
    run = carried_out(pruning(*FIRST, *settings), tmp_path / "run")
    found = [run.assignment(name) for name in ("uniform-4-pruned-1", "uniform-4-pruned-2")]
    assert ids(run) == {"uniform-4", *(assignment.id for assignment in found)}  # no budget, no control at it
    assert found[0].cost["size_bytes"] < found[1].cost["size_bytes"]
    trials = [record["trial"] for record in events(run, "trial")]
    front = [
        t
        for t in trials
        if not any(o["cost"]["size_bytes"] <= t["cost"]["size_bytes"] and o["loss"] < t["loss"] for o in trials)
    ]
    sizes = [trial["cost"]["size_bytes"] for trial in front]
    assert [assignment.cost["size_bytes"] for assignment in found] == [min(sizes), max(sizes)]
    for assignment in found:
        for units in units_of(assignment, context_of(run, job_of(run)).job.plan.graph.channels).values():
            assert units == tuple(range(len(units)))


@pytest.mark.slow
def test_worker_processes_find_the_same(
    batched: JobConfig, uninterrupted: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    section = batched.prune.model_copy(update={"workers": 2})  # as job files of earlier versions ask for them
    run = carried_out(batched.model_copy(update={"prune": section}), tmp_path / "run")
    assert history(run) == history(uninterrupted)
    assert outcome(run) == outcome(uninterrupted)


def in_prune_stage(record: Event) -> bool:
    of_pruned = "pruned" in record.get("assignment", "") and record["event"] == "decoded"
    return (
        record["event"] in ("trial", "finalist")
        or (record["event"], record.get("stage")) == ("epoch", "prune")
        or of_pruned
    )


@pytest.mark.whole
def test_a_kill_around_any_entry_or_amid_anything_of_the_stage_changes_nothing(
    batched: JobConfig, uninterrupted: Run, tmp_path: Path
) -> None:
    def amid(event: Event) -> str | None:
        if (event["event"], event.get("stage")) != ("progress", "prune"):
            return None
        return f"amid {event['run']}, {event.get('epoch')}, {event.get('trial')}"

    run, places = killed_everywhere(batched, tmp_path / "run", entry=in_prune_stage, amid=amid)
    entries = [record for record in uninterrupted.journal.records() if in_prune_stage(record)]
    assert {record["event"] for record in entries} == {"trial", "finalist", "epoch", "decoded"}
    assert {identity(record) for record in entries} < set(places)
    assert history(run) == history(uninterrupted)
    assert outcome(run) == outcome(uninterrupted)
    names = [sorted(path.name for path in (one.folder / "checkpoints").iterdir()) for one in (run, uninterrupted)]
    assert names[0] == names[1]
