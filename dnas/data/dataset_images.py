"""Images of a map-style dataset of torch, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnas.data.augmentation import augmented, cut_out, draw_augmentation
from dnas.data.given_items import (
    as_floats,
    as_tensors,
    check_finite_images,
    got,
    image_of,
    item_at,
    joined_targets,
    known_labels,
    pair_of,
)
from dnas.data.image_sets import (
    Batched,
    BatchRequest,
    draw_order,
)
from dnas.data.loaders import Loaders
from dnas.data.transfer import sent
from dnas.data.transforms import randomness_restored, seed_everything, seeds_of
from search_spaces.errors import InputError, one_line


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
        item = item_at(self.dataset, index, self.name)
        image = image_of(item, self.name)
        check_finite_images(image[None], self.name, index)
        return as_floats(image), as_tensors(item[1])

    def target(self, index: int) -> Any:
        """The target at ``index``; the image is read as well."""
        return as_tensors(item_at(self.dataset, index, self.name)[1])


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
        image, _ = pair_of(item_at(dataset, 0, name), name)
        if image.ndim != 3:
            raise InputError(f"{name}: an item of the dataset must be an image (C, H, W) and a label, {got(image)}")
        labels = known_labels(dataset)
        if labels is None:
            found = [pair_of(item_at(dataset, index, name), name)[1][None] for index in range(len(dataset))]
            labels = joined_targets(found, name)
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
            on_host = augmentation is not None and augmentation.transforms
            x = as_floats(found if on_host else sent(found, device))
            if augmentation is not None:
                rows = part.rows(len(whole))
                draw = draw_augmentation(len(whole), x.shape[2], x.shape[3], augmentation, generator).rows(rows)
                x = cut_out(augmented(x, draw, augmentation, device), draw, augmentation.cutout)
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
                image = image_of(item_at(self.dataset, index, self.name), self.name)
                check_finite_images(image[None], self.name, index)
                images.append(image)
        try:
            return torch.stack(images)
        except RuntimeError as error:
            raise InputError(f"{self.name}: images of one shape are needed: {one_line(error)}") from error
