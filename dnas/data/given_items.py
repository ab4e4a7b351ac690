"""One item of what people have at hand, an image or a batch and its targets, as tensors; errors name what was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dnas.data.described import described
from dnas.data.image_sets import (
    as_targets,
    has_classes,
)
from dnas.data.target_images import are_structures
from search_spaces.errors import InputError, one_line

PAIRS = (
    "give pairs of images (N, C, H, W) and labels (N,) or targets (N, ...), as a DataLoader, a dataset of torch or a "
    "list of batches"
)


def item_at(dataset: Any, index: int, name: str) -> Any:
    """The item at ``index`` of a map-style dataset, whose code is the user's."""
    try:
        return dataset[index]
    except Exception as error:  # the user's own code
        raise InputError(f"{name}: item {index} of the dataset cannot be read: {one_line(error)}") from error


def pair_of(item: Any, name: str) -> tuple[Tensor, Tensor]:
    """An image or a batch of them as floats, and its labels."""
    image = image_of(item, name)
    try:
        return as_floats(image), torch.as_tensor(item[1])
    except Exception as error:
        raise InputError(f"{name}: {described(item[1])} is no tensor; {PAIRS}") from error


def image_of(item: Any, name: str) -> Tensor:
    """The image or images of a pair."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{name}: {PAIRS}; got {described(item)}")
    try:
        return torch.as_tensor(item[0])
    except Exception as error:
        hint = "; add ToTensor to its transforms" if hasattr(item[0], "convert") else f"; {PAIRS}"
        raise InputError(f"{name}: {described(item[0])} is no tensor{hint}") from error


def check_finite_images(images: Tensor, name: str, first: int = 0) -> None:
    """Refuse images (N, C, H, W) with values that are not finite; ``first`` is the index of the first of them."""
    if images.is_floating_point() and not images.isfinite().all():
        bad = first + int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"{name}: image {bad} (from 0 on) holds values that are not finite; remove it, or check how images are "
            "normalised"
        )


def as_floats(images: Tensor) -> Tensor:
    """Images as floats; uint8 ones are scaled to [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def known_labels(dataset: Any) -> Tensor | None:
    """The labels as torchvision's datasets keep them, where no transform changes them."""
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = labels.ndim == 1 and len(labels) == len(dataset) and not labels.is_floating_point()
    return labels.long() if whole else None


def joined_targets(parts: Sequence[Tensor], name: str) -> Tensor:
    """Classes (N,), of which integers (N, 1) are too, or a task's targets (N, ...)."""
    try:
        labels = torch.cat(list(parts))
    except RuntimeError as error:  # numbers beside tensors, or other shapes
        raise InputError(f"{name}: labels of one shape are needed: {one_line(error)}") from error
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point() else labels
    unknown = labels.is_complex() or labels.dtype == torch.bool or not bool(labels.isfinite().all())
    if unknown or (has_classes(labels) and int(labels.min()) < 0):
        raise InputError(
            f"{name}: labels must be integers from 0 on, or finite numbers that a task learns, got {described(labels)}"
        )
    return as_targets(labels)


def got(value: Tensor) -> str:
    """What was given instead, for the end of a sentence."""
    return f"got {described(value)}"


def structures_of(item: Any, name: str) -> tuple[Tensor, list[Any]] | None:
    """A batch of images (N, C, H, W), or a single one, with a dict for each; None where targets are tensors."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    given, targets = item
    if isinstance(targets, Mapping):
        return as_floats(image_of(item, name))[None], [as_tensors(targets)]
    if not are_structures(targets):
        return None
    images = torch.stack(list(given)) if isinstance(given, tuple | list) else image_of(item, name)
    return as_floats(images), list(as_tensors(targets))


def as_tensors(target: Any) -> Any:
    """The target with tensors for arrays of numpy."""
    return tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, target)
