"""Follow every channel through a network: it really runs, and labels go along with its tensors.

Each output channel of a layer gets a label of its own, and so does each entry of a parameter that holds one per
channel, such as those of a BatchNorm or a layer scale. :mod:`search_spaces.channels.rules` says what every operation
does to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from search_spaces.channels.label_tensors import Labels, spread
from search_spaces.channels.operations import Operation
from search_spaces.channels.rules import follow, tie_within
from search_spaces.channels.running import NetworkCall, WatchedRun, tensors
from search_spaces.channels.trace import ChannelTrace, Step
from search_spaces.layers import LayerSpec
from search_spaces.models.attention import UnfoldedAttention
from search_spaces.models.multiplied import is_standard
from search_spaces.models.zoo import SubsampleShortcut

_VECTOR_MODULES = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU)
_WHOLE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)  # they may hold no tensor at all
_WHOLE_MODULES = (SubsampleShortcut, UnfoldedAttention)


class ChannelRun(WatchedRun):
    """One run of a network, in which ``trace`` grows.

    ``given`` holds labels that are known already, by the name of the layer, module or parameter: so a pruned network
    is followed with the labels that its channels had before. New labels are counted from ``first``.
    """

    def __init__(
        self,
        network: nn.Module,
        specs: Mapping[str, LayerSpec],
        given: Mapping[str, np.ndarray] | None = None,
        first: int = 0,
    ) -> None:
        modules = dict(network.named_modules())
        known = {n for n, m in modules.items() if isinstance(m, _WHOLE_MODULES) or _is_plain_norm(m)}
        own = {n for n, spec in specs.items() if spec.weight_from == "parameter" and not is_standard(modules[n])}
        super().__init__(network, {*specs, *known}, opened=own)
        self._weights = {id(modules[n].weight): n for n in own}
        self.specs, self.given, self.trace = specs, given or {}, ChannelTrace(first)
        self._labels: dict[int, tuple[Labels, int]] = {}  # and how many ties had been made
        self._rows_of: dict[int, Labels] = {}
        self._columns_of: dict[int, Labels] = {}
        self._names = _names_of_parameters(network)
        self._read: set[str] = set()

    def follow(self, call: NetworkCall) -> ChannelTrace:
        """Run over the whole network and note where every channel goes."""
        for tensor in call.tensors:
            self._note(tensor, [self.trace.unremovable(tensor.shape, "it is the network's input")])
        output = self.run(call)
        for name in self._read & self.trace.rows.keys():
            labels = map(torch.from_numpy, (self.trace.rows[name], self.trace.columns[name]))
            self.trace.freeze(tuple(labels), f"the code of '{name}' reads its weight beside multiplying with it")
        self.trace.freeze([self._of(tensor) for tensor in tensors(output)], "it is the network's output")
        return self.trace

    def operation(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Follow the channels through one tensor operation."""
        operation = Operation(function, self._alias(args), self._alias(kwargs), output)
        made = [self.trace.current(x) for x in follow(self.trace, operation)]
        self.trace.steps.append(Step(operation.name, operation.numbers(), tuple(operation.operands), tuple(made)))
        self._note(output, made)

    def call(self, name: str, module: nn.Module, inputs: list[Any], output: Any) -> None:
        """Follow the channels through a layer, or another module that is known as a whole."""
        read = [self._of(tensor) for tensor in tensors(inputs)]
        if name in self.specs:
            made = [self._layer(name, module, read[0], output)]
        elif isinstance(module, SubsampleShortcut):
            made = [self._shortcut(name, module, read[0], output.shape)]
        elif _is_plain_norm(module):
            made = [self._norm(name, module, read[0])]
        else:
            made = self._kept_whole(name, module, read, output)
        together = read[0].shape[1] / module.num_groups if isinstance(module, nn.GroupNorm) else 0
        self.trace.steps.append(Step(name, (str(together),), tuple(read), tuple(made)))
        self._note(output, made)

    def _note(self, output: Any, made: list[Labels]) -> None:
        for tensor, labels in zip(tensors(output), made, strict=True):
            self._labels[id(tensor)] = labels, self.trace.ties

    def _alias(self, value: Any) -> Any:
        """Labels in the place of tensors; in views of their own, which an in-place change of shape may change."""
        if isinstance(value, Tensor):
            return self._of(value).detach()
        if isinstance(value, (tuple, list)):
            return tuple(self._alias(entry) for entry in value)
        return {key: self._alias(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    def _of(self, tensor: Tensor) -> Labels:
        labels, ties = self._labels.get(id(tensor)) or (self._of_new(tensor), -1)
        if ties != self.trace.ties:
            labels = self.trace.current(labels)
        self._labels[id(tensor)] = labels, self.trace.ties
        return labels

    def _of_new(self, tensor: Tensor) -> Labels:
        """Labels of a parameter or buffer with one entry per channel, or one that must stay for another tensor."""
        if id(tensor) in self._weights:
            self._read.add(self._weights[id(tensor)])
        name, key = self._names.get(id(tensor), ("", ""))
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        known = self.given.get(key)
        if not key or (known is None and len(axes) != 1):
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "constant"
            return self.trace.unremovable(
                tensor.shape, f"it meets the {kind} '{name}'" if name else "it meets a constant"
            )
        if known is not None and known.size == 1:
            axes = [0]
        if key not in self.trace.vectors:
            labels = self.trace.fresh(tensor.numel()) if known is None else torch.from_numpy(known)
            self.trace.vectors[key] = labels.numpy()
        return spread(torch.from_numpy(self.trace.vectors[key]), tensor.shape, axes[0])

    def _layer(self, name: str, module: Any, x: Labels, output: Tensor) -> Labels:
        spec, trace, key = self.specs[name], self.trace, id(module._parameters.get("weight", module))
        axis = -1 if spec.kind == "Linear" else 1 - len(spec.weight_shape)
        columns, rows = trace.tie_along(x, axis), self._rows(name, module, key)
        if spec.weight_from != "parameter":
            trace.freeze((x, rows), f"the weight of '{name}' is made of others, which its filters have in common")
        sides = spec.input_shape[axis:][:1], spec.output_shape[axis:][:1]
        if name in self.opened and not self.given and sides != ((len(columns),), (len(rows),)):
            trace.freeze((x, rows), f"the code of '{name}' multiplies other numbers of channels than it takes or gives")
        own_state = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
        if own_state:
            trace.freeze((x, rows), f"'{name}' holds '{min(own_state)}' beside weight and bias")
        if spec.groups > 1 and "Transpose" in spec.kind:
            trace.freeze((x, rows), f"the grouped layer '{name}' is transposed")
        elif spec.groups > 1:
            _tie_grouped(trace, columns, rows, module.groups, depthwise=spec.weight_shape[1] == 1)
        trace.tie(columns, self._columns_of.setdefault(key, columns))
        trace.rows[name], trace.columns[name] = rows.numpy(), columns.numpy()
        return spread(rows, output.shape, axis)

    def _rows(self, name: str, module: Any, key: int) -> Labels:
        """The labels of a layer's filters; layers that share a weight share them."""
        if name in self.given:
            return torch.from_numpy(self.given[name])
        if key not in self._rows_of:
            shape, transposed = self.specs[name].weight_shape, "Transpose" in self.specs[name].kind
            self._rows_of[key] = self.trace.fresh(shape[1] * module.groups if transposed else shape[0])
        return self._rows_of[key]

    def _shortcut(self, name: str, module: SubsampleShortcut, x: Labels, shape: torch.Size) -> Labels:
        """Zero channels around those that come in: they can be removed like any other."""
        if name in self.given:
            padded = torch.from_numpy(self.given[name])
        else:
            sides = self.trace.fresh(module.before), self.trace.fresh(module.after)
            padded = torch.cat([sides[0], self.trace.tie_along(x, 1), sides[1]])
        self.trace.vectors[name] = padded.numpy()
        return spread(padded, shape, 1)

    def _norm(self, name: str, module: nn.Module, x: Labels) -> Labels:
        channels = self.trace.tie_along(x, 1)
        known = self.given.get(name, channels.numpy())
        self.trace.tie(torch.from_numpy(self.trace.vectors.setdefault(name, known)), channels)
        if isinstance(module, nn.GroupNorm):
            tie_within(self.trace, channels, module.num_groups)
        return spread(channels, x.shape, 1)

    def _kept_whole(self, name: str, module: nn.Module, read: list[Labels], output: Any) -> list[Labels]:
        why = f"the attention '{name}' keeps its heads whole"
        self.trace.freeze(read, why)
        for layer in [layer for layer in self.specs if layer.startswith(f"{name}.")]:
            rows = module.get_submodule(layer.removeprefix(f"{name}.")).get_parameter("weight").shape[:1]
            self.trace.rows[layer] = self.trace.unremovable(rows, why).numpy()
        return [self.trace.unremovable(tensor.shape, why) for tensor in tensors(output)]


def _is_plain_norm(module: nn.Module) -> bool:
    return type(module) in _WHOLE_NORMS and "forward" not in vars(module)


def _tie_grouped(trace: ChannelTrace, columns: Labels, rows: Labels, groups: int, depthwise: bool) -> None:
    """Tie a grouped layer: depthwise, out to in; else the same offset in every group."""
    by_group = rows.reshape(groups, -1)
    if depthwise:
        trace.tie(columns[:, None].expand_as(by_group), by_group)
        return
    for x in (columns.reshape(groups, -1), by_group):
        trace.tie(x[:1].expand_as(x), x)


def _names_of_parameters(network: nn.Module) -> dict[int, tuple[str, str]]:
    """Tensor of the network → its name, and the key of its entries ("" where they are not to be followed).

    The vectors of a normalization go by the name of the module. What two modules hold is nobody's alone.
    """
    found: dict[int, tuple[str, str]] = {}
    uses: Counter[int] = Counter()
    for name, module in network.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                path = f"{name}.{key}" if name else key
                uses[id(tensor)] += 1
                by_module = isinstance(module, _VECTOR_MODULES)
                found.setdefault(id(tensor), (path, name if by_module else path))
    return {one: (name, key if uses[one] == 1 or key != name else "") for one, (name, key) in found.items()}
