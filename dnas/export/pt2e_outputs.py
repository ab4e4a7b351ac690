"""What integer layers and sums give, in 8 bits in a program of torch.export, so that XNNPACK takes whole nets.

ExecuTorch's XNNPACK runs a convolution in integers where one quantizer alone reads what it gives, behind a ReLU or
limits, and an addition where both sides come from a dequantizer. These ranges are no part of the trained net: they are
the least and the greatest value on given images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx

from search_spaces.errors import InputError
from search_spaces.network.examples import Call

_ATEN = torch.ops.aten
_OPERATORS = torch.ops.quantized_decomposed
_CONVOLUTIONS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default)
_LAYERS = (*_CONVOLUTIONS, _ATEN.linear.default)
_LIMITS = (_ATEN.relu.default, _ATEN.hardtanh.default)
_IN_PLACE = {
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.hardtanh_.default: _ATEN.hardtanh.default,
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
}
_LEAST, _MOST = -128, 127
_SMALLEST = 1e-6


def join_limits(module: fx.GraphModule) -> None:
    """Remove, in place, each ReLU that only what limits its values from 0 on reads: backends fuse one of the two."""
    _out_of_place(module)
    for node in list(module.graph.nodes):
        before = node.args[0] if node.target is _ATEN.hardtanh.default else None
        if isinstance(before, fx.Node) and before.target is _ATEN.relu.default:
            if len(before.users) == 1 and node.args[1] >= 0:
                node.replace_input_with(before, before.args[0])
                module.graph.erase_node(before)
    module.recompile()


def quantize_outputs(module: fx.GraphModule, call: Call) -> int:
    """Quantize, in place, what integer layers and sums give, by its range on ``call``; returns how many tensors.

    Left out is what one quantizer alone reads anyway, and a sum or a linear layer whose value the network returns.
    """
    _out_of_place(module)
    ends = list(dict.fromkeys(_last(node) for node in module.graph.nodes if _is_layer(node) or _is_sum(node)))
    ends = [node for node in ends if not _is_read_by_one_quantizer(node) and not _stays(node)]
    for node, (least, most) in zip(ends, _ranges(module, ends, call), strict=True):
        step = max(most - least, _SMALLEST) / (_MOST - _LEAST)
        _quantize_behind(module, node, step, round(_LEAST - least / step))
    module.recompile()
    return len(ends)


def _out_of_place(module: fx.GraphModule) -> None:
    """Give operators that overwrite their first argument a result of their own, which those behind them read."""
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
            given = cast(fx.Node, node.args[0])
            for reader in list(given.users):
                if order[reader] > order[node]:
                    reader.replace_input_with(given, node)


def _is_layer(node: fx.Node) -> bool:
    weight = node.args[1] if node.target in _LAYERS else None
    return isinstance(weight, fx.Node) and weight.target is _OPERATORS.dequantize_per_channel.default


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors that were computed."""
    sides = node.args[:2] if node.target is _ATEN.add.Tensor else ()
    return len(sides) == 2 and all(isinstance(side, fx.Node) and side.op == "call_function" for side in sides)


def _last(node: fx.Node) -> fx.Node:
    """The limit that alone reads a node, or else the node."""
    reader = next(iter(node.users), None)
    return _last(reader) if len(node.users) == 1 and reader is not None and reader.target in _LIMITS else node


def _is_read_by_one_quantizer(node: fx.Node) -> bool:
    return [user.target for user in node.users] == [_OPERATORS.quantize_per_tensor.default]


def _stays(node: fx.Node) -> bool:
    first = node
    while first.target in _LIMITS:
        first = cast(fx.Node, first.args[0])
    return first.target not in _CONVOLUTIONS and any(user.op == "output" for user in node.users)


def _ranges(module: fx.GraphModule, nodes: Sequence[fx.Node], call: Call) -> list[tuple[float, float]]:
    """The least and the greatest value of each node, zero among them; :class:`InputError` where one is not finite."""
    found: dict[str, tuple[float, float]] = {}

    def see(value: Tensor, name: str) -> None:
        found[name] = (min(0.0, float(value.min())), max(0.0, float(value.max())))

    seeing = []
    for node in nodes:
        with module.graph.inserting_after(node):
            seeing.append(module.graph.call_function(see, (node, node.name)))
    module.recompile()
    with torch.no_grad():
        call.run(module)
    for node in seeing:
        module.graph.erase_node(node)
    if not torch.tensor(list(found.values())).isfinite().all():
        raise InputError("what a layer gives is not finite on the images, so it has no range of 8 bits")
    return [found[node.name] for node in nodes]


def _quantize_behind(module: fx.GraphModule, node: fx.Node, step: float, zero: int) -> None:
    """Quantize what a node gives; each reader has a dequantizer of its own, or XNNPACK's parts depend in circles."""
    readers, told = list(node.users), (step, zero, _LEAST, _MOST, torch.int8)
    with module.graph.inserting_after(node):
        codes = module.graph.call_function(_OPERATORS.quantize_per_tensor.default, (node, *told))
    for reader in readers:
        with module.graph.inserting_before(reader):
            again = module.graph.call_function(_OPERATORS.dequantize_per_tensor.default, (codes, *told))
        reader.replace_input_with(node, again)
