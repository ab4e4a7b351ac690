"""Labelled images that yield normalised batches: what every set of images can do, and those held in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from dnas.data.augmentation import (
    Augmentation,
    AugmentationDraw,
    augmented,
    beside,
    cut_out,
    draw_augmentation,
)
from dnas.data.transfer import sent
from search_spaces.errors import InputError

HELD_BYTES = 2**30  # of one set of images, on a device


@runtime_checkable
class ImageSet(Protocol):
    """A sequence of N labelled images."""

    @property
    def labels(self) -> Tensor | Sequence[Any]:
        """The class of each image, int64 (N,), what else a task learns of it (N, ...), or N structures of tensors."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at ``indices``, int64 (M,), in that order."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield normalised float32 images (B, C, H, W) and their labels (B,) or targets on ``device``, once each.

        Without a seed they come in order and as they are; with one, their order and augmentation follow from the
        seed alone. ``drop_last`` leaves out a last batch that is short. Raises InputError on an augmentation
        without a seed or a batch size below one.
        """


@dataclass(frozen=True)
class DataSplits:
    """Three disjoint splits of one dataset; ``input_shape`` is (C, H, W).

    ``class_names`` are in the order of labels, and empty where they are not known.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One of ``of`` parts of every batch, by its number from 0 on."""

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> slice:
        """Its rows of ``count``; each part has as many, so a few last rows may be left out.

        >>> [Part(number, 2).rows(5) for number in range(2)]
        [slice(0, 2, None), slice(2, 4, None)]
        """
        share = count // self.of
        return slice(self.number * share, (self.number + 1) * share)


WHOLE = Part()


@dataclass(frozen=True)
class BatchRequest:
    """Which batches are asked for, as :meth:`ImageSet.batches` says, and which part of each."""

    batch_size: int
    seed: int | None
    augmentation: Augmentation | None
    device: torch.device
    drop_last: bool
    part: Part

    def __post_init__(self) -> None:
        refuse_batches(self.batch_size, self.seed, self.augmentation)

    def batches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Cut the order (N,) into batches."""
        stop = len(order) - len(order) % self.batch_size if self.drop_last else len(order)
        return torch.split(order[:stop], int(self.batch_size)) if stop else ()


class Batched:
    """The checks and the arguments of :meth:`ImageSet.batches`; a subclass draws the batches in ``_batches``."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        part: Part = WHOLE,
    ) -> Iterator[tuple[Tensor, Any]]:
        """Yield batches as :meth:`ImageSet.batches` says; what cannot be asked for is refused at once.

        Of each batch only the rows of ``part`` are read; they are those of the whole batch, augmentation included.
        """
        return self._batches(BatchRequest(batch_size, seed, augmentation, torch.device(device), drop_last, part))

    @abstractmethod
    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Any]]:
        """The batches, read as they are asked for."""


class MemoryImages(Batched):
    """Images (N, C, H, W), uint8 or float32 in [0, 1], normalised by ``mean`` and ``std`` of each channel.

    Crop and flip run on the device that batches are asked for, where a small set then stays.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = images if images.dtype == torch.uint8 else images.float()
        self._labels = as_targets(labels)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._held: tuple[torch.device, Tensor, Tensor, Tensor] | None = None

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 (N,), or what else a task learns of it, (N, ...)."""
        return self._labels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self._labels)

    def subset(self, indices: Tensor) -> MemoryImages:
        """Return a copy of the images at ``indices``, int64 (M,)."""
        return MemoryImages(self.images[indices], self._labels[indices], self.mean, self.std)

    def resized(self, size: int) -> MemoryImages:
        """Return the images scaled to ``size`` x ``size`` by antialiased bilinear interpolation."""
        parts = [resize(part, [size, size]) for part in torch.split(self.images, 1024)]
        return MemoryImages(torch.cat(parts), self._labels, self.mean, self.std)

    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, device, part = request.augmentation, request.device, request.part
        generator, order = draw_order(len(self), request.seed)
        height, width = self.images.shape[2:]
        on_host = augmentation is not None and augmentation.transforms
        pixels, labels = (self.images, self._labels) if on_host else self._held_on(device)
        for indices in request.batches(order.to(pixels.device)):
            rows = part.rows(len(indices))
            images, draw = pixels[indices[rows]], None
            if augmentation is not None:
                draw = draw_augmentation(len(indices), height, width, augmentation, generator).rows(rows)
                images = augmented(images, draw, augmentation, device)
            there = sent(labels[indices[rows]], device)
            yield normalise(sent(images, device), self.mean, self.std, draw, augmentation), there

    def _held_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on the device, from the first time on that batches are asked for there, if they are few."""
        if device.type == "cpu" or self.images.nbytes > HELD_BYTES:
            return self.images, self._labels
        if self._held is None or self._held[0] != device or self._held[1] is not self.images:
            self._held = device, self.images, self.images.to(device), self._labels.to(device)
        return self._held[2:]

    def __getstate__(self) -> dict[str, Any]:
        """All but what lies on a device, which whoever reads it may not have."""
        return {**self.__dict__, "_held": None}


def has_classes(labels: Any) -> TypeGuard[Tensor]:
    """Whether these are classes (N,), and not numbers, several values for each image, or structures."""
    return isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()


def as_targets(labels: Tensor) -> Tensor:
    """Classes (N,) as int64, numbers (N, ...) as float32, which networks compute in."""
    if has_classes(labels):
        return labels.long()
    return labels.float() if labels.is_floating_point() else labels


def stratified_indices(labels: Tensor | Sequence[Any], count: int, seed: int) -> Tensor:
    """Choose ``count`` of the N ``labels``, each class in proportion; return their sorted indices, int64 (count,).

    Targets of another kind have no classes: they are chosen at random.
    The shares are rounded by the largest remainder, so that each class is within one image of its exact share.
    """
    if not has_classes(labels):
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(labels), generator=generator)[:count].sort().values
    classes, sizes = torch.unique(labels, return_counts=True)
    exact = sizes.double() * count / len(labels)
    shares = exact.floor().long()
    remainders = (exact - shares).argsort(descending=True, stable=True)
    shares[remainders[: count - int(shares.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, share in zip(classes, shares.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:share]])
    return torch.cat(chosen).sort().values


def refuse_batches(batch_size: int, seed: int | None, augmentation: Augmentation | None) -> None:
    """Raise InputError on what :meth:`ImageSet.batches` refuses."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if seed is None and augmentation is not None:
        raise InputError("an augmentation needs a seed")


def draw_order(count: int, seed: int | None) -> tuple[torch.Generator, Tensor]:
    """Return the generator of one epoch and the order (N,) it gave, which is 0, 1, ... without a seed."""
    generator = torch.Generator()
    if seed is None:
        return generator, torch.arange(count)
    generator.manual_seed(seed)
    return generator, torch.randperm(count, generator=generator)


def normalise(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    draw: AugmentationDraw | None,
    augmentation: Augmentation | None,
) -> Tensor:
    """Normalise pixels (N, C, H, W), then cut out, so that the square shows the mean colour as in the paper."""
    full = 255.0 if images.dtype == torch.uint8 else 1.0
    scale = beside(images, torch.tensor([1.0 / (full * value) for value in std]))[:, None, None]
    shift = beside(images, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]))[:, None, None]
    normalised = images * scale + shift
    if draw is None or augmentation is None:
        return normalised
    return cut_out(normalised, draw, augmentation.cutout)
