"""Ranges from data, and BatchNorm statistics re-estimated: what a quantized net needs before it is trained or measured.

The clip is the one of 40 shares of the largest magnitude with the least mean squared error (the geometric mean of
the errors, where one clip serves several widths). The gain then places the levels of each width by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.quantization.conversion import fresh_copy
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, thinned
from dnas.quantization.logarithmic import LogarithmicQuantizer
from dnas.quantization.quantizers import Grid

_SHARES = torch.linspace(1.0, 0.025, 40)
_MOST_SAMPLES = 131072


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every quantizer's sign, clip and gain: weights from themselves, inputs from ``batches`` of (N, C, H, W).

    The inputs are those of the float network: nothing is quantized while it is observed. A BatchNorm that has never
    been trained uses the statistics of the batch, as it will in training: its own say nothing about its input.
    """
    layers = [module for module in network.modules() if isinstance(module, QuantizedLayer)]
    calibrate_weights(network)
    inputs = [layer.quantize_input for layer in layers]
    untrained = [norm for norm in _tracking_norms(network) if _is_untrained(norm)]
    with torch.no_grad(), _evaluating(network), observing(layers), _using_batch_statistics(untrained):
        for x in batches:
            network(x)
        for quantizer in inputs:
            samples = torch.cat(quantizer.observed or [torch.zeros(1)])
            samples = samples.to(quantizer.gain.device)
            quantizer.set_sign(bool(samples.min() < 0))
            fit(quantizer, samples.flatten())


def layer_inputs(model: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """What these layers of a float ``model`` read on batches (N, C, H, W), thinned out to a flat tensor each.

    The model is left untouched; a BatchNorm that has never been trained uses the statistics of the batch.
    """
    twin = fresh_copy(model)
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: found[name].append(thinned(inputs[0].detach()))

    for name in found:
        twin.get_submodule(name).register_forward_pre_hook(watch(name))
    untrained = [norm for norm in _tracking_norms(twin) if _is_untrained(norm)]
    with torch.no_grad(), _evaluating(twin), _using_batch_statistics(untrained):
        for x in batches:
            twin(x)
    return {name: torch.cat(parts or [torch.zeros(1)]) for name, parts in found.items()}


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode inside this context, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def calibrate_weights(network: nn.Module) -> None:
    """Set the clip and gain of every weight quantizer from the weights as they are now."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, QuantizedLayer) and isinstance(module.quantize_weight, TensorQuantizer):
                fit(module.quantize_weight, module.weight.detach())


@contextmanager
def observing(layers: Iterable[QuantizedLayer]) -> Iterator[None]:
    """Let every quantizer pass its tensor through, and note it, inside this context."""
    quantizers = [q for layer in layers for q in (layer.quantize_input, layer.quantize_weight)]
    for quantizer in quantizers:
        quantizer.observed = []
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.observed = None


def fit(quantizer: TensorQuantizer, x: Tensor) -> None:
    """Set the clip (where it is learned) and the gain of ``quantizer`` for the tensor ``x``."""
    if isinstance(quantizer, LogarithmicQuantizer):
        quantizer.fit(x)
    else:
        fit_together([quantizer], x)


def fit_together(quantizers: Sequence[TensorQuantizer], x: Tensor) -> None:
    """Set the one clip that these quantizers share (where it is learned), and the gain of each, for a tensor ``x``."""
    quantizers = [quantizer for quantizer in quantizers if quantizer.widths]
    if not quantizers:
        return
    first = quantizers[0]
    grids = [[q.quantizer.grid(width, q.signed) for width in q.widths] for q in quantizers]
    prepared, clip = first.prepare(x)
    rows = _subsample(prepared.reshape(clip.shape[0], -1))
    if first.quantizer.clip == "learned":
        clip = best_clip(rows, [grid for own in grids for grid in own], first.signed)
        first.clip.copy_(clip)
    for quantizer, own in zip(quantizers, grids, strict=True):
        for k, grid in enumerate(own):
            levels = _levels(rows, clip, grid, quantizer.signed)
            energy = (levels * levels).sum()
            gain = (rows * levels).sum() / energy if energy > 0 else torch.ones(())
            quantizer.gain[k] = gain if gain > 0 else 1.0


def best_clip(rows: Tensor, grids: list[Grid], signed: bool) -> Tensor:
    """The clip (R, 1) with the least error over all ``grids`` for each row of ``rows`` (R, M)."""
    top = (rows.abs() if signed else rows.clamp_min(0)).amax(1, keepdim=True).clamp_min(1e-6)
    scores = []
    for share in _SHARES.to(rows.device):
        clip = top * share
        errors = [(rows - _levels(rows, clip, grid, signed)).square().mean(1) for grid in grids]
        scores.append(torch.stack(errors).clamp_min(1e-20).log().mean(0))
    return top * _SHARES.to(rows.device)[torch.stack(scores).argmin(0)][:, None]


def _levels(rows: Tensor, clip: Tensor, grid: Grid, signed: bool) -> Tensor:
    u = (rows / clip).clamp(-1.0 if signed else 0.0, 1.0)
    return clip * (torch.floor(u * grid.scale + grid.offset).clamp_max(grid.top) * grid.step + grid.start)


def _subsample(rows: Tensor) -> Tensor:
    """Evenly spread columns, at most about ``_MOST_SAMPLES`` values in all; the last rows' extremes may be left out."""
    step = max(1, rows.numel() // _MOST_SAMPLES)
    if step == 1:
        return rows
    extremes = torch.stack([rows.amin(1), rows.amax(1)], dim=1)
    return torch.cat([rows[:, ::step], extremes], dim=1)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm use the statistics of each batch inside this context, without touching its running ones.

    A one-hot sample of a supernet is evaluated so: its statistics differ from those of the mixture.
    """
    with _using_batch_statistics(_tracking_norms(network)):
        yield


def _tracking_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _is_untrained(norm: _BatchNorm) -> bool:
    """Whether the running statistics are the initial ones; checkpoints may lack the count of batches."""
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())


@contextmanager
def _using_batch_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    state = [(norm.training, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.train(False)
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (training, mean, variance) in zip(norms, state, strict=True):
            norm.training, norm.running_mean, norm.running_var = training, mean, variance


def recalibrate_batchnorm(
    network: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], Any] | None = None
) -> None:
    """Replace BatchNorm's running statistics by their plain average over ``batches`` of (N, C, H, W).

    Idempotent on the same batches; nothing else of the network changes. ``run`` runs a batch: by default the network.
    """
    run = run or network
    norms = _tracking_norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), _evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for x in batches:
                run(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
