"""A teacher: a trained network whose outputs the one in training is to give as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnas.config.job import FinetuneSection
from dnas.training.task import Task, outputs_of

_USUAL_WEIGHT = 0.5


@dataclass(frozen=True)
class Teacher:
    """A trained network and λ of the loss (1 - λ) task + λ distillation; it is run in eval mode, without gradients."""

    network: nn.Module
    weight: float

    def told(self, task: Task, inputs: Any, targets: Any) -> Any:
        """What the teacher says of a batch: what is comparable of its outputs."""
        self.network.eval()
        with torch.no_grad():
            return task.comparable(outputs_of(task, self.network, inputs, targets))


def finetune_weight(section: FinetuneSection, task: Task) -> float:
    """λ of fine-tuning: as the section says, else 0.5 where the task itself says how far outputs are from a teacher's.

    The mean squared difference that any other task has is of no known scale beside its loss.
    """
    if section.distillation is not None:
        return section.distillation
    return _USUAL_WEIGHT if type(task).divergence is not Task.divergence else 0.0


def taught(task: Task, loss: Tensor, outputs: Any, told: Any, weight: float) -> Tensor:
    """(1 - λ) times the loss plus λ times how far the outputs are from what the teacher told."""
    if told is None or not weight:
        return loss
    return (1 - weight) * loss + weight * task.divergence(task.comparable(outputs), told)


def taught_loss(task: Task, network: nn.Module, inputs: Any, targets: Any, teacher: Teacher | None) -> Tensor:
    """The loss of a network on a batch, a teacher's part included."""
    outputs = outputs_of(task, network, inputs, targets)
    loss = task.loss(outputs, targets)
    return taught(task, loss, outputs, teacher.told(task, inputs, targets), teacher.weight) if teacher else loss
