"""Sources of images with targets that have a place in them: boxes and maps, of files or generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dnas.data.box_files import BoxFiles
from dnas.data.coco_files import read_coco
from dnas.data.loaders import Loaders
from dnas.data.mask_files import MaskFiles, read_masks
from dnas.data.pool import COLOUR, Pool, Source, SourceOptions, natural_size
from dnas.data.roots import root_of
from dnas.data.shapes import NAMES, SIDE, TEST, TRAIN, shapes
from dnas.data.target_images import HeldItems, TargetImages
from dnas.data.voc_files import read_voc


def _shapes(options: SourceOptions, maps: bool) -> Pool:
    """The generated shapes, with their boxes or with maps of their classes."""
    side = options.image_size or SIDE
    parts = shapes(TRAIN, side, seed=0), shapes(TEST, side, seed=1)
    train, test = (
        TargetImages.of(HeldItems(part.images, part.maps if maps else part.targets), classes=len(NAMES) + 1)
        for part in parts
    )
    return Pool(train, test, len(NAMES) + 1, ("background", *NAMES))


def _boxes(source: str, read: Callable[[Path], Any], options: SourceOptions) -> Pool:
    """Image files with boxes, which stay in [0, 1], as detectors want them."""
    train, test, names = read(root_of(source, options.root))
    side = options.image_size or natural_size(train[0].path)[0]
    loaders = Loaders(options.workers)
    train_images, test_images = (
        TargetImages.of(BoxFiles(files, (side, side)), classes=len(names), loaders=loaders) for files in (train, test)
    )
    return Pool(train_images, test_images, len(names), names)


def _masks(options: SourceOptions) -> Pool:
    """Image files with maps of classes, normalised as for torchvision's networks."""
    train, test, classes = read_masks(root_of("masks", options.root))
    size = (options.image_size, options.image_size) if options.image_size else natural_size(train[0][0])
    loaders = Loaders(options.workers)
    train_images, test_images = (
        TargetImages.of(MaskFiles(files, size), *COLOUR, classes, loaders) for files in (train, test)
    )
    return Pool(train_images, test_images, classes)


TARGET_SOURCES: Mapping[str, Source] = {
    "coco": partial(_boxes, "coco", read_coco),
    "voc": partial(_boxes, "voc", read_voc),
    "masks": _masks,
    "detection-shapes": partial(_shapes, maps=False),
    "segmentation-shapes": partial(_shapes, maps=True),
}
