"""Image files with boxes: what is the same for files of COCO and of VOC. All is checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import resize

from dnas.data.decoding import decode, size_of
from search_spaces.errors import InputError, unreadable
from search_spaces.user_files import read_regular

_SLACK = 1.0  # pixels that a box may stand over the edge, as rounding leaves it; what stands over is cut off
SPLITS: Mapping[str, Sequence[str]] = {"train": ("train",), "test": ("test", "val", "valid")}
"""The names that folders have for each split."""


@dataclass(frozen=True)
class Annotated:
    """One image file with its size in pixels, its boxes as x0, y0, x1, y1, their classes, and which are crowds."""

    path: str
    width: float
    height: float
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]
    crowds: tuple[bool, ...]

    def check_size(self, found: Sequence[int]) -> None:
        """Raise :class:`InputError` where the image is (H, W) pixels and not as large as its annotation says."""
        if abs(found[0] - self.height) > _SLACK or abs(found[1] - self.width) > _SLACK:
            raise InputError(
                f"the image '{self.path}' is {found[1]} x {found[0]} pixels, and its annotation says "
                f"{self.width:g} x {self.height:g}; correct the annotation"
            )


@dataclass(frozen=True, eq=False)
class BoxFiles:
    """Annotated image files, decoded and stretched to ``size`` (H, W) as they are read; boxes are stretched too."""

    files: Sequence[Annotated]
    size: tuple[int, int]
    targets_held: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image (3, H, W), uint8, and its target; InputError for one that is not as large as its file says."""
        file = self.files[index]
        image = decode(file.path)
        file.check_size(image.shape[1:])
        return resize(image, list(self.size), antialias=True), self.target(index)

    def target(self, index: int) -> dict[str, Tensor]:
        """``boxes`` (K, 4) in pixels of the stretched image, ``labels`` (K,) and ``iscrowd`` (K,)."""
        file = self.files[index]
        height, width = self.size
        scale = torch.tensor([width / file.width, height / file.height] * 2)
        boxes = torch.tensor(file.boxes, dtype=torch.float32).reshape(-1, 4) * scale
        limits = torch.tensor([width, height] * 2, dtype=torch.float32)
        return {
            "boxes": tv_tensors.BoundingBoxes(torch.minimum(boxes, limits), format="XYXY", canvas_size=self.size),
            "labels": torch.tensor(file.labels, dtype=torch.int64),
            "iscrowd": torch.tensor(file.crowds, dtype=torch.int64),
        }


def checked_box(
    where: str, box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    """The box x0, y0, x1, y1 within the image; :class:`InputError` for one outside it, or without area."""
    told = f"{where}: box {[round(value, 2) for value in box]}"
    x0, y0, x1, y1 = box
    if not (x0 >= -_SLACK and y0 >= -_SLACK and x1 <= width + _SLACK and y1 <= height + _SLACK):
        raise InputError(f"{told} lies outside its image, {width:g} x {height:g} pixels; correct or remove it")
    inside = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise InputError(f"{told} has no area; correct or remove it")
    return inside


def content_of(path: Path) -> bytes:
    """The bytes of a file of annotations; :class:`InputError` where it cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {unreadable(error)}") from error


def inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder, in one below it perhaps; a name cannot lead out of it."""
    relative = Path(name)
    return folder / (relative.name if relative.is_absolute() or ".." in relative.parts else relative)


def number(where: str, key: str, value: Any) -> float:
    """A finite number of a file; :class:`InputError` for text, nothing, and what is none."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InputError(f"{where}: {key} is {value!r:.60}, not a finite number; correct or remove it")
    return found


def side(where: str, key: str, value: Any) -> float:
    """The width or height of an image in pixels."""
    if (found := number(where, key, value)) <= 0:
        raise InputError(f"{where}: {key} is {found:g} pixels; correct or remove it")
    return found


def split_of(files: Iterable[Annotated], where: Path) -> list[Annotated]:
    """The files of a split; :class:`InputError` where there is none, and for one that is not as it is annotated."""
    known: dict[str, Annotated] = {}
    for file in files:
        if file.path in known:
            raise InputError(f"'{where}' annotates the image '{file.path}' twice; put its boxes together")
        if not _is_file(file.path):
            raise InputError(
                f"the image '{file.path:.200}' is annotated and not there; fetch it, or remove its annotation"
            )
        file.check_size(size_of(file.path))
        known[file.path] = file
    if not known:
        raise InputError(f"'{where}' holds no image; give some")
    return [*known.values()]


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long
        return False
