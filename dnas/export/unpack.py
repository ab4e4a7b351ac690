"""A packed file as a quantized net that computes what the exported one did."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.export.buffers import fill_buffers
from dnas.export.constants import check_constants
from dnas.export.folding import fold
from dnas.export.parts import other_norms, other_parameters
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.held_weights import with_held_weights
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.switchable.net import SwitchableNet
from dnas.switchable.views import key_of
from results.packed.file import PackedFile, read_packed
from results.packed.weights import FLOAT, PLANES, SHARED, part_of, shared_values, weight_values
from search_spaces.assignments import BitAssignment, check_fits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.errors import InputError, check_type
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.models.named_in_files import check_input, load_described
from search_spaces.network.graph import read_graph

_FIELDS = ("scale", "offset", "top", "step", "start")


def load(path: Path | str, model: nn.Module | None = None, profile: str | None = None) -> SwitchableNet:
    """Return the net of a packed file, in eval mode; ``model`` is a fresh float network, which stays as it is.

    Without ``model`` the network is made by the name that the file tells (``zoo:``, ``torchvision:``, ``timm:``; never
    code of the user's). With a ``profile`` only this one is read, and of each weight only the bit planes it needs. A
    net of one profile has the weights of its codes; one of several quantizes its one set of weights at each profile's
    width. Each BatchNorm is the folded scale and shift. Buffers that are not persistent are the model's own.
    Raises :class:`InputError` for a damaged file, for another network, and for other values of such a buffer.
    """
    check_type(path, (str, Path), "the path of a packed file", "give text or a Path")
    packed = read_packed(Path(path), profile)
    try:
        profiles = list(packed.description["profiles"]) if profile is None else [profile]
        for name in profiles:
            check_input(BitAssignment.from_json(packed.description["profiles"][name]["assignment"]).model.input_shape)
        model = _model_of(packed) if model is None else model
        if len(profiles) > 1:
            return _with_sound_records(_unpack_all(packed, model))
        network, graph, assignment, choice = _unpack(packed, model, profiles[0])
        return _with_sound_records(SwitchableNet.of_one(network, graph, profiles[0], assignment, choice))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path} does not describe a net that this version can build ({error!r}); export it again"
        ) from error


def _with_sound_records(net: SwitchableNet) -> SwitchableNet:
    """The net, after a look at all that profiles are chosen by: what is no number raises."""
    for profile in net.profiles.values():
        numbers = [profile.score, *map(profile.cost, profile.assignment.cost)]
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ValueError(f"a cost or accuracy of profile '{profile.name}' is not finite")
    return net


def _model_of(packed: PackedFile) -> nn.Module:
    """The float network that the file names, where making it runs no code but that of known packages."""
    told = packed.description
    assignments = [BitAssignment.from_json(profile["assignment"]) for profile in told["profiles"].values()]
    whole = not any(kept_rows_of(assignment.layers) for assignment in assignments)
    shapes = {name: tuple(entry["shape"]) for name, entry in told["layers"].items()} if whole else {}
    return load_described(told.get("model"), assignments[0].model.input_shape, packed.tensor_bytes, shapes)


def _choice_of(packed: PackedFile) -> QuantizerChoice:
    """The quantizers that the file names; one of a module that nobody has imported yet is not imported."""
    choice = QuantizerChoice(**packed.description["quantizer"])
    for name in (choice.weights, choice.activations):
        module, separator, _ = name.partition(":")
        if separator and module not in sys.modules:
            raise InputError(
                f"the quantizer '{name:.100}' is not known here; import {module:.60}, where it is from, first"
            )
    return choice


def _unpack(
    packed: PackedFile, model: nn.Module, name: str
) -> tuple[nn.Module, LayerGraph, BitAssignment, QuantizerChoice]:
    """One profile as a fixed net."""
    profile = packed.description["profiles"][name]
    assignment = BitAssignment.from_json(profile["assignment"])
    graph = read_graph(model, assignment.model.example)
    profile = _norms_moved(profile, graph)
    check_fits(assignment, graph)
    choice = _choice_of(packed)
    model, graph = with_held_weights(model, graph)
    network = quantize_fixed(model, graph, assignment.layers, choice)
    kept = kept_units(graph.channels, kept_rows_of(assignment.layers))
    smaller = pruned_graph(graph, kept) if kept else graph
    parameters = {name for name, _ in other_parameters(network, smaller)}
    _check_network(packed, profile, network, smaller, assignment, parameters)
    with torch.no_grad():
        for layer, chosen in profile["layers"].items():
            _fill_layer(packed, network, smaller[layer].norm, layer, name, chosen)
        for norm, folded in profile["norms"].items():
            _fill_norm(packed, network.get_submodule(norm), folded)
        own = dict(network.named_parameters(remove_duplicate=False))
        for parameter, tensor in packed.description["parameters"].items():
            _fill(parameter, own[parameter], part_of(packed, name, tensor, packed.tensors[tensor]))
        fill_buffers(packed, network, graph)
    check_constants(packed.description.get("constants", {}), network, graph)
    return network.eval(), graph, assignment, choice


def _unpack_all(packed: PackedFile, model: nn.Module) -> SwitchableNet:
    """All profiles over one set of weights."""
    told = packed.description["profiles"]
    assignments = {name: BitAssignment.from_json(profile["assignment"]) for name, profile in told.items()}
    graph = read_graph(model, next(iter(assignments.values())).model.example)
    choice = _choice_of(packed)
    told = {name: _norms_moved(profile, graph) for name, profile in told.items()}
    model, graph = with_held_weights(model, graph)
    net = SwitchableNet(model, graph, assignments, choice, private_norms=bool(packed.description["private_norms"]))
    parameters = net.other_parameters()
    with torch.no_grad():
        for name, profile in told.items():
            view = net.view_of(name)
            kept = kept_units(graph.channels, kept_rows_of(assignments[name].layers))
            smaller = pruned_graph(graph, kept) if kept else graph
            _check_network(packed, profile, view, smaller, assignments[name], set(parameters))
            for layer, chosen in profile["layers"].items():
                _fill_quantizers(packed, net, layer, chosen)
                norm = graph[layer].norm
                _check_norm(layer, norm, chosen)
                if norm is not None:
                    _fill_norm(packed, view.get_submodule(norm), chosen["norm"])
            for norm_name, folded in profile["norms"].items():
                _fill_norm(packed, view.get_submodule(norm_name), folded)
            fill_buffers(packed, view, graph)
            check_constants(packed.description.get("constants", {}), view, graph)
        for layer in packed.description["layers"]:
            _fill_shared(packed, net, layer)
        for parameter, tensor in packed.description["parameters"].items():
            _scatter(packed, net, parameter, tensor, packed.tensors[tensor])
    return net.eval()


def _norms_moved(profile: Mapping[str, Any], graph: LayerGraph) -> Mapping[str, Any]:
    """The profile with a BatchNorm that is no layer's alone among the others; earlier files kept it with a layer."""
    layers, norms = dict(profile["layers"]), dict(profile["norms"])
    for name, chosen in profile["layers"].items():
        if chosen["norm"] and name in graph.by_name and graph[name].norm is None:
            layers[name] = {**chosen, "norm": None}
            norms.setdefault(chosen["norm"]["module"], {key: chosen["norm"][key] for key in ("scale", "shift")})
    return {**profile, "layers": layers, "norms": norms}


def _check_network(
    packed: PackedFile,
    profile: Mapping[str, Any],
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    parameters: set[str],
) -> None:
    """Raise :class:`InputError` unless the network has the layers, norms and (other) parameters of the file."""
    layers, source = profile["layers"], assignment.model.source
    run = {name for name, bits in assignment.layers.items() if bits.weight_bits}
    expected = {
        "layers": (set(layers), run),
        "BatchNorms": (set(profile["norms"]), {name for name, _ in other_norms(network, graph)}),
        "parameters": (set(packed.description["parameters"]), parameters),
    }
    for what, (stored, found) in expected.items():
        stored -= graph.unused - found  # earlier files hold what is read in training only, too
        if stored != found:
            some = sorted(stored ^ found)[0]
            where = "the file has" if some in stored else "this network has"
            raise InputError(f"the {what} are those of another network (only {where} '{some}'); it holds {source}")
    for name in layers:
        told, wanted = layers[name]["weight"], assignment.layers[name].weight_bits
        if (FLOAT_BITS if told is None else told["bits"]) != wanted:
            raise InputError(
                f"the weight of layer '{name}' has other bits than the {wanted} of its assignment; export it again"
            )
        entry = packed.description["layers"][name]
        spec, weight = graph[name], entry["weight"]
        shape = tuple(entry["shape"])
        tensor = None if weight["storage"] == SHARED else weight["tensor"]
        parts = profile.get("parts", {})
        if tensor in parts:
            shape = tuple(parts[tensor]["shape"])
        if (entry["kind"], shape) != (spec.kind, spec.weight_shape) and weight["storage"] != SHARED:
            raise InputError(
                f"layer '{name}' is a {entry['kind']} of shape {shape} in the file and a {spec.kind} "
                f"of shape {spec.weight_shape} in this network; it holds {source}"
            )
        if (weight["layer"] if weight["storage"] == SHARED else None) != spec.shares_weight_with:
            raise InputError(f"the weight of layer '{name}' is shared in the file or in this network, but not in both")


def _fill_layer(
    packed: PackedFile, network: nn.Module, norm: str | None, name: str, profile: str, chosen: Mapping[str, Any]
) -> None:
    layer: Any = network.get_submodule(name)
    stored = packed.description["layers"][name]
    if stored["weight"]["storage"] != SHARED:
        _fill(f"{name}.weight", layer.weight, weight_values(packed, name, profile))
    if (layer.bias is None) != (stored["bias"] is None):
        raise InputError(f"layer '{name}' has a bias in the file or in this network, but not in both")
    if layer.bias is not None:
        values = part_of(packed, profile, stored["bias"], packed.tensors[stored["bias"]])
        _fill(f"{name}.bias", layer.bias, values)
    if isinstance(layer, QuantizedLayer):
        # The weight has the values of its codes already, and passes as it is.
        layer.quantize_weight = TensorQuantizer(QuantizerChoice().of_weights(), (FLOAT_BITS,), signed=True)
        if layer.quantize_input.widths:
            _fill_input(packed, layer.quantize_input, chosen["input"])
    _check_norm(name, norm, chosen)
    if norm is not None:
        _fill_norm(packed, network.get_submodule(norm), chosen["norm"])


def _check_norm(layer: str, norm: str | None, chosen: Mapping[str, Any]) -> None:
    if (norm is None) != (chosen["norm"] is None) or (norm and chosen["norm"]["module"] != norm):
        raise InputError(f"behind layer '{layer}' the BatchNorm is another one than in the file")


def _fill_quantizers(packed: PackedFile, net: SwitchableNet, layer: str, chosen: Mapping[str, Any]) -> None:
    """Give the quantizers of a profile's widths the file's clips and grids; gains are in the grids."""
    told, source = chosen["input"], chosen["weight"]
    if told is not None:
        _fill_input(packed, cast(TensorQuantizer, net.quantizers.inputs[f"{key_of(layer)}@{told['bits']}"]), told)
    if source is None or packed.description["layers"][layer]["weight"]["storage"] == SHARED:
        return
    quantizer = cast(TensorQuantizer, net.quantizers.weights[f"{key_of(layer)}@{source['bits']}"])
    if quantizer.quantizer.clip == "learned":
        whole = torch.tensor(packed.tensors[source["clip"]]).reshape(-1, 1).to(quantizer.clip)
        rows = net.union_of(layer, "clip")[0] if len(whole) != len(quantizer.clip) else None
        _put(quantizer.clip, whole, rows, None)
    _fill_grid(quantizer, source["grid"])


def _fill_shared(packed: PackedFile, net: SwitchableNet, layer: str) -> None:
    """The shared weight and bias of a layer: values whose codes at every width are those of the file."""
    stored = packed.description["layers"][layer]
    weight = stored["weight"]
    if weight["storage"] == FLOAT:
        _scatter(packed, net, f"{layer}.weight", weight["tensor"], packed.tensors[weight["tensor"]])
    elif weight["storage"] == PLANES:
        values = shared_values(packed, layer, nests=net.choice.of_weights().nests)
        _scatter(packed, net, f"{layer}.weight", weight["tensor"], values)
        if not net.choice.of_weights().nests:  # of one width: the values are those of its codes, and pass as they are
            for quantizer in net.quantizers.of_weight(layer):
                quantizer.pass_through()
    if stored["bias"] is not None:
        _scatter(packed, net, f"{layer}.bias", stored["bias"], packed.tensors[stored["bias"]])


def _scatter(packed: PackedFile, net: SwitchableNet, name: str, tensor: str, values: np.ndarray) -> None:
    """Put what is stored into its place in the whole; what no profile uses stays as it is."""
    module, _, key = name.rpartition(".")
    whole = net.whole(name)
    rows, columns = net.union_of(module, key)
    _put(whole, torch.tensor(values), rows, columns)


def _put(whole: Tensor, values: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    """Write rows and columns of a tensor as a matrix; None: all."""
    if rows is None and columns is None:
        whole.copy_(torch.as_tensor(values).reshape(whole.shape))
        return
    rows = torch.arange(whole.shape[0]) if rows is None else rows
    matrix = whole.reshape(whole.shape[0], -1)  # a copy where the memory is in another order
    columns = torch.arange(matrix.shape[1]) if columns is None else columns
    matrix[rows[:, None], columns[None]] = values.reshape(len(rows), -1).to(whole)
    whole.copy_(matrix.reshape(whole.shape))


def _fill_input(packed: PackedFile, quantizer: TensorQuantizer, told: Mapping[str, Any]) -> None:
    """Give the quantizer the file's clip and grid; the gain is in the grid."""
    if (told["bits"],) != quantizer.widths:
        raise InputError(f"an input has {told['bits']} bits where its assignment says {quantizer.widths[0]}")
    quantizer.set_sign(bool(told["signed"]))
    quantizer.clip.copy_(torch.tensor(packed.tensors[told["clip"]]).reshape(quantizer.clip.shape))
    _fill_grid(quantizer, told["grid"])


def _fill_grid(quantizer: TensorQuantizer, grid: Mapping[str, Any]) -> None:
    """The file's grid, which has the gain multiplied in."""
    column = [float(grid[name]) for name in _FIELDS]
    quantizer.grids[:, 0] = torch.tensor(column, dtype=quantizer.grids.dtype)
    quantizer.gain.fill_(1.0)


def _fill_norm(packed: PackedFile, norm: nn.Module, folded: Mapping[str, str]) -> None:
    """Make a BatchNorm the scale and shift of the file."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise InputError("a BatchNorm of the file is none in this network")
    scale, shift = (torch.tensor(packed.tensors[folded[key]]) for key in ("scale", "shift"))
    if scale.shape != norm.running_mean.shape or shift.shape != scale.shape:
        raise InputError(f"a BatchNorm of {scale.numel()} channels in the file has {norm.num_features} in this network")
    fold(norm, scale, shift)


def _fill(name: str, parameter: Tensor, values: np.ndarray) -> None:
    if tuple(parameter.shape) != values.shape:
        raise InputError(f"'{name}' has the shape {values.shape} in the file and {tuple(parameter.shape)} here")
    parameter.copy_(torch.tensor(values))
