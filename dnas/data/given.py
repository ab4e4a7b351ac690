"""Images as people have them at hand: a DataLoader, a dataset of torch, pairs of tensors, as a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from dnas.data.dataset_images import DatasetImages, DatasetItems
from dnas.data.described import described
from dnas.data.given_items import (
    PAIRS,
    check_finite_images,
    got,
    item_at,
    joined_targets,
    pair_of,
    structures_of,
)
from dnas.data.image_sets import (
    DataSplits,
    ImageSet,
    has_classes,
    stratified_indices,
)
from dnas.data.loaders import Loaders
from dnas.data.target_images import TargetImages, are_structures, held_images
from search_spaces.errors import InputError, one_line

GivenImages = ImageSet | Dataset[Any] | Iterable[Any]
"""Whatever :func:`image_set` takes."""
GivenSplits = DataSplits | Mapping[str, GivenImages] | Sequence[GivenImages] | GivenImages
"""Whatever :func:`data_splits` takes."""
_HELD_OUT = 0.1


def image_set(data: GivenImages, name: str = "the images") -> ImageSet:
    """Return what was given as a set of images with classes (N,), or with the targets (N, ...) of a task.

    A map-style dataset, and a DataLoader over all of one, is read anew in every epoch, so that its random transforms
    stay random; order and batches are ours. Anything else that yields (images, labels), in batches or one by one, is
    read once into memory. Images are taken as they are, normalised already; uint8 ones are scaled to [0, 1]. Raises
    :class:`InputError` for anything else.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, DataLoader) and _covers_its_dataset(data):
        return _of_dataset(data.dataset, name, data.num_workers)
    if _is_map_style(data):
        return _of_dataset(data, name)
    if _is_pair(data):
        return _in_memory([data], name)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | Tensor | np.ndarray):
        return _in_memory(data, name)
    raise InputError(f"{name} cannot be read from {described(data)}; {PAIRS}")


def data_splits(data: GivenSplits) -> DataSplits:
    """Return what was given as splits: (training, validation) or (training, validation, test), or training alone.

    Of training images alone a stratified tenth is held out for validation. Without a test split the validation split
    stands in for it.
    """
    if isinstance(data, DataSplits):
        return data
    if isinstance(data, Mapping):
        parts: list[Any] = [data.get(key) for key in ("train", "val", "test")]
    elif _is_pair(data) or (isinstance(data, list) and data and _is_pair(data[0])):
        parts = [data]
    elif isinstance(data, tuple | list) and len(data) in (2, 3):
        parts = list(data)
    else:
        parts = [data]
    train = image_set(parts[0], "the training images")
    if len(parts) < 2 or parts[1] is None:
        train, val = _held_out(train)
    else:
        val = image_set(parts[1], "the validation images")
    test = image_set(parts[2], "the test images") if len(parts) == 3 and parts[2] is not None else val
    splits = (train, val, test)
    labels = [split.labels for split in splits]
    classes = 1 + max(int(each.max()) for each in labels if has_classes(each)) if has_classes(train.labels) else 0
    return DataSplits(train, val, test, classes, train.input_shape)


def _held_out(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    count = max(1, round(_HELD_OUT * len(images)))
    if len(images) < 2 * count:
        raise InputError(f"the training images are too few to hold {count} of {len(images)} out; give more")
    chosen = stratified_indices(images.labels, count, seed=0)
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[chosen] = False
    return images.subset(kept.nonzero().flatten()), images.subset(chosen)


def _of_dataset(dataset: Any, name: str, workers: int = 0) -> ImageSet:
    """All items of a map-style dataset; those whose targets have a place in the image are read with it."""
    if not len(dataset):
        raise InputError(f"{name}: the dataset is empty")
    item = item_at(dataset, 0, name)
    if isinstance(item, tuple | list) and len(item) == 2 and _has_place(*item):
        return TargetImages.of(DatasetItems(dataset, name), loaders=Loaders(workers))
    return DatasetImages.of(dataset, name, workers)


def _has_place(image: Any, target: Any) -> bool:
    """Whether a target is a structure, or a map of the image (C, H, W)."""
    if isinstance(target, Mapping):
        return True
    arrays = isinstance(target, Tensor | np.ndarray) and isinstance(image, Tensor | np.ndarray)
    return arrays and target.ndim >= 2 and tuple(target.shape[-2:]) == tuple(image.shape[-2:])


def _in_memory(pairs: Iterable[Any], name: str) -> ImageSet:
    """Read all pairs, batches or single images, into memory."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    structures: list[Any] = []
    try:
        for item in pairs:
            if found := structures_of(item, name):
                images.append(found[0])
                structures += found[1]
                continue
            x, y = pair_of(item, name)
            images.append(x if x.ndim == 4 else x[None])
            labels.append(y if x.ndim == 4 else y[None])
        if not images:
            raise InputError(f"{name}: there are none; {PAIRS}")
        whole = torch.cat(images)
        if not len(whole):
            raise InputError(f"{name}: there are none; {PAIRS}")
    except InputError:
        raise
    except Exception as error:  # the user's own code, or images of different shapes
        raise InputError(f"{name} cannot be read: {one_line(error)}; {PAIRS}") from error
    targets: Any = structures or joined_targets(labels, name)
    if whole.ndim != 4 or len(targets) != len(whole):
        raise InputError(f"{name}: {PAIRS}; {got(whole)} and {described(targets)}")
    check_finite_images(whole, name)
    return held_images(whole, targets, (0.0,) * whole.shape[1], (1.0,) * whole.shape[1])


def _is_map_style(data: Any) -> bool:
    """Whether items are had by their index, as torch's map-style datasets give them."""
    other = IterableDataset | DataLoader | tuple | list | str | bytes | Mapping | Tensor | np.ndarray
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, other)


def _covers_its_dataset(loader: DataLoader[Any]) -> bool:
    """Whether a loader does nothing but to batch every item of a map-style dataset."""
    dataset: Any = loader.dataset
    sampler = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    plain = whole and loader.collate_fn is default_collate
    return plain and _is_map_style(dataset) and len(sampler) == len(dataset)  # type: ignore[arg-type]


def _is_pair(data: Any) -> bool:
    """Whether this is one batch of images and labels."""
    arrays = Tensor, np.ndarray
    if not isinstance(data, tuple | list) or len(data) != 2 or not isinstance(data[0], arrays):
        return False
    return isinstance(data[1], arrays) or are_structures(data[1])
