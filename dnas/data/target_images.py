"""Images with targets of any structure: maps of classes, boxes, dicts of tensors; read together, changed together.

What has a place in the image moves with it: boxes, which are :class:`torchvision.tv_tensors.BoundingBoxes` or floats
(K, 4) under ``boxes`` of a dict, as x0, y0, x1, y1 in pixels; and maps, which are tensors (..., H, W) of the image's
own height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, overload

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dnas.data.augmentation import Augmentation, draw_augmentation
from dnas.data.image_sets import Batched, BatchRequest, ImageSet, MemoryImages, as_targets, draw_order, normalise
from dnas.data.loaders import Loaders
from dnas.data.transfer import sent
from dnas.data.transforms import OwnTransform, randomness_restored, seed_everything, seeds_of
from search_spaces.errors import InputError, one_line

IGNORED = 255
"""The class of pixels that count nowhere, such as those that a crop adds."""
BOXES = "boxes"
"""The key of boxes in a dict, as torchvision's detectors have it."""
_MOST_LOOKED_AT = 1000
_SMALLEST_SIDE = 1.0  # pixels of a box that is still there after a crop


class Items(Protocol):
    """Pairs of an image (C, H, W), uint8 or float in [0, 1], all of one shape, and its target.

    ``targets_held`` says that targets are in memory, and no file or code of the user's is read for one.
    """

    targets_held: ClassVar[bool]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The image with its target: a tensor, or a structure of tensors."""

    def target(self, index: int) -> Any:
        """The target alone."""


@dataclass(frozen=True, eq=False)
class HeldItems:
    """Images (N, C, H, W) in memory, and a target for each: a tensor (N, ...), or a list of N."""

    targets_held: ClassVar[bool] = True
    images: Tensor
    targets: Tensor | Sequence[Any]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The pair at ``index``."""
        return self.images[index], self.targets[index]

    def target(self, index: int) -> Any:
        """The target at ``index``."""
        return self.targets[index]


class Targets(Sequence[Any]):
    """The targets of some images, read one by one as they are asked for."""

    def __init__(self, items: Items, indices: Tensor) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """The target of one image, or the targets of some."""
        if isinstance(index, slice):
            return Targets(self._items, self._indices[index])
        return self._items.target(int(self._indices[index]))


@dataclass(frozen=True, eq=False)
class TargetImages(Batched):
    """The pairs of ``items`` at ``indices`` (N,), read as they are needed and normalised by ``mean`` and ``std``.

    Targets that are tensors come as one (B, ...), others as a list of B. ``classes`` counts those of boxes (from 1 on,
    0 is the background) or of maps (from 0 on); 0 where there are none.
    """

    items: Items
    indices: Tensor
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 0
    loaders: Loaders = field(default_factory=Loaders)

    @classmethod
    def of(
        cls,
        items: Items,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: int = 0,
        loaders: Loaders | None = None,
    ) -> TargetImages:
        """All pairs; without mean and std images stay in [0, 1], as detectors want them."""
        channels, height, width = items[0][0].shape
        means, stds = tuple(mean or (0.0,) * channels), tuple(std or (1.0,) * channels)
        every = torch.arange(len(items))
        return cls(items, every, (channels, height, width), means, stds, classes, loaders or Loaders())

    @property
    def labels(self) -> Targets:
        """The target of each image."""
        return Targets(self.items, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, indices: Tensor) -> TargetImages:
        """Return the pairs at ``indices``, int64 (M,); nothing is read."""
        return replace(self, indices=self.indices[indices])

    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Any]]:
        augmentation, device, part = request.augmentation, request.device, request.part
        generator, order = draw_order(len(self), request.seed)
        seeds = seeds_of(len(self), generator)
        batches = request.batches(torch.arange(len(self)))
        positions = [batch[part.rows(len(batch))] for batch in batches]
        wanted = (list(zip(self.indices[order[own]].tolist(), seeds[own].tolist(), strict=True)) for own in positions)
        read = self.loaders.batches(PairReader(self.items, augmentation), wanted, pinned=device.type == "cuda")
        for whole, (images, targets) in zip(batches, read, strict=True):
            draw = None
            if augmentation is not None:
                drawn = draw_augmentation(len(whole), *self.input_shape[1:], augmentation, generator)
                draw = drawn.rows(part.rows(len(whole)))
            there = normalise(sent(images, device), self.mean, self.std, draw, augmentation)
            yield there, tree_map(lambda leaf: sent(leaf, device) if isinstance(leaf, Tensor) else leaf, targets)


def held_images(
    images: Tensor, targets: Any, mean: Sequence[float], std: Sequence[float], classes: int = 0
) -> MemoryImages | TargetImages:
    """Images (N, C, H, W) in memory with classes, numbers (N, ...), maps (N, ..., H, W), or a list of N structures."""
    if isinstance(targets, Tensor) and not _is_map(targets, images):
        return MemoryImages(images, targets, mean, std)
    given = as_targets(targets) if isinstance(targets, Tensor) else list(targets)
    return TargetImages.of(HeldItems(images, given), mean, std, classes)


def looked_at(images: ImageSet) -> Tensor | Sequence[Any]:
    """The targets that are checked before training: all that are in memory, the first of those that have to be read."""
    labels: Tensor | Sequence[Any] = images.labels
    held = not isinstance(images, TargetImages) or images.items.targets_held
    return labels if held else labels[:_MOST_LOOKED_AT]


def are_structures(targets: Any) -> bool:
    """Whether these are a structure for each image, such as dicts of boxes and labels, and no array."""
    return isinstance(targets, list | tuple) and bool(targets) and isinstance(targets[0], dict)


@dataclass(frozen=True)
class PairReader:
    """Reads a batch of pairs as training takes them, each with a seed for what is drawn for it."""

    items: Items
    augmentation: Augmentation | None = None

    def __call__(self, wanted: Sequence[tuple[int, int]]) -> tuple[Tensor, Any]:
        """Images (B, C, H, W) with their targets; what is drawn leaves no trace in the global generators."""
        images, targets = [], []
        with randomness_restored():
            for index, seed in wanted:
                seed_everything(seed)  # also for what the user's own code draws
                image, target = self.items[index]
                if self.augmentation is not None:
                    seed_everything(seed)
                    image, target = changed_together(image, target, self.augmentation)
                images.append(image)
                targets.append(tree_map(_plain, target))
        return _stacked(images, "images"), collated(targets)


def collated(targets: Sequence[Any]) -> Any:
    """Tensors as one (B, ...); anything else as a list of B."""
    if all(isinstance(target, Tensor) for target in targets):
        return _stacked(targets, "targets")
    return list(targets)


def changed_together(image: Tensor, target: Any, augmentation: Augmentation) -> tuple[Tensor, Any]:
    """A cropped, mirrored and transformed image (C, H, W) with what of its target moves; drawn from torch's generator.

    Boxes are clipped to the image; those of which less than a pixel is left go, with all that their dict says of them.
    """
    shape, padding = image.shape, augmentation.crop_padding
    pair = tv_tensors.Image(image), _placed(target, image)
    if padding:
        top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
        pair = tree_map(lambda x: _cropped(x, padding, top, left, pair[1]), pair)
    if augmentation.flip and bool(torch.rand(()) < 0.5):
        pair = tree_map(lambda x: F.horizontal_flip(x) if _has_place(x) else x, pair)
    for transform in augmentation.transforms:
        assert isinstance(transform, OwnTransform)  # as every augmentation holds them
        pair = transform.together(*pair)
    changed, moved = _plain(pair[0]), _visible(pair[1])
    if changed.shape != shape:
        raise InputError(f"an augmentation makes {tuple(changed.shape)} of an image {tuple(shape)}; keep the shape")
    return changed, moved


def _is_map(targets: Tensor, images: Tensor) -> bool:
    return targets.ndim >= 3 and targets.shape[-2:] == images.shape[-2:]


def _placed(target: Any, image: Tensor, key: Any = None) -> Any:
    """The target whose boxes and maps are told from its other tensors."""
    if isinstance(target, dict):
        return {key: _placed(value, image, key) for key, value in target.items()}
    if isinstance(target, list | tuple):
        return tree_map(lambda leaf: _placed(leaf, image), target, is_leaf=lambda each: isinstance(each, dict | Tensor))
    if type(target) is not Tensor:
        return target
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if key == BOXES and target.ndim == 2 and target.shape[1] == 4 and target.is_floating_point():
        return tv_tensors.BoundingBoxes(target, format="XYXY", canvas_size=size)
    return tv_tensors.Mask(target) if target.ndim >= 2 and target.shape[-2:] == size else target


def _has_place(x: Any) -> bool:
    return isinstance(x, tv_tensors.Image | tv_tensors.Mask | tv_tensors.BoundingBoxes)


def _cropped(x: Any, padding: int, top: int, left: int, whole: Any) -> Any:
    """What has a place, moved inside a border; around a map of classes that is the target itself nothing counts."""
    if not _has_place(x):
        return x
    height, width = F.get_size(x)
    classes = x is whole and isinstance(x, tv_tensors.Mask) and not x.is_floating_point() and x.dtype != torch.bool
    return F.crop(F.pad(x, [padding], fill=IGNORED if classes else 0), top, left, height, width)


def _visible(target: Any) -> Any:
    """The target without the boxes that left the image."""
    if not isinstance(target, dict):
        return tree_map(_plain, target)
    key = next((key for key, value in target.items() if isinstance(value, tv_tensors.BoundingBoxes)), None)
    if key is None:
        return {name: _visible(value) for name, value in target.items()}
    boxes = F.clamp_bounding_boxes(target[key])
    plain = _plain(F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY))
    stays = ((plain[:, 2:] - plain[:, :2]) >= _SMALLEST_SIDE).all(1)
    found = {**target, key: boxes}
    rows = {name for name, x in found.items() if isinstance(x, Tensor) and x.ndim and len(x) == len(boxes)}
    of_boxes = rows - {"image_id"}
    return {name: _plain(x)[stays] if name in of_boxes else tree_map(_plain, x) for name, x in found.items()}


def _plain(x: Any) -> Any:
    return x.as_subclass(Tensor) if isinstance(x, Tensor) else x


def _stacked(tensors: Sequence[Tensor], what: str) -> Tensor:
    try:
        return torch.stack([_plain(tensor) for tensor in tensors])
    except RuntimeError as error:
        raise InputError(f"{what} of one shape are needed: {one_line(error)}") from error
