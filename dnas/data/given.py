"""Images as people have them at hand: a DataLoader, a dataset of torch, pairs of tensors, as a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from dnas.data.augmentation import augmented, cut_out, draw_augmentation
from dnas.data.described import described
from dnas.data.image_sets import (
    Batched,
    BatchRequest,
    DataSplits,
    ImageSet,
    as_targets,
    draw_order,
    has_classes,
    stratified_indices,
)
from dnas.data.loaders import Loaders
from dnas.data.target_images import TargetImages, are_structures, held_images
from dnas.data.transfer import sent
from dnas.data.transforms import randomness_restored, seed_everything, seeds_of
from search_spaces.errors import InputError, one_line

GivenImages = ImageSet | Dataset[Any] | Iterable[Any]
"""Whatever :func:`image_set` takes."""
GivenSplits = DataSplits | Mapping[str, GivenImages] | Sequence[GivenImages] | GivenImages
"""Whatever :func:`data_splits` takes."""
_HELD_OUT = 0.1
_PAIRS = (
    "give pairs of images (N, C, H, W) and labels (N,) or targets (N, ...), as a DataLoader, a dataset of torch or a "
    "list of batches"
)


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
    raise InputError(f"{name} cannot be read from {described(data)}; {_PAIRS}")


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
    item = _item(dataset, 0, name)
    if isinstance(item, tuple | list) and len(item) == 2 and _has_place(*item):
        return TargetImages.of(DatasetItems(dataset, name), loaders=Loaders(workers))
    return DatasetImages.of(dataset, name, workers)


def _has_place(image: Any, target: Any) -> bool:
    """Whether a target is a structure, or a map of the image (C, H, W)."""
    if isinstance(target, Mapping):
        return True
    arrays = isinstance(target, Tensor | np.ndarray) and isinstance(image, Tensor | np.ndarray)
    return arrays and target.ndim >= 2 and tuple(target.shape[-2:]) == tuple(image.shape[-2:])


def _tensors(target: Any) -> Any:
    """The target with tensors for arrays of numpy."""
    return tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, target)


@dataclass(frozen=True, eq=False)
class DatasetItems:
    """The pairs of a map-style dataset of (image (C, H, W), target of any structure)."""

    dataset: Any
    name: str
    targets_held: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The pair at ``index``."""
        item = _item(self.dataset, index, self.name)
        return _as_floats(_image(item, self.name)), _tensors(item[1])

    def target(self, index: int) -> Any:
        """The target at ``index``; the image is read as well."""
        return _tensors(_item(self.dataset, index, self.name)[1])


@dataclass(frozen=True, eq=False)
class DatasetImages(Batched):
    """The images at ``indices`` (N,) of a map-style dataset of (image (C, H, W), target), read as they are needed."""

    read: ItemReader
    labels: Tensor
    indices: Tensor
    input_shape: tuple[int, int, int]
    loaders: Loaders

    @classmethod
    def of(cls, dataset: Any, name: str, workers: int = 0) -> DatasetImages:
        """All images of a dataset, whose labels are read once."""
        if not len(dataset):
            raise InputError(f"{name}: the dataset is empty")
        image, _ = _pair(_item(dataset, 0, name), name)
        if image.ndim != 3:
            raise InputError(f"{name}: an item of the dataset must be an image (C, H, W) and a label, {_got(image)}")
        labels = _known_labels(dataset)
        if labels is None:
            found = [_pair(_item(dataset, index, name), name)[1][None] for index in range(len(dataset))]
            labels = _targets(found, name)
        channels, height, width = image.shape
        shape = channels, height, width
        return cls(ItemReader(dataset, name), labels, torch.arange(len(dataset)), shape, Loaders(workers))

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, indices: Tensor) -> DatasetImages:
        """Return the images at ``indices``, int64 (M,); nothing is read."""
        return replace(self, labels=self.labels[indices], indices=self.indices[indices])

    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, device, part = request.augmentation, request.device, request.part
        generator, order = draw_order(len(self), request.seed)
        seeds = torch.empty(len(self), dtype=torch.int64).scatter_(0, order, seeds_of(len(self), generator))
        batches = request.batches(order)
        positions = [indices[part.rows(len(indices))] for indices in batches]
        wanted = (list(zip(self.indices[own].tolist(), seeds[own].tolist(), strict=True)) for own in positions)
        read = self.loaders.batches(self.read, wanted, pinned=device.type == "cuda")
        for whole, indices, found in zip(batches, positions, read, strict=True):
            x = _as_floats(sent(found, device))
            if augmentation is not None:
                rows = part.rows(len(whole))
                draw = draw_augmentation(len(whole), x.shape[2], x.shape[3], augmentation, generator).rows(rows)
                x = cut_out(augmented(x, draw, augmentation), draw, augmentation.cutout)
            yield x, sent(self.labels[indices], device)


@dataclass(frozen=True, eq=False)
class ItemReader:
    """Reads images of a dataset, each with a seed for what it draws of torch's, numpy's or Python's numbers."""

    dataset: Any
    name: str

    def __call__(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """The images (N, C, H, W) at indices, with their seeds, as the dataset gives them."""
        images = []
        with randomness_restored():
            for index, seed in wanted:
                seed_everything(seed)
                images.append(_image(_item(self.dataset, index, self.name), self.name))
        try:
            return torch.stack(images)
        except RuntimeError as error:
            raise InputError(f"{self.name}: images of one shape are needed: {one_line(error)}") from error


def _in_memory(pairs: Iterable[Any], name: str) -> ImageSet:
    """Read all pairs, batches or single images, into memory."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    structures: list[Any] = []
    try:
        for item in pairs:
            if found := _structures(item, name):
                images.append(found[0])
                structures += found[1]
                continue
            x, y = _pair(item, name)
            images.append(x if x.ndim == 4 else x[None])
            labels.append(y if x.ndim == 4 else y[None])
        if not images:
            raise InputError(f"{name}: there are none; {_PAIRS}")
        whole = torch.cat(images)
    except InputError:
        raise
    except Exception as error:  # the user's own code, or images of different shapes
        raise InputError(f"{name} cannot be read: {one_line(error)}; {_PAIRS}") from error
    targets: Any = structures or _targets(labels, name)
    if whole.ndim != 4 or len(targets) != len(whole):
        raise InputError(f"{name}: {_PAIRS}; {_got(whole)} and {described(targets)}")
    return held_images(whole, targets, (0.0,) * whole.shape[1], (1.0,) * whole.shape[1])


def _structures(item: Any, name: str) -> tuple[Tensor, list[Any]] | None:
    """A batch of images (N, C, H, W), or a single one, with a dict for each; None where targets are tensors."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    given, targets = item
    if isinstance(targets, Mapping):
        return _as_floats(_image(item, name))[None], [_tensors(targets)]
    if not are_structures(targets):
        return None
    images = torch.stack(list(given)) if isinstance(given, tuple | list) else _image(item, name)
    return _as_floats(images), list(_tensors(targets))


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


def _item(dataset: Any, index: int, name: str) -> Any:
    try:
        return dataset[index]
    except Exception as error:  # the user's own code
        raise InputError(f"{name}: item {index} of the dataset cannot be read: {one_line(error)}") from error


def _pair(item: Any, name: str) -> tuple[Tensor, Tensor]:
    """An image or a batch of them as floats, and its labels."""
    image = _image(item, name)
    try:
        return _as_floats(image), torch.as_tensor(item[1])
    except Exception as error:
        raise InputError(f"{name}: {described(item[1])} is no tensor; {_PAIRS}") from error


def _image(item: Any, name: str) -> Tensor:
    """The image or images of a pair."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{name}: {_PAIRS}; got {described(item)}")
    try:
        return torch.as_tensor(item[0])
    except Exception as error:
        hint = "; add ToTensor to its transforms" if hasattr(item[0], "convert") else f"; {_PAIRS}"
        raise InputError(f"{name}: {described(item[0])} is no tensor{hint}") from error


def _as_floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _known_labels(dataset: Any) -> Tensor | None:
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


def _targets(parts: Sequence[Tensor], name: str) -> Tensor:
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


def _got(value: Tensor) -> str:
    return f"got {described(value)}"
