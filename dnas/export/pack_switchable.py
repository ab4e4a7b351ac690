"""A switchable net as one packed file: weights once, as many bit planes as the widest profile needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.export.buffers import buffers_of, described_buffers, fingerprints, unread_buffers
from dnas.export.constants import constants_of
from dnas.export.folding import check_folded
from dnas.export.operations import operations_of
from dnas.export.parts import (
    array_of,
    check_parameter,
    check_skipped,
    check_storable,
    codes_of,
    folded_norm,
    geometry,
    grid_with_gain,
    on_cpu,
    other_norms,
    smallest_clip,
)
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.switchable.net import SwitchableNet
from dnas.switchable.views import is_part, key_of, part_of
from results.packed.file import PackedFile, to_planes, write_packed
from results.packed.weights import FLOAT, PLANES, SHARED
from search_spaces.costs.shared import shared_size_bytes
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS, LayerSpec


def pack_switchable(path: Path, net: SwitchableNet, more: Mapping[str, Any]) -> PackedFile:
    """Write all profiles of a trained net into one file, each weight at the widest width that any of them needs.

    ``more`` goes into its description. Raises :class:`InputError` for what cannot be held.
    """
    if not net.shared:
        raise InputError("this net of one profile was read from a packed file, and has the weights of its codes alone")
    net = on_cpu(net)
    packer = _SharedPacker(net)
    packer.pack()
    for name in net.profiles:
        check_folded(net.view_of(name), net.graph)
    taken, expected = sum(tensor.nbytes for tensor in packer.tensors.values()), _expected_bytes(net)
    if taken != expected:
        raise InputError(f"this net takes {taken} bytes and should take {expected}; it is not packed")
    view = next(iter(net.views.values()))
    description = {
        **more,
        "quantizer": asdict(net.choice),
        "private_norms": net.private_norms,
        "layers": packer.layers,
        "parameters": packer.parameters,
        "buffers": packer.buffers,
        "unread_buffers": unread_buffers(view, net.graph),
        "fingerprints": fingerprints(view),
        "constants": constants_of(view, net.graph),
        "profiles": packer.profiles,
    }
    return write_packed(path, description, packer.tensors)


def _expected_bytes(net: SwitchableNet) -> int:
    """What the cost functions say."""
    weights = net.choice.of_weights()
    return shared_size_bytes(
        net.graph,
        [profile.assignment.layers for profile in net.profiles.values()],
        per_channel=net.choice.per_channel,
        nests=weights.nests,
        one_scale=weights.nests or weights.clip != "learned",
        private_norms=net.private_norms,
        other_norms=net.other_norms,
    )


@dataclass
class _SharedPacker:
    """Collects the tensors of a switchable net, and what the header says of them."""

    net: SwitchableNet
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)
    profiles: dict[str, Any] = field(default_factory=dict)
    _known: dict[Any, str] = field(default_factory=dict)

    def pack(self) -> None:
        """Go through the profiles, and within each through layers, BatchNorms and everything else."""
        for name, profile in self.net.profiles.items():
            check_skipped(self.net.graph, profile.assignment)
            own = profile.assignment
            told = replace(own, model=own.model.called_as(self.net.graph)).to_json()
            described: dict[str, Any] = {"assignment": told, "layers": {}, "norms": {}}
            self.profiles[name] = {**described, "parts": {}}
        for spec in self.net.graph.layers:
            users = self._users(spec)
            if users:
                self._pack_layer(spec, users)
        for name in self.net.profiles:
            for norm_name, norm in other_norms(self.net.view_of(name), self.net.graph):
                self.profiles[name]["norms"][norm_name] = self._norm(name, norm_name, norm_name, norm)
        self._pack_parameters()
        self._pack_buffers()
        for name, profile in self.profiles.items():
            layers = {layer: self.layers[layer] for layer in profile["layers"]}
            profile["operations"] = operations_of(self.net.view_of(name), self.net.graph, layers, self.parameters)

    def _bits(self, profile: str, spec: LayerSpec) -> Any:
        return self.net.profiles[profile].assignment.layers[spec.name]

    def _layer(self, profile: str, name: str) -> Any:
        return self.net.view_of(profile).get_submodule(name)

    def _pack_layer(self, spec: LayerSpec, users: list[str]) -> None:
        name = spec.name
        for profile in users:
            check_storable(name, self._layer(profile, name), self._bits(profile, spec))
        weight = self._weight(spec, users)
        bias = None
        if self._layer(users[0], name).bias is not None:
            bias = self._stored(f"{name}.bias", self.net.bias_of(spec), users, name, "bias")
        shape = self.layers[weight["layer"]]["shape"] if weight["storage"] == SHARED else weight.pop("shape")
        entry: dict[str, Any] = {
            "kind": spec.kind,
            "shape": list(shape),
            "geometry": geometry(self._layer(users[0], name)),
        }
        self.layers[name] = {**entry, "weight": weight, "bias": bias}
        for profile in users:
            layer = self._layer(profile, name)
            norm = None
            if spec.norm is not None:
                module = self.net.view_of(profile).get_submodule(spec.norm)
                norm = {"module": spec.norm, **self._norm(profile, spec.norm, f"{name}.norm", module)}
            chosen: dict[str, Any] = {
                "weight": self._told(spec, profile),
                "input": self._input(name, layer),
                "norm": norm,
            }
            groups = int(getattr(layer, "groups", 1))
            if groups != entry["geometry"].get("groups", 1):
                chosen["groups"] = groups
            self.profiles[profile]["layers"][name] = chosen

    def _weight(self, spec: LayerSpec, users: list[str]) -> dict[str, Any]:
        """How a layer's weight is stored: in fp32, as bit planes, or with another layer's."""
        if spec.shares_weight_with is not None:
            self._check_sharing(spec, self.net.graph[spec.shares_weight_with], users)
            return {"storage": SHARED, "layer": spec.shares_weight_with}
        full = self.net.weight_of(spec)
        widths = sorted({self._bits(profile, spec).weight_bits for profile in users})
        nests = self.net.choice.of_weights().nests
        axis = (1 if "Transpose" in spec.kind else 0) if self.net.choice.per_channel else None
        if FLOAT_BITS in widths or (len(widths) > 1 and not nests):
            tensor = self._stored(f"{spec.name}.weight", full, users, spec.name, "weight")
            return {"storage": FLOAT, "tensor": tensor, "axis": axis, "shape": self.tensors[tensor].shape}
        quantizer = cast(TensorQuantizer, self.net.quantizers.weights[f"{key_of(spec.name)}@{widths[-1]}"])
        codes = torch.from_numpy(codes_of(quantizer, full))
        name = self._stored(f"{spec.name}.planes", codes, users, spec.name, "weight")
        stored = self.tensors[name]
        self.tensors[name] = to_planes(stored, widths[-1])
        return {"storage": PLANES, "bits": widths[-1], "axis": axis, "tensor": name, "shape": stored.shape}

    def _check_sharing(self, spec: LayerSpec, owner: LayerSpec, users: list[str]) -> None:
        """Refuse a layer whose weight, stored with that of its owner, has other codes than the owner's."""
        for profile in users:
            if self._bits(profile, spec).weight_bits != self._bits(profile, owner).weight_bits:
                raise InputError(
                    f"layer '{spec.name}' shares its weight with '{owner.name}' but has other weight bits in profile "
                    f"'{profile}'; it is stored once, so give both the same bits and train again"
                )

    def _users(self, spec: LayerSpec) -> list[str]:
        """The profiles that run the layer."""
        return [name for name in self.net.profiles if self._bits(name, spec).weight_bits]

    def _told(self, spec: LayerSpec, profile: str) -> dict[str, Any] | None:
        """How codes become values in a profile; None where the weight stays fp32."""
        bits = self._bits(profile, spec).weight_bits
        if bits == FLOAT_BITS:
            return None
        owner = spec.shares_weight_with or spec.name
        whole = cast(TensorQuantizer, self.net.quantizers.weights[f"{key_of(owner)}@{bits}"])
        if whole.quantizer.clip == "data" and self._is_part(profile, spec.name):
            raise InputError(
                f"profile '{profile}' is pruned and its weights are scaled by their largest, which others have "
                "otherwise; make the net with finalise.weights = 'nested'"
            )
        with torch.no_grad():
            clip = whole.prepare(self.net.weight_of(self.net.graph[owner]))[1]
        one_scale = whole.quantizer.nests or whole.quantizer.clip != "learned"
        key = ("clip", owner, 0 if one_scale else bits)
        if key not in self._known:
            users = self._users(spec)
            name = f"{owner}.weight_clip" + ("" if one_scale else f"@{bits}")
            self._known[key] = self._stored(name, clip, users, spec.name, "clip")
        tensor = self._known[key]
        self.tensors[tensor] = self.tensors[tensor].reshape(-1)
        told: dict[str, Any] = {"bits": bits, "signed": True, "clip": tensor, "grid": asdict(grid_with_gain(whole))}
        return {**told, "transform": "tanh"} if whole.quantizer.transform is torch.tanh else told

    def _is_part(self, profile: str, name: str) -> bool:
        return is_part(self._layer(profile, name), "weight")

    def _input(self, name: str, layer: Any) -> dict[str, Any] | None:
        quantizer = layer.quantize_input if isinstance(layer, QuantizedLayer) else None
        if quantizer is None or not quantizer.widths:
            return None
        bits = quantizer.widths[0]
        key = ("input", name, bits)
        if key not in self._known:
            clip = smallest_clip(quantizer.clip)
            self._known[key] = self._add(f"{name}.input_clip@{bits}", array_of(clip).reshape(-1))
        grid = asdict(grid_with_gain(quantizer))
        return {"bits": bits, "signed": quantizer.signed, "clip": self._known[key], "grid": grid}

    def _norm(self, profile: str, module: str, name: str, norm: nn.Module) -> dict[str, str]:
        """The folded BatchNorm of a profile, under a name of its own unless all share it."""
        prefix = f"{profile}:{name}" if self.net.private_norms else name
        found = {}
        for part, tensor in zip(("scale", "shift"), folded_norm(module, norm), strict=True):
            key = (part, id(norm))
            if key not in self._known:
                self._known[key] = self._add(f"{prefix}.{part}", array_of(tensor))
            found[part] = self._known[key]
        return found

    def _pack_parameters(self) -> None:
        """Everything shared that is no layer's weight or bias."""
        for name, parameter in self.net.other_parameters().items():
            check_parameter(name, parameter)
            module, _, key = name.rpartition(".")
            values = parameter.detach().float()  # of integers, too
            self.parameters[name] = self._stored(name, values, list(self.net.profiles), module, key)

    def _pack_buffers(self) -> None:
        """Buffers outside BatchNorms, which all profiles must have alike: there is one of each in the file."""
        first, *others = self.net.profiles
        expected = buffers_of(self.net.view_of(first), self.net.graph)
        for profile in others:
            found = buffers_of(self.net.view_of(profile), self.net.graph)
            for name in sorted({*found, *expected}):
                if name not in found or name not in expected or not torch.equal(found[name], expected[name]):
                    raise InputError(
                        f"the buffer '{name}' differs between the profiles '{first}' and '{profile}', and one file of "
                        "both has room for one; write each profile into a file of its own"
                    )
        self.buffers = described_buffers(self.net.view_of(first), self.net.graph, self._add)

    def _stored(self, name: str, full: Tensor, users: list[str], module: str, key: str) -> str:
        """Keep what any profile uses of a tensor, and note what part of that each uses."""
        matrix = array_of(full) if full.is_floating_point() else full.numpy()
        rows, columns = (None if part is None else part.cpu().numpy() for part in self.net.union_of(module, key))
        shape = list(full.shape)
        if rows is not None:
            matrix, shape[0] = matrix[rows], len(rows)
        if columns is not None:
            matrix = matrix.reshape(len(matrix), -1)[:, columns]
            shape[1] = len(columns) // int(np.prod(full.shape[2:], dtype=np.int64))
        stored = self._add(name, np.ascontiguousarray(matrix.reshape(shape)))
        for profile in users:
            holder: Any = self._layer(profile, module) if module else self.net.view_of(profile)
            if key == "clip" and not isinstance(holder, QuantizedLayer):
                continue  # in fp32 in this profile
            holder = holder.quantize_weight if key == "clip" else holder
            own = [None if part is None else part.cpu().numpy() for part in part_of(holder, key)]
            used = tuple(getattr(holder, key).shape)
            if used != tuple(shape):
                within = {"rows": _within(own[0], rows), "columns": _within(own[1], columns)}
                self.profiles[profile]["parts"][stored] = {"shape": list(used), **within}
        return stored

    def _add(self, name: str, tensor: np.ndarray) -> str:
        while name in self.tensors or name == "__metadata__":
            name += "_"
        self.tensors[name] = tensor
        return name


def _within(part: np.ndarray | None, union: np.ndarray | None) -> list[int] | None:
    """Where ``part`` lies among ``union``."""
    if part is None:
        return None if union is None else list(range(len(union)))
    return [int(i) for i in (part if union is None else np.searchsorted(union, part))]
