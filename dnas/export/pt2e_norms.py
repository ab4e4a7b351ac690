"""BatchNorm folded into the integers of a program of torch.export: into the scales of a weight, and a bias."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default, _ATEN.linear.default)
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default


def fold_norms(module: fx.GraphModule) -> None:
    """Fold, in place, every BatchNorm that alone reads a layer with integer weights that nothing else reads.

    It stays where it turns a filter around whose codes have no opposite, as scales are positive.
    """
    _forget_idle(module)
    for norm in list(module.graph.nodes):
        if norm.target is _ATEN.batch_norm.default and not norm.args[5]:
            _fold(module, norm)
    module.graph.eliminate_dead_code()
    _forget_unread(module)
    module.recompile()


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    layer = cast(fx.Node, norm.args[0])
    weight = layer.args[1] if layer.target in _LAYERS else None
    if not isinstance(weight, fx.Node) or weight.target is not _DEQUANTIZE or weight.args[3] != 0:
        return
    codes, scales = (_tensor(module, weight.args[at]) for at in (0, 1))
    factor, shift = _scale_and_shift(module, norm)
    signs = torch.sign(factor).reshape(-1, *[1] * (codes.ndim - 1)).to(codes.dtype)
    no_opposite = bool(((codes == torch.iinfo(codes.dtype).min) & (signs < 0)).any())
    if no_opposite or len(layer.users) > 1 or len(weight.users) > 1:
        return
    bias = layer.args[2] if len(layer.args) > 2 else None
    before = torch.zeros_like(shift) if bias is None else _tensor(module, bias)
    positive = torch.where(factor == 0, 1.0, factor.abs())
    new = {"codes": codes * signs, "scales": scales * positive, "bias": shift + factor * before}
    nodes = {key: _stored(module, weight, f"{layer.name}_{key}", value) for key, value in new.items()}
    low, high = cast(int, weight.args[4]), cast(int, weight.args[5])
    least, most = torch.iinfo(codes.dtype).min, torch.iinfo(codes.dtype).max
    ends = (max(least, min(low, -high)), min(most, max(high, -low)))
    weight.args = (nodes["codes"], nodes["scales"], *weight.args[2:4], *ends, *weight.args[6:])
    layer.args = (*layer.args[:2], nodes["bias"], *layer.args[3:])
    norm.replace_all_uses_with(layer)


def _forget_idle(module: fx.GraphModule) -> None:
    """Remove what only asserts, and changes of type to the same type."""
    for node in list(module.graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target is _ATEN.to.dtype and _type_of(node) == _type_of(node.args[0]):
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()


def _type_of(node: Any) -> Any:
    found = node.meta.get("val")
    return None if found is None else found.dtype


def _forget_unread(module: fx.GraphModule) -> None:
    """Remove the parameters and buffers that no node reads."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, _ in named:
        if name not in read:
            parent, _, key = name.rpartition(".")
            delattr(module.get_submodule(parent), key)


def _scale_and_shift(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """What PyTorch's own BatchNorm makes of 1 without mean and bias, and of 0."""
    weight, bias, mean, var = (None if arg is None else _tensor(module, arg) for arg in norm.args[1:5])
    assert mean is not None
    epsilon = cast(float, norm.args[7])
    one = torch.ones(1, len(mean))
    scale = F.batch_norm(one, torch.zeros_like(mean), var, weight, None, eps=epsilon)
    return scale[0], F.batch_norm(0 * one, mean, var, weight, bias, eps=epsilon)[0]


def _tensor(module: fx.GraphModule, node: Any) -> Tensor:
    """The tensor that a node reads from the module."""
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return cast(Tensor, found).detach()


def _stored(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    module.register_buffer(name, value.clone())
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)
