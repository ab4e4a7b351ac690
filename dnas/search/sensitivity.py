"""The training-free control: how much each layer's loss suffers at each width, to second order.

Ω(weights at b bits) = 1/2 · mean Hessian trace · ||Q_b(W) - W||² (HAWQ-V2, arXiv 1911.03852, eq. 7-9), the trace by
Hutchinson's estimator. For activations the Hessian is replaced by its Gauss-Newton (empirical Fisher) diagonal,
Ω = 1/2 · Σ g² (Q_b(x) - x)² per image: our choice, so that both are expected increases of the same loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dnas.quantization.calibration import check_batch
from dnas.quantization.conversion import QuantizerChoice, tensor_quantizer
from dnas.quantization.held_weights import hold_weights
from dnas.quantization.quantizers import Quantizer
from dnas.training.task import CLASSIFICATION, AnyTask, Task, task_of
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS
from search_spaces.models.computed import make_plain
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import check_finite
from search_spaces.models.multiplied import is_standard
from search_spaces.network.calls import first_input, with_first_input
from search_spaces.network.graph import read_graph
from search_spaces.spaces import PrecisionSpace


def sensitivities(
    model: nn.Module,
    space: PrecisionSpace,
    choice: QuantizerChoice,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    probes: int = 4,
    task: AnyTask = CLASSIFICATION,
) -> np.ndarray:
    """Expected increase of the loss (nats, of a classification) of every cell of every decision, float64 (D, Kw, Ka).

    ``batches`` are (images (N, C, H, W), targets (N, ...)) of training data; the model is left untouched. Raises
    :class:`InputError` for a weight or an image that is not finite.
    """
    check_finite(model)
    task, batches = task_of(task), list(batches)
    if not batches or not all(isinstance(batch, tuple | list) and len(batch) == 2 for batch in batches):
        raise InputError("sensitivities need batches of images (N, C, H, W) and labels (N,), at least one")
    for number, (x, _) in enumerate(batches, start=1):
        check_batch(number, x)
    names = [name for decision in space.decisions for name in decision.layers]
    twin = _holding_weights(model, names, batches[0][0]).eval()
    layers = {name: twin.get_submodule(name) for name in names}
    traces = hessian_traces(twin, layers, batches, seed=seed, probes=probes, task=task)
    weights = {name: _weight_losses(layer, traces[name], space, choice) for name, layer in layers.items()}
    inputs = _input_losses(twin, layers, space, choice, batches, task)
    table = np.zeros(space.allowed.shape)
    for index, decision in enumerate(space.decisions):
        for name in decision.layers:
            table[index] += weights[name][:, None]
            table[index] += np.where(np.array(space.weight_bits)[:, None] == 0, 0.0, inputs[name][None, :])
    return table


def _holding_weights(model: nn.Module, names: Sequence[str], x: Tensor) -> nn.Module:
    """A copy whose layers ``names`` hold the weights that they multiply with; ``x`` (N, C, H, W) are images."""
    twin = fresh_copy(model)
    own_code = any(not is_standard(twin.get_submodule(name)) for name in names)
    for name in names:
        make_plain(twin.get_submodule(name))
    if own_code:  # which may make a weight
        hold_weights(twin, [spec for spec in read_graph(model, x).layers if spec.name in names])
    return twin


def hessian_traces(
    model: nn.Module,
    layers: dict[str, nn.Module],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    probes: int = 4,
    task: Task = CLASSIFICATION,
) -> dict[str, float]:
    """Hutchinson's estimate of the trace of the loss's Hessian with respect to each layer's weight."""
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    generator = torch.Generator().manual_seed(seed)
    totals = [0.0] * len(weights)
    for x, y in batches:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            loss = task.loss(task.outputs(model(x)), y)
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            for _ in range(probes):
                signs = [_signs(weight, generator) for weight in weights]
                products = torch.autograd.grad(gradients, weights, signs, retain_graph=True, materialize_grads=True)
                for index, (sign, product) in enumerate(zip(signs, products, strict=True)):
                    totals[index] += (sign * product).sum().item()
    count = len(batches) * probes
    return {name: total / count for name, total in zip(layers, totals, strict=True)}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * drawn - 1).to(like.device, like.dtype)


def _weight_losses(layer: nn.Module, trace: float, space: PrecisionSpace, choice: QuantizerChoice) -> np.ndarray:
    weight = layer.get_parameter("weight").detach()
    # A negative estimate is noise around zero: the loss is near a minimum.
    curvature = max(trace, 1e-6) / weight.numel()
    return np.array([0.5 * curvature * _squared_error(choice.of_weights(), weight, bits) for bits in space.weight_bits])


def _squared_error(quantizer: Quantizer, x: Tensor, bits: int) -> float:
    if bits == 0:
        return x.double().square().sum().item()
    return (quantized(quantizer, x, bits, signed=True) - x).double().square().sum().item()


def quantized(quantizer: Quantizer, x: Tensor, bits: int, *, signed: bool) -> Tensor:
    """``x`` quantized at ``bits`` with the range that suits it best."""
    if bits == FLOAT_BITS:
        return x
    module = tensor_quantizer(quantizer, (bits,), signed=signed).to(x.device)
    with torch.no_grad():
        module.fit(x)
        return module(x)


def _input_losses(
    model: nn.Module,
    layers: dict[str, nn.Module],
    space: PrecisionSpace,
    choice: QuantizerChoice,
    batches: Sequence[tuple[Tensor, Tensor]],
    task: Task,
) -> dict[str, np.ndarray]:
    """Per layer, the loss of each activation width, averaged over the images of ``batches``."""
    losses = {name: np.zeros(len(space.activation_bits)) for name in layers}
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            x = first_input(module, inputs, options)
            x = x if x.requires_grad else x.detach().requires_grad_()
            x.retain_grad()
            seen.append((name, x))
            return with_first_input(module, inputs, options, x)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    for x, y in batches:
        seen.clear()
        task.loss(task.outputs(model(x)), y).backward()
        for name, value in seen:
            if value.grad is None:
                continue
            # The loss is a mean over N images: each image's own gradient is N times what is seen here.
            fisher = len(x) * value.grad.double().square()
            signed = bool(value.min() < 0)
            for column, bits in enumerate(space.activation_bits):
                error = quantized(choice.of_activations(), value.detach(), bits, signed=signed) - value.detach()
                losses[name][column] += 0.5 * (fisher * error.double().square()).sum().item() / len(batches)
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return losses
