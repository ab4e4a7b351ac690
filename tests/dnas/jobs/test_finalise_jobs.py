"""The stage `finalise` and its commands: what becomes a profile, what is measured, kills, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dnas
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.job import load_network, load_splits
from dnas.jobs.packed_nets import PackedNet
from dnas.jobs.planning import plan_job
from dnas.jobs.profile_names import uniform_layers
from dnas.jobs.run import evaluate_assignment, run_job
from dnas.jobs.stages.finalise import _Finaliser
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stored_nets import stored_net, stored_switchable
from dnas.training.trainer import evaluate
from results.pictures.switch_data import switch_rows
from results.run.folder import Run
from results.run.status import run_status
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from search_spaces.provenance import FEWER_BITS, PROFILE, FewerBits
from tests.dnas.jobs.kills import LASTING, Event, history, killed_everywhere, outcome
from tests.dnas.jobs.test_job_failures import dnas as command
from tests.dnas.jobs.test_job_failures import sentence
from tests.dnas.jobs.test_prune_jobs import events, points
from tests.made_runs import made_assignment, made_point

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
FINALISE = ("controls.ilp=false", "finalise.enabled=true", "finalise.epochs=1", 'finalise.profiles=["*","w3a4"]')


@pytest.fixture(scope="module")
def finalised(smaller: Job, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(smaller(*FINALISE), tmp_path_factory.mktemp("finalised") / "run")


@pytest.fixture
def copied(finalised: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finalised.folder, "run")
    return Run.open(Path("run"))


def kinds(run: Run) -> dict[str, str]:
    return {point["assignment"]: point["kind"] for point in points(run)}


def test_the_front_whose_points_become_profiles_is_that_of_the_budgets_cost(tmp_path: Path) -> None:
    found = [
        made_assignment("small", [2, 8, 8, 8], kind="search"),
        made_assignment("fast", [8, 8, 8, 2], kind="search"),
    ]
    costs = {"small": (10.0, 100.0), "fast": (20.0, 50.0)}
    with Run.create(tmp_path / "run", dump_job(load_job("digits")), {}) as run:
        for item in found:
            run.save_assignment(item)
        measured = [
            replace(made_point(item, 0.9), size_bytes=costs[item.id][0], bitops=costs[item.id][1]) for item in found
        ]
        for cost, chosen in (("size_bytes", "small"), ("bitops", "fast")):
            finaliser: Any = object.__new__(_Finaliser)
            finaliser.net = "switchable-1"
            finaliser.section = load_job("digits", ["finalise.profiles=['front']"]).finalise
            finaliser.job = SimpleNamespace(plan=SimpleNamespace(front_cost=cost))
            finaliser.log = SimpleNamespace(run=run, events=lambda kind: (), write=lambda event: None)
            assert list(finaliser._profiles(measured)) == [chosen]


@pytest.mark.whole
def test_every_profile_is_measured_in_the_net_and_alone(finalised: Run) -> None:
    assert kinds(finalised) == {
        "search-1": "search",
        "uniform-4": "uniform",
        "w3a4": "uniform",
        "switchable-1-search-1": PROFILE,
        "switchable-1-uniform-4": PROFILE,
        "switchable-1-w3a4": PROFILE,
    }
    found = {point["assignment"]: point for point in points(finalised)}
    for name in ("search-1", "uniform-4", "w3a4"):
        shared = found[f"switchable-1-{name}"]
        assert shared["parent"] == name
        assert shared["size_bytes"] == found[name]["size_bytes"]
        assert shared["test_top1"]["n"] == 1
        assert not shared["on_front"]
    (rows,) = switch_rows(finalised.load_front(), finalised.assignments()).values()
    assert [row.size_bytes for row in rows] == sorted(row.size_bytes for row in rows)
    assert {row.profile for row in rows} == {"search-1", "uniform-4", "w3a4"}
    assert all(row.alone_val is not None and row.alone_test is not None for row in rows)


@pytest.mark.whole
def test_the_stored_net_reaches_what_the_front_says(finalised: Run) -> None:
    config = load_job(str(finalised.folder / "job.toml"))
    model, data = load_network(config).module, load_splits(config)
    graph = read_graph(model, data.input_shape)
    net = stored_switchable(finalised, model, graph, "switchable-1")
    told = {point["assignment"]: point["val_top1"]["mean"] for point in points(finalised)}
    for name, profile in net.profiles.items():
        view = net.view_of(name)
        assert evaluate(view, data.val).top1 == pytest.approx(told[f"switchable-1-{name}"])
        assert profile.val_top1 == told[f"switchable-1-{name}"]
        assignment = finalised.assignment(f"switchable-1-{name}")
        alone = stored_net(finalised, model, graph, assignment, net.choice, 0)
        x = torch.randn(2, *data.input_shape)
        assert torch.equal(alone(x), view(x))
    assert net.best() in net.profiles


@pytest.mark.whole
def test_what_is_made_of_a_profile_starts_from_the_nets_that_there_are(finalised: Run) -> None:
    """Of a switchable net one is trained, and of what is pruned or narrowed from its profiles several are measured."""
    config = load_job(str(finalised.folder / "job.toml"), ["finetune.seeds=3"])
    measurer = Measurer(JobContext(config, Run.open(finalised.folder), lambda event: None))
    parent = finalised.assignment("switchable-1-w3a4")
    child = replace(parent, id="child", provenance=FewerBits(kind=FEWER_BITS, parent=parent.id))
    assert (measurer.seeds_of(parent), measurer.seeds_of(child)) == (1, 3)
    expected = measurer.stored(parent, 0).state_dict()
    for seed in range(3):
        missing = [file for file in measurer.reads(child, seed) if not (finalised.folder / file).exists()]
        assert not missing
        started = dict(measurer.fixed(child, seed).named_parameters())
        assert all(torch.equal(value, expected[name]) for name, value in started.items())


@pytest.mark.whole
def test_profiles_are_measured_as_they_are_shipped(finalised: Run, tmp_path: Path) -> None:
    """One packed file of all of them, switched at run time, reaches what each was measured to reach."""
    job = load_job(str(finalised.folder / "job.toml"))
    result = command("export", str(finalised.folder), "--format", "packed", "--out", str(tmp_path / "net.dnas"))
    assert result.exit_code == 0, result.output
    net, told = dnas.Runtime(tmp_path / "net.dnas"), {point["assignment"]: point for point in points(finalised)}
    for name in (*net.profiles, net.profiles[0]):
        found = evaluate(PackedNet(net.switch(name)), load_splits(job).val).top1
        assert found == pytest.approx(told[f"switchable-1-{name}"]["val_top1"]["mean"], abs=0.02)
    again = evaluate_assignment(finalised, "switchable-1-w3a4", "val", lambda event: None, packed=True)
    assert again["top1"]["mean"] == pytest.approx(told["switchable-1-w3a4"]["val_top1"]["mean"], abs=0.02)


@pytest.mark.whole
def test_a_net_killed_at_any_entry_ends_the_same(smaller: Job, finalised: Run, tmp_path: Path) -> None:
    """Killed once at every entry from the stage on, and amid an epoch."""
    begun: list[bool] = []

    def entry(record: Event) -> bool:
        begun.extend([True] * (record.get("stage") == "finalise"))
        return bool(begun) and record["event"] in (*LASTING, "profiles")

    def amid(event: Event) -> str | None:
        return "amid" if (event["event"], event.get("stage")) == ("progress", "finalise") else None

    run, places = killed_everywhere(smaller(*FINALISE), tmp_path / "run", entry=entry, amid=amid)
    events = {json.loads(str(place))["event"] for place in places if place != "amid"}
    assert {"profiles", "decoded", "epoch", "measured", "tested"} <= events
    assert len(places) > 12
    assert history(run) == history(finalised)
    assert outcome(run) == outcome(finalised)


@pytest.mark.whole
def test_a_profile_is_pruned_from_the_weights_it_has_in_its_net(copied: Run, finalised: Run) -> None:
    settings = [part for setting in ("trials=2", "controls=[]", "finetune_epochs=0") for part in ("--set", setting)]
    name = "switchable-1-uniform-4"
    result = command("prune", "run", name, "--budget", "size_bytes=80%", *settings)
    assert result.exit_code == 0, result.output
    pruned, profile = copied.assignment(f"{name}-pruned-1"), copied.assignment(name)
    assert pruned.pairs == profile.pairs
    assert pruned.cost["size_bytes"] <= 0.8 * profile.cost["size_bytes"]
    assert pruned.provenance.parent == name
    measured = {point["assignment"]: point["val_top1"] for point in points(copied)}
    assert {each["assignment"]: each["val_top1"] for each in points(finalised)}.items() < measured.items()
    context = JobContext(load_job(str(copied.folder / "job.toml")), copied, lambda event: None)
    whole, start = (Measurer(context).stored(profile, 0), Measurer(context).fixed(pruned, 0))
    found = whole.state_dict()["conv1.weight"].flatten(1)
    for row in start.state_dict()["conv1.weight"].flatten(1):  # a filter of the profile's, not of the net it is made of
        assert any(torch.equal(row, each) for each in found)


@pytest.mark.whole
def test_a_finished_run_is_finalised_again(copied: Run, finalised: Run) -> None:
    before = {point["assignment"]: point for point in points(finalised)}
    result = command("finalise", "run", "--profiles", "front,w2a2", "--set", "epochs=1", "--set", "seeds=2")
    assert result.exit_code == 0, result.output
    assert run_status(copied).state == "finished"
    after = {point["assignment"]: point for point in points(copied)}
    assert all(after[name]["val_top1"] == point["val_top1"] for name, point in before.items())
    new = {name for name in after if name not in before}
    assert "switchable-2-w2a2" in new
    assert "w2a2" in new
    assert after["switchable-2-w2a2"]["val_top1"]["n"] == 2
    front = [name for name, point in before.items() if point["on_front"]]
    assert new == {"w2a2", "switchable-2-w2a2", *(f"switchable-2-{name}" for name in front)}
    tested = [(r["assignment"], r["seed"]) for r in events(copied, "tested")]
    assert len(tested) == len(set(tested))  # the test split is read once
    result = command("switch", "run", "--json")
    nets = json.loads(result.stdout)["nets"]
    assert list(nets) == ["switchable-1", "switchable-2"]
    assert {row["profile"] for row in nets["switchable-2"]} == {*front, "w2a2"}
    text = command("switch", "run")
    assert "switchable-2" in text.stdout
    assert "dnas export run switchable-2 --format packed" in " ".join(text.stdout.split())
    assert command("evaluate", "run", "switchable-2-w2a2").exit_code == 0
    assert command("show", "run", "switchable-1-w3a4").exit_code == 0
    assert command("plot", "run", "--kind", "front", "--out", "front.png").exit_code == 0


@pytest.mark.whole
def test_assignments_of_files_and_pruned_ones(copied: Run) -> None:
    own = json.loads((copied.folder / "assignments" / "search-1.json").read_text())
    own["id"] = "mine"
    first = next(iter(own["layers"]))
    own["layers"][first]["weight_bits"] = 5
    Path("mine.json").write_text(json.dumps(own))
    result = command("finalise", "run", "--profiles", "mine.json,search-1", "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    assert kinds(copied)["mine"] == "given"
    assert copied.assignment("switchable-2-mine").layers[first].weight_bits == 5
    own["layers"][first]["weight_bits"] = 6
    Path("mine.json").write_text(json.dumps(own))
    result = command("finalise", "run", "--profiles", "mine.json")
    assert result.exit_code == 2
    assert "the run has another assignment called 'mine'" in sentence(result, 2)
    assert (
        command("prune", "run", "search-1", "--budget", "70%", "--trials", "2", "--set", "controls=[]").exit_code == 0
    )
    result = command("finalise", "run", "--profiles", "search-1,search-1-pruned-1", "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    net = "switchable-3"
    assert kinds(copied)[f"{net}-search-1-pruned-1"] == PROFILE


@pytest.mark.whole
def test_a_whole_net_is_exported(copied: Run) -> None:
    result = command("export", "run", "--format", "packed", "--out", "net.safetensors", "--json")
    told = json.loads(result.stdout)
    assert told["net"] == "switchable-1"
    net = dnas.load("net.safetensors")
    assert set(net.profiles) == {"search-1", "uniform-4", "w3a4"} == set(told["profiles"])
    small = dnas.load("net.safetensors", profile="w3a4")
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(small(x), net.view("w3a4")(x))
    result = command("export", "run", "switchable-1", "--format", "aimet", "--out", "net.json", "--json")
    assert {file["file"] for file in json.loads(result.stdout)} == {f"net-{name}.json" for name in net.profiles}
    assert all(Path(f"net-{name}.json").is_file() for name in net.profiles)
    result = command("export", "run", "switchable-1", "--format", "csv", "--out", "net.csv")
    assert "is a net of several assignments; name one of them" in sentence(result, 2)
    result = command("export", "run", "--format", "packd", "--out", "net.csv")
    assert "did you mean 'packed'?" in sentence(result, 2)
    result = command("export", "run", "switchable-1-w3a4", "--format", "packed", "--out", "one.safetensors")
    assert result.exit_code == 0, result.output
    assert list(dnas.load("one.safetensors").profiles) == ["default"]


@pytest.mark.whole
def test_a_net_starts_from_the_supernet(copied: Run) -> None:
    result = command("finalise", "run", "--profiles", "w4a4", "--set", "epochs=1", "--set", "start=supernet")
    assert result.exit_code == 0, result.output
    assert kinds(copied)["switchable-2-w4a4"] == PROFILE


@pytest.mark.whole
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profiles", "serch-1"), "no assignment is called 'serch-1'; name one of the run"),
        (
            ("--profiles", "float"),
            "'float' is no assignment but the network itself; as a profile",
        ),
        (("--profiles", "a*"), "no assignment is called 'a*'"),
        (("--profiles", "w4a4,w4a4"), "profile 'w4a4' is named twice"),
        (("--profiles", ","), "no profile is named"),
        (("--profiles", "w0a0"), "profile 'w0a0': 0 bits would skip every layer"),
        (("--profiles", "w9a4"), "weight_bits = 9 is not a bit-width"),
        (("--profiles", "missing.json"), "cannot read the assignment missing.json"),
        (("--profiles", "w4a4", "--set", "weights=binary"), "quantizer 'binary' has no 8-bit form"),
        (("--profiles", "w4a4", "--set", "distillation=1.5"), "distillation = 1.5 is more than 1"),
        (("--profiles", "w4a4", "--set", "epoch=1"), "finalise.epoch"),
        (("--set", "weight_bits=[4]"), "a grid needs both"),
    ],
)
def test_what_cannot_be_finalised_costs_nothing(copied: Run, arguments: tuple[str, ...], words: str) -> None:
    before = (copied.folder / "front.json").read_bytes()
    result = command("finalise", "run", *arguments)
    assert result.exit_code == 2
    assert words in sentence(result, 2)
    assert (copied.folder / "front.json").read_bytes() == before
    assert run_status(copied).state == "finished"
    assert command("switch", "run").exit_code == 0


def test_a_run_without_a_net_says_how_to_make_one(smaller_run: Run) -> None:
    result = command("switch", str(smaller_run.folder))
    assert result.exit_code == 2
    assert f"has no switchable net; make one with: dnas finalise {smaller_run.folder}" in sentence(result, 2)


@pytest.mark.whole
def test_a_switchable_net_without_a_search(tmp_path: Path, smaller_settings: tuple[str, ...]) -> None:
    sets = [word for setting in smaller_settings for word in ("--set", setting)]
    grid = ["--set", "finalise.weight_bits=[1]", "--set", "finalise.activation_bits=[1,4,32]"]
    more = ["finalise.method=sp_nets", "finalise.weights=dorefa", "finalise.activations=dorefa", "finalise.epochs=1"]
    more += ["controls.uniform=[]", "quantizer.weights=dorefa", "quantizer.activations=dorefa"]
    words = [*sets, *grid, *(word for setting in more for word in ("--set", setting))]
    result = command("train-switchable", "digits", "--run", str(tmp_path / "run"), *words)
    assert result.exit_code == 0, result.output
    run = Run.open(tmp_path / "run")
    names = ["w1a1", "w1a32", "w1a4"]
    assert sorted(kinds(run)) == sorted([*names, *(f"switchable-1-{name}" for name in names)])
    assert not events(run, "searched")
    result = command("train-switchable", "digits", "--run", str(tmp_path / "other"), "--set", "prune.enabled=true")
    assert result.exit_code == 2
    assert "compression = 'switchable' does not prune" in sentence(result, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["finalise.profiles=['serch-1']"], "no assignment is called 'serch-1'; name one of the run"),
        (["finalise.profiles=['search-7']"], "no assignment is called 'search-7'"),
        (["finalise.profiles=['ilp-*']", "controls.ilp=false"], "no assignment is called 'ilp-*'"),
        (["finalise.profiles=['search-1-pruned-1']"], "no assignment is called 'search-1-pruned-1'"),
        (["compression=switchable", "controls.uniform=[]"], "nothing will be measured that could be a profile"),
        (["finalise.weights=binary", "finalise.profiles=['w4a4']"], "quantizer 'binary' has no 8-bit form"),
    ],
)
def test_a_job_that_cannot_end_with_a_net_is_refused_before_any_training(
    settings: list[str], words: str, smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    config = smaller("finalise.enabled=true", *settings)
    with pytest.raises(InputError, match=re.escape(words)):
        carried_out(config, tmp_path / "run")
    assert not events(Run.open(tmp_path / "run"), "epoch")


@pytest.mark.whole
def test_architectures_that_a_search_draws_can_be_profiles(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    settings = ("search.sample_every=1", "search.samples=1", "controls.ilp=false", "finalise.epochs=1")
    config = smaller(*settings, "finalise.enabled=true", "finalise.profiles=['sampled-*']")
    run = carried_out(config, tmp_path / "run")
    assert kinds(run)["switchable-1-sampled-1-epoch1-1"] == PROFILE


@pytest.mark.whole
def test_uniform_profiles_leave_the_fixed_layers(smaller: Job, finalised: Run) -> None:
    layers = finalised.assignment("w3a4").layers
    assert {(bits.weight_bits, bits.activation_bits) for bits in layers.values()} == {(3, 4), (8, 8)}
    config = load_job(str(finalised.folder / "job.toml"))
    plan = plan_job(config, load_network(config).module, (1, 8, 8))
    assert set(uniform_layers(plan.space, 32, 32).values()) == {LayerBits(32, 32)}


@pytest.mark.whole
def test_a_net_that_failed_does_not_stand_in_the_way_of_the_others(copied: Run) -> None:
    sets = [word for setting in ("epochs=4", "learning_rate=1e30", "alone=false") for word in ("--set", setting)]
    result = command("finalise", "run", "--profiles", "w3a4,uniform-4", *sets)
    assert result.exit_code == 1
    assert "the loss became nan" in sentence(result, 1)
    assert "switchable-2 is taken back: dnas resume finishes the rest" in sentence(result, 1)
    assert command("resume", "run").exit_code == 0
    assert run_status(copied).state == "finished"
    told = json.loads(command("export", "run", "--format", "packed", "--out", "net.safetensors", "--json").stdout)
    assert told["net"] == "switchable-1"


def test_profiles_of_the_job_that_are_gone_do_not_cost_the_search(
    smaller: Job, smaller_run: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    file = tmp_path / "given.json"
    config = smaller("controls.ilp=false", "finalise.enabled=true", f"finalise.profiles=['{file}']")
    with pytest.raises(InputError, match="cannot read the assignment"):
        carried_out(config, tmp_path / "refused")
    assert not events(Run.open(tmp_path / "refused"), "epoch")
    shutil.copy(smaller_run.folder / "assignments" / "search-1.json", file)

    def report(event: dict[str, Any]) -> None:
        if event.get("stage") == "finalise":
            file.unlink()

    with pytest.raises(InputError, match=r"cannot read the assignment .* switchable-1 is taken back: dnas resume"):
        carried_out(config, tmp_path / "run", report)
    with Run.open(tmp_path / "run", write=True) as run:
        run_job(config, run, lambda event: None)
    assert run_status(run).state == "finished"
    assert set(kinds(run).values()) == {"search", "uniform"}


@pytest.mark.whole
def test_a_file_of_another_nets_profile_stands_for_what_that_is_made_of(copied: Run) -> None:
    file = "run/assignments/switchable-1-w3a4.json"
    result = command("finalise", "run", "--profiles", f"{file},uniform-4", "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    found = {point["assignment"]: point for point in points(copied)}
    assert found["switchable-2-w3a4"]["parent"] == "w3a4"


@pytest.mark.whole
def test_measuring_a_profile_in_its_net_is_no_work(copied: Run) -> None:
    context = JobContext(load_job("run/job.toml"), copied, lambda event: None)
    measurer = Measurer(context)
    assignment = copied.assignment("switchable-1-w3a4")
    context.progress.plan([measurer.work])
    with Run.open(copied.folder, write=True) as context.log.run:
        measurer.measure(assignment)
        assert context.progress.fraction == 0
        measurer.measure(copied.assignment("w3a4"))
    assert context.progress.fraction == 1
