"""Whatever computes keeps its tensors on the job's device: on one that refuses to mix them, all is as on the CPU."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dnas.commands import cli
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.execution.executors import Done, Executor, Report, Setting, Told
from dnas.execution.tasks import JobTask
from dnas.export.formats import NET_EXPORTERS
from dnas.jobs.run import evaluate_assignment, run_job
from dnas.switchable.views import Picked
from dnas.training.device import Device
from results.run.folder import Run
from tests.dnas.jobs.test_task_jobs import KINDS, job_of
from tests.elsewhere import PLACE, Elsewhere, elsewhere

SMALL = [
    "threads=1",
    "model.arguments={width=8,stages=1}",
    "data.train_limit=40", "data.test_limit=10", "data.batch_size=16",
    "pretrain.epochs=1", "search.warmup_epochs=1", "search.epochs=1", "finetune.epochs=1", "finetune.seeds=1",
    "finalise.epochs=1", "finalise.seeds=1",
    "space.weight_bits=[2,4]", "space.activation_bits=[2,4]",
    'search.budgets=[{size_bytes="15%"}]', 'prune.budgets=[{size_bytes="70%"}]', "prune.trials=2",
    "controls.uniform=[4]", "choice.rounds=1", "choice.draws=1", "choice.programs=1",
]  # fmt: skip
JOBS = {
    "every stage": [
        "prune.enabled=true", 'prune.assignments=["search-1"]', "prune.controls=[]", "prune.finalists=1",
        "finalise.enabled=true", 'finalise.profiles=["search-1-pruned-1","w4a4"]', "controls.sensitivity_images=16",
    ],
    "branches": [
        "search.engine=branches", "prune.enabled=false", "finalise.enabled=false", "finetune.start=pretrained",
        "search.distillation=0.5", "finetune.averaging=0.9", "finetune.gradient_clipping=0.5",
    ],
    "squantizer": ["compression=squantizer", "prune.enabled=false", "finalise.enabled=false"],
    "sp_nets": [
        "compression=switchable", "prune.enabled=false", "finalise.method=sp_nets", 'finalise.profiles=["w4a4","w2a2"]',
        "finalise.weights=dorefa", "finalise.activations=pact",
    ],
}  # fmt: skip
CHOICE = [
    "choice.enabled=true", "choice.rounds=1", "choice.draws=0", "choice.programs=0", "controls.measured_ilp=true",
    "controls.ilp=false", "controls.uniform=[]", "controls.sensitivity_images=8", "search.warmup=sandwich",
    "search.weight_updates=step", "finetune.damping=0.01", "finetune.start=wider", "prune.enabled=false",
    "finalise.enabled=false",
]  # fmt: skip
FEW = (
    "data.train_limit=14", "data.test_limit=2", "data.batch_size=4", "controls.ilp=false", "controls.uniform=[]",
    "prune.enabled=false", "finalise.enabled=false",
)  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "resume": ("resume", "{run}"),
    "evaluate": ("evaluate", "{run}", "search-1"),
    "evaluate --runtime packed": ("evaluate", "{run}", "search-1", "--runtime", "packed"),
    "evaluate float": ("evaluate", "{run}", "float"),
    "sensitivity": ("sensitivity", "{run}"),
    "sensitivity --measured": ("sensitivity", "{run}", "--measured"),
    "prune": ("prune", "{run}", "uniform-4", "--budget", "70%", "--trials", "2"),
    "finalise": ("finalise", "{run}", "--profiles", "w4a4,search-1-pruned-1", "--set", "epochs=1"),
    "rank": ("rank", "{run}", "--assignments", "3", "--epochs", "1"),
    "switch": ("switch", "{run}"),
    "doctor": ("doctor", "--job", "{run}/job.toml"),
    "show": ("show", "{run}", "--json"),
    "plot": ("plot", "{run}"),
    "export the switchable net": ("export", "{run}", "--format", "packed", "--out", "{out}"),
    **{f"export {name}": ("export", "{run}", "search-1-pruned-1", "--format", name, "--out", "{out}")
       for name in NET_EXPORTERS},
}  # fmt: skip
LONG = ("rank", "prune", "finalise", "plot", "export pt2e", "export onnx", "export qonnx")


def rarely(names: Sequence[str], seldom: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in seldom else name for name in names]


def carried_out(config: JobConfig, folder: Path) -> tuple[Any, Any]:
    """The front of a job, and one of its nets measured again."""
    with Run.create(folder, dump_job(config), {}) as run:
        front = run_job(config, run, lambda event: None)
        last = list(run.assignments())[-1]
        return front.to_json(), evaluate_assignment(run, last, "test", lambda event: None)


@pytest.fixture(autouse=True)
def _jobs_compute_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs that are run inside :func:`elsewhere` compute there, whatever device they name."""
    own = torch.device
    monkeypatch.setattr("dnas.jobs.job.device_of", lambda config: Device(PLACE if config.name == THERE else own("cpu")))


THERE = "there"


def named(config: JobConfig) -> JobConfig:
    """The same job, to be run elsewhere."""
    return config.model_copy(update={"name": THERE})


def here_and_there(config: JobConfig, folder: Path) -> tuple[Any, Any]:
    """What a job gives on the CPU, and what it gives elsewhere."""
    here = carried_out(config, folder / "here")
    with elsewhere():
        return here, carried_out(named(config), folder / "there")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of every stage that was computed elsewhere, and what it gave."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    with pytest.MonkeyPatch.context() as patch, elsewhere():
        patch.setattr("dnas.jobs.job.device_of", lambda config: Device(PLACE))
        return folder, carried_out(named(load_job("digits", [*SMALL, *JOBS["every stage"]])), folder)


@pytest.mark.whole
def test_every_stage_computes_elsewhere_what_it_computes_on_the_cpu(finished: Any, tmp_path: Path) -> None:
    assert finished[1] == carried_out(load_job("digits", [*SMALL, *JOBS["every stage"]]), tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(JOBS)[1:])
def test_a_job_computes_elsewhere_what_it_computes_on_the_cpu(name: str, tmp_path: Path) -> None:
    here, there = here_and_there(load_job("digits", [*SMALL, *JOBS[name]]), tmp_path)
    assert there == here


@pytest.mark.whole
def test_a_choice_computes_elsewhere_what_it_computes_on_the_cpu(tmp_path: Path) -> None:
    here, there = here_and_there(load_job("digits", [*SMALL, *CHOICE]), tmp_path)
    assert there == here


@pytest.mark.whole
@pytest.mark.parametrize("kind", rarely(list(KINDS), ["regression", "multilabel"]))
def test_a_job_of_every_task_computes_elsewhere_what_it_computes_on_the_cpu(kind: str, tmp_path: Path) -> None:
    """Maps, boxes, numbers, several labels, several inputs."""
    here, there = here_and_there(job_of(kind, *FEW), tmp_path)
    assert there == here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_every_stage_of_a_dense_task_computes_elsewhere_what_it_computes_on_the_cpu(kind: str, tmp_path: Path) -> None:
    here, there = here_and_there(job_of(kind), tmp_path)
    assert there == here


@pytest.mark.slow
def test_a_device_without_float64_carries_out_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("training.device", "search.supernet"):
        monkeypatch.setattr(f"dnas.{module}.widest", lambda place: torch.float32)
    with elsewhere(float64=False):
        front, _ = carried_out(named(load_job("digits", [*SMALL, *JOBS["every stage"]])), tmp_path / "there")
    assert len(front["points"]) > 5


# --- tasks that other processes carry out ---


class Inline(Executor):
    """Carries tasks out in this process, each with a device there; what crosses to another process is bytes."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._reports: list[Report] = []
        self._task = ""
        with elsewhere():
            self._bench = settings[0].prepare(self._send, *pickle.loads(pickle.dumps(settings[0].arguments)))

    free = 1

    def start(self, task: JobTask) -> None:
        self._task = task.id
        with elsewhere():
            value = self._bench(pickle.loads(pickle.dumps(task)))
        self._reports.append(Done(task.id, plain(value)))

    def _send(self, message: Any, live: bool) -> None:
        self._reports.append(Told(self._task, plain(message), live))

    def reports(self) -> Sequence[Report]:
        found, self._reports = self._reports, []
        return found

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


def plain(value: Any) -> Any:
    """The value as another process gets it, who knows nothing of the device."""
    assert b"Elsewhere" not in pickle.dumps(value)
    return pickle.loads(pickle.dumps(value))


@pytest.mark.whole
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), marks=pytest.mark.slow, id="every stage"),
        pytest.param(("prune.enabled=false", "finalise.enabled=false", "controls.ilp=false"), id="some stages"),
    ],
)
def test_tasks_of_workers_compute_elsewhere_what_they_compute_on_the_cpu(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_job("digits", [*SMALL, *JOBS["every stage"], *more])
    here = carried_out(config, tmp_path / "here")
    monkeypatch.setattr("dnas.jobs.bench.make_executor", lambda name, settings, **options: Inline(settings))
    with elsewhere():
        there = carried_out(named(config).model_copy(update={"workers": 2}), tmp_path / "there")
    assert there == here


# --- commands ---


@pytest.mark.whole
@pytest.mark.parametrize("name", rarely(list(COMMANDS), LONG))
def test_a_command_goes_on_elsewhere(name: str, finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    words = [word.format(run=tmp_path / "run", out=tmp_path / "net") for word in COMMANDS[name]]
    with elsewhere():
        result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    if words[0] == "export":
        assert (tmp_path / "net").stat().st_size > 0


@pytest.mark.whole
def test_files_of_a_run_hold_nothing_of_the_device(finished: Any) -> None:
    """Who shows a run, or goes on with it elsewhere, need not have one."""
    run = Run.open(finished[0])
    for path in (run.folder / "checkpoints").glob("*.safetensors"):
        tensors, _ = run.load_checkpoint(path.stem) or ({}, {})
        assert tensors
        assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    assert json.loads(CliRunner().invoke(cli.app, ["show", str(run.folder), "--json"]).stdout)


# --- the device itself ---


def test_the_device_that_is_not_there_refuses_what_a_gpu_refuses() -> None:
    with elsewhere() as place:
        x, index = torch.randn(3, 4).to(place), torch.tensor([0, 2])
        assert isinstance(x[index] * 2.0 + torch.tensor(1.0), Elsewhere)
        assert torch.equal((x + torch.ones(4, device=place)).cpu(), x.cpu() + 1)
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(4)
        with pytest.raises(RuntimeError, match="one device"):
            torch.eq(torch.arange(4), torch.arange(4, device=place))
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=place)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError):
            torch.ones(4).add_(x[0])
        with pytest.raises(RuntimeError, match="one device"):  # as the first job with a pruned profile did on a GPU
            Picked(torch.arange(6).reshape(2, 3).to(place), (4, 3))
