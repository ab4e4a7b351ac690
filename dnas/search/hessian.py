"""Traces of the loss's Hessian by Hutchinson's estimator, with as many probes as their standard error needs.

tr H = E[v' H v] for v of independent signs (Hutchinson, 1990); per layer, H is the block of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dnas.training.task import CLASSIFICATION, Task, outputs_of
from search_spaces.network.examples import rows_of

STANDARD_ERROR = 0.1
"""Rounds of probes end where the probes leave every layer's trace with this relative standard error, or less."""
_PROBES_PER_ROUND, _MOST_ROUNDS = 2, 8


@dataclass(frozen=True)
class Traces:
    """The trace of each layer, and its standard error over images and probes relative to it; ``probes`` per batch."""

    values: dict[str, float]
    errors: dict[str, float]
    probes: int


def hessian_traces(
    model: nn.Module,
    layers: dict[str, nn.Module],
    batches: Iterable[tuple[Any, Any]],
    *,
    seed: int = 0,
    probes: int | None = None,
    task: Task = CLASSIFICATION,
) -> Traces:
    """Hutchinson's estimate of the trace of the loss's Hessian with respect to each layer's weight.

    ``batches`` of (images (N, C, H, W), targets) are gone through once for every round of probes; one batch is in
    memory at a time. With ``probes`` that many are drawn for each batch; without, until their error is small.
    """
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    generator = torch.Generator().manual_seed(seed)
    drawn: list[np.ndarray] = []  # of each round, (batches, probes, layers)
    sizes: list[int] = []
    for _ in range(1 if probes else _MOST_ROUNDS):
        rows, sizes = [], []
        for x, y in batches:
            rows.append(_probed(model, weights, x, y, probes or _PROBES_PER_ROUND, generator, task))
            sizes.append(rows_of(x))
        drawn.append(np.stack(rows))
        estimate = _Estimate(np.concatenate(drawn, axis=1), np.array(sizes))
        if estimate.probe_error.max(initial=0.0) <= STANDARD_ERROR:
            break
    traces = dict(zip(layers, estimate.mean.tolist(), strict=True))
    return Traces(traces, dict(zip(layers, estimate.error.tolist(), strict=True)), estimate.drawn.shape[1])


def _probed(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    x: Any,
    y: Any,
    probes: int,
    generator: torch.Generator,
    task: Task,
) -> np.ndarray:
    """The forms v' H v of the loss on one batch for some probes, float64 (probes, layers)."""
    with sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():  # the fused attention kernels have no second derivative
        loss = task.loss(outputs_of(task, model, x, y), y)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        found = []
        for _ in range(probes):
            signs = [_signs(weight, generator) for weight in weights]
            products = torch.autograd.grad(gradients, weights, signs, retain_graph=True, materialize_grads=True)
            found.append(torch.stack([(s * p).sum() for s, p in zip(signs, products, strict=True)]).detach())
    return torch.stack(found).cpu().double().numpy()


class _TwiceDifferentiable(TorchFunctionMode):
    """Computes the one activation whose backward pass PyTorch cannot differentiate, Hardsigmoid, by one that it can."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what stands for it."""
        stands_in = _hardsigmoid if func is F.hardsigmoid else func
        return stands_in(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    value = F.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * drawn - 1).to(like.device, like.dtype)


@dataclass(frozen=True)
class _Estimate:
    """Values of probes, (batches, probes, layers), of batches of these ``sizes``."""

    drawn: np.ndarray
    sizes: np.ndarray

    @property
    def _shares(self) -> np.ndarray:
        return (self.sizes / self.sizes.sum())[:, None]

    @property
    def mean(self) -> np.ndarray:
        return (self._shares * self.drawn.mean(1)).sum(0)

    @property
    def probe_error(self) -> np.ndarray:
        """The relative standard error that the probes leave, the images being given."""
        count = self.drawn.shape[1]
        if count < 2:
            return np.full(self.drawn.shape[2], math.inf)
        return self._relative(np.sqrt((self._shares**2 * self.drawn.var(1, ddof=1) / count).sum(0)))

    @property
    def error(self) -> np.ndarray:
        """The relative standard error over images and probes; that of the probes alone where there is one batch."""
        count = len(self.drawn)
        if count < 2:
            return np.nan_to_num(self.probe_error, posinf=1.0)
        away = self.drawn.mean(1) - self.mean
        return self._relative(np.sqrt((self._shares**2 * away**2).sum(0) * count / (count - 1)))

    def _relative(self, error: np.ndarray) -> np.ndarray:
        """Relative to the trace, or to a hundredth of the mean trace where a layer has next to none."""
        size = np.abs(self.mean)
        return error / np.maximum(size, max(0.01 * size.mean(), 1e-300))
