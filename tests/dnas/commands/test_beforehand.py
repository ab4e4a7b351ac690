"""What is mistyped is told before PyTorch is loaded, by every command that takes a job or a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from bayesopt.criteria import CRITERIA
from dnas import commands
from dnas.commands import beforehand, cli
from dnas.config.fields import CriterionName, SourceName, TaskName
from dnas.config.file import dump_job, load_job
from dnas.data.load import load_data
from dnas.data.roots import ROOTED, check_root
from dnas.data.sources import SOURCES
from dnas.latency.engines import ENGINES
from dnas.latency.places import RUNTIMES
from dnas.training.task import TASKS
from results.run.folder import Run
from search_spaces.costs.kinds import cost_names
from search_spaces.costs.table import build_costs
from search_spaces.errors import InputError
from tests.made_runs import made_assignment

LATENCIES = "layer,weight_bits,activation_bits,latency_ms\nconv,8,8,1\n"
MISTAKES = {
    "search nosuch": "there is no job file and no preset 'nosuch'",
    "search job.toml": "job.toml, line 2: [search] has no key 'epocs'",
    "search digits --set search.epocs=3": "search.epocs",
    "search digits --run own": "own already holds a run",
    "search digits --run own --seed 1": "own already holds a run",
    "search digits --run own --set search.budgets=[{size_byte='9%'}]": "search.budgets: unknown cost 'size_byte'",
    "search digits --set search.cost=bitop": "search.cost: unknown cost 'bitop'; known are size_bytes, bitops, ",
    "search digits --set prune.budgets=[{latency_ms='9%'}]": "a latency needs costs.latency_table, which dnas bench-",
    "search digits --set costs.latency_table=none.csv": "latency table none.csv: No such file",
    "search digits --set costs.latency_table=job.toml": "job.toml must have the columns layer, weight_bits,",
    "search digits --set model.source=zoo:tiny_resnat": "zoo has no model 'tiny_resnat'; did you mean 'tiny_resnet'?",
    "search digits --set model.checkpoint=none.pt": "checkpoint 'none.pt' cannot be read: No such file",
    "search digits --set model.checkpoint=full": "checkpoint 'full' cannot be read: it is a folder",
    "search digits --set data.source=cifar11": "did you mean 'cifar10'?",
    "search digits --set task.kind=segmantation": "did you mean 'segmentation'?",
    "search digits --set prune.criterion=tailor": "did you mean 'taylor'?",
    "search digits --set data.source=imagefolder": "needs root, the folder that holds train/CLASS/* and test/ or val/",
    "search digits --set data.source=coco --set data.root=none": "root 'none' does not exist (looked for /",
    "search digits --set data.source=imagefolder --set data.root=full": "'full' has no folder test/ or val/",
    f"search digits --set data.source=voc --set data.root={'x' * 300}": "cannot be read: File name too long",
    "search digits --set data.source=torchvision:MNIST": "root 'data' does not exist",
    "train-switchable digits --set prune.enabled=false --set data.source=masks": "dataset 'masks' needs root",
    "search digits --run full": "full is not empty and is not a run",
    "search digits --run job.toml/run": "job.toml/run cannot hold a run: Not a directory",
    f"search digits --run {'x' * 300}": "cannot hold a run: File name too long",
    "search digits --run nowhere/run": "/nowhere is a link that leads nowhere; choose another",
    "search digits --run ~nosuch/run": "the home folder in '~nosuch/run' is not known",
    "search nosuch --detach": "there is no job file",
    "search nosuch --nproc-per-node 2": "there is no job file",
    "train-switchable nosuch": "there is no job file",
    "resume nosuch": "there is no run at",
    "resume own --workers none": "workers",
    "resume nosuch --detach": "there is no run at",
    "prune nosuch search-1": "there is no run at",
    "prune own serch-1": "has no assignment 'serch-1'; it has search-1; did you mean 'search-1'?",
    "prune own --bits 9": "weight_bits = 9 is not a bit-width",
    "prune own search-1 --budget size_bytes": "size_bytes",
    "prune own search-1 --set criterium=taylor": "prune.criterium",
    "prune own --bits 1 --budget size_byte=70%": "did you mean 'size_bytes'?",
    "finalise nosuch": "there is no run at",
    "finalise own --set epocs=3": "finalise.epocs",
    "finalise own --profiles ,": "no profile is named",
    "finalise own --profiles w9a9": "weight_bits = 9 is not a bit-width",
    "finalise own --profiles serch-1": "no assignment is called 'serch-1'",
    "search own": "own is a run, not a job; go on with it: dnas resume own, or start its job again: dnas search own/",
    "doctor": "name a MODEL",
    "doctor job.toml": "'job.toml' is a job, not a network; examine its own with: dnas doctor --job job.toml",
    "doctor digits": "'digits' is a job, not a network; examine its own with: dnas doctor --job digits",
    "doctor --job nosuch": "there is no job file",
    "doctor zoo:tiny_resnet --budget 12%": "not of the form COST=AMOUNT",
    "doctor zoo:tiny_resnet --budget size_byte=12%": "did you mean 'size_bytes'?",
    "doctor zoo:tiny_resnat": "did you mean 'tiny_resnet'?",
    "doctor zoo:tiny_resnat --job digits": "did you mean 'tiny_resnet'?",
    "doctor zoo:tiny_resnet --input-shape 3,a": "is not a shape",
    "sensitivity nosuch": "'nosuch' is no run",
    "sensitivity job.toml": "'job.toml' is a job, not a run; name it so: dnas sensitivity --job job.toml",
    "sensitivity --job nosuch": "there is no job file",
    "sensitivity zoo:tiny_resnat --job digits": "did you mean 'tiny_resnet'?",
    "sensitivity own --device nowhere": "device",
    "rank nosuch": "there is no run at",
    "rank own --budget much": "not of the form COST=AMOUNT",
    "rank own --budget bitop=5%": "did you mean 'bitops'?",
    "rank own --budget 9": "the job has the budgets 1 to 4, not 9",
    "rank own --assignments 1": "ask for 5 or more",
    "rank own --epochs -1": "epochs = -1 of fine-tuning is below 0",
    "bench-latency own --runtime torch --input-shape 3,a": "is not a shape",
    "bench-latency own --runtime torhc": "did you mean 'torch'?",
    "bench-latency own --runtime torch --device tpu": "unknown device 'tpu'",
    "bench-latency own --runtime torch --threads 0": "--threads 0: this machine has",
    "bench-latency zoo:tiny_resnat --runtime torch": "did you mean 'tiny_resnet'?",
    "bench-latency own --runtime torch --out table.txt": "must be a file whose name ends in .json",
    "evaluate nosuch search-1": "there is no run at",
    "evaluate own serch-1": "has no assignment 'serch-1'",
    "export nosuch search-1 --out net.dnas --format packed": "there is no run at",
    "export own search-1 --out net.onnx --format onxx": "unknown format 'onxx'; choose one of json, csv, packed",
    "export own search-1 --out net.csv": "end it in .json, or give --format csv",
    "export own search-1 --out net.png --format onnx": "net.png is no name for a file of the format 'onnx'",
    "export own search-1 --out net.onnx --format onnx --target tensort": "did you mean 'tensorrt'?",
    "export own search-1 --out net.onnx --format onnx --seed 7": "'search-1' has no net of seed 7",
    "export own serch-1 --out net.onnx --format onnx": "has no assignment 'serch-1'",
}
MEASURED = {"mean": 0.5, "std": 0.0, "n": 2}
HEAVY = ("doctor_view", "exporting", "latency_view", "launching", "processes", "rank_view", "sensitivity_view")
"""The modules of commands that load torch."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of the default job, beside a wrong job file and a folder of something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    Path("job.toml").write_text("[search]\nepocs = 3\n")
    Path("full").mkdir()
    Path("nowhere").symlink_to("gone")
    Path("full/notes.txt").write_text("mine")
    Path("full/train").mkdir()
    with Run.create("own", dump_job(load_job("digits")), {}) as run:
        run.save_assignment(replace(made_assignment("search-1", [4, 4, 4, 4]), metrics={"val_top1": MEASURED}))
        run.journal.append({"event": "started"})
    return tmp_path / "own"


@pytest.mark.parametrize("words", MISTAKES)
def test_what_is_mistyped_is_told_before_torch_is_loaded(
    own: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HEAVY:
        monkeypatch.delattr(commands, name, raising=False)
        monkeypatch.setitem(sys.modules, f"{commands.__name__}.{name}", None)  # to import it is an error
    done = CliRunner().invoke(cli.app, words.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert MISTAKES[words] in done.stderr
    assert sorted(path.name for path in own.parent.iterdir()) == ["full", "job.toml", "nowhere", "own"]


def test_what_tells_it_loads_no_torch() -> None:
    rooms = ("beforehand", "cli", "detaching", "exporting_bits", "serving", "trust", "written")
    modules = [*(f"dnas.commands.{name}" for name in rooms), "dnas.latency.places"]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.parametrize(
    "settings",
    [
        ["model.source=torchvision:resnet81"],
        ["model.source=mine:net", "task.kind=mine:Task", "data.source=mine:images", "prune.criterion=mine:order"],
        ["data.source=cifar10", "data.download=true"],
        ["data.root=none"],
        ["costs.functions={energy='mine:energy'}", "search.budgets=[{energy='9%'}]"],
        ["costs.latency_table=table.csv", "search.budgets=[{latency_ms=3}]"],
        ["prune.enabled=false", "prune.budgets=[{energy='9%'}]"],
    ],
)
def test_what_only_torch_or_code_of_the_users_can_tell_is_left_for_later(own: Path, settings: list[str]) -> None:
    Path("table.csv").write_text(LATENCIES)
    beforehand.check_new("digits", settings, Path("new"))


@pytest.mark.parametrize("source", [*ROOTED, "cifar10", "torchvision:MNIST"])
@pytest.mark.parametrize("root", [None, "none", "nowhere", "job.toml", "full"])
def test_a_root_is_refused_as_its_reader_refuses_it(own: Path, source: str, root: str | None) -> None:
    with pytest.raises(InputError) as late:
        load_data(source, root=root)
    if root == "full" and source != "imagefolder":  # it must be read to know what is in it
        check_root(source, Path(root), download=False)
        return
    with pytest.raises(InputError) as early:
        check_root(source, root and Path(root), download=False)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    ("names", "known"),
    [(SourceName, SOURCES), (TaskName, TASKS), (CriterionName, ["auto", *CRITERIA])],
)
def test_a_job_takes_the_names_that_there_are(names: Any, known: Iterable[str]) -> None:
    assert get_args(names)[1].names == tuple(known)


def test_a_runtime_is_called_by_its_own_name() -> None:
    assert {name: engine.name for name, engine in ENGINES.items()} == {name: name for name in RUNTIMES}


def test_costs_are_known_by_name_before_there_is_a_table(own: Path) -> None:
    Path("table.csv").write_text(LATENCIES)
    costs = build_costs(latency="table.csv", functions={"energy": lambda layer, w, a: 1.0})
    assert cost_names(True, ["energy"]) == [cost.name for cost in costs]
    assert cost_names(False, []) == [cost.name for cost in build_costs()]


@pytest.mark.parametrize("words", [["search", "--run", ""], ["show", " "], ["resume", ""], ["compare", "own", ""]])
def test_an_empty_name_is_not_the_current_folder(own: Path, words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is no name of a run; name its folder, or what it is called in runs/" in done.stderr


def test_processes_that_refuse_together_are_let_through(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    beforehand.check_new("nosuch", [], None)
    beforehand.check_run(Path("nosuch"))
