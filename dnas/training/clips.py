"""Learned clips stay where a quantizer can work: after each update none is below a small part of its weight.

Where a BatchNorm follows, the scale of a weight does not matter, and what LSQ's rounding error pulls at is the clip
alone: at 1 bit it falls and falls. Once momentum carried it through zero, the layer gave zeros, and no gradient reached
the clip any more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import SMALLEST_CLIP

LEAST_FRACTION = 1 / 80  # of the largest magnitude: half of the least that calibration would choose


class LearnedClips:
    """The clips of a network that are trained; those of weights with a layer that has the weight."""

    def __init__(self, network: nn.Module) -> None:
        weights: dict[int, tuple[TensorQuantizer, QuantizedLayer]] = {}
        clips: dict[int, Tensor] = {}
        for module in network.modules():
            if isinstance(module, TensorQuantizer) and module.clip.requires_grad:
                clips[id(module.clip)] = module.clip
            elif isinstance(module, QuantizedLayer):
                quantizer = module.quantize_weight
                if isinstance(quantizer, TensorQuantizer) and quantizer.clip.requires_grad:
                    weights.setdefault(id(quantizer.clip), (quantizer, module))
        self._of_weights = list(weights.values())
        self._others = [clip for key, clip in clips.items() if key not in weights]

    @torch.no_grad()
    def keep(self) -> None:
        """Raise every clip that is too small to the least that it may be."""
        for quantizer, layer in self._of_weights:
            own = layer._parameters.get("weight")
            weight = layer.float_weight() if own is None or layer.made is not None else own
            torch.maximum(quantizer.clip, least_clip(quantizer, weight), out=quantizer.clip)
        if self._others:
            torch._foreach_clamp_min_(self._others, SMALLEST_CLIP)


def least_clip(quantizer: TensorQuantizer, weight: Tensor) -> Tensor:
    """The least clip (R, 1) for a weight: a small part of the largest magnitude in each row."""
    rows = quantizer.as_rows(weight).reshape(quantizer.clip.shape[0], -1)
    return (rows.abs().amax(1, keepdim=True) * LEAST_FRACTION).clamp_min(SMALLEST_CLIP).to(quantizer.clip.dtype)
