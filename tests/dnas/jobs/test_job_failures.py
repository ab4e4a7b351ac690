"""Whatever goes wrong with a job ends in one sentence and an exit code, and costs nothing that was computed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult
from typer.testing import CliRunner, Result

from dnas.commands import cli
from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs import run as jobs
from results.pareto import ParetoFront
from results.run.folder import Run
from search_spaces.allocation import solver
from search_spaces.errors import InputError
from search_spaces.models.sources import ZOO

FRAGILE_MODEL = """
from pathlib import Path
from torch import is_grad_enabled, nn

steps = 0


class Fuse(nn.Module):
    def forward(self, x):
        global steps
        trains = self.training and is_grad_enabled()
        steps += trains
        return x * float("nan") if self.training and steps > int(Path("last_good_step").read_text()) else x


def model():
    middle = [nn.Conv2d(4, 4, 3, padding=1), Fuse(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.Flatten(), nn.Linear(4 * 36, 10))
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DNAS_TRACEBACK", raising=False)


def dnas(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def search(job_settings: tuple[str, ...], *arguments: str) -> Result:
    sets = [part for setting in job_settings for part in ("--set", setting)]
    return dnas("search", "--run", "run", *sets, *arguments)


def sentence(result: Result, code: int) -> str:
    """The one line that a failed command says, after its code was checked."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr.strip()


HUNGRY_MODEL = """
import json
from pathlib import Path

import torch
from torch import nn

KINDS = {
    "class": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    "host": MemoryError,
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 3 GB."),
}


class Hungry(nn.Module):
    def forward(self, x):
        stage, kind = Path("hungry_in").read_text().split()
        lines = map(json.loads, Path("run/journal.jsonl").read_text().splitlines()) if stage != "command" else ()
        stages = [line["stage"] for line in lines if line["event"] == "stage"]
        if len(x) > 2 and stage in ("command", *stages[-1:]):  # not as the network is read
            raise KINDS[kind]()
        return x


def model():
    middle = [nn.Conv2d(4, 4, 3, padding=1), Hungry(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.Flatten(), nn.Linear(4 * 36, 10))
"""


def hungry(settings: tuple[str, ...], *stages: str) -> list[str]:
    """What is told of a job whose network finds too little memory in one stage after the other, and goes on each time.

    A stage stands with the kind of error.
    """
    Path("hungry.py").write_text(HUNGRY_MODEL)
    Path("hungry_in").write_text(stages[0])
    told = [sentence(search((*settings, "model.source=hungry:model", "model.arguments={}")), code=1)]
    for stage in stages[1:]:
        Path("hungry_in").write_text(stage)
        told.append(sentence(dnas("resume", "run"), code=1))
    Path("hungry_in").write_text("nowhere class")
    return told


def too_little(stage: str) -> str:
    return f"cpu has too little memory for the stage {stage} at data.batch_size = 32; free some"


def test_too_little_memory_is_told_with_the_stage_and_what_to_lower(smaller_settings: tuple[str, ...]) -> None:
    """In training, calibration and measuring, by the class that PyTorch has for it and by words."""
    told = hungry(smaller_settings, "pretrain class", "search host", "measure mps", "test cublas")
    for stage, each in zip(("pretrain", "search", "measure", "test"), told, strict=True):
        assert too_little(stage) in each
        assert "--set data.batch_size=16" in each
    assert dnas("resume", "run").exit_code == 0


@pytest.mark.whole
def test_nothing_that_was_asked_for_is_lost_where_memory_ends(smaller_settings: tuple[str, ...]) -> None:
    more = "controls.ilp=true", "prune.enabled=true", 'prune.budgets=[{size_bytes="60%"}]', "prune.trials=2"
    own = *more, "finalise.enabled=true", "finalise.epochs=1", 'finalise.profiles=["w4a4","search-1"]'
    told_of = hungry((*smaller_settings, *own), "controls class", "prune mps", "finalise cublas")
    for stage, told in zip(("controls", "prune", "finalise"), told_of, strict=True):
        assert too_little(stage) in told
    assert dnas("resume", "run").exit_code == 0
    Path("hungry_in").write_text("command class")
    commands = {"measuring search-1": ("evaluate", "run", "search-1"), "measuring float": ("evaluate", "run", "float")}
    commands |= {"sensitivities": ("sensitivity", "run", "--measured")}
    for what, words in commands.items():
        assert f"cpu has too little memory for {what} at data.batch_size = 32" in sentence(dnas(*words), code=1)
    for words in (("finalise", "run", "--profiles", "w4a4,w2a2"), ("prune", "run", "uniform-4", "--budget", "60%")):
        told = sentence(dnas(*words), code=1)
        assert "too little memory" in told
        assert "taken back" not in told
    Path("hungry_in").write_text("nowhere class")
    assert dnas("resume", "run").exit_code == 0
    assert any("uniform-4-pruned" in point.assignment for point in Run.open(Path("run")).load_front().points)


# One step to an epoch: pretrain, pretrain, warm-up of the weights, θ, fine-tuning of the first assignment.
@pytest.mark.parametrize(
    "good_epochs", [pytest.param(count, marks=() if count == 3 else pytest.mark.whole) for count in range(1, 5)]
)
def test_a_loss_that_is_not_finite_stops_the_job_and_names_the_layer(
    good_epochs: int, smaller_settings: tuple[str, ...]
) -> None:
    module = f"fragile_{good_epochs}"
    Path(f"{module}.py").write_text(FRAGILE_MODEL)
    Path("last_good_step").write_text(str(2 + good_epochs))  # the first two steps are the rehearsal
    own = ("pretrain.epochs=2", f"model.source={module}:model", "model.arguments={}", "controls.ilp=false")
    told = sentence(search((*smaller_settings, *own)), code=1)
    assert "the loss became nan: layer '2' is the first whose output is not finite" in told

    run = Run.open(Path("run"))
    failed = run.journal.records()[-1]
    assert failed["event"] == "failed"
    assert failed["message"] in told
    assert sum(record["event"] == "epoch" for record in run.journal.records()) == good_epochs
    for path in (run.folder / "checkpoints").iterdir():
        tensors, _ = run.load_checkpoint(path.stem) or ({}, {})
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    (row,) = json.loads(dnas("status", "run", "--json").stdout)
    assert (row["state"], row["message"]) == ("failed", failed["message"])

    Path("last_good_step").write_text("1000")
    assert dnas("resume", "run").exit_code == 0
    assert json.loads(dnas("status", "run", "--json").stdout)[0]["state"] == "finished"


def test_data_that_are_not_finite_are_refused(smaller_settings: tuple[str, ...]) -> None:
    Path("holes.py").write_text(
        "import torch\n"
        "def data():\n"
        "    images = torch.zeros(40, 1, 8, 8)\n"
        "    images[7] = float('nan')\n"
        "    return images, torch.arange(40) % 10, images[:10], torch.arange(10)\n"
    )
    assert "uint8 or finite floats" in sentence(search((*smaller_settings, "data.source=holes:data")), code=2)
    assert not Path("run").exists()


def test_a_refused_job_leaves_the_folders_that_were_there_and_no_other(smaller_settings: tuple[str, ...]) -> None:
    Path("mine/empty").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    for run in ("runs/a", "mine/b/c/d", "mine/empty", "mine"):
        sets = [part for setting in (*smaller_settings, "data.batch_size=1") for part in ("--set", setting)]
        told = sentence(dnas("search", "--run", run, *sets), code=2)
        assert "BatchNorm" in told or "not a run" in told or "mine" in told
        assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model.source=zoo:tiny_resnat", "did you mean 'tiny_resnet'?"),
        ("model.source=torchvision:resnet81", "did you mean"),
        ("model.source=nowhere:net", "cannot import module 'nowhere'"),
        ("model.arguments={widht=4}", "did you mean 'width'?"),
        ("model.checkpoint=missing.pt", "cannot be read: No such file"),
        ("data.source=digitz", "did you mean 'digits'?"),
        ("data.source=cifar10", "set download = true to fetch it, or root"),
        ("search.budgets=[{size_bytes='1%'}]", "the least possible is 704"),
        ("search.budgets=[{size_bites='50%'}]", "did you mean 'size_bytes'?"),
        ("space.include=['nothing*']", "'nothing*', which fits no layer"),
        ("space.exclude=['*']", "nothing to search"),
        ("search.epoch=3", "did you mean"),
        ("search.epochs=-1", "search.epochs"),
        ("device=cuda", "device = 'cuda' is not here; PyTorch finds cpu"),
        ("costs.functions={energy='nowhere:energy'}", "cannot import module 'nowhere'"),
        ("costs.latency_table=missing.csv", "missing.csv"),
        ("space.capability=missing.json", "missing.json"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(
    setting: str, part: str, smaller_settings: tuple[str, ...]
) -> None:
    if setting == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert part in sentence(search((*smaller_settings, setting)), code=2)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("model.source=zoo:tiny_resnat", "did you mean 'tiny_resnet'?"),
        ("data.source=cifar10", "set download = true to fetch it, or root"),
        ("search.budgets=[{size_bite='1%'}]", "unknown cost 'size_bite'"),
        ("prune={enabled=true,criterion='taylr'}", "did you mean 'taylor'?"),
    ],
)
def test_a_folder_that_holds_a_run_hides_no_mistake_that_its_job_alone_tells(
    setting: str, part: str, smaller_run: Run, smaller_settings: tuple[str, ...]
) -> None:
    shutil.copytree(smaller_run.folder, "run")
    own = tuple(other for other in smaller_settings if not other.startswith("prune"))
    assert part in sentence(search((*own, setting)), code=2)
    assert "already holds a run" in sentence(search(own), code=2)
    assert Path("run/front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


@pytest.mark.parametrize("source", ["imagefolder", "cifar10", "torchvision:MNIST", "fashionmnist"])
def test_a_folder_of_data_that_does_not_exist_is_told_as_such(source: str, smaller_settings: tuple[str, ...]) -> None:
    Path("file").write_text("no folder")
    for root, part in (("nowhere/data", "does not exist (looked for /"), ("file", "is no folder")):
        settings = (f"data.source={source}", f"data.root={root}")
        assert f"root '{root}' {part}" in sentence(search((*smaller_settings, *settings)), code=2)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("space.weight_bits=[2,2]", "space.weight_bits"),
        ("space.activation_bits=[4,2,4]", "4 stands there twice"),
        ("space.pairs=[[2,2],[4,4],[2,2]]", "[2, 2] stands there twice"),
        ("controls.uniform=[4,4]", "controls.uniform"),
        ("squantizer.weight_bits=[3,3]", "squantizer.weight_bits"),
        ("squantizer.sigma=[0,0.0]", "squantizer.sigma"),
        ("finalise.weight_bits=[8,8]", "finalise.weight_bits"),
    ],
)
def test_what_is_listed_twice_is_refused(setting: str, told: str, smaller_settings: tuple[str, ...]) -> None:
    assert told in sentence(search((*smaller_settings, setting)), code=2)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but words\n", "\ufeff"])
def test_an_empty_job_file_is_refused(text: str) -> None:
    Path("job.toml").write_text(text)
    for words in (("search", "job.toml"), ("search", "job.toml", "--seed", "1"), ("doctor", "--job", "job.toml")):
        assert "job file job.toml is empty" in sentence(dnas(*words), code=2)
    assert not Path("runs").exists()


def test_weights_of_a_supernet_need_one_that_has_them(smaller_settings: tuple[str, ...]) -> None:
    start = (*smaller_settings, "finetune.start=supernet")
    assert "warmup_epochs of at least 1" in sentence(search((*start, "search.warmup_epochs=0")), code=2)
    assert "engine = 'composite'" in sentence(search((*start, "search.engine=branches")), code=2)


def test_a_checkpoint_that_does_not_fit_is_refused(smaller_settings: tuple[str, ...]) -> None:
    for name, width, part in (("wide.pt", 8, "does not fit the model"), ("text.pt", 0, "no plain weights file")):
        if width:
            torch.save(ZOO["tiny_resnet"](width=width).state_dict(), name)
        else:
            Path(name).write_text("not weights")
        assert part in sentence(search((*smaller_settings, f"model.checkpoint={name}")), code=2)
        assert not Path("run").exists()


def test_a_folder_that_cannot_hold_a_run_is_refused_untouched(smaller_run: Run) -> None:
    shutil.copytree(smaller_run.folder, "old")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    for folder, part in (
        ("old", "already holds a run; go on with it (dnas resume old)"),
        ("mine", "is not empty and is not a run"),
        ("mine/notes.txt", "is a file"),
        ("mine/notes.txt/run", "cannot hold a run: Not a directory"),
        ("x" * 300, "cannot hold a run: File name too long"),
    ):
        assert part in sentence(dnas("search", "--run", folder), code=2)
    assert Path("mine/notes.txt").read_text() == "mine"
    assert (Path("old") / "front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


def test_a_run_that_cannot_be_read_is_told(smaller_run: Run) -> None:
    shutil.copytree(smaller_run.folder, "run")
    assert "there is no run at" in sentence(dnas("resume", "nowhere"), code=2)
    assert "did you mean 'search-1'?" in sentence(dnas("show", "run", "serch-1"), code=2)
    assert "did you mean 'uniform-4'?" in sentence(dnas("evaluate", "run", "unifrom-4"), code=2)
    lines = Path("run/journal.jsonl").read_text().splitlines(keepends=True)
    Path("run/journal.jsonl").write_text("".join([*lines[:3], '{"event": \n', *lines[4:]]))
    for command in ("resume", "status"):
        assert "corrupt at line 4" in sentence(dnas(command, "run"), code=2)
    assert Path("run/front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


def test_a_damaged_checkpoint_is_told_and_its_stage_is_repeated(smaller_run: Run) -> None:
    shutil.copytree(smaller_run.folder, "run")
    lines = Path("run/journal.jsonl").read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if '"measured"' in line)
    Path("run/journal.jsonl").write_text("".join(lines[:start]))
    pretrained = Path("run/checkpoints/pretrain.safetensors")
    pretrained.write_bytes(pretrained.read_bytes()[:100])
    result = dnas("resume", "run")
    assert result.exit_code == 0, result.output
    assert "checkpoints/pretrain.safetensors is damaged: it is made again" in result.stdout
    assert "the journal does not tell of" in result.stdout  # the nets that were measured behind its end
    assert Path("run/front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


@pytest.mark.whole
@pytest.mark.parametrize("writes", [0, 4, 6, 11])
def test_a_full_disk_costs_nothing_that_was_written(
    writes: int, smaller_run: Run, smaller_settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, 0

    def full(source: Any, target: Any, **kwargs: Any) -> None:
        nonlocal done
        if done == writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        done += 1
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)
    assert "the disk is full" in sentence(search(smaller_settings), code=1)
    assert not list(Path("run").rglob("*.tmp"))
    monkeypatch.setattr(os, "replace", replace)
    begun = Path("run/journal.jsonl").exists()  # it comes last: a folder without one is no run yet
    go_on = dnas("resume", "run") if begun else search(smaller_settings)
    assert go_on.exit_code == 0, go_on.output
    assert Path("run/front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


def test_a_job_works_with_the_users_own_modules_of_the_current_folder(smaller_settings: tuple[str, ...]) -> None:
    Path("my_things.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))\n"
        "def data():\n"
        "    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "    labels = (images.mean((1, 2, 3)) > 0).long()\n"
        "    return images[:40], labels[:40], images[40:], labels[40:]\n"
        "def energy(layer, weight_bits, activation_bits):\n"
        "    return layer.macs * (1.0 + weight_bits)\n"
    )
    own = ("model.source=my_things:net", "model.arguments={}", "data.source=my_things:data")
    cost = ("costs.functions={energy='my_things:energy'}", "search.budgets=[{energy='40%'}]")
    result = search((*smaller_settings, *own, *cost))
    assert result.exit_code == 0, result.stderr
    front = Run.open(Path("run")).load_front()
    assert front.x == "energy"
    assert {point.kind for point in front.points} == {"search", "uniform"}


KEYS = st.sampled_from(
    ["model.source", "data.source", "search.budgets", "space.fix", "seed", "name", "costs.functions"]
)
VALUES = st.one_of(st.text(max_size=20), st.sampled_from(["[[", "{a=1}", "1e999", "-1", "true", "1979-05-27", '"x"']))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.text(max_size=30), st.tuples(KEYS, VALUES).map("=".join)), min_size=1, max_size=3))
def test_no_setting_gives_a_traceback(monkeypatch: pytest.MonkeyPatch, garbage: list[str]) -> None:
    def planned_at_most(config: JobConfig, run: Run, report: Callable[[Any], None], request: Any = None) -> ParetoFront:
        assert load_job(str(run.folder / "job.toml")) == config
        raise InputError("enough")

    monkeypatch.setattr(jobs, "run_job", planned_at_most)
    result = search(tuple(garbage))
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.exit_code == 2, result.stderr
    assert not Path("run").exists()


def test_a_choice_that_the_solver_could_not_prove_the_best_is_told_once(
    smaller: Callable[..., JobConfig],
    carried_out: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = solver.milp
    monkeypatch.setattr(solver, "milp", lambda *given, **options: OptimizeResult(x=real(*given, **options).x, status=1))
    run = carried_out(smaller("controls.ilp=true"), tmp_path / "run")
    notes = [record["text"] for record in run.journal.records() if record["event"] == "note"]
    told = [note for note in notes if "not proven to be the best" in note]
    assert len(told) == 1
    assert told[0].startswith("the choice of bits within 'size_bytes 25%' is the best that was found in 60 s")
