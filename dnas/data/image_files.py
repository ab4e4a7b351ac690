"""Image files too many or too large for memory, decoded while they are needed.

What is random is drawn for each file from a seed of its own, as its header is read; then it is applied, in the process
that read the file or on the device that decodes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

from dnas.data.augmentation import Augmentation, centre_box, draw_augmentation
from dnas.data.decoding import cannot_decode, decode, decode_there, encoded
from dnas.data.image_sets import Batched, BatchRequest, MemoryImages, draw_order, normalise
from dnas.data.loaders import Loaders
from dnas.data.transfer import sent
from dnas.data.transforms import randomness_restored, seed_everything, seeds_of, transformed
from search_spaces.errors import InputError, one_line

Decoding = Literal["cpu", "device"]
_OTHER_SEEDS = 2**31  # added to the seed of a crop, for the transforms after it


@dataclass(frozen=True, eq=False)
class FolderImages(Batched):
    """Image files, decoded to RGB of ``size`` (H, W) while they are needed, by the processes of ``loaders``.

    Without augmentation: resized and centre-cropped; with ``crop_padding`` above zero: a random resized crop.
    ``decoding``: who decodes JPEG files, processes (``cpu``) or the device that images are asked for (``device``),
    which must be one of CUDA. Other files are decoded by processes. A file that cannot be decoded raises InputError
    with its name.
    """

    paths: tuple[str, ...]
    labels: Tensor
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loaders: Loaders = field(default_factory=Loaders)
    decoding: Decoding = "cpu"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (3, H, W) of one image."""
        return 3, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> FolderImages:
        """Return the files at ``indices``, int64 (M,); nothing is decoded, and their loaders are shared."""
        return replace(self, paths=tuple(self.paths[index] for index in indices.tolist()), labels=self.labels[indices])

    def decoded(self) -> MemoryImages:
        """Decode every file once, into memory."""
        images = torch.empty(len(self), *self.input_shape, dtype=torch.uint8)
        wanted = ([(path, 0) for path in self.paths[start : start + 256]] for start in range(0, len(self), 256))
        start = 0
        for batch in self.loaders.batches(FileReader(self.size), wanted):
            images[start : start + len(batch.pixels)] = batch.pixels
            start += len(batch.pixels)
        return MemoryImages(images, self.labels, self.mean, self.std)

    def _batches(self, request: BatchRequest) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, device, part = request.augmentation, request.device, request.part
        generator, order = draw_order(len(self), request.seed)
        seeds = seeds_of(len(self), generator)
        batches = request.batches(torch.arange(len(self)))
        positions = [batch[part.rows(len(batch))] for batch in batches]
        reader = FileReader(self.size, augmentation, self._is_left_to(device))
        wanted = (self._wanted(order[own], seeds[own]) for own in positions)
        read = self.loaders.batches(reader, wanted, pinned=device.type == "cuda")
        for batch, own, files in zip(batches, positions, read, strict=True):
            draw = None
            if augmentation is not None:
                draw = draw_augmentation(len(batch), *self.size, augmentation, generator).rows(part.rows(len(batch)))
            pixels = reader.finished(files, self._wanted(order[own], seeds[own]), device)
            images = normalise(pixels, self.mean, self.std, draw, augmentation)
            yield images, sent(self.labels[order[own]], device)

    def _wanted(self, indices: Tensor, seeds: Tensor) -> list[Wanted]:
        return [(self.paths[index], seed) for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True)]

    def _is_left_to(self, device: torch.device) -> bool:
        """Whether the device decodes; :class:`InputError` where it is to and cannot."""
        if self.decoding == "device" and (reason := cannot_decode(device)):
            raise InputError(f"data.decode = 'device': {device} cannot decode JPEG files ({reason}); set it to 'cpu'")
        return self.decoding == "device"


Wanted = tuple[str, int]
"""The path of a file, and its seed."""


class Crop(NamedTuple):
    """What is drawn for one file: a box in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    def of(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The box of an image (C, H, W), scaled to ``size``."""
        scaled = resized_crop(image, self.top, self.left, self.height, self.width, list(size))
        return horizontal_flip(scaled) if self.flip else scaled


class Files(NamedTuple):
    """A batch of N files: finished ``pixels`` (M, 3, H, W) of some, the bytes (B,) of the others one after the other.

    ``lengths`` (N,) are numbers of bytes, 0 for those that are finished; ``crops`` (N, 5) as :class:`Crop`.
    """

    pixels: Tensor
    content: Tensor
    lengths: Tensor
    crops: Tensor


@dataclass(frozen=True)
class FileReader:
    """Reads a batch of files as training takes them, or as bytes where JPEG files ``stay_encoded``."""

    size: tuple[int, int]
    augmentation: Augmentation | None = None
    stay_encoded: bool = False

    def __call__(self, wanted: Sequence[Wanted]) -> Files:
        """What a process has of a batch; what it draws leaves no trace."""
        pixels, contents, lengths, crops = [], [], [], []
        with randomness_restored():
            for path, seed in wanted:
                found = encoded(path) if self.stay_encoded else None
                content, crop = (found[0], self.drawn(found[1], seed)) if found else (torch.empty(0), _NO_CROP)
                if found:
                    contents.append(content)
                else:
                    pixels.append(self._whole(decode(path), seed))
                lengths.append(len(content))
                crops.append(crop)
        whole = torch.stack(pixels) if pixels else torch.empty(0, 3, *self.size, dtype=torch.uint8)
        content = torch.cat(contents) if contents else torch.empty(0, dtype=torch.uint8)
        return Files(whole, content, torch.tensor(lengths), torch.tensor(crops))

    def finished(self, files: Files, wanted: Sequence[Wanted], device: torch.device) -> Tensor:
        """The pixels (N, 3, H, W), uint8, of a batch on the device, where what is left to do is done."""
        pixels = sent(files.pixels, device)
        if self.stay_encoded and len(pixels):
            warnings.warn(
                f"{device} decodes upright JPEG files of RGB alone; data.workers decode the others", stacklevel=2
            )
        if not len(files.content):
            return pixels
        here = files.lengths > 0
        paths = [path for (path, _), still in zip(wanted, here.tolist(), strict=True) if still]
        images = _decoded(files.content.split(files.lengths[here].tolist()), paths, device)
        crops = [Crop(*values) for values in files.crops[here].tolist()]
        made = torch.stack([crop.of(image, self.size) for image, crop in zip(images, crops, strict=True)])
        if self.augmentation and self.augmentation.transforms:
            seeds = torch.tensor([seed for _, seed in wanted])[here] + _OTHER_SEEDS
            made = transformed(made.cpu(), seeds, self.augmentation.transforms).to(device)
        # The finished ones come first: where each of the batch is then.
        place = torch.cat([(~here).nonzero().flatten(), here.nonzero().flatten()]).argsort()
        return torch.cat([pixels, made])[sent(place, device)]

    def drawn(self, shape: Sequence[int], seed: int) -> Crop:
        """What a seed gives for a file of ``shape`` (H, W)."""
        if self.augmentation is None:
            return Crop(*centre_box(shape, self.size), flip=False)
        seed_everything(seed)
        box = centre_box(shape, self.size)
        if self.augmentation.crop_padding:
            drawn = v2.RandomResizedCrop(self.size).make_params([torch.empty(3, *shape, device="meta")])
            box = drawn["top"], drawn["left"], drawn["height"], drawn["width"]
        return Crop(*box, flip=self.augmentation.flip and bool(torch.rand(()) < 0.5))

    def _whole(self, image: Tensor, seed: int) -> Tensor:
        """All that happens to an image (3, H, W) that was decoded here."""
        cropped = self.drawn(image.shape[1:], seed).of(image, self.size)
        if self.augmentation is None or not self.augmentation.transforms:
            return cropped
        return transformed(cropped[None], torch.tensor([seed + _OTHER_SEEDS]), self.augmentation.transforms)[0]


_NO_CROP = Crop(0, 0, 0, 0, flip=False)


def _decoded(files: Sequence[Tensor], paths: Sequence[str], device: torch.device) -> list[Tensor]:
    """Decode JPEG files on the device; on the host where it cannot, and warn of it."""
    try:
        return decode_there(files, device)
    except RuntimeError as error:
        images = [decode(path).to(device) for path in paths]  # tells what is wrong with a damaged one
        warnings.warn(f"{device} cannot decode some JPEG files ({one_line(error)}); the CPU does", stacklevel=2)
        return images
