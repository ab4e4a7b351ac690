"""Whether an exported graph computes what the net does, told layer by layer.

A rounding error before a threshold can move a code by one step, and the whole net after it: outputs of a deep net with
few bits cannot be compared by a tolerance. So the net runs *on the exported graph's tensors*: each layer gets the input
that the same layer of the graph got, and hands on the output that the graph handed on. Errors then cannot add up, and
each piece is compared with a tolerance of float32 alone:

* what comes in (all that lies between layers), the layer's output, and the net's: 1e-4 of the largest value;
* the weight: every level, to 1/50 of a step;
* the quantized input: to 1/50 of a step, or one step where x is so near a threshold that float32 cannot tell
  the side (half-up and half-to-even differ there too, on exact ties).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnas.export.calls import tensors_of
from dnas.export.fixed_layers import DenseWeight, FixedLayer, Levels, as_tensor
from dnas.export.onnx_tracing import Tap
from dnas.quantization.layers import QuantizedLayer
from search_spaces.errors import JobError
from search_spaces.network.calls import first_input, with_first_input
from search_spaces.network.examples import Call

Found = Mapping[str, np.ndarray]
_TOLERANCE = 1e-4
_STEP_TOLERANCE = 0.02
_EPSILON = float(np.finfo(np.float32).eps)


def tensor_names(taps: Sequence[Tap]) -> list[str]:
    """Every tensor that :func:`check_same` reads, without repetition."""
    return list(dict.fromkeys(name for tap in taps for name in (tap.input, tap.used, tap.weight, tap.output) if name))


def check_same(
    network: nn.Module, layers: Mapping[str, FixedLayer], taps: Sequence[Tap], found: Found, call: Call, results: Found
) -> None:
    """Raise :class:`JobError` naming the first layer of ``network`` that differs from the tensors ``found``.

    ``results`` are the graph's outputs in order.
    """
    with torch.no_grad(), _forced(network, layers, taps, found):
        outputs = tensors_of(call.run(network))
    for name, expected in zip(results, outputs, strict=True):
        _same(results[name], expected, f"the exported net's {name}")


def check_same_results(found: Found, expected: Found) -> None:
    """Raise :class:`JobError` where a changed graph gives other results."""
    for name, values in expected.items():
        _same(found[name], as_tensor(values), f"the exported net's {name}")


@contextmanager
def _forced(network: nn.Module, layers: Mapping[str, FixedLayer], taps: Sequence[Tap], found: Found) -> Iterator[None]:
    """Compare every layer of ``network`` as it runs, and let it go on with the tensors ``found``."""
    calls: dict[str, list[Tap]] = {}
    for tap in taps:
        calls.setdefault(tap.layer, []).append(tap)
    comparison = _Comparison(layers, found)
    handles = []
    for norm in {tap.fold.norm for tap in taps if tap.fold.norm}:
        handles.append(network.get_submodule(norm).register_forward_hook(comparison.normalised(norm)))
    for name, own in calls.items():
        layer = network.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(comparison.arriving(list(own)), with_kwargs=True))
        handles.append(layer.register_forward_hook(comparison.leaving()))
        if isinstance(layer, QuantizedLayer):
            handles.append(layer.quantize_input.register_forward_hook(comparison.quantized(name)))
            handles.append(layer.quantize_weight.register_forward_hook(comparison.weighed(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Comparison:
    """Hooks that know which layer call is running: layers may share a quantizer, and be called twice."""

    def __init__(self, layers: Mapping[str, FixedLayer], found: Found) -> None:
        self.layers, self.found = layers, found
        self.running: Tap | None = None
        self.folded: dict[str, Tap] = {}

    def arriving(self, calls: list[Tap]) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            self.running = calls.pop(0) if calls else None
            if self.running is None:  # a call of whose output the graph needs nothing
                return None
            given = self.found[self.running.input]
            x = first_input(module, inputs, options)
            _same(given, x, f"what layer '{self.running.layer}' gets")
            return with_first_input(module, inputs, options, as_tensor(given).to(x.dtype))

        return hook

    def leaving(self) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Any:
            tap, self.running = self.running, None
            if tap is None or not tap.output:
                return None
            if tap.fold.norm:  # the graph has only what the BatchNorm makes of it
                self.folded[tap.fold.norm] = tap
                return None
            return self._compared(tap, output)

        return hook

    def normalised(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Any:
            tap = self.folded.pop(name, None)
            return None if tap is None else self._compared(tap, output)

        return hook

    def _compared(self, tap: Tap, output: Tensor) -> Tensor:
        found = self.found[tap.output]
        _same(found, output, f"the output of layer '{tap.layer}'", tap.bias_error)
        return as_tensor(found).to(output.dtype)

    def quantized(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
            levels = self.layers[name].input
            if self.running is None or self.running.layer != name or levels is None:
                return None
            used = self.found[self.running.used] * np.float32(self.running.fold.gain)
            wanted, source = output.detach().double().cpu().numpy(), inputs[0].double().numpy()
            same_steps(used, wanted, levels, f"the quantized input of layer '{name}'", source)
            return as_tensor(used).to(output.dtype)

        return hook

    def weighed(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            weight = self.layers[name].weight
            if self.running is None or self.running.layer != name or weight is None or not self.running.weight:
                return
            what = f"the weight of layer '{name}'"
            if isinstance(weight, DenseWeight):
                fold = self.running.fold
                factors = fold.weight_factor()
                folded = weight.times(factors, fold.axis)
                shaped = folded.along_axis(factors) if factors.ndim else factors
                wanted = output.detach().double().cpu().numpy() * shaped
                same_steps(self.found[self.running.weight], wanted, folded.levels, what, None, folded)
            else:
                _same(self.found[self.running.weight], output, what)

        return hook


def same_steps(
    given: np.ndarray,
    wanted: np.ndarray,
    levels: Levels,
    what: str,
    source: np.ndarray | None,
    weight: DenseWeight | None = None,
) -> None:
    """Compare quantized tensors in steps; ``source`` tells where a neighbouring level is as good."""
    _same_shape(given, wanted, what)
    step = np.abs(levels.level_step if weight is None else weight.along_axis(levels.level_step))
    off = np.abs(given - wanted) / step
    bad = ~(off <= _STEP_TOLERANCE)
    if source is not None and bad.any():
        place = source / levels.threshold_step + (0.5 if levels.rounds else 0.0)
        nearness = 16 * _EPSILON * (levels.high - levels.low + 1)
        bad &= ~((np.abs(place - np.round(place)) <= nearness) & (off <= 1 + _STEP_TOLERANCE))
    if bad.any():
        _refuse(what, f"{int(bad.sum())} of {bad.size} values, by up to {off[bad].max():.3g} steps")


def _same(given: np.ndarray, expected: Tensor, what: str, slack: float = 0.0) -> None:
    """Compare to float32; ``slack`` may be between them besides."""
    wanted = expected.detach().double().cpu().numpy()
    _same_shape(given, wanted, what)
    largest = float(np.abs(wanted).max(initial=0.0))
    off = np.abs(given - wanted)
    bad = ~(off <= _TOLERANCE * largest + slack + 1e-30)
    if bad.any():
        _refuse(
            what, f"{int(bad.sum())} of {bad.size} values, by up to {off[bad].max():.3g} where {largest:.3g} is most"
        )


def _same_shape(given: np.ndarray, wanted: np.ndarray, what: str) -> None:
    if given.shape != wanted.shape:
        _refuse(what, f"its shape is {given.shape} and not {wanted.shape}")


def _refuse(what: str, how: str) -> None:
    raise JobError(f"the exported file would not compute what the net does: {what} differs ({how}); nothing is written")
