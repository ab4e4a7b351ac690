"""Whether the targets give a loss that is a number, before any training: one that is NaN ends a search in its midst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dnas.data.image_sets import ImageSet
from dnas.data.target_images import collated, looked_at
from dnas.training.device import Device
from dnas.training.task import MeanMeter, Task, placed_by
from search_spaces.errors import InputError, out_of_memory

_AT_ONCE = 64
_MOST_TRIED = 4  # images of a set that the network is run on


def check_losses(
    task: Task,
    sets: Mapping[str, ImageSet],
    example: tuple[Tensor, Any],
    outputs_for: Callable[[str, ImageSet], tuple[Any, Any]],
    device: Device,
) -> None:
    """Raise :class:`InputError` for a target of a named set whose loss, or whose metric, is not finite.

    The network is not run on every image for it: one of ``example``, an image (1, C, H, W) with what the task reads of
    the network's outputs for it, stands for all. Where a target gives no number with it, ``outputs_for`` a set of that
    image alone gives outputs and targets to be sure of. Nothing is said of a network that computes its losses itself.
    """
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(example[1])):
        return
    for name, images in sets.items():
        for count, index in enumerate(_suspects(task, looked_at(images), example, device)):
            if count == _MOST_TRIED:
                break
            wrong = _not_finite(task, *outputs_for(name, images.subset(torch.tensor([index]))))
            if wrong:
                raise InputError(
                    f"the {wrong} for image {index + 1} of the {name} images before any training, though the network's "
                    "outputs are finite; correct its target, or the task"
                )


def _suspects(
    task: Task, targets: Tensor | Sequence[Any], example: tuple[Tensor, Any], device: Device
) -> Iterator[int]:
    """The places of the targets that give no number with the outputs for another image."""
    for start in range(0, len(targets), _AT_ONCE):
        several = range(start, min(start + _AT_ONCE, len(targets)))
        if not _are_finite(task, targets, several, example, device):
            yield from (index for index in several if not _are_finite(task, targets, [index], example, device))


def _are_finite(
    task: Task, targets: Tensor | Sequence[Any], places: Sequence[int], example: tuple[Tensor, Any], device: Device
) -> bool:
    """Whether loss and metric are, or cannot be told of these targets with the outputs for another image."""
    some = targets[torch.tensor(places)] if isinstance(targets, Tensor) else collated([targets[at] for at in places])
    image, outputs = tree_map(lambda leaf: leaf[:1].expand(len(places), *leaf.shape[1:]), example)
    try:
        with torch.no_grad():
            return not _not_finite(task, outputs, placed_by(task, (image, some), device)[1])
    except Exception as error:  # the user's own task, which need not take such pairs
        if out_of_memory(error):
            raise
        return True


def _not_finite(task: Task, outputs: Any, targets: Any) -> str:
    """What of a task is no number, in words."""
    loss = task.loss(outputs, targets)
    if not bool(loss.isfinite().all()):
        return f"loss of task {type(task).__name__} is {float(loss):g}"
    if isinstance(task.meter(), MeanMeter) and not bool(task.values(outputs, targets).isfinite().all()):
        return f"{task.metric.name} of task {type(task).__name__} is not finite"
    return ""
