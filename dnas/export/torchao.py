"""An assignment as torchao's FqnToConfig: for every layer by name, which config quantizes it, as torchao's own JSON.

torchao chooses scales itself when it quantizes, so the file carries widths and no trained levels. What torchao has no
config for stays in fp32 there, and the file lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dnas.export.fixed_layers import ExportedFile, ideal_bytes
from results.files import indented_json, write_text
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment, LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.errors import InputError
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.models.attention import PROJECTIONS, UnfoldedAttention

FORMAT = "torchao"
_VERSION = 2
_WEIGHT_BITS = range(2, 9)
"""torchao's int1 is the two codes -1 and 0, with scales that leave 0 alone."""
_INPUT_BITS = {"Linear": 8}
"""Widths of inputs by kind of layer; convolutions have none."""
_HIDDEN = "torchao quantizes layers that are called, and nn.MultiheadAttention reads the weights of these itself"


def export_torchao(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    preprocessing: Preprocessing | None = None,
) -> ExportedFile:
    """Write what ``torchao.core.config.config_from_dict`` reads, and list what torchao has no config for.

    ``network`` is the fixed net, of which only its attention is looked at. A skipped layer, and one in fp32, has no
    config. Raises :class:`InputError` where nothing can be said.
    """
    kept = kept_units(graph.channels, kept_rows_of(assignment.layers))
    graph = pruned_graph(graph, kept) if kept else graph
    unfolded = [name for name, module in network.named_modules() if isinstance(module, UnfoldedAttention)]
    hidden = {".".join(filter(None, (name, layer))) for name in unfolded for layer in PROJECTIONS}
    found = {name: layer_config(graph[name], bits, name in hidden) for name, bits in assignment.layers.items()}
    configs = {name: config for name, (config, _) in found.items()}
    left_out = {name: why for name, (_, why) in found.items() if why}
    if left_out and not any(configs.values()):
        name, why = next(iter(left_out.items()))
        raise InputError(f"torchao can quantize no layer of this net, such as '{name}' ({why}); export it as onnx")
    data = {
        "_type": "FqnToConfig",
        "_version": 1,
        "_data": {"fqn_to_config": configs, "module_fqn_to_config": configs},
        "dnas.assignment": assignment.to_json(),
        "dnas.preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "dnas.left_out": left_out,
    }
    text = indented_json(data, what=str(path))
    write_text(path, text)
    return ExportedFile(path, FORMAT, len(text.encode()), ideal_bytes(assignment), left_out)


def layer_config(spec: LayerSpec, bits: LayerBits, hidden: bool = False) -> tuple[Mapping[str, Any] | None, str]:
    """The config of one layer (None: it stays in fp32), and what that leaves out of its bits ("": nothing).

    ``hidden`` is a projection that is no layer of the user's own network: ``nn.MultiheadAttention`` reads its weight.
    """
    if bits.weight_bits == 0 or bits.is_float:
        return None, ""
    told = f"{bits.weight_bits}-bit weights and {bits.activation_bits}-bit inputs"
    reason = _HIDDEN if hidden else _why_not(spec, bits)
    if reason:
        return None, f"{told}: {reason}"
    weight_dtype = {"_type": "torch.dtype", "_data": f"int{bits.weight_bits}"}
    rows = {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}
    symmetric = {"_type": "MappingType", "_data": "SYMMETRIC"}
    if bits.activation_bits != _INPUT_BITS.get(spec.kind):
        config = _config("IntxWeightOnlyConfig", weight_dtype=weight_dtype, granularity=rows, mapping_type=symmetric)
        left = "" if bits.activation_bits == FLOAT_BITS else f"{told}: torchao has {_inputs_of(spec.kind)}"
        return config, left
    config = _config(
        "Int8DynamicActivationIntxWeightConfig",
        weight_dtype=weight_dtype,
        weight_granularity=rows,
        weight_mapping_type=symmetric,
        act_mapping_type={"_type": "MappingType", "_data": "ASYMMETRIC"},
    )
    return config, ""


def _why_not(spec: LayerSpec, bits: LayerBits) -> str:
    """Why torchao cannot quantize the weights of a layer; empty where it can."""
    if bits.scheme is not None:
        return f"torchao has no {bits.scheme.words} of few bits"
    if spec.weight_from != "parameter":
        return (
            "torchao quantizes the weight that a layer holds, and this one multiplies with one that is made of others"
        )
    if spec.kind not in ("Linear", "Conv2d"):
        return f"torchao quantizes Linear and Conv2d, and this is a {spec.kind}"
    if spec.kind == "Conv2d" and spec.weight_shape[1] == 1:
        return "torchao fails on convolutions of one input channel per filter"
    if bits.weight_bits not in _WEIGHT_BITS:
        return f"torchao has weights of {_WEIGHT_BITS.start} to {_WEIGHT_BITS.stop - 1} bits"
    return ""


def _inputs_of(kind: str) -> str:
    return f"inputs of {_INPUT_BITS[kind]} bits alone" if kind in _INPUT_BITS else f"no inputs of few bits for {kind}"


def _config(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"_type": kind, "_version": _VERSION, "_data": arguments}
