"""Oscillation damping: weights at few bits are drawn to the middle of the cell that they are in.

At few bits a latent weight goes back and forth over the edge between two levels, and what it ends as is chance. The
penalty is the squared distance from the weight, cut at its clip, to the level it has now: the dampening loss of Nagel
et al., Overcoming Oscillations in Quantization-Aware Training (ICML 2022, arXiv 2203.11086). Its factor rises from 0 as
half a cosine. *Ours:* it does so epoch by epoch, only weights below 4 bits are damped, and the distance is taken where
the grid is, behind a quantizer's transform (DoReFa's tanh) and without its gain.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dnas.config.job import FinetuneSection
from dnas.config.training import TrainingSection
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.training.schedules import cosine

DAMPED_BELOW_BITS = 4


def damping_loss(quantizer: TensorQuantizer, weight: Tensor) -> Tensor:
    """The sum over a weight, of any shape, of the squared distances of what its clip leaves of it to its levels."""
    prepared, clip = quantizer.prepare(weight)
    rows = prepared.reshape(clip.shape[0], -1)
    with torch.no_grad():
        levels = quantizer.as_rows(quantizer(weight)).reshape(rows.shape) / quantizer.gain
        cut = torch.maximum(rows, clip * quantizer.low).minimum(clip)
    # Chosen by value: at its own end a clip would get half of the gradient.
    return (levels - torch.where(cut == rows, rows, cut)).square().sum()


def damped_weights(network: nn.Module) -> Iterator[tuple[QuantizedLayer, TensorQuantizer]]:
    """The layers whose weights are damped, and their quantizers; of layers that share one the first."""
    seen: set[int] = set()
    for layer in (module for module in network.modules() if isinstance(module, QuantizedLayer)):
        quantizer = layer.quantize_weight
        if isinstance(quantizer, TensorQuantizer) and id(quantizer) not in seen:
            seen.add(id(quantizer))
            if quantizer.bits[-1] < DAMPED_BELOW_BITS:
                yield layer, quantizer


def damping_strength(most: float, epoch: int, epochs: int) -> float:
    """λ in an epoch, from 0: the rising half of a cosine in its middle.

    >>> [round(damping_strength(1.0, epoch, 3), 3) for epoch in range(3)]
    [0.067, 0.5, 0.933]
    """
    return most - cosine(most, (epoch + 0.5) / epochs)


class Damping:
    """What the weights of one network in training add to its loss, where ``section`` asks for it."""

    def __init__(self, network: nn.Module, section: TrainingSection, place: torch.device) -> None:
        self._most = section.damping if isinstance(section, FinetuneSection) else 0.0
        self._damped = list(damped_weights(network)) if self._most else []
        self._strength = torch.zeros((), device=place)  # there, so that a step waits for nothing

    def begin(self, epoch: int, epochs: int) -> None:
        """Set the factor of an epoch, numbered from 0."""
        self._strength.fill_(damping_strength(self._most, epoch, epochs))

    def added_to(self, loss: Tensor) -> Tensor:
        """The loss with the penalty."""
        for layer, quantizer in self._damped:
            loss = loss + self._strength * damping_loss(quantizer, layer.float_weight())
        return loss
