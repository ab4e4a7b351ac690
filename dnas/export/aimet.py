"""The levels of a fixed quantized net as AIMET encodings, version 1.0.0: two lists of (name, width, scale, offset).

In these encodings ``value = scale * (code + offset + zero_point_shift)`` with codes from 0 to 2^bw - 1, and a value is
rounded to the nearest level.
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
from search_spaces.models.computed import computed_names

FORMAT = "aimet"


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
    data = {
        "version": "1.0.0",
        "activation_encodings": [
            {"name": f"{layer.name}.input", **(_encoding(layer.input) if layer.input else _float())} for layer in layers
        ],
        "param_encodings": [{"name": f"{layer.name}.weight", **_weight(layer)} for layer in layers],
        "excluded_layers": [name for name in assignment.layers if name not in found],
        "producer": "dnas",
        "dnas.assignment": assignment.to_json(),
        "dnas.preprocessing": None if preprocessing is None else preprocessing.to_json(),
    }
    text = indented_json(data, what=str(path))
    write_text(path, text)
    return ExportedFile(path, FORMAT, len(text.encode()), ideal_bytes(assignment))


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
    if layer.weight is None:
        return _float()
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


def _float() -> dict[str, Any]:
    return {"dtype": "FLOAT", "bw": FLOAT_BITS, "enc_type": "PER_TENSOR"}
