"""The training-free control: how much each layer's loss suffers at each width, to second order.

Ω(weights at b bits) = 1/2 · mean Hessian trace · ||Q_b(W) - W||² (HAWQ-V2, arXiv 1911.03852, eq. 7-9), the trace by
Hutchinson's estimator. For activations the Hessian is replaced by its Gauss-Newton (empirical Fisher) diagonal,
Ω = 1/2 · Σ g² (Q_b(x) - x)² per image: our choice, so that both are expected increases of the same loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnas.quantization.calibration import check_batch
from dnas.quantization.conversion import QuantizerChoice, tensor_quantizer
from dnas.quantization.held_weights import hold_weights
from dnas.quantization.quantizers import Quantizer
from dnas.search.hessian import hessian_traces
from dnas.training.device import widened
from dnas.training.task import CLASSIFICATION, AnyTask, Task, outputs_of, task_of, told_of_given
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS
from search_spaces.models.computed import make_plain
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import check_finite
from search_spaces.models.multiplied import is_standard
from search_spaces.network.calls import first_input, with_first_input
from search_spaces.network.examples import rows_of
from search_spaces.network.graph import read_graph
from search_spaces.sensitivities import Sensitivities
from search_spaces.spaces import PrecisionSpace


def sensitivities(
    model: nn.Module,
    space: PrecisionSpace,
    choice: QuantizerChoice,
    batches: Iterable[tuple[Any, Any]],
    *,
    seed: int = 0,
    probes: int | None = None,
    task: AnyTask = CLASSIFICATION,
) -> np.ndarray:
    """Expected increase of the loss (nats, of a classification) of every cell of every decision, float64 (D, Kw, Ka).

    As :func:`hessian_sensitivities`, whose :meth:`Sensitivities.losses` these are.
    """
    found = hessian_sensitivities(model, space, choice, batches, seed=seed, probes=probes, task=task)
    return found.losses(space)


def hessian_sensitivities(
    model: nn.Module,
    space: PrecisionSpace,
    choice: QuantizerChoice,
    batches: Iterable[tuple[Any, Any]],
    *,
    seed: int = 0,
    probes: int | None = None,
    task: AnyTask = CLASSIFICATION,
) -> Sensitivities:
    """Expected increase of the loss of every width of every searched layer, without training.

    ``batches`` are (images (N, C, H, W), targets (N, ...)) of training data. They are gone through several times, one
    at a time: what can be iterated only once is kept in memory. ``probes`` are drawn for each batch, by default until
    the traces are known to a tenth. The model is left untouched. Raises :class:`InputError` for a weight or an image
    that is not finite, and for a network that overflows.
    """
    check_finite(model)
    task, batches = task_of(task), _repeatable(batches)
    first = _checked(batches)
    names = [name for decision in space.decisions for name in decision.layers]
    twin = _holding_weights(model, names, first).eval()
    layers = {name: twin.get_submodule(name) for name in names}
    inputs, images = _input_losses(twin, layers, space, choice, batches, task)
    traces = hessian_traces(twin, layers, batches, seed=seed, probes=probes, task=task)
    weights = {name: _weight_losses(layer, traces.values[name], space, choice) for name, layer in layers.items()}
    _check_losses([weights, inputs])
    return Sensitivities(
        kind="hessian",
        weight_bits=space.weight_bits,
        activation_bits=space.activation_bits,
        weights=weights,
        inputs={name: tuple(losses.tolist()) for name, losses in inputs.items()},
        images=images,
        probes=traces.probes,
        errors=traces.errors,
    )


def _check_losses(found: Iterable[Mapping[str, Any]]) -> None:
    bad = next((name for losses in found for name, row in losses.items() if not np.isfinite(row).all()), None)
    if bad is not None:
        raise InputError(
            f"the sensitivity of layer '{bad}' is not finite, though weights and images are: a layer of the network "
            "overflows, or the loss does; train or load the net again"
        )


def _repeatable(batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
    return list(batches) if isinstance(batches, Iterator) else batches


def _checked(batches: Iterable[Any]) -> Any:
    """The inputs of the first batch; every batch is looked at."""
    first = None
    for number, batch in enumerate(batches, start=1):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            first = None
            break
        if isinstance(batch[0], Tensor):  # of several inputs some may be masks, of which inf is a part
            check_batch(number, batch[0])
        first = batch[0] if first is None else first
    if first is None:
        raise InputError("sensitivities need batches of images (N, C, H, W) and labels (N,), at least one")
    return first


def _holding_weights(model: nn.Module, names: Sequence[str], x: Any) -> nn.Module:
    """A copy whose layers ``names`` hold the weights that they multiply with; ``x`` are inputs of the network."""
    twin = fresh_copy(model)
    own_code = any(not is_standard(twin.get_submodule(name)) for name in names)
    for name in names:
        make_plain(twin.get_submodule(name))
    if own_code:  # which may make a weight
        hold_weights(twin, [spec for spec in read_graph(model, x).layers if spec.name in names])
    return twin


def _weight_losses(layer: nn.Module, trace: float, space: PrecisionSpace, choice: QuantizerChoice) -> tuple[float, ...]:
    weight = layer.get_parameter("weight").detach()
    # A negative estimate is noise around zero: the loss is near a minimum.
    curvature = max(trace, 1e-6) / weight.numel()
    return tuple(0.5 * curvature * _squared_error(choice.of_weights(), weight, bits) for bits in space.weight_bits)


def _squared_error(quantizer: Quantizer, x: Tensor, bits: int) -> float:
    if bits == 0:
        return widened(x).square().sum().item()
    return widened(quantized(quantizer, x, bits, signed=True) - x).square().sum().item()


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
    batches: Iterable[tuple[Any, Any]],
    task: Task,
) -> tuple[dict[str, np.ndarray], int]:
    """Per layer, the loss of each activation width, averaged over the images of ``batches``; and how many these are."""
    images = 0
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
        images += rows_of(x)
        with told_of_given("the network, or the loss of what it gives, cannot be computed on a batch"):
            loss = task.loss(outputs_of(task, model, x, y), y)
        loss.backward()
        for name, value in seen:
            if value.grad is None:
                continue
            # The loss is a mean over N images: each image's own gradient is N times what is seen here.
            fisher = rows_of(x) ** 2 * widened(value.grad).square()
            signed = bool(value.min() < 0)
            for column, bits in enumerate(space.activation_bits):
                error = quantized(choice.of_activations(), value.detach(), bits, signed=signed) - value.detach()
                losses[name][column] += 0.5 * (fisher * widened(error).square()).sum().item()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return {name: total / images for name, total in losses.items()}, images
