"""Training a switchable net: all its profiles at once, each step a few forward and backward passes and one update.

``sp_nets`` and ``quantizable`` run every profile in every step, from the widest to the narrowest, and add up their
gradients. ``profiles`` runs the widest, the narrowest and some drawn at random, so that a step costs the same however
many there are. The narrower ones learn from the wider as well as from the labels.

Sources: SP-Nets, arXiv 2002.02815 (CE + KL to the highest switch, temperature 1); Quantizable DNNs, arXiv 2004.05284
(consistency with the 32-bit mode; the form (1 - λ) CE + λ KL is ours); the sandwich rule, arXiv 1903.05134. Ours: the
summed loss is divided by the number of passes, because SGD's step would grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.augmentation import Augmentation
from dnas.calibration import batch_statistics
from dnas.config import FinaliseSection
from dnas.image_sets import ImageSet
from dnas.schedules import cosine, derived_seed
from dnas.switchable import SwitchableNet
from dnas.training import (
    CPU,
    EpochResult,
    StepReport,
    checked_value,
    evaluate,
    optimizer_state,
    own_randomness,
    restore_optimizer,
    set_learning_rate,
    steps_per_epoch,
    training_batches,
    weight_groups,
    with_prefix,
)


class SwitchableTrainer:
    """Trains a switchable net with SGD and a cosine; its state restores bit for bit, like that of a ``Trainer``."""

    def __init__(
        self,
        network: SwitchableNet,
        section: FinaliseSection,
        *,
        images: ImageSet,
        batch_size: int = 128,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        label: str = "switchable",
        device: torch.device = CPU,
    ) -> None:
        self.network, self.section, self.images = network, section, images
        self.batch_size, self.augmentation = batch_size, augmentation
        self.seed, self.label, self.device = seed, label, device
        groups = weight_groups(network, section.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=section.learning_rate, momentum=section.momentum)
        self.epoch = 0

    def epochs(self, report: StepReport | None = None) -> Iterator[EpochResult]:
        """Train the epochs that are left, yielding after each."""
        while self.epoch < self.section.epochs:
            loss = self._one_epoch(report)
            self.epoch += 1
            yield EpochResult(self.epoch, loss)

    def _one_epoch(self, report: StepReport | None) -> float:
        seed = derived_seed(self.seed, self.label, self.epoch)
        draws = torch.Generator().manual_seed(derived_seed(seed, "profiles"))
        steps, total = steps_per_epoch(len(self.images), self.batch_size), 0.0
        with own_randomness(seed, self.device):
            self.network.train()
            batches = training_batches(self.images, self.batch_size, seed, self.augmentation, self.device)
            for step, (x, y) in enumerate(batches):
                progress = (self.epoch + step / steps) / self.section.epochs
                set_learning_rate(self.optimizer, cosine(self.section.learning_rate, progress))
                self.optimizer.zero_grad(set_to_none=True)
                value = accumulate_gradients(self.network, self.chosen(draws), x, y, self.section)
                self.optimizer.step()
                total += value
                if report:
                    report(step + 1, steps, value)
        return total / steps

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
        top1 = {}
        with batch_statistics(self.network):
            for name in self.network.profiles:
                top1[name] = evaluate(self.network.view_of(name), images, self.batch_size, self.device).top1
        return {"top1": sum(top1.values()) / len(top1), "profiles": top1}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later :meth:`restore` needs, as a snapshot: tensors and plain values."""
        tensors = {f"network.{name}": value.clone() for name, value in self.network.tensors().items()}
        momentum, values = optimizer_state(self.optimizer, "optimizer")
        return {**tensors, **momentum}, {"epoch": self.epoch, "optimizer": values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.network.load_tensors(with_prefix(tensors, "network"))
        restore_optimizer(self.optimizer, tensors, values["optimizer"], "optimizer")
        self.epoch = values["epoch"]


def trains_all(section: FinaliseSection, profiles: int) -> bool:
    """Whether every step runs every profile."""
    return section.method != "profiles" or section.all_profiles or profiles <= 2 + section.sampled


def passes_per_step(section: FinaliseSection, profiles: int) -> int:
    """How many forward and backward passes one step takes."""
    return profiles if trains_all(section, profiles) else 2 + section.sampled


def accumulate_gradients(
    network: SwitchableNet, names: Sequence[str], x: Tensor, y: Tensor, section: FinaliseSection
) -> float:
    """Add the gradients of the mean loss of these profiles (widest first) on images (N, C, H, W), labels (N,).

    Returns the mean loss. One backward pass after each forward pass, so that one graph is held at a time, except with
    the ensemble as the teacher, which is known only after all.
    """
    if section.teacher == "ensemble":
        return _with_ensemble(network, names, x, y, section)
    teacher: Tensor | None = None
    total = 0.0
    for name in names:
        logits = network.view_of(name)(x)
        loss = profile_loss(logits, y, teacher, section) / len(names)
        loss.backward()
        total += checked_value(loss, network.view_of(name), x)
        if teacher is None or section.teacher == "next":
            teacher = None if section.teacher == "none" else logits.detach()
    return total


def _with_ensemble(
    network: SwitchableNet, names: Sequence[str], x: Tensor, y: Tensor, section: FinaliseSection
) -> float:
    outputs = [network.view_of(name)(x) for name in names]
    mean = torch.stack([logits.detach().softmax(1) for logits in outputs]).mean(0)
    losses = [profile_loss(logits, y, mean.log(), section) for logits in outputs]
    loss = torch.stack(losses).mean()
    loss.backward()
    return checked_value(loss, network.view_of(names[0]), x)


def profile_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, section: FinaliseSection) -> Tensor:
    """Cross-entropy on the labels (N,), and the KL divergence from the teacher's prediction, both of (N, classes)."""
    loss = F.cross_entropy(logits, labels)
    if teacher is None:
        return loss
    told = F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    if section.method == "sp_nets":
        return loss + (1.0 if section.distillation is None else section.distillation) * told
    share = 0.5 if section.distillation is None else section.distillation
    return (1 - share) * loss + share * told
