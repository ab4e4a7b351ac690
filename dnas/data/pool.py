"""What a source of data is given, and what it hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dnas.data.augmentation import SMALL_PIXELS
from dnas.data.decoding import decode
from dnas.data.image_files import Decoding
from dnas.data.image_sets import DataSplits, ImageSet

COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LARGE_PIXELS = 224


@dataclass(frozen=True)
class Pool:
    """A dataset as its source hands it over, before validation images are held out."""

    train: ImageSet
    test: ImageSet
    classes: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceOptions:
    """What a job says of its data beyond where they come from; a source takes what it needs."""

    root: Path | None = None
    download: bool = False
    image_size: int | None = None
    workers: int = 0
    decoding: Decoding = "cpu"


Source = Callable[[SourceOptions], Pool | DataSplits]


def natural_size(path: str) -> tuple[int, int]:
    """The size (H, W) that images are brought to where none is given: that of the first if small, else 224."""
    height, width = decode(path).shape[1:]
    return (height, width) if max(height, width) <= SMALL_PIXELS else (_LARGE_PIXELS, _LARGE_PIXELS)
