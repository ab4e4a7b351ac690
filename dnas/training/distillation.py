"""A teacher: a trained network whose outputs the one in training is to give as well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Teacher:
    """A trained network and λ of the loss (1 - λ) task + λ distillation; it is run in eval mode, without gradients."""

    network: nn.Module
    weight: float

    def outputs(self, x: Tensor) -> Tensor:
        """What the teacher says of images (N, C, H, W)."""
        self.network.eval()
        with torch.no_grad():
            return self.network(x).float()


def taught(loss: Tensor, logits: Tensor, told: Tensor | None, weight: float) -> Tensor:
    """(1 - λ) times the loss plus λ times the KL divergence from what the teacher told, both (N, classes)."""
    if told is None or not weight:
        return loss
    return (1 - weight) * loss + weight * divergence(logits, told)


def divergence(logits: Tensor, told: Tensor) -> Tensor:
    """KL divergence of the prediction from the teacher's, both logits (N, classes), at temperature 1."""
    return F.kl_div(logits.log_softmax(1), told.log_softmax(1), log_target=True, reduction="batchmean")
