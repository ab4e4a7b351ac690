"""Training a switchable net: all its profiles at once, each step a few forward and backward passes and one update.

``sp_nets`` and ``quantizable`` run every profile in every step, from the widest to the narrowest, and add up their
gradients. ``profiles`` runs the widest, the narrowest and some drawn at random, so that a step costs the same however
many there are. The narrower ones learn from the wider as well as from the labels.

Sources: SP-Nets, arXiv 2002.02815 (CE + KL to the highest switch, temperature 1); Quantizable DNNs, arXiv 2004.05284
(consistency with the 32-bit mode; the form (1 - λ) CE + λ KL is ours); the sandwich rule, arXiv 1903.05134. Ours: the
summed loss is divided by the number of passes, because SGD's step would grow with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnas.config.job import FinaliseSection
from dnas.data.image_sets import ImageSet
from dnas.quantization.calibration import batch_statistics
from dnas.switchable.net import SwitchableNet
from dnas.training.device import CPU, Device
from dnas.training.distillation import taught
from dnas.training.loss_meter import LossMeter
from dnas.training.passes import Passes, detached
from dnas.training.schedules import derived_seed
from dnas.training.task import CLASSIFICATION, Task, outputs_of
from dnas.training.trainer import Trainer, measure, without_single


class SwitchableTrainer(Trainer):
    """Trains a switchable net like any other, except for the losses of a step; its state restores bit for bit."""

    network: SwitchableNet
    section: FinaliseSection

    def _begin(self, seed: int) -> None:
        self._draws = torch.Generator().manual_seed(derived_seed(seed, "profiles"))

    def _gradients(self, x: Any, y: Any, losses: LossMeter, part: float) -> None:
        told = self.passes.forward("teacher", self._told_by_teacher, (x, y)) if self.teacher else None
        names = self.chosen(self._draws)
        accumulate_gradients(
            self.network, names, x, y, self.section, losses, told, part, self.device, self.training_task, self.passes
        )

    def _told_by_teacher(self, x: Any, y: Any) -> Any:
        assert self.teacher is not None
        with self.device.computing():
            return self.teacher.told(self.task, x, y)

    def chosen(self, generator: torch.Generator) -> list[str]:
        """The profiles of one step, from the widest to the narrowest."""
        names = list(self.network.profiles)
        if trains_all(self.section, len(names)):
            return names
        drawn = 1 + torch.randperm(len(names) - 2, generator=generator)[: self.section.sampled]
        return [names[0], *(names[index] for index in sorted(drawn.tolist())), names[-1]]

    def measured(self, images: ImageSet) -> dict[str, Any]:
        """Accuracy of every profile with batch statistics: those of a profile that is rarely drawn lag behind."""
        self.network.eval()
        scores = {}
        batch_size = without_single(len(images), self.batch_size)
        with self.updates.averaged(), batch_statistics(self.network):
            for name in self.network.profiles:
                view = self.network.view_of(name)
                scores[name] = measure(view, images, batch_size, self.device, self.task).score
        return {"score": sum(scores.values()) / len(scores), "profiles": scores}

    def _tensors(self) -> Mapping[str, Tensor]:
        return self.network.tensors()

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_tensors(tensors)


def trains_all(section: FinaliseSection, profiles: int) -> bool:
    """Whether every step runs every profile."""
    return section.method != "profiles" or section.all_profiles or profiles <= 2 + section.sampled


def passes_per_step(section: FinaliseSection, profiles: int) -> int:
    """How many forward and backward passes one step takes."""
    return profiles if trains_all(section, profiles) else 2 + section.sampled


def accumulate_gradients(
    network: SwitchableNet,
    names: Sequence[str],
    x: Any,
    y: Any,
    section: FinaliseSection,
    losses: LossMeter,
    told: Any = None,
    part: float = 1.0,
    device: Device = CPU,
    task: Task = CLASSIFICATION,
    passes: Passes | None = None,
) -> None:
    """Add the gradients of the mean loss of these profiles (widest first) on a batch of inputs and targets.

    ``told`` is what the float network says, where it is the teacher; ``part`` is how much of the gradients to add.
    The mean loss is added to ``losses``. One backward pass after each forward pass, so that one graph is held at a
    time, except with the ensemble as the teacher, which is known only after all. ``passes`` may record them.
    """
    passes = passes or Passes(network, device)

    def loss_of(name: str, x: Any, y: Any, teacher: Any = None) -> tuple[Tensor, Any]:
        with device.computing():
            outputs = outputs_of(task, network.view_of(name), x, y)
            return profile_loss(outputs, y, teacher, section, task) / len(names), task.comparable(outputs)

    def loss_of_all(x: Any, y: Any) -> tuple[Tensor]:
        with device.computing():
            outputs = [outputs_of(task, network.view_of(name), x, y) for name in names]
            mean = task.ensemble([detached(task.comparable(each)) for each in outputs])
            return (torch.stack([profile_loss(each, y, mean, section, task) for each in outputs]).mean(),)

    if section.teacher == "ensemble":
        (loss,) = passes.train(("ensemble", *names), loss_of_all, (x, y), part)
        losses.add(loss, network.view_of(names[0]), (x, y), task.run)
        return
    teacher = told
    for name in names:
        given = (x, y) if teacher is None else (x, y, teacher)
        loss, outputs = passes.train((name, len(names)), partial(loss_of, name), given, part)
        losses.add(loss, network.view_of(name), (x, y), task.run)
        if section.teacher == "next" or (section.teacher == "widest" and teacher is None):
            teacher = outputs


def profile_loss(
    outputs: Any, targets: Any, teacher: Any, section: FinaliseSection, task: Task = CLASSIFICATION
) -> Tensor:
    """The task's loss, and how far the outputs are from those of the teacher."""
    loss = task.loss(outputs, targets)
    if teacher is None:
        return loss
    if section.method == "sp_nets":
        weight = 1.0 if section.distillation is None else section.distillation
        return loss + weight * task.divergence(task.comparable(outputs), teacher)
    return taught(task, loss, outputs, teacher, 0.5 if section.distillation is None else section.distillation)
