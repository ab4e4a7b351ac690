"""The updates of a network's weights: the one training step that every trainer takes, as an `Optimization` says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from dnas.config.training import Optimization
from dnas.quantization.layers import TensorQuantizer
from dnas.training.clips import LearnedClips
from dnas.training.optimizers import Groups, build_optimizer, optimizer_state, restore_optimizer
from dnas.training.processes import ALONE, Processes
from dnas.training.schedules import cosine, stepped, warmed_up
from search_spaces.errors import InputError, check_type

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Modules that normalise: scale and shift of some have as many dimensions as what they normalise."""

AddGradients = Callable[[float], None]
"""Adds the gradients of so many times the loss of a batch."""


def scheduled_rate(optimization: Optimization, progress: float) -> float:
    """The learning rate when ``progress`` in [0, 1) of the training is done."""
    start, warmup = optimization.learning_rate, optimization.learning_rate_warmup
    if progress < warmup:
        return warmed_up(start, progress / warmup)
    if optimization.schedule == "constant":
        return start
    if optimization.schedule == "step":
        return stepped(start, progress, optimization.milestones, optimization.milestone_factor)
    return cosine(start, (progress - warmup) / (1 - warmup))


def weight_groups(network: nn.Module, optimization: Optimization) -> Groups:
    """Parameter groups for an optimizer: clips never decay; normalisations and biases as ``optimization`` says."""
    clips = {id(p) for m in network.modules() if isinstance(m, TensorQuantizer) for p in m.parameters()}
    parameters = [p for p in network.parameters() if p.requires_grad]
    weights = [p for p in parameters if id(p) not in clips]
    norms = {id(p) for m in network.modules() if isinstance(m, NORMS) for p in m.parameters()}
    lean = optimization.weight_decay_on == "weights"
    spared = [p for p in weights if lean and (p.ndim < 2 or id(p) in norms)]
    exempt = {id(p) for p in spared}
    rate = optimization.learning_rate
    clip_rate = rate * optimization.clip_rate
    groups = [
        {"params": [p for p in weights if id(p) not in exempt], "weight_decay": optimization.weight_decay, "lr": rate},
        {"params": [p for p in parameters if id(p) in clips], "weight_decay": 0.0, "lr": clip_rate},
        {"params": spared, "weight_decay": 0.0, "lr": rate},
    ]
    return [group for group in groups if group["params"]]


class Updates:
    """Updates the weights of ``network``, batch by batch; its state restores bit for bit.

    With several ``processes`` all begin with the first one's weights, and take the mean of their gradients.
    """

    def __init__(self, network: nn.Module, optimization: Optimization, processes: Processes = ALONE) -> None:
        check_type(optimization, Optimization, "how to train", "give a section of a job, such as job.finetune")
        self.optimization = optimization
        groups = weight_groups(network, optimization)
        if not groups:
            raise InputError(
                "the network has no parameter that requires a gradient, so there is nothing to train; call "
                "requires_grad_(True) on what is to be trained"
            )
        self.processes = processes
        processes.make_alike(network)
        self._factors = [group["lr"] / optimization.learning_rate for group in groups]
        self.optimizer = build_optimizer(groups, optimization)
        self.clips = LearnedClips(network)
        self.average = MovingAverage(network, optimization.averaging) if optimization.averaging else None

    def step(self, index: int, count: int, progress: float, add_gradients: AddGradients) -> None:
        """Train on the ``index``-th of an epoch's ``count`` batches.

        Several batches may make one update: the gradients of each count for its part of them.
        """
        first, size = accumulated(index, count, self.optimization.accumulation)
        if index == first:
            self._set_rate(scheduled_rate(self.optimization, progress))
            self.optimizer.zero_grad(set_to_none=True)
        add_gradients(1 / size)
        if index == first + size - 1:
            self._update()

    def make_alike(self, network: nn.Module) -> None:
        """Give every process the first one's ``network``, and the mean of all averages."""
        self.processes.make_alike(network)
        for tensor in self.average.mean if self.average and self.processes.several else ():
            tensor.copy_(self.processes.mean(tensor))

    def _set_rate(self, rate: float) -> None:
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor

    def _update(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.processes.average_gradients(parameters)
        if self.optimization.gradient_clipping:
            nn.utils.clip_grad_norm_(parameters, self.optimization.gradient_clipping)
        self.optimizer.step()
        self.clips.keep()
        if self.average:
            self.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has its averaged weights, where there is an average."""
        if self.average is None:
            yield
            return
        trained = self.average.take_over()
        try:
            yield
        finally:
            self.average.put_back(trained)

    def finish(self) -> None:
        """Leave the averaged weights in the network, where there is an average."""
        if self.average:
            self.average.take_over()

    def state(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values, as a snapshot; the network's own tensors are not among them.

        With an average, whoever reads a checkpoint shall find that in the network: write the network's state inside
        :meth:`averaged`. The weights of the training are here.
        """
        tensors, values = optimizer_state(self.optimizer, prefix)
        if self.average:
            trained = {f"{prefix}-trained.{i}": t.detach().clone() for i, t in enumerate(self.average.live)}
            return {**tensors, **trained}, {**values, f"{prefix}-updates": self.average.updates}
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], prefix: str) -> None:
        """Go on from what :meth:`state` returned; the network's own state is restored already."""
        own = {key: value for key, value in values.items() if key != f"{prefix}-updates"}
        restore_optimizer(self.optimizer, tensors, own, prefix)
        if self.average:
            self.average.restart(values[f"{prefix}-updates"])
            self.average.put_back([tensors[f"{prefix}-trained.{i}"] for i in range(len(self.average.live))])


def accumulated(index: int, count: int, size: int) -> tuple[int, int]:
    """The first batch of the update that the ``index``-th of ``count`` belongs to, and how many batches it has.

    >>> [accumulated(index, 5, 2) for index in range(5)]
    [(0, 2), (0, 2), (2, 2), (2, 2), (4, 1)]
    """
    first = index - index % size
    return first, min(size, count - first)


class MovingAverage:
    """An exponential moving average of a network's parameters and of its BatchNorms' statistics.

    The first updates count for more: the decay is at most (1 + n) / (10 + n) after n of them, so that a short training
    does not end at its start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
        once = {id(tensor): tensor for tensor in [*network.parameters(), *statistics]}
        self.live = list(once.values())
        self.restart(0)

    def restart(self, updates: int) -> None:
        """Begin from the network as it is, as if after so many updates."""
        self.updates = updates
        self.mean = [tensor.detach().clone() for tensor in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for mean, live in zip(self.mean, self.live, strict=True):
            mean.lerp_(live.detach(), 1 - decay)

    def take_over(self) -> list[Tensor]:
        """Write the average into the network; returns what was there."""
        trained = [tensor.detach().clone() for tensor in self.live]
        self.put_back(self.mean)
        return trained

    @torch.no_grad()
    def put_back(self, tensors: list[Tensor]) -> None:
        """Write these tensors into the network."""
        for live, tensor in zip(self.live, tensors, strict=True):
            live.copy_(tensor)
