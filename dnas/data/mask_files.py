"""Image files with maps of classes: ``train/images/NAME.jpg`` with ``train/masks/NAME.png``, ``test`` or ``val`` alike.

A mask is an image of one channel, grey or with a palette, whose values are the classes; 255 counts nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dnas.data.decoding import FORMATS, decode, size_of
from dnas.data.target_images import IGNORED
from search_spaces.errors import InputError, one_line
from search_spaces.user_files import open_regular

_MODES = ("L", "P", "1")
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Pairs of an image file and a mask file, decoded and stretched to ``size`` (H, W) as they are read."""

    files: Sequence[tuple[str, str]]
    size: tuple[int, int]
    targets_held: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image (3, H, W), uint8, and its map (H, W), int64."""
        return resize(decode(self.files[index][0]), list(self.size), antialias=True), self.target(index)

    def target(self, index: int) -> Tensor:
        """The map (H, W) alone."""
        classes = read_mask(self.files[index][1])
        return resize(classes[None], list(self.size), interpolation=InterpolationMode.NEAREST_EXACT)[0].long()


def read_masks(root: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]], int]:
    """The pairs of the training and the test split, and how many classes they have.

    Raises :class:`InputError` for a mask that is missing, of another size than its image, or no map of classes.
    """
    test = next((name for name in ("test", "val", "valid") if (root / name / "images").is_dir()), None)
    if test is None or not (root / "train" / "images").is_dir():
        missing = "train" if test else "test or val"
        raise InputError(f"dataset 'masks': '{root}' has no folder {missing} with images/ and masks/ in it")
    train_pairs, test_pairs = (_pairs(root / name) for name in ("train", test))
    found = [_largest(image, mask) for image, mask in (*train_pairs, *test_pairs)]
    return train_pairs, test_pairs, 1 + max((each for each in found if each is not None), default=0)


def _pairs(folder: Path) -> list[tuple[str, str]]:
    images = sorted(path for path in (folder / "images").iterdir() if path.is_file() and path.name[0] != ".")
    masks: dict[str, Path] = {}
    for mask in sorted(path for path in (folder / "masks").glob("*") if path.suffix.lower() in _SUFFIXES):
        if mask.stem in masks:
            raise InputError(f"dataset 'masks': '{masks[mask.stem]}' and '{mask.name}' are of one image; remove one")
        masks[mask.stem] = mask
    if not images:
        raise InputError(f"dataset 'masks': '{folder / 'images'}' holds no images: no file lies there")
    for image in images:
        if image.stem not in masks:
            raise InputError(f"dataset 'masks': '{image}' has no mask; {_instead(folder / 'masks', image.stem)}")
    return [(str(image), str(masks[image.stem])) for image in images]


def _instead(folder: Path, stem: str) -> str:
    """What to do where a mask is missing: it may lie there as a file of another kind."""
    other = next((path.name for path in sorted(folder.glob("*")) if path.stem == stem), None)
    unread = f"'{other}' is none, for masks are files that end in {', '.join(sorted(_SUFFIXES))}: " if other else ""
    return f"{unread}write '{folder / stem}.png', or remove it"


def read_mask(path: str) -> Tensor:
    """The classes (H, W), uint8, of a mask file."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as mask:
            if mask.mode not in _MODES:
                raise InputError(
                    f"the mask '{path}' is of mode {mask.mode} ({_what(mask)}), not one class a pixel; save it as "
                    "an 8-bit PNG of one channel whose values are classes"
                )
            return torch.from_numpy(np.array(mask, dtype=np.uint8))
    except InputError:
        raise
    except Exception as error:  # a damaged file fails anywhere inside PIL's readers
        raise InputError(f"cannot read the mask '{path}': {one_line(error)}") from error


def _what(mask: Image.Image) -> str:
    return "more than 8 bits a pixel" if mask.mode == "F" or mask.mode.startswith("I") else "the colours of a picture"


def _largest(image: str, mask: str) -> int | None:
    """The largest class of a mask, None of one that says nothing; :class:`InputError` where it is of another size."""
    classes, (height, width) = read_mask(mask), size_of(image)
    if tuple(classes.shape) != (height, width):
        raise InputError(
            f"the mask '{mask}' is {classes.shape[1]} x {classes.shape[0]} pixels, and its image {width} x {height}; "
            "give a mask of the image's size"
        )
    counted = classes[classes != IGNORED]
    return int(counted.max()) if counted.numel() else None
