"""Whether splits can be used: the sets of images may be the user's own, with code of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnas.data.augmentation import Augmentation
from dnas.data.described import described
from dnas.data.image_sets import DataSplits, ImageSet, has_classes
from dnas.data.target_images import Targets
from search_spaces.errors import InputError, one_line


def named_splits(data: DataSplits) -> dict[str, ImageSet]:
    """The three splits by the names that sentences give them."""
    return {"training": data.train, "validation": data.val, "test": data.test}


def check_splits(data: DataSplits) -> None:
    """Raise :class:`InputError` where a split is empty, its labels are none, or no batch can be had of it."""
    for name, split in named_splits(data).items():
        try:
            labels, count = split.labels, len(split)
        except Exception as error:  # the user's own set of images
            raise InputError(f"data: the {name} split cannot be read: {one_line(error)}") from error
        if not isinstance(labels, Targets) and not _has_rows(labels):
            raise InputError(f"data: labels of the {name} images must be a tensor (N, ...); got {described(labels)}")
        if not count or len(labels) != count:
            raise InputError(f"data: the {name} split has {count} images and {len(labels)} labels; give one for each")
        first_images(name, split, 1)


def _has_rows(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim >= 1 and not labels.is_complex()


def check_classes(sets: Mapping[str, ImageSet], logits: Tensor) -> None:
    """Raise :class:`InputError` unless these are logits (N, classes) and every label is the number of one of them."""
    if logits.ndim != 2:
        raise InputError(
            f"the network returns {described(logits)}; wrap it so that it returns one tensor of logits (N, classes), "
            f"here ({len(logits)}, classes)"
        )
    outputs = logits.shape[1]
    for name, images in sets.items():
        labels = images.labels
        if not has_classes(labels):
            raise InputError(f"data: labels of the {name} images must be integers (N,); got {described(labels)}")
        if labels.dtype == torch.bool or int(labels.min()) < 0:
            raise InputError(
                f"data: labels of the {name} images must be classes from 0 on; the least is {labels.min()}"
            )
        most = int(labels.max())
        if most >= outputs:
            raise InputError(
                f"data: label {most} of the {name} images has no output: the network has {outputs} (0 to "
                f"{outputs - 1}); give it more (such as model.arguments = {{num_classes = {most + 1}}}), or count "
                "labels from 0"
            )


def first_images(
    name: str,
    images: ImageSet,
    count: int,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Any]:
    """The first images (N, C, H, W) of a set with their labels (N,) or targets, as training takes them."""
    try:
        first = images.subset(torch.arange(min(count, len(images))))
        x, y = next(iter(first.batches(count, seed=0, augmentation=augmentation, device=device)))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"data: the {name} images cannot be read: {one_line(error)}") from error
    fits = isinstance(y, Tensor) or isinstance(images.labels, Targets)
    if not isinstance(x, Tensor) or not fits or tuple(x.shape[1:]) != tuple(images.input_shape):
        raise InputError(
            f"data: a batch of the {name} images must be images (N, {', '.join(map(str, images.input_shape))}) and "
            f"labels (N,); got {described(x)} and {described(y)}"
        )
    return x, y
