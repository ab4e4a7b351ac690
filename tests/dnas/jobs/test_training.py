"""What a job refuses of its training sections before anything is trained."""

from __future__ import annotations

import pytest

from dnas.config.file import load_job
from dnas.jobs.training import check_training
from search_spaces.errors import InputError

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
