"""What every kind of tensor operation does to channels, as rules on labels; named as in ``torch.ops.aten``.

Operations that move values run as they are on the labels. Elementwise ones tie the labels that meet. What reads along
an axis (a mean, a softmax, a pooling, a matrix product) is followed where the channels do not change along that axis.
A position that the network's own code counts along the channels freezes them. An operation with no rule freezes the
channels that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from search_spaces.channels.label_tensors import (
    Labels,
    compact,
    constant_along,
    one_index,
    spread,
    varying_axes,
)
from search_spaces.channels.operations import Operation
from search_spaces.channels.running import tensors
from search_spaces.channels.trace import ChannelTrace

BY_PRODUCT = "it is a by-product"
FIXED = "the network's own code counts on their number"


class Unknown(Exception):
    """An operation cannot be followed; the text says how it reads the channels."""


Rule = Callable[[ChannelTrace, Operation], list[Labels]]


def follow(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """The labels of all tensors that an operation gave; ties and frozen labels are noted in ``trace``."""
    operands = operation.operands
    if not operands:
        return _unremovable(trace, operation, f"it meets what '{operation.title}' gives")
    reasons = [trace.why_all_stay(x) for x in operands if x.numel()]
    if None not in reasons:
        return _unremovable(trace, operation, str(next(iter(reasons), "")))
    rule = RULES.get(operation.name)
    if rule is None and torch.Tag.pointwise in operation.function.tags:
        rule = _elementwise
    try:
        if rule is None:
            raise Unknown("reads all channels together")
        return rule(trace, operation)
    except (Unknown, RuntimeError) as how:  # labels are laid out otherwise than values: some operations refuse them
        why = f"'{operation.title}' {how if isinstance(how, Unknown) else 'reads them in another layout'}"
        trace.freeze(operands, why)
        return _unremovable(trace, operation, why)


def _unremovable(trace: ChannelTrace, operation: Operation, why: str) -> list[Labels]:
    return [trace.unremovable(shape, why) for shape in operation.shapes]


def meet(trace: ChannelTrace, operands: Iterable[Labels]) -> Labels:
    """Elementwise operands, broadcast: the labels that meet are tied; one value for all channels must stay."""
    operands = list(operands)
    shape = torch.broadcast_shapes(*(x.shape for x in operands))
    full = [x.expand(shape) for x in operands]
    varying = [bool(varying_axes(x)) for x in operands]
    widest = max(range(len(operands)), key=lambda i: (varying[i], operands[i].numel(), -i))
    result = full[widest]
    for x, wide in zip(operands, full, strict=True):
        if wide is result:
            continue
        lead = len(shape) - x.dim()
        widened = [axis for axis in range(len(shape)) if shape[axis] > 1 and (axis < lead or x.shape[axis - lead] == 1)]
        if any(not constant_along(result, axis) for axis in widened):
            trace.freeze(x, "it is one factor of several channels")
        else:
            trace.tie(result, wide)
    return result


def _elementwise(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    return _same(trace, operation, meet(trace, operation.operands))


def _same(trace: ChannelTrace, operation: Operation, labels: Labels) -> list[Labels]:
    """The same labels for every output of their shape."""
    shapes = operation.shapes
    return [labels if shape == labels.shape else trace.unremovable(shape, BY_PRODUCT) for shape in shapes]


def _like(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Values for every element of the first input, whatever the others hold."""
    return _same(trace, operation, operation.x)


def _moved(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Run an operation that only moves values on the labels themselves."""
    with torch.no_grad():
        return [compact(x) for x in tensors(operation.function(*operation.args, **operation.kwargs))]


def _reshaped(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """A new shape; where an axis is cut into several, equal offsets in all parts stay or go together."""
    x, (shape,) = operation.x, operation.shapes
    made = compact(x.reshape(shape))
    axis = 0
    while axis < min(x.dim(), len(shape)) and x.shape[axis] == shape[axis]:
        axis += 1
    for last in range(axis + 1, len(shape)):
        if axis < x.dim() and math.prod(shape[axis : last + 1]) == x.shape[axis]:
            trace.tie(one_index(made, range(axis, last)).expand_as(made), made)
            break
    return [made]


def _counted(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Positions along an axis; they freeze the channels along it unless all of them pass."""
    x, arguments = operation.x, operation.arguments
    axes = arguments.get("dims", arguments.get("dim", arguments.get("dimension", 0)))
    whole = operation.name == "slice" and operation.shapes == [x.shape]
    for axis in axes if isinstance(axes, (tuple, list)) else [axes]:
        if not whole and not constant_along(x, axis):
            trace.freeze(x, FIXED)
    return _moved(trace, operation)


def _split(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Equal parts stay equal when the same offsets go from all; others are counted."""
    if len(set(operation.shapes)) > 1:
        return _counted(trace, operation)
    parts = _moved(trace, operation)
    for part in parts[1:]:
        if not constant_along(operation.x, operation.arguments.get("dim", 0)):
            trace.tie(parts[0], part)
    return parts


def _shuffled(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Equal parts along axis 1 are interleaved: the same offsets go from all."""
    parts = operation.x.unflatten(1, (operation.arguments["groups"], -1))
    trace.tie(parts[:, :1].expand_as(parts), parts)
    return [compact(parts.transpose(1, 2).reshape(operation.x.shape))]


def _glu(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """The first half times a gate computed from the second."""
    halves = operation.x.chunk(2, operation.arguments.get("dim", -1))
    return [meet(trace, halves)]


def _concatenated(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Side by side along an axis: channels along the other axes must stay aligned."""
    axis = operation.arguments.get("dim", 0)
    flat = [x for x in operation.operands if constant_along(x, axis)]
    profiles = [one_index(x, [axis]) for x in flat]
    if any(varying_axes(profile) for profile in profiles):
        meet(trace, profiles)
    return _moved(trace, operation)


def _stacked(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    meet(trace, operation.operands)
    return _moved(trace, operation)


def _padded(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Constants around an axis: more of the same where the channels do not change along it, else they stay."""
    x, pad = operation.x, operation.arguments["pad"]
    for back in range(len(pad) // 2):
        axis, (before, after) = x.dim() - 1 - back, pad[2 * back : 2 * back + 2]
        if constant_along(x, axis):
            size = [*x.shape]
            size[axis] += before + after
            x = one_index(x, [axis]).expand(size)
        elif before < 0 or after < 0:
            raise Unknown("cuts them at a fixed position")
        else:
            sides = [torch.Size([*x.shape[:axis], width, *x.shape[axis + 1 :]]) for width in (before, after)]
            first, last = (trace.unremovable(side, "it is padding") for side in sides)
            x = torch.cat([first, x, last], axis)
    return [compact(x)]


def _along(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """A reduction, a softmax or a sort: followed where the channels do not change along its axes."""
    x, arguments = operation.x, operation.arguments
    axes = arguments.get("dim", arguments.get("axis"))
    axes = range(x.dim()) if axes is None or axes == [] else axes if isinstance(axes, (tuple, list)) else [axes]
    axes = [axis % x.dim() for axis in axes] if x.dim() else []
    if any(not constant_along(x, axis) for axis in axes):
        raise Unknown("reads all channels together")
    left = one_index(x, axes)
    return [_as_reduced(left, axes, shape) for shape in operation.shapes]


def _as_reduced(left: Labels, axes: list[int], shape: torch.Size) -> Labels:
    if len(shape) < left.dim():
        left = left.reshape([size for axis, size in enumerate(left.shape) if axis not in axes])
    return left.expand(shape)


def _spatial(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """A pooling, a resizing or a padding at the borders: the last axes change, by a window over each."""
    x = operation.x
    axes = range(x.dim() - int(next(letter for letter in operation.name if letter.isdigit())), x.dim())
    if any(not constant_along(x, axis) for axis in axes):
        raise Unknown("reads them in another layout")
    return [one_index(x, axes).expand(shape) for shape in operation.shapes]


def _layer_norm(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    x, shape = operation.x, operation.arguments["normalized_shape"]
    if any(not constant_along(x, axis) for axis in range(x.dim() - len(shape), x.dim())):
        raise Unknown("reads all channels together")
    return _same(trace, operation, meet(trace, operation.operands))


def _batch_norm(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """One entry of each vector per channel, on axis 1."""
    x, *vectors = operation.operands
    channels = trace.tie_along(x, 1)
    for vector in vectors:
        trace.tie(vector, channels)
    return _same(trace, operation, spread(channels, x.shape, 1))


def _group_norm(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """Channels that are normalized together go together; how many these are must not change."""
    x, *vectors = operation.operands
    channels = trace.tie_along(x, 1)
    for vector in vectors:
        trace.tie(vector, channels)
    tie_within(trace, channels, operation.arguments["group"])
    return _same(trace, operation, spread(channels, x.shape, 1))


def tie_within(trace: ChannelTrace, channels: Labels, groups: int) -> None:
    """Tie all channels of each of so many groups."""
    by_group = channels.reshape(groups, -1)
    trace.tie(by_group[:, :1].expand_as(by_group), by_group)


def _product(trace: ChannelTrace, operation: Operation) -> list[Labels]:
    """A matrix product: the rows of one factor or the columns of the other pass where nothing else changes."""
    *added, a, b = operation.operands
    (shape,) = operation.shapes
    rows, columns = constant_along(a, -1), constant_along(b, -2)
    if added or not (rows and columns):
        raise Unknown("reads all channels together")
    if not varying_axes(b):
        trace.freeze(b, "it is one factor of several channels")
        return [a.narrow(-1, 0, 1).expand(shape)]
    if not varying_axes(a):
        trace.freeze(a, "it is one factor of several channels")
        return [b.narrow(-2, 0, 1).expand(shape)]
    raise Unknown("reads all channels together")


def _each(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_each(_elementwise, "copy fill zero masked_fill _to_copy alias detach lift_fresh hardswish log_sigmoid_forward"),
    **_each(_elementwise, "_prelu_kernel rrelu_with_noise native_dropout where clone bernoulli uniform normal lerp"),
    **_each(_like, "zeros_like ones_like empty_like full_like rand_like randn_like"),
    **_each(_moved, "expand permute transpose t unsqueeze squeeze flip repeat pixel_shuffle pixel_unshuffle"),
    **_each(_reshaped, "view"),
    **_each(_counted, "slice select unbind unfold roll"),
    **_each(_split, "split split_with_sizes"),
    **_each(_glu, "glu"),
    **_each(_shuffled, "channel_shuffle native_channel_shuffle"),
    **_each(_concatenated, "cat"),
    **_each(_stacked, "stack"),
    **_each(_padded, "constant_pad_nd"),
    **_each(_along, "mean sum prod amax amin max min argmax argmin any all var std var_mean std_mean median logsumexp"),
    **_each(_along, "linalg_vector_norm norm count_nonzero nansum _softmax _log_softmax _safe_softmax cumsum cumprod"),
    **_each(_along, "logcumsumexp cummax cummin sort topk kthvalue"),
    **_each(_spatial, "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d"),
    **_each(_spatial, "adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d"),
    **_each(_spatial, "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d"),
    **_each(_spatial, "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"),
    **_each(_spatial, "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d"),
    **_each(_spatial, "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"),
    **_each(_layer_norm, "native_layer_norm"),
    **_each(_batch_norm, "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit"),
    **_each(_batch_norm, "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update"),
    **_each(_group_norm, "native_group_norm"),
    **_each(_product, "mm bmm addmm baddbmm"),
}
