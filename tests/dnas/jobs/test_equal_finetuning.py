"""What `[finetune]` says holds for what was searched, for controls and for pruned nets alike, and equally."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.stages import measure
from dnas.jobs.stages.measure import Measurer
from dnas.training.trainer import Trainer
from results.run.folder import Run

CarriedOut = Callable[..., Run]
SETTINGS = (
    "model.arguments={width=4}",
    "data.batch_size=16",
    "prune.enabled=true",
    "prune.trials=1",
    "prune.finalists=1",
    "prune.budgets=[{size_bytes='80%'}]",
    "prune.controls=['fewer-bits']",
    "controls.uniform=[2]",
    "search.budgets=[{size_bytes='15%'}]",
)
ARMS = ("search-1", "uniform-2", "search-1-pruned-1", "search-1-fewer-bits-1")
KEYS = (
    "optimizer=Adam",
    "optimizer=AdamW",
    "schedule=constant",
    "schedule=step",
    "learning_rate_warmup=0.9",
    "weight_decay=0.5",
    "weight_decay_on=all",
    "clip_rate=0.0",
    "gradient_clipping=0.001",
    "accumulation=2",
    "label_smoothing=0.3",
    "averaging=0.9",
    "distillation=0.0",
    "distillation=1.0",
    "damping=5.0",
)


@pytest.fixture(scope="module")
def run(smaller: Callable[..., JobConfig], carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(smaller(*SETTINGS), tmp_path_factory.mktemp("equal") / "run")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """What was trained, by nets that leave nothing in the run."""
    found: list[Trainer] = []

    def train(context: JobContext, trainer: Trainer, place: object) -> None:
        found.append(trainer)
        list(trainer.epochs())

    monkeypatch.setattr(JobContext, "train", train)
    monkeypatch.setattr(measure, "save_fixed", lambda *given: None)
    monkeypatch.setattr(Run, "delete_checkpoint", lambda *given: None)
    return found


@pytest.fixture(scope="module")
def context(run: Run) -> JobContext:
    return JobContext(load_job(run.job_file()), Run.open(run.folder), lambda event: None)


def nets(context: JobContext, *settings: str) -> Mapping[str, dict[str, Tensor]]:
    """The trained net of every arm under these settings of ``[finetune]``."""
    run = context.log.run
    config = load_job(run.job_file(), [f"finetune.{setting}" for setting in settings])
    measurer = Measurer(context)
    measurer.job = replace(context.job, config=config)
    arms = [run.assignment(name) for name in ARMS]
    return {arm.id: measurer._trained(arm, measurer.course_of(arm), 0).state_dict() for arm in arms}


@pytest.mark.whole
def test_every_arm_has_the_same_images_teacher_and_updates(context: JobContext, made: list[Trainer]) -> None:
    nets(context)
    assert len(made) == len(ARMS)
    first = made[0]
    for other in made:
        assert other.section == first.section
        assert other.images is first.images
        assert (other.seed, other.label, other.batch_size) == (first.seed, first.label, first.batch_size)
        assert other.teacher is not None
        assert other.teacher.weight == 0.5
        assert other.teacher.network is first.teacher.network  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def usual(context: JobContext) -> Mapping[str, dict[str, Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobContext, "train", lambda context, trainer, place: list(trainer.epochs()))
        patch.setattr(measure, "save_fixed", lambda *given: None)
        patch.setattr(Run, "delete_checkpoint", lambda *given: None)
        return nets(context)


@pytest.mark.whole
@pytest.mark.parametrize("setting", KEYS)
def test_each_key_changes_what_is_trained_of_every_arm(
    setting: str, context: JobContext, made: list[Trainer], usual: Mapping[str, dict[str, Tensor]]
) -> None:
    for name, state in nets(context, setting).items():
        assert state.keys() == usual[name].keys()
        changed = [key for key in state if not torch.equal(state[key], usual[name][key])]
        assert any(key.endswith(".weight") for key in changed), name
        assert all(state[key].isfinite().all() for key in state), name
