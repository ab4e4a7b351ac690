"""Follow every channel through a traced network: the network's own code runs on labels in the place of numbers.

Each output channel of a layer gets a label of its own. Operations that move values (reshape, concatenate, chunk, ...)
are run as they are on tensors of labels, so every layout is followed exactly. Elementwise operations tie the labels
that meet; a depthwise convolution ties what goes in to what comes out. What mixes channels in a way that is not known
here freezes them, with the reason in words.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from search_spaces.channels.label_tensors import (
    Labels,
    compact,
    constant_along,
    is_tensor,
    per_channel,
    spread,
    squeezed,
    tensors,
)
from search_spaces.channels.operations import (
    CHANNEL_NORMS,
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    MOVE_MODULES,
    MOVES,
    POOL_MODULES,
    POOLS,
    REDUCTIONS,
    SAME_SHAPE_FUNCTIONS,
)
from search_spaces.channels.shapes import note_shapes
from search_spaces.layers import LayerSpec
from search_spaces.models.attention import UnfoldedAttention
from search_spaces.models.zoo import SubsampleShortcut


@dataclass
class ChannelTrace:
    """What one run over labels found: which labels go together, which stay and why, and where each is used.

    ``rows``, ``columns`` and ``vectors`` map modules to the labels of their filters, input channels and entries.
    """

    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0


class ChannelInterpreter(fx.Interpreter):
    """Runs a traced network on labels; every node needs ``tensor_meta`` from a :func:`note_shapes` before.

    ``given`` holds the labels of filters (and of a shortcut's padding) that are known already, by module: so a pruned
    network is followed with the labels that its filters had before.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        specs: Mapping[str, LayerSpec],
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.specs, self.given, self.found = specs, given or {}, ChannelTrace()
        self._rows_of: dict[int, Tensor] = {}
        self._columns_of: dict[int, Tensor] = {}
        self.prefix = self._name = ""

    def follow(self) -> ChannelTrace:
        """Run over the whole network."""
        nodes = cast(fx.Graph, self.module.graph).nodes
        placeholder = next(node for node in nodes if node.op == "placeholder")
        self.run(self._unremovable(_shape(placeholder), "it is the network's input"))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        """Run one node on labels."""
        self._node = n
        if n.op == "get_attr":
            value = self.fetch_attr(str(n.target))
            if not isinstance(value, Tensor):
                return value
            kind = "parameter" if isinstance(value, nn.Parameter) else "constant"
            return self._unremovable(value.shape, f"it meets the {kind} '{n.target}'")
        return super().run_node(n)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Freeze what the network gives out."""
        self._freeze(args, "it is the network's output")
        return None

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Follow the channels through a module."""
        module, self._name = self.fetch_attr(str(target)), f"{self.prefix}{target}"
        if self._name in self.specs:
            return self._layer(module, args[0])
        if isinstance(module, SubsampleShortcut):
            return self._shortcut(module, args[0])
        if isinstance(module, CHANNEL_NORMS) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            return self._vector(args[0])
        if isinstance(module, ELEMENTWISE_MODULES) or isinstance(module, nn.PReLU):
            return args[0]
        if isinstance(module, POOL_MODULES):
            return self._pool(args[0])
        if isinstance(module, nn.ChannelShuffle):
            return self._shuffle(module, args[0])
        if isinstance(module, MOVE_MODULES):
            return self._moved(module, args, kwargs)
        if isinstance(module, UnfoldedAttention):
            return self._unknown(f"the attention '{target}' keeps its heads whole", args, kwargs)
        if not type(module).__module__.startswith("torch.nn"):
            with contextlib.suppress(Exception):  # a foreign module that cannot be traced is unknown
                return self._inside(module, args, kwargs)
        return self._unknown(f"{type(module).__name__} '{target}' reads all channels together", args, kwargs)

    def _inside(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Follow the channels through the code of a module that holds no layer."""
        traced = fx.symbolic_trace(module)
        device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("meta"))
        sources = cast(tuple[Any, ...], self._node.args)
        dtypes = (
            source.meta["tensor_meta"].dtype if is_tensor(x) else None for x, source in zip(args, sources, strict=True)
        )
        examples = (torch.zeros(x.shape, dtype=d, device=device) if d else x for x, d in zip(args, dtypes, strict=True))
        note_shapes(traced, *examples)
        inner = _Inner(traced, {}, self.given)
        inner.found, inner.prefix = self.found, f"{self._name}."
        return inner.run(*args, *kwargs.values())

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Follow the channels through a method of a tensor."""
        return self._call(str(target), lambda *a, **k: getattr(a[0], target)(*a[1:], **k), args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Follow the channels through a function."""
        return self._call(getattr(target, "__name__", str(target)), target, args, kwargs)

    def _call(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        operands = list(tensors((args, kwargs)))
        if not operands:
            made = function(*args, **kwargs)
            return self._unremovable(made.shape, f"it meets what '{name}' gives") if is_tensor(made) else made
        if name in SAME_SHAPE_FUNCTIONS or (name == "getitem" and not is_tensor(args[0])):
            return function(*args, **kwargs)
        if name in ELEMENTWISE:
            return self._elementwise(operands)
        if name in POOLS or (name == "pad" and _is_spatial(operands[0], *args[1:2], **kwargs)):
            return self._pool(operands[0])
        if name in REDUCTIONS:
            return self._reduced(name, args, kwargs)
        if name in MOVES:
            with contextlib.suppress(IndexError, RuntimeError, TypeError):  # such as an index computed from labels
                return self._moved(function, args, kwargs, name)
        return self._unknown(f"'{name}' reads all channels together", args, kwargs)

    def _layer(self, module: Any, x: Labels) -> Labels:
        spec = self.specs[self._name]
        channel_axis = -1 if spec.kind == "Linear" else 1
        columns, key = per_channel(x, channel_axis), id(module.weight)
        rows = self._rows(module, key)
        grouped = spec.groups > 1
        own_state = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
        if own_state:
            self._freeze((x, rows), f"'{self._name}' holds '{min(own_state)}' beside weight and bias")
        if columns is None or (grouped and "Transpose" in spec.kind):
            self._freeze(x, f"'{self._name}' reads them in another layout")
            if grouped:
                self._freeze(rows, "it is a grouped layer whose input stays")
            columns = self._unremovable((_in_channels(module, spec),), "")
        elif grouped:
            self._grouped(columns, rows, module.weight.shape[1])
        if key in self._columns_of:
            self._tie(columns, self._columns_of[key])
        self._columns_of.setdefault(key, columns)
        self.found.rows[self._name], self.found.columns[self._name] = rows.numpy(), columns.numpy()
        return spread(rows, _shape(self._node), channel_axis)

    def _rows(self, module: Any, key: int) -> Tensor:
        """The labels of a layer's filters; layers that share a weight share them."""
        if self._name in self.given:
            return torch.from_numpy(self.given[self._name])
        if key not in self._rows_of:
            shape, transposed = module.weight.shape, "Transpose" in self.specs[self._name].kind
            self._rows_of[key] = self._fresh(shape[1] * module.groups if transposed else shape[0])
        return self._rows_of[key]

    def _grouped(self, columns: Tensor, rows: Tensor, per_group: int) -> None:
        """Tie a grouped layer: depthwise, out to in; else the same offset in every group."""
        groups = columns.numel() // per_group
        by_group = rows.reshape(groups, -1)
        if per_group == 1:
            self._tie(columns[:, None].expand_as(by_group), by_group)
            return
        for x in (columns.reshape(groups, -1), by_group):
            self._tie(x[:1].expand_as(x), x)

    def _vector(self, x: Labels) -> Labels:
        entries = per_channel(x, 1)
        if entries is None:
            self._freeze(x, f"'{self._name}' reads them in another layout")
            return x
        known = self.found.vectors.setdefault(self._name, entries.numpy())
        self._tie(torch.from_numpy(known), entries)
        return x

    def _shortcut(self, module: SubsampleShortcut, x: Labels) -> Labels:
        """Zero channels around those that come in: they can be removed like any other."""
        entries = per_channel(x, 1)
        if entries is None:
            return self._unknown(f"'{self._name}' reads them in another layout", (x,), {})
        if self._name in self.given:
            padded = torch.from_numpy(self.given[self._name])
        else:
            padded = torch.cat([self._fresh(module.before), entries, self._fresh(module.after)])
        self.found.vectors[self._name] = padded.numpy()
        return spread(padded, _shape(self._node), 1)

    def _pool(self, x: Labels) -> Labels:
        channels = per_channel(x, 1)
        if channels is None:
            return self._unknown("a pooling reads them in another layout", (x,), {})
        return spread(channels, _shape(self._node), 1)

    def _reduced(self, name: str, args: Any, kwargs: Any) -> Labels:
        """A mean or sum: followed where the labels are the same all along what is reduced."""
        known = {"dim": "dim", "axis": "dim", "keepdim": "keepdim"}
        options = {known[key]: value for key, value in kwargs.items() if key in known}
        low, high = (reduce(args[0], *args[1:3], **options) for reduce in (torch.amin, torch.amax))
        if torch.equal(low, high):
            return compact(low)
        return self._unknown(f"'{name}' reads all channels together", args, kwargs)

    def _shuffle(self, module: nn.ChannelShuffle, x: Labels) -> Labels:
        channels = per_channel(x, 1)
        if channels is None:
            return self._unknown(f"'{self._name}' reads them in another layout", (x,), {})
        split = channels.reshape(module.groups, -1)
        self._tie(split[:1].expand_as(split), split)
        return spread(split.t().flatten(), _shape(self._node), 1)

    def _moved(self, function: Callable[..., Any], args: Any, kwargs: Any, name: str = "") -> Any:
        """Run an operation that only moves values on the labels themselves."""
        if name == "view":  # labels have other strides than numbers
            function = torch.Tensor.reshape
        moved = function(*args, **kwargs)
        if name in ("view", "reshape", "unflatten") and is_tensor(args[0]):
            self._tie_split(args[0].shape, moved)
        if name == "chunk" and len({part.shape for part in moved}) == 1:
            for part in moved[1:]:
                self._tie(moved[0], part)
        return tuple(compact(x) for x in moved) if isinstance(moved, (tuple, list)) else compact(moved)

    def _tie_split(self, before: torch.Size, x: Labels) -> None:
        """Where an axis was cut into (g, n), the same offsets in all g parts must stay or go together."""
        axis = 0
        while axis < min(len(before), x.dim()) and before[axis] == x.shape[axis]:
            axis += 1
        is_cut = axis + 1 < x.dim() and axis < len(before) and before[axis] == x.shape[axis] * x.shape[axis + 1]
        if is_cut:
            first = x.narrow(axis, 0, 1)
            self._tie(first.expand_as(x), x)

    def _elementwise(self, operands: list[Labels]) -> Labels:
        """Tie the labels that meet; one value for all channels must stay."""
        shape = torch.broadcast_shapes(*(x.shape for x in operands))
        full = [x.expand(shape) for x in operands]
        widest = max(range(len(operands)), key=lambda i: (operands[i].numel(), -i))
        result = full[widest]
        for x, wide in zip(operands, full, strict=True):
            if wide is result:
                continue
            lead = len(shape) - x.dim()
            widened = [d for d in range(len(shape)) if shape[d] > 1 and (d < lead or x.shape[d - lead] == 1)]
            if any(not constant_along(result, axis) for axis in widened):
                self._freeze(x, "it is one factor of several channels")
            else:
                self._tie(result, wide)
        return result

    def _unknown(self, why: str, args: Any, kwargs: Any) -> Any:
        self._freeze((args, kwargs), why)
        metadata = self._node.meta.get("tensor_meta")
        if metadata is None:
            raise TypeError(f"'{self._node.target}' gives no tensor")
        return self._unremovable_like(metadata, why)

    def _unremovable_like(self, metadata: Any, why: str) -> Any:
        """Labels that must stay, in the shapes that :func:`note_shapes` noted for a node."""
        if isinstance(metadata, TensorMetadata):
            return self._unremovable(metadata.shape, why)
        if isinstance(metadata, (tuple, list)):
            return tuple(self._unremovable_like(entry, why) for entry in metadata)
        return metadata

    def _fresh(self, count: int) -> Tensor:
        first = self.found.count
        self.found.count += count
        return torch.arange(first, first + count)

    def _unremovable(self, shape: Any, why: str) -> Labels:
        label = self._fresh(1)
        self.found.frozen[int(label)] = why
        return label.expand(torch.Size(shape)) if len(shape) else label.reshape(())

    def _freeze(self, values: Any, why: str) -> None:
        for x in tensors(values):
            for label in torch.unique(squeezed(x)).tolist():
                self.found.frozen.setdefault(label, why)

    def _tie(self, a: Labels, b: Labels) -> None:
        """Note that the labels at the same places of ``a`` and ``b`` (of one shape) go together."""
        for axis in range(a.dim()):
            if a.shape[axis] > 1 and a.stride(axis) == 0 and b.stride(axis) == 0:
                a, b = a.narrow(axis, 0, 1), b.narrow(axis, 0, 1)
        pairs = torch.stack([a.flatten(), b.flatten()])
        pairs = torch.unique(pairs[:, pairs[0] != pairs[1]], dim=1).numpy()
        if pairs.size:
            self.found.ties.append((pairs[0], pairs[1]))


class _Inner(ChannelInterpreter):
    """The interpreter of a part of the network: what it gives out is read on."""

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Give the labels back."""
        return args[0]


def _is_spatial(x: Labels, pad: Sequence[int], **options: Any) -> bool:
    """Whether a padding stays off the batch and the channels."""
    return len(pad) // 2 <= x.dim() - 2


def _shape(node: fx.Node) -> torch.Size:
    return operator.attrgetter("shape")(node.meta["tensor_meta"])


def _in_channels(module: Any, spec: LayerSpec) -> int:
    return int(module.in_features if spec.kind == "Linear" else module.in_channels)
