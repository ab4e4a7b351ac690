"""What a job refuses of its training sections before anything is trained."""

from __future__ import annotations

import pytest
from torch import nn

from dnas.config.file import load_job, preset_names
from dnas.jobs.training import check_training, finetune_teacher
from dnas.training.task import CLASSIFICATION, Task
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY

UNTRAINED = ("pretrain.epochs=0",)


@pytest.mark.parametrize("section", ["pretrain", "search", "finetune", "finalise"])
def test_an_unknown_optimizer_is_refused_with_its_section(section: str) -> None:
    with pytest.raises(InputError, match=rf"\[{section}\]: there is no optimizer 'Addam'; did you mean 'Adam'"):
        check_training(load_job("digits", [f"{section}.optimizer=Addam"]))


def test_a_section_that_trains_nothing_is_not_asked() -> None:
    check_training(load_job("digits", ["pretrain.epochs=0", "pretrain.optimizer=Addam"]))
    check_training(load_job("digits", ["finalise.enabled=false", "finalise.optimizer=Addam"]))


@pytest.mark.parametrize("setting", ["search.distillation=0.5", "finetune.distillation=0.5", "finalise.teacher=float"])
def test_a_teacher_must_have_been_trained(setting: str) -> None:
    with pytest.raises(InputError, match="needs a trained float network to learn from"):
        check_training(load_job("digits", [setting, *UNTRAINED]))
    check_training(load_job("digits", [setting]))
    check_training(load_job("digits", [setting, *UNTRAINED, "model.checkpoint=weights.safetensors"]))
    check_training(load_job("digits", [setting, *UNTRAINED, "model.source=mine:net"]))
    pretrained = ["model.source=timm:resnet18", "model.arguments={pretrained=true}"]
    check_training(load_job("digits", [setting, *UNTRAINED, *pretrained]))


class OwnTask(Task):
    """A task that says nothing of teachers."""

    metric = ACCURACY


@pytest.mark.parametrize(
    ("settings", "task", "weight"),
    [
        ((), CLASSIFICATION, 0.5),
        (("finetune.distillation=0.0",), CLASSIFICATION, None),
        (("finetune.distillation=0.25",), CLASSIFICATION, 0.25),
        (("finetune.label_smoothing=0.1",), CLASSIFICATION.smoothed(0.1), 0.5),
        (UNTRAINED, CLASSIFICATION, None),
        ((*UNTRAINED, "model.checkpoint=weights.safetensors"), CLASSIFICATION, 0.5),
        ((), OwnTask(), None),
        (("finetune.distillation=1.0",), OwnTask(), 1.0),
    ],
)
def test_the_float_network_teaches_fine_tuning_where_it_knows_something(
    settings: tuple[str, ...], task: Task, weight: float | None
) -> None:
    config, network = load_job("digits", settings), nn.Linear(1, 1)
    check_training(config, CLASSIFICATION)
    teacher = finetune_teacher(network, config, task)
    assert (teacher and teacher.weight) == weight
    assert teacher is None or teacher.network is network


OWN = ("digits", "detection-shapes", "segmentation-shapes")
"""Presets that follow no paper."""


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in OWN])
def test_presets_after_papers_train_as_these_do(name: str) -> None:
    config = load_job(name)
    assert finetune_teacher(nn.Linear(1, 1), config, CLASSIFICATION) is None
    assert config.finetune.weight_decay_on == "all" or not config.finetune.weight_decay
    assert config.finetune.start != "wider"
