"""A packed file as a quantized net that computes what the exported one did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.conversion import QuantizerChoice, quantize_fixed
from dnas.layers import QuantizedLayer, TensorQuantizer
from dnas.packing import other_norms, other_parameters
from results.packed import DEFAULT_PROFILE, PackedFile, read_packed
from results.packed_weights import SHARED, weight_values
from search_spaces.assignments import BitAssignment, check_fits, kept_rows_of
from search_spaces.channels import kept_units
from search_spaces.errors import InputError
from search_spaces.graph import read_graph
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.slicing import pruned_graph

_FIELDS = ("scale", "offset", "top", "step", "start")


def load_packed(path: Path, model: nn.Module) -> nn.Module:
    """Return the net of a packed file, in eval mode, as a quantized copy of a fresh ``model``, which stays as it is.

    Its weights have the values of the stored codes, its inputs are quantized as before, and each BatchNorm is the
    folded scale and shift. Buffers other than those of BatchNorm are the model's own. Raises :class:`InputError` for
    a damaged file and for another network.
    """
    packed = read_packed(Path(path))
    try:
        return _unpack(packed, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path} does not describe a net that this version can build ({error!r}); export it again"
        ) from error


def _unpack(packed: PackedFile, model: nn.Module) -> nn.Module:
    profile = packed.description["profiles"][DEFAULT_PROFILE]
    assignment = BitAssignment.from_json(profile["assignment"])
    graph = read_graph(model, assignment.model.input_shape)
    check_fits(assignment, graph)
    choice = QuantizerChoice(**packed.description["quantizer"])
    network = quantize_fixed(model, graph, assignment.layers, choice)
    kept = kept_units(graph.channels, kept_rows_of(assignment.layers))
    graph = pruned_graph(graph, kept) if kept else graph
    _check_network(packed, profile, network, graph, assignment)
    with torch.no_grad():
        for name, stored in packed.description["layers"].items():
            _fill_layer(packed, network, graph[name].norm, name, stored, profile["layers"][name])
        for name, folded in profile["norms"].items():
            _fill_norm(packed, network.get_submodule(name), folded)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        for name, tensor in packed.description["parameters"].items():
            _fill(name, parameters[name], packed.tensors[tensor])
    return network.eval()


def _check_network(
    packed: PackedFile, profile: Mapping[str, Any], network: nn.Module, graph: LayerGraph, assignment: BitAssignment
) -> None:
    """Raise :class:`InputError` unless the network has the layers, norms and parameters of the file."""
    layers, source = packed.description["layers"], assignment.model.source
    run = {name for name, bits in assignment.layers.items() if bits.weight_bits}
    expected = {
        "layers": (set(layers), run),
        "BatchNorms": (set(profile["norms"]), {name for name, _ in other_norms(network, graph)}),
        "parameters": (set(packed.description["parameters"]), {name for name, _ in other_parameters(network, graph)}),
    }
    for what, (stored, found) in expected.items():
        if stored != found:
            some = sorted(stored ^ found)[0]
            where = "the file has" if some in stored else "this network has"
            raise InputError(f"the {what} are those of another network (only {where} '{some}'); it holds {source}")
    for name, entry in layers.items():
        spec, weight = graph[name], entry["weight"]
        if (entry["kind"], tuple(entry["shape"])) != (spec.kind, spec.weight_shape):
            raise InputError(
                f"layer '{name}' is a {entry['kind']} of shape {tuple(entry['shape'])} in the file and a {spec.kind} "
                f"of shape {spec.weight_shape} in this network; it holds {source}"
            )
        if (weight["layer"] if weight["storage"] == SHARED else None) != spec.shares_weight_with:
            raise InputError(f"the weight of layer '{name}' is shared in the file or in this network, but not in both")


def _fill_layer(
    packed: PackedFile, network: nn.Module, norm: str | None, name: str, stored: Any, chosen: Mapping[str, Any]
) -> None:
    layer: Any = network.get_submodule(name)
    if stored["weight"]["storage"] != SHARED:
        _fill(f"{name}.weight", layer.weight, weight_values(packed, name))
    if (layer.bias is None) != (stored["bias"] is None):
        raise InputError(f"layer '{name}' has a bias in the file or in this network, but not in both")
    if layer.bias is not None:
        _fill(f"{name}.bias", layer.bias, packed.tensors[stored["bias"]])
    if isinstance(layer, QuantizedLayer):
        # The weight has the values of its codes already, and passes as it is.
        layer.quantize_weight = TensorQuantizer(QuantizerChoice().of_weights(), (FLOAT_BITS,), signed=True)
        if layer.quantize_input.widths:
            _fill_input(packed, layer.quantize_input, chosen["input"])
    if (norm is None) != (chosen["norm"] is None) or (norm and chosen["norm"]["module"] != norm):
        raise InputError(f"behind layer '{name}' the BatchNorm is another one than in the file")
    if norm is not None:
        _fill_norm(packed, network.get_submodule(norm), chosen["norm"])


def _fill_input(packed: PackedFile, quantizer: TensorQuantizer, told: Mapping[str, Any]) -> None:
    """Give the quantizer the file's clip and grid; the gain is in the grid."""
    if (told["bits"],) != quantizer.widths:
        raise InputError(f"an input has {told['bits']} bits where its assignment says {quantizer.widths[0]}")
    quantizer.set_sign(bool(told["signed"]))
    quantizer.clip.copy_(torch.tensor(packed.tensors[told["clip"]]).reshape(quantizer.clip.shape))
    column = [float(told["grid"][name]) for name in _FIELDS]
    quantizer.grids[:, 0] = torch.tensor(column, dtype=quantizer.grids.dtype)
    quantizer.gain.fill_(1.0)


def _fill_norm(packed: PackedFile, norm: nn.Module, folded: Mapping[str, str]) -> None:
    """Make a BatchNorm the folded scale and shift: mean 0, variance 1 and eps 0 leave x as it is."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise InputError("a BatchNorm of the file is none in this network")
    scale, shift = (torch.tensor(packed.tensors[folded[key]]) for key in ("scale", "shift"))
    if scale.shape != norm.running_mean.shape or shift.shape != scale.shape:
        raise InputError(f"a BatchNorm of {scale.numel()} channels in the file has {norm.num_features} in this network")
    like = norm.running_mean
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.eps = 0.0
    norm.weight, norm.bias = (nn.Parameter(tensor.to(like)) for tensor in (scale, shift))


def _fill(name: str, parameter: Tensor, values: np.ndarray) -> None:
    if tuple(parameter.shape) != values.shape:
        raise InputError(f"'{name}' has the shape {values.shape} in the file and {tuple(parameter.shape)} here")
    parameter.copy_(torch.tensor(values))
