"""`dnas prune`: a run is pruned again and again, interrupted or not; what cannot work is refused and costs nothing."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune import Prune
from dnas.jobs.stages.prune_trials import PruningObjective
from dnas.training.trainer import Measurement
from results.run.folder import Run
from results.run.status import run_status
from tests.dnas.jobs.kills import outcome
from tests.dnas.jobs.test_job_failures import dnas as command
from tests.dnas.jobs.test_job_failures import search, sentence
from tests.dnas.jobs.test_prune_jobs import GROUPS, PRUNE, events, ids, points

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]


@pytest.fixture(scope="module")
def unpruned(smaller: Job, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = smaller("model.arguments={width=4,stages=2}", "prune.enabled=false", "controls.ilp=false")
    return carried_out(config, tmp_path_factory.mktemp("unpruned") / "run")


@pytest.fixture
def copied(unpruned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run that has pruned nothing, as ``run`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(unpruned.folder, "run")
    return Run.open(Path("run"))


QUICK = ("--trials", "2", "--set", "controls=[]", "--set", "batchnorm_batches=2", "--set", "finetune_epochs=1")


@pytest.mark.whole
def test_a_finished_run_is_pruned_again_and_again(copied: Run, unpruned: Run) -> None:
    for arguments in (
        ("search-1", "--budget", "70%"),
        ("search-1", "--budget", "macs=50%,size_bytes=80%"),
        ("--bits", "1", "--budget", "80%", "--budget", "60%"),
    ):
        result = command("prune", "run", *arguments, *QUICK)
        assert result.exit_code == 0, result.output
        assert run_status(copied).state == "finished"
    new = {"search-1-pruned-1", "search-1-pruned-2", "uniform-1", "uniform-1-pruned-1", "uniform-1-pruned-2"}
    assert ids(copied) == ids(unpruned) | new
    old = {point["assignment"]: point["test_top1"] for point in points(unpruned)}
    assert {p["assignment"]: p["test_top1"] for p in points(copied) if p["assignment"] in old} == old
    assert len(events(copied, "tested")) == len(ids(copied))  # nothing is read twice
    for name, limits in (
        ("search-1-pruned-1", {"size_bytes": 0.7}),
        ("search-1-pruned-2", {"macs": 0.5, "size_bytes": 0.8}),
        ("uniform-1-pruned-2", {"size_bytes": 0.6}),
    ):
        found = copied.assignment(name)
        parent = copied.assignment(found.provenance.parent)
        assert all(found.cost[cost] <= share * parent.cost[cost] for cost, share in limits.items())
    binary = copied.assignment("uniform-1").pairs
    assert {binary[name] for name in GROUPS[1:]} == {(1, 1)}
    before = outcome(copied)
    assert command("resume", "run").exit_code == 0
    told = sentence(command("prune", "run", "search-1-pruned-1", *QUICK), code=2)
    assert "'search-1-pruned-1' is pruned already; name one that has all its filters" in told
    assert outcome(copied) == before


@pytest.mark.whole
def test_pruning_an_unfinished_run_finishes_it_and_can_be_interrupted(
    copied: Run, unpruned: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = copied.journal.path.read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if '"measured"' in line)
    copied.journal.path.write_text("".join(lines[:cut]))  # the search has ended, its net is not measured yet
    (copied.folder / "front.json").unlink()
    call, calls = PruningObjective.__call__, 0

    def interrupted(objective: PruningObjective, counts: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return call(objective, counts)

    monkeypatch.setattr(PruningObjective, "__call__", interrupted)
    result = command("prune", "run", "search-1", "--budget", "70%", *QUICK)
    assert result.exit_code == 130
    assert "dnas resume run" in result.stderr
    assert len(events(copied, "trial")) == 1
    assert command("resume", "run").exit_code == 0
    assert calls == 3
    assert ids(copied) == ids(unpruned) | {"search-1-pruned-1"}
    once = Path("once")
    shutil.copytree(unpruned.folder, once)
    assert command("prune", "once", "search-1", "--budget", "70%", *QUICK).exit_code == 0
    assert outcome(copied) == outcome(Run.open(once))


def test_only_the_most_accurate_are_pruned_where_few_are_wanted(
    unpruned: Run, smaller: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smaller(*PRUNE, "prune.assignments=['*']", "prune.at_most=1")
    run = Run.open(unpruned.folder)
    measured = [run.assignment(name) for name in ("search-1", "uniform-4")]
    for best in (0, 1):
        scores = {one.id: 0.5 + 0.1 * (number == best) for number, one in enumerate(measured)}
        read = {one.id: one.with_metrics(val_top1={"mean": scores[one.id]}) for one in measured}
        monkeypatch.setattr(run, "assignment", read.__getitem__)
        context = JobContext(config, run, lambda event: None)
        assert [target.parent.id for target in Prune(context, Measurer(context)).targets(measured)] == [
            measured[best].id
        ]


UNWATCHABLE = """
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode as mode

from search_spaces.channels.running import WatchedRun

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 10)

    def forward(self, x):
        if isinstance(mode(), WatchedRun):
            raise RuntimeError("unwatchable")
        return self.head(self.second(self.first(x).relu()).flatten(1))
"""
PLAIN = """
from torch import nn

def net():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))
"""
REFUSED = [
    (("budgets=[{size_bytes='1%'}]",), "with every group at its largest ratio it is still"),
    (("budgets=[{size_bytes='70%'},{macs=3}]",), "macs 3 cannot be reached by pruning"),
    (("budgets=[{size_byte='70%'}]",), "did you mean 'size_bytes'?"),
    (("budgets=[{bitops='lots'}]",), "budget 'lots' is not an amount"),
    (("criterion=haming",), 'prune.criterion = "haming"'),
    (("criterion=haming",), "did you mean 'hamming'?"),
    (("criterion='nowhere:score'",), "cannot import module 'nowhere'"),
    (
        ("exclude=['layer1.0.conv']",),
        "prune.exclude: no channel group fits 'layer1.0.conv'; there are conv1, layer1.0.conv1",
    ),
    (("fix={'con1'=0.5}",), "layer2.0.conv2; did you mean 'conv1'?"),
    (("exclude=['*']",), "no channel group is left to prune"),
    (("fix={'*'=0.5}",), "there is no ratio to search"),
    (("fix={conv1=1.0}",), "expected less than 1"),
    (("fix={conv1=-0.5}",), "prune.fix.conv1 = -0.5: expected"),
    (("max_ratio=1.0",), "prune.max_ratio = 1.0: expected less than 1"),
    (("max_ratio=-0.1",), "prune.max_ratio = -0.1: expected"),
    (("max_ratio=0.0",), "cannot be reached by pruning"),
    (("trails=5",), "did you mean 'trials'?"),
    (("controls=['unifrom']",), "prune.controls[0]"),
    (("proposer=optuna",), "pip install 'dnas[optuna]'"),
    (("proposer=optona",), "prune.proposer"),
]


@pytest.fixture(autouse=True)
def _without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)


@pytest.mark.parametrize(("settings", "part"), REFUSED)
def test_wrong_input_is_refused_and_the_run_is_as_before(
    copied: Run, unpruned: Run, settings: tuple[str, ...], part: str
) -> None:
    sets = [text for setting in settings for text in ("--set", setting)]
    assert part in sentence(command("prune", "run", "search-1", *QUICK, *sets), code=2)
    unchanged(copied, unpruned)


def unchanged(run: Run, before: Run) -> None:
    """Every file is as it was, and nobody holds the run."""
    files = {path.relative_to(before.folder) for path in before.folder.rglob("*") if path.is_file()}
    assert {path.relative_to(run.folder) for path in run.folder.rglob("*") if path.is_file()} == files
    for path in files:
        assert (run.folder / path).read_bytes() == (before.folder / path).read_bytes(), path
    assert run_status(run).state == "finished"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("serch-1",), "did you mean 'search-1'?"),
        (("search-1", "--bits", "1"), "name either an assignment of the run or --bits"),
        ((), "name either an assignment of the run or --bits"),
        (("--bits", "9"), "weight_bits = 9 is not a bit-width"),
        (("--bits", "0"), "has no 0-bit form"),
        (("search-1", "--budget", "1%"), "it is still"),
        (("search-1", "--budget", "=1%"), "budgets"),
        (("search-1", "--trials", "-1"), "expected at least 1"),
        (("search-1", "--budget", "70%,bitops=5%"), "--budget 70%,bitops=5% is not of the form COST=AMOUNT"),
        (("search-1", "--budget", "macs=5%,macs=5%"), "limits macs twice; give one amount for each cost"),
        (("search-1", "--set", "prune.trials=3"), "error: --set prune.prune.trials=3: [prune] has no key 'prune'"),
    ],
)
def test_a_command_that_asks_for_nonsense_is_refused(
    copied: Run, unpruned: Run, arguments: tuple[str, ...], part: str
) -> None:
    assert part in sentence(command("prune", "run", *arguments), code=2)
    unchanged(copied, unpruned)


def test_a_budget_out_of_reach_is_told_with_the_nearest_that_is_not(copied: Run, unpruned: Run) -> None:
    told = sentence(command("prune", "run", "search-1", "--budget", "size_bytes=1%", *QUICK), code=2)
    least = told.partition("it is still ")[2].partition(";")[0]
    assert command("prune", "run", "search-1", "--budget", f"size_bytes={least}", *QUICK).exit_code == 0
    assert copied.assignment("search-1-pruned-1").cost["size_bytes"] == float(least)


def refused_search(settings: tuple[str, ...], *more: str) -> Result:
    return search((*settings, *PRUNE, "prune.assignments=['uniform-4']", *more))


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        *((f"prune.{settings[0]}", part) for settings, part in REFUSED[:6]),
        ("prune.assignments=['serch-*']", "did you mean 'search-1'?"),
        ("prune.fix={'con1'=0.5}", "did you mean 'conv1'?"),
        ("prune.proposer=optuna", "pip install 'dnas[optuna]'"),
        ("pipeline=['prune','prune']", "is not one of"),
        ("prune.enabled=false;pipeline=['prune']", "begins with pruning, which prune.enabled = false turns off"),
        ("pipeline=['prune'];prune.assignments=['search-1']", "fits no assignment that this job makes"),
        ("model.source=unwatchable:Net;model.arguments={}", "the network cannot be pruned: "),
        ("model.source=unwatchable:Net;model.arguments={}", "set prune.enabled = false"),
        ("model.source=plain:net;model.arguments={};prune.criterion=bn_scale", "there is none; use 'latent_l1'"),
    ],
)
def test_a_job_that_cannot_prune_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smaller_settings: tuple[str, ...], setting: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unwatchable.py").write_text(UNWATCHABLE)
    Path("plain.py").write_text(PLAIN)
    assert part in sentence(refused_search(smaller_settings, *setting.split(";")), code=2)
    assert not Path("run").exists()


def diverging(monkeypatch: pytest.MonkeyPatch, *, last: int) -> Callable[[], None]:
    """Let trials give NaN up to the one numbered ``last``; the answer heals them."""
    call, calls = PruningObjective.__call__, 0

    def measured(objective: PruningObjective, counts: Any) -> Measurement:
        nonlocal calls
        calls += 1
        return Measurement(0.1, math.nan, 20) if calls <= last else call(objective, counts)

    monkeypatch.setattr(PruningObjective, "__call__", measured)
    return lambda: monkeypatch.setattr(PruningObjective, "__call__", call)


@pytest.mark.whole
def test_three_failed_trials_in_a_row_end_the_command_and_it_can_be_asked_again(
    copied: Run, unpruned: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = diverging(monkeypatch, last=9)
    arguments = ("search-1", "--budget", "70%", *QUICK, "--trials", "5")
    told = sentence(command("prune", "run", *arguments), code=1)
    assert "3 trials in a row failed: the loss of the pruned network is nan" in told
    assert "pruning search-1 is taken back, so ask for it again" in told
    assert run_status(copied).state == "failed"
    assert run_status(copied).message in told
    trials = events(copied, "trial")
    assert [(record["trial"]["loss"], record["trial"]["top1"]) for record in trials] == [(None, None)] * 3
    assert (copied.folder / "front.json").read_bytes() == (unpruned.folder / "front.json").read_bytes()
    heal()
    assert command("resume", "run").exit_code == 0  # without what failed: a run must not fail of it for ever
    assert run_status(copied).state == "finished"
    assert ids(copied) == ids(unpruned)
    assert command("prune", "run", *arguments).exit_code == 0
    assert ids(copied) == ids(unpruned) | {"search-1-pruned-2"}
    assert len(events(copied, "trial")) == 3 + 5


def test_a_failed_trial_among_others_does_no_harm(copied: Run, unpruned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, last=1)
    assert command("prune", "run", "search-1", "--budget", "70%", *QUICK).exit_code == 0
    assert [bool(record["trial"]["failed"]) for record in events(copied, "trial")] == [True, False]
    assert "search-1-pruned-1" in ids(copied)


def test_where_every_trial_failed_nothing_is_chosen(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, last=9)
    told = sentence(command("prune", "run", "search-1", "--budget", "70%", *QUICK), code=1)
    assert "no trial of prune-search-1 met the budget size_bytes 70% with a finite loss" in told
    assert "search-1-pruned-1" not in copied.assignments()
