"""Ranges from data and BatchNorm statistics: what a quantized net needs before it is trained or measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.samples import TensorSample, joined, sampled
from search_spaces.errors import InputError, check_type, told_as
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import check_finite
from search_spaces.network.calls import first_input
from search_spaces.network.examples import Call, run_on

_LARGEST = 1e15
"""Squares of larger numbers do not add up in fp32."""


def calibrate(network: nn.Module, batches: Iterable[Any]) -> None:
    """Set every quantizer's sign, clip and gain: weights from themselves, inputs from ``batches`` of (N, C, H, W).

    A batch is a tensor, or what a ``DataLoader`` gives: a tuple that begins with one; for a network with several inputs
    it is a dict of them by name. The layers' inputs are those of the float network: nothing is quantized while it is
    observed. A BatchNorm that has never been trained uses the statistics of the batch, as it will in training: its own
    say nothing about its input. A layer that no batch reaches keeps the range of its input, with a warning that names
    it. Raises :class:`InputError`, and changes nothing, where there is no batch, or where an image, a weight or a
    layer's input is not finite.
    """
    check_finite(network)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}
    untrained = [norm for norm in _tracking_norms(network) if _is_untrained(norm)]
    with torch.no_grad(), _evaluating(network), _using_batch_statistics(untrained), observing(layers.values()):
        for x in images_of(batches):
            _run(network, x)
        observed = {name: layer.quantize_input.observed or [] for name, layer in layers.items()}
    found = _samples_of(observed)
    calibrate_weights(network)
    with torch.no_grad():
        for name, sample in found.items():
            fit_input(layers[name].quantize_input, sample)


def layer_inputs(model: nn.Module, names: Iterable[str], batches: Iterable[Any]) -> dict[str, TensorSample]:
    """A sample of what these layers of a float ``model`` read on batches (N, C, H, W), but of those that none reaches.

    The model is left untouched; a BatchNorm that has never been trained uses the statistics of the batch. Raises
    :class:`InputError` as :func:`calibrate` does.
    """
    check_finite(model)
    twin = fresh_copy(model)
    found: dict[str, list[TensorSample]] = {name: [] for name in names}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, options: Any) -> None:
            x = first_input(module, inputs, options)
            found[name] += [sampled(x)] if x.numel() else []

        return note

    for name in found:
        twin.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True)
    untrained = [norm for norm in _tracking_norms(twin) if _is_untrained(norm)]
    with torch.no_grad(), _evaluating(twin), _using_batch_statistics(untrained):
        for x in images_of(batches):
            _run(twin, x)
    return _samples_of(found)


def _samples_of(observed: Mapping[str, list[TensorSample]]) -> dict[str, TensorSample]:
    """One sample for each layer that was reached; a warning tells of the others."""
    found = {name: joined(samples) for name, samples in observed.items() if samples}
    _check_samples(found)
    others = [name for name in observed if name not in found]
    if others:
        first = f"'{others[0]}'" if len(others) == 1 else f"'{others[0]}' and {len(others) - 1} more"
        warnings.warn(
            f"no batch reaches layer {first}, so the range of its input is no measured one; calibrate on batches that "
            "the network takes every path with",
            stacklevel=4,
        )
    return found


def images_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The images (N, C, H, W) of each batch, or its inputs by name.

    Raises :class:`InputError` for no batch at all, or one that is not finite.
    """
    if isinstance(batches, Tensor):  # one batch
        batches = [batches]
    check_type(batches, Iterable, "batches of images", "give a list of them, or a DataLoader")
    empty = True
    for number, batch in enumerate(_read(batches), start=1):
        empty = False
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, (Tensor, Mapping, Call)):
            raise InputError(
                f"batch {number} is {type(batch).__name__}; a batch is a tensor of images (N, C, H, W), or a dict of "
                "them by name for a network with several inputs"
            )
        if isinstance(x, Tensor):  # of several inputs some may be masks, of which inf is a part
            check_batch(number, x)
        yield x
    if empty:
        raise InputError("there is no batch of images to calibrate on; give at least one (a generator is used up once)")


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; an error of the code that makes them is told with the number of the batch."""
    given = 0
    with told_as(lambda reason: f"batch {given + 1} cannot be read: {reason}; repair what gives the batches"):
        for batch in batches:
            given += 1
            yield batch


def check_batch(number: int, x: Tensor) -> None:
    """Raise :class:`InputError` for a batch without images, or with one that is not finite."""
    if x.layout != torch.strided or x.is_meta:
        kind = "is on the meta device and has no values" if x.is_meta else f"is {x.layout}"
        raise InputError(f"batch {number} of shape {tuple(x.shape)} {kind}; give plain tensors of images")
    if not x.numel():
        raise InputError(f"batch {number} of shape {tuple(x.shape)} holds no image; leave it out")
    bad = (~x.isfinite()).reshape(len(x), -1).any(1) if x.ndim else ~x.isfinite()[None]
    if bad.any():
        raise InputError(
            f"image {int(bad.nonzero()[0]) + 1} of batch {number} holds values that are not finite; "
            "remove it, or check how images are normalised"
        )


def _run(network: nn.Module, x: Any) -> Any:
    def sentence(reason: str) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in tree_leaves(x) if isinstance(t, Tensor))
        return f"the network does not run on a batch of {shapes}: {reason}; give batches as in training"

    with told_as(sentence):
        return run_on(network, x)


def _check_samples(found: Mapping[str, TensorSample]) -> None:
    for name, sample in found.items():
        _check_size(f"the input of layer '{name}'", sample.values)
        if not sample.values.isfinite().all():
            raise InputError(
                f"the input of layer '{name}' is not finite, though the weights are: a layer before it overflows, "
                "or what the network reads beside images is not finite"
            )


def _check_size(what: str, values: Tensor) -> None:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if _LARGEST < largest < float("inf"):
        raise InputError(
            f"{what} reaches {largest:.3g}, to which no range can be fitted (errors overflow); a layer before it "
            "explodes: train or load the net again"
        )


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
        found = [
            (name, module.quantize_weight, module.float_weight().detach())
            for name, module in network.named_modules()
            if isinstance(module, QuantizedLayer) and isinstance(module.quantize_weight, TensorQuantizer)
        ]
        for name, _, weight in found:
            _check_size(f"the weight of layer '{name}'", weight)
        for _, quantizer, weight in found:
            quantizer.fit(weight)


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


def fit_input(quantizer: TensorQuantizer, sample: TensorSample) -> None:
    """Set the sign, the clip (where it is learned) and the gain of a layer's input quantizer."""
    quantizer.set_sign(sample.least < 0)
    quantizer.fit(sample.to(quantizer.gain.device))


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
    network: nn.Module,
    batches: Iterable[Any],
    run: Callable[[Tensor], Any] | None = None,
    *,
    allow_overflow: bool = False,
) -> None:
    """Replace BatchNorm's running statistics by their plain average over ``batches`` of (N, C, H, W).

    Idempotent on the same batches; nothing else of the network changes. ``run`` runs a batch: by default the network.
    Raises :class:`InputError`, the statistics as they were, where there is no batch, one that is not finite, or a layer
    that overflows; ``allow_overflow`` lets the last be, for a net that diverged and is to be measured as it is.
    """
    check_type(network, nn.Module, "a network", "give a torch.nn.Module")
    norms = _tracking_norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    before = [{key: value.clone() for key, value in norm._buffers.items() if value is not None} for norm in norms]
    with torch.no_grad(), _evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for x in images_of(batches):
                run(x) if run else _run(network, x)
            if not allow_overflow:
                check_finite(network)  # a layer may overflow on finite images
        except BaseException:
            for norm, buffers in zip(norms, before, strict=True):
                for key, value in buffers.items():
                    norm.get_buffer(key).copy_(value)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
