"""An assignment as torchao's FqnToConfig: for every layer by name, which config quantizes it, as torchao's own JSON.

torchao chooses scales itself when it quantizes, so the file carries widths and no trained levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnas.export.fixed_layers import ExportedFile, ideal_bytes
from results.files import encode_json, write_text
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec

FORMAT = "torchao"
WEIGHT_BITS = range(1, 9)
_INPUT_BITS = {"Linear": (8, FLOAT_BITS), "Conv2d": (FLOAT_BITS,)}
"""Widths of inputs by kind of layer; torchao has no integer kernel for other kinds."""
_VERSION = 2


def export_torchao(path: Path, graph: LayerGraph, assignment: BitAssignment) -> ExportedFile:
    """Write what ``torchao.core.config.config_from_dict`` reads; :class:`InputError` where torchao has no config.

    A skipped layer, and one in fp32, has none.
    """
    configs = {name: layer_config(graph[name], bits) for name, bits in assignment.layers.items()}
    data = {
        "_type": "FqnToConfig",
        "_version": 1,
        "_data": {"fqn_to_config": configs, "module_fqn_to_config": configs},
        "dnas.assignment": assignment.to_json(),
    }
    text = encode_json(data, what=str(path), indent=2) + "\n"
    write_text(path, text)
    return ExportedFile(path, FORMAT, len(text.encode()), ideal_bytes(assignment))


def layer_config(spec: LayerSpec, bits: LayerBits) -> dict[str, Any] | None:
    """The config of one layer; None where torchao is to leave it alone."""
    if bits.weight_bits == 0 or (bits.weight_bits, bits.activation_bits) == (FLOAT_BITS, FLOAT_BITS):
        return None
    if bits.sparse is not None:
        raise InputError(f"layer '{spec.name}' has sparse weights, which torchao's config cannot express")
    if spec.kind not in _INPUT_BITS:
        raise InputError(
            f"layer '{spec.name}' is a {spec.kind} of {bits.weight_bits}-bit weights; torchao quantizes Linear and "
            f"Conv2d alone, so the nearest that it can hold is {FLOAT_BITS} bits"
        )
    if spec.kind == "Conv2d" and spec.weight_shape[1] == 1:
        raise InputError(
            f"layer '{spec.name}' is a Conv2d of one input channel per filter with {bits.weight_bits}-bit weights; "
            f"torchao fails on such layers, so the nearest that it can hold is {FLOAT_BITS} bits"
        )
    _check(spec, "weights", bits.weight_bits, (*WEIGHT_BITS,))
    _check(spec, "inputs", bits.activation_bits, _INPUT_BITS[spec.kind])
    dtype = {"_type": "torch.dtype", "_data": f"int{bits.weight_bits}"}
    rows = {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}
    symmetric = {"_type": "MappingType", "_data": "SYMMETRIC"}
    if bits.activation_bits == FLOAT_BITS:
        return _config("IntxWeightOnlyConfig", weight_dtype=dtype, granularity=rows, mapping_type=symmetric)
    return _config(
        "Int8DynamicActivationIntxWeightConfig",
        weight_dtype=dtype,
        weight_granularity=rows,
        weight_mapping_type=symmetric,
        act_mapping_type={"_type": "MappingType", "_data": "ASYMMETRIC"},
    )


def _config(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"_type": kind, "_version": _VERSION, "_data": arguments}


def _check(spec: LayerSpec, what: str, bits: int, held: tuple[int, ...]) -> None:
    if bits not in held:
        closest = min(held, key=lambda width: (abs(width - bits), width))
        raise InputError(
            f"layer '{spec.name}' ({spec.kind}) has {bits}-bit {what}, which torchao cannot express; the nearest width "
            f"that it can is {closest}"
        )
