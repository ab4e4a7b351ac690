"""The levels of a fixed quantized net as AIMET encodings, version 1.0.0: two lists of (name, width, scale, offset).

In these encodings ``value = scale * (code + offset + zero_point_shift)`` with codes from 0 to 2^bw - 1, and a value is
rounded to the nearest level. A tensor without one is not quantized. The specification (AIMET's documentation, "Encoding
Format Specification") has widths of 4 to 32; AIMET itself takes fewer, and ``zero_point_shift`` is a key of its code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dnas.export.fixed_layers import (
    DenseWeight,
    ExportedFile,
    FixedLayer,
    Levels,
    fixed_layers,
    ideal_bytes,
)
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.schemes import GappedWeight
from results.files import indented_json, write_text
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS
from search_spaces.models.attention import published_weight_name
from search_spaces.models.computed import computed_names

FORMAT = "aimet"
_LEAST_BITS = 4
"""Of the specification."""


def export_aimet(
    path: Path, network: nn.Module, assignment: BitAssignment, preprocessing: Preprocessing | None = None
) -> ExportedFile:
    """Write the encodings of the fixed net ``network``.

    Parameters go by their PyTorch names; the input of a layer is ``LAYER.input``. Raises :class:`InputError` for
    weights of a scheme of their own, and for those that are made of others.
    """
    _check_held(network)
    found = fixed_layers(network)
    layers = found.values()
    inputs = [{"name": f"{layer.name}.input", **_encoding(layer.input)} for layer in layers if layer.input]
    weights = [
        {"name": published_weight_name(network, layer.name), **_weight(layer)} for layer in layers if layer.weight
    ]
    data = {
        "version": "1.0.0",
        "activation_encodings": inputs,
        "param_encodings": weights,
        "quantizer_args": _quantizer_args(inputs, weights),
        "excluded_layers": [name for name in assignment.layers if name not in found],
        "producer": "dnas",
        "dnas.assignment": assignment.to_json(),
        "dnas.preprocessing": None if preprocessing is None else preprocessing.to_json(),
    }
    text = indented_json(data, what=str(path))
    write_text(path, text)
    narrow = [encoding["name"] for encoding in (*weights, *inputs) if encoding["bw"] < _LEAST_BITS]
    return ExportedFile(path, FORMAT, len(text.encode()), ideal_bytes(assignment), notes=_notes(narrow))


def _notes(narrow: list[str]) -> list[str]:
    """What to know of encodings that AIMET's specification has no width for."""
    if not narrow:
        return []
    some = ", ".join(narrow[:3]) + (f" and {len(narrow) - 3} more" if len(narrow) > 3 else "")
    return [
        f"fewer bits than the {_LEAST_BITS} that AIMET's specification begins with, which AIMET itself takes: {some}"
    ]


def _quantizer_args(inputs: list[dict[str, Any]], weights: list[dict[str, Any]]) -> dict[str, Any]:
    """Arguments of AIMET's simulation that are near to these encodings, which alone count for readers."""
    return {
        "activation_bitwidth": max((encoding["bw"] for encoding in inputs), default=FLOAT_BITS),
        "param_bitwidth": max((encoding["bw"] for encoding in weights), default=FLOAT_BITS),
        "dtype": "int",
        "is_symmetric": True,
        "per_channel_quantization": any(encoding["enc_type"] == "PER_CHANNEL" for encoding in weights),
        "quant_scheme": "post_training_tf",
    }


def _check_held(network: nn.Module) -> None:
    """Refuse layers that multiply with another weight than the parameter they hold, which AIMET would quantize."""
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLayer) and (layer.made is not None or "weight" in computed_names(layer)):
            raise InputError(
                f"layer '{name}' multiplies with a weight that is made of others, and AIMET quantizes parameters; "
                "export it as onnx or packed"
            )


def _weight(layer: FixedLayer) -> dict[str, Any]:
    if isinstance(layer.weight, GappedWeight):
        raise InputError(
            f"layer '{layer.name}' has {layer.weight.words}, whose levels are not evenly spaced; AIMET cannot hold them"
        )
    assert layer.weight is not None
    return _encoding(layer.weight.levels, layer.weight)


def _encoding(levels: Levels, weight: DenseWeight | None = None) -> dict[str, Any]:
    """One step per channel where the weight has several, in the order of its channels."""
    rows = len(levels.level_step)
    signed = levels.low < 0
    lowest = -(2 ** (levels.bits - 1)) if signed else 0
    encoding = {
        "dtype": "INT",
        "bw": levels.bits,
        "is_sym": signed,
        "enc_type": "PER_TENSOR" if weight is None or weight.axis is None else "PER_CHANNEL",
        "scale": [float(step) for step in levels.level_step.astype(np.float32)],
        "offset": [lowest] * rows,
    }
    return {**encoding, "zero_point_shift": [levels.centre] * rows} if levels.centre else encoding
