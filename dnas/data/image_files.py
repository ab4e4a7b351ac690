"""Image files too many or too large for memory, decoded while they are needed."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resized_crop

from dnas.data.augmentation import Augmentation, centre_box, draw_augmentation
from dnas.data.image_sets import Batched, BatchRequest, MemoryImages, draw_order, normalise
from dnas.data.transforms import Transform, seeds_of, transformed
from search_spaces.errors import InputError

# Tried in this order; naming them keeps PIL from trying forty others first.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


@dataclass(frozen=True, eq=False)
class FolderImages(Batched):
    """Image files, decoded to RGB of ``size`` (H, W) while they are needed, by ``workers`` processes.

    Without augmentation: resized and centre-cropped; with ``crop_padding`` above zero: a random resized crop.
    A file that cannot be decoded raises InputError with its name.
    """

    paths: tuple[str, ...]
    labels: Tensor
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (3, H, W) of one image."""
        return 3, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> FolderImages:
        """Return the files at ``indices``, int64 (M,); nothing is decoded."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return FolderImages(paths, self.labels[indices], self.size, self.mean, self.std, self.workers)

    def decoded(self) -> MemoryImages:
        """Decode every file once, into memory."""
        dataset = _Files(self.paths, self.size, torch.zeros(len(self), dtype=torch.int64), None)
        images = torch.empty(len(self), *self.input_shape, dtype=torch.uint8)
        start = 0
        for batch in self._loader(dataset, torch.arange(len(self)).split(256)):
            images[start : start + len(batch)] = batch
            start += len(batch)
        return MemoryImages(images, self.labels, self.mean, self.std)

    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, device, part = request.augmentation, request.device, request.part
        generator, order = draw_order(len(self), request.seed)
        seeds = seeds_of(len(self), generator)
        paths = tuple(self.paths[index] for index in order.tolist())
        files = _Files(paths, self.size, seeds, augmentation)
        batches = request.batches(torch.arange(len(self)))
        positions = [batch[part.rows(len(batch))] for batch in batches]
        loader = self._loader(files, positions, pinned=device.type == "cuda")
        for batch, own, decoded in zip(batches, positions, loader, strict=True):
            draw = None
            if augmentation is not None:
                draw = draw_augmentation(len(batch), *self.size, augmentation, generator).rows(part.rows(len(batch)))
            images = normalise(decoded.to(device, non_blocking=True), self.mean, self.std, draw, augmentation)
            yield images, self.labels[order[own]].to(device, non_blocking=True)

    def _loader(self, files: _Files, positions: Sequence[Tensor], pinned: bool = False) -> Iterator[Tensor]:
        """Decoded batches; ``pinned`` ones lie in memory that a device reads without the host's waiting."""
        loader = DataLoader(
            files,
            batch_sampler=[batch.tolist() for batch in positions],
            num_workers=min(self.workers, os.cpu_count() or 1),
            collate_fn=_stack,
            pin_memory=pinned,
            generator=torch.Generator(),  # without its own, the loader would advance the global one
        )
        for batch in loader:
            if isinstance(batch, str):
                raise InputError(batch)
            yield batch


class _Files(Dataset[Tensor | str]):
    """Decodes the file at a position; a failure is returned as a sentence, for a worker would wrap an exception."""

    def __init__(
        self, paths: tuple[str, ...], size: tuple[int, int], seeds: Tensor, augmentation: Augmentation | None
    ) -> None:
        self.paths = paths
        self.size = size
        self.seeds = seeds
        self.transforms = None if augmentation is None else _transforms(size, augmentation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor | str:
        try:
            image = decode(self.paths[position])
            if self.transforms is None:
                return centred(image, self.size)
            return transformed(image[None], self.seeds[position : position + 1], self.transforms)[0]
        except InputError as error:
            return str(error)


def _transforms(size: tuple[int, int], augmentation: Augmentation) -> tuple[Transform, ...]:
    """What happens to each file: crop and flip of torchvision, then the augmentation's own transforms."""
    crop = v2.RandomResizedCrop(size) if augmentation.crop_padding else partial(centred, size=size)
    return crop, *((v2.RandomHorizontalFlip(),) if augmentation.flip else ()), *augmentation.transforms


def centred(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of an image (C, H, W), scaled to ``size``."""
    return resized_crop(image, *centre_box(image.shape[1:], size), list(size))


def decode(path: str) -> Tensor:
    """Read an image file as uint8 RGB (3, H, W), turned upright as its EXIF orientation says.

    Of 16 bits a channel the upper 8 are kept. Transparency is left out: the colours are those that are stored. Raises
    InputError where it is no whole image, or one whose pixels have no known full scale (floats, 32-bit integers).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks on metadata and transparency
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=_FORMATS) as image:
                return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Exception as error:  # a damaged file fails anywhere inside PIL's readers
        unknown = "it is no image file, or of a kind that is not read; save it as PNG or JPEG"
        reason = unknown if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise InputError(f"cannot read the image '{path}': {reason}") from error


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3), uint8."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_grey_of_sixteen_bits(image)[..., None], 3, axis=2)
    # A palette with transparency is converted through RGBA, which keeps its colours.
    return np.array(_upright(image).convert("RGBA" if image.mode in ("P", "PA") else "RGB"))[..., :3]


def _grey_of_sixteen_bits(image: Image.Image) -> np.ndarray:
    """The upper eight bits (H, W) of an image whose grey values have more than eight."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    if image.mode == "F" or (image.mode == "I" and tags):  # PNG and PGM of 16 bits may be of mode I
        raise InputError(
            f"its pixels are {'floats' if image.mode == 'F' else 'signed or 32-bit integers'} (mode {image.mode}), "
            "whose full scale is not known; save it with 8 or 16 bits a channel"
        )
    bits = tags.get(BITSPERSAMPLE, (16,))[0] if tags else 16
    grey = (np.asarray(_upright(image)) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if tags and tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata say nothing of the pixels
        return image


def _stack(items: list[Tensor | str]) -> Tensor | str:
    images = []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item)
    return torch.stack(images)
