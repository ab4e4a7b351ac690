"""Random crop, flip and cutout of whole batches at once: first the numbers are drawn, then they are applied.

torchvision's transforms draw one set of numbers for a batch, so that they would have to run image by image, which takes
ten times as long (128 images of 32 pixels).

Cutout after DeVries, Taylor: Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.data.transfer import sent
from dnas.data.transforms import OwnTransform, Transform, seeds_of, transformed
from search_spaces.errors import InputError

SMALL_PIXELS = 64  # images up to this side are kept in memory, and cropped to their full extent


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image, in pixels: padded random crop, horizontal flip, cutout square.

    ``transforms`` follow on crop and flip: callables of one image (C, H, W) before it is normalised, such as those of
    torchvision.transforms.v2; what they draw follows from the seed of the epoch. Images read from a folder while
    training (:class:`dnas.data.image_files.FolderImages`) take a random resized crop in place of the padded one
    wherever ``crop_padding`` is above zero. Raises InputError on negative sizes.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        own = (each if isinstance(each, OwnTransform) else OwnTransform(each) for each in self.transforms)
        object.__setattr__(self, "transforms", tuple(own))
        for name, value in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if value < 0:
                raise InputError(f"augmentation: {name} must be 0 or more pixels, got {value}")


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers of one batch, each of shape (N,): crop corner, whether to flip, cutout centre, seeds.

    ``seeds`` are those of the transforms, and empty where there are none.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_row: Tensor
    cutout_column: Tensor
    seeds: Tensor

    def rows(self, rows: slice) -> AugmentationDraw:
        """What was drawn for some images of the batch."""
        return AugmentationDraw(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_augmentation(
    count: int, height: int, width: int, augmentation: Augmentation, generator: torch.Generator
) -> AugmentationDraw:
    """Draw for ``count`` images of ``height`` x ``width``; every number is drawn whether or not it will be used."""
    shifts = 2 * augmentation.crop_padding + 1
    return AugmentationDraw(
        top=torch.randint(0, shifts, (count,), generator=generator),
        left=torch.randint(0, shifts, (count,), generator=generator),
        flip=(torch.rand(count, generator=generator) < 0.5) & augmentation.flip,
        cutout_row=torch.randint(0, height, (count,), generator=generator),
        cutout_column=torch.randint(0, width, (count,), generator=generator),
        seeds=seeds_of(count if augmentation.transforms else 0, generator),
    )


def beside(images: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn on the host, where the images are; the host does not wait for the device."""
    return sent(drawn, images.device)


def augmented(images: Tensor, draw: AugmentationDraw, augmentation: Augmentation, device: torch.device) -> Tensor:
    """Images (N, C, H, W), cropped, mirrored and through the transforms, on a device.

    What transforms draw needs the CPU: where the images lie there, they are sent afterwards, and nobody waits.
    """
    if not augmentation.transforms:
        return crop_and_flip(sent(images, device), draw, augmentation.crop_padding)
    cropped = crop_and_flip(images.cpu(), draw, augmentation.crop_padding)
    return sent(transformed(cropped, draw.seeds, augmentation.transforms), device)


def crop_and_flip(images: Tensor, draw: AugmentationDraw, padding: int) -> Tensor:
    """Shift (N, C, H, W) inside a border of ``padding`` zeros and mirror the images marked for it."""
    if padding:
        height, width = images.shape[2:]
        padded = F.pad(images, (padding,) * 4)
        # A view of every possible crop, (N, C, 2 padding + 1, 2 padding + 1, H, W): only the drawn ones are copied.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(images), device=images.device)
        images = crops[rows, :, beside(images, draw.top), beside(images, draw.left)]
    if not draw.flip.any():
        return images
    return torch.where(beside(images, draw.flip)[:, None, None, None], images.flip(3), images)


def cut_out(images: Tensor, draw: AugmentationDraw, size: int) -> Tensor:
    """Set a square of side ``size`` around the drawn centre to zero in each of (N, C, H, W), clipped at the border."""
    if not size:
        return images
    height, width = images.shape[2:]
    rows = torch.arange(height)[None, :] - draw.cutout_row[:, None] + size // 2
    columns = torch.arange(width)[None, :] - draw.cutout_column[:, None] + size // 2
    inside = ((rows >= 0) & (rows < size))[:, None, :, None] & ((columns >= 0) & (columns < size))[:, None, None, :]
    return images * beside(images, (~inside).to(images.dtype))  # twice as fast as masked_fill


def centre_box(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest centred box of the target's aspect; for big targets 7/8 of it, as 224 of 256 pixels are."""
    height, width = shape
    scale = min(height / size[0], width / size[1]) * (1.0 if max(size) <= SMALL_PIXELS else 224 / 256)
    box_height, box_width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
