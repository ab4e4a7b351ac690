"""From a source string to three splits of a dataset; validation images are always held out of the training ones."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path
from typing import get_args

import torch

from dnas.data.augmentation import SMALL_PIXELS, Augmentation
from dnas.data.image_files import Decoding, FolderImages
from dnas.data.image_sets import DataSplits, ImageSet, MemoryImages, stratified_indices
from dnas.data.pool import SourceOptions
from dnas.data.sources import published_shape, read_pool
from dnas.data.target_images import TargetImages
from search_spaces.errors import InputError, check_type

__all__ = ["Augmentation", "DataSplits", "FolderImages", "ImageSet", "MemoryImages", "load_data", "stratified_indices"]

_MEMORY_LIMIT_BYTES = 4 * 2**30


def load_data(
    source: str,
    *,
    root: Path | str | None = None,
    download: bool = False,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    workers: int = 0,
    decode: Decoding = "cpu",
) -> DataSplits:
    """Read a dataset and split it.

    ``source`` is ``digits`` (a fixed stratified fifth is the test split), ``torchvision:NAME`` (MNIST, FashionMNIST,
    CIFAR10, CIFAR100; the short lower-case name will do), ``imagefolder`` (``root`` holds ``train/CLASS/*`` and
    ``test/`` or ``val/``), or ``package.module:callable`` which returns (train images, train labels, test images,
    test labels) or :class:`DataSplits`. ``train_limit`` caps the images that training and validation share; both
    limits and the validation split are stratified by class and follow from ``split_seed``. Splits that a callable
    made itself keep their validation split and image size. ``workers`` is the number of processes that read
    files of an image folder, and decode them where ``decode`` is not a device's task, as
    :class:`dnas.data.image_files.FolderImages` says. Raises InputError on whatever cannot be used or found.
    """
    _refuse_options(validation_fraction, image_size, train_limit, test_limit, workers)
    if decode not in get_args(Decoding):
        raise InputError(f"decode must be one of {', '.join(get_args(Decoding))}, got {decode!r}")
    options = SourceOptions(None if root is None else Path(root), download, image_size, workers, decode)
    pool = read_pool(str(source), options)
    if isinstance(pool, DataSplits):
        train = _limited(pool.train, train_limit, split_seed)
        test = _limited(pool.test, test_limit, split_seed)
        return DataSplits(train, pool.val, test, pool.classes, pool.input_shape, pool.class_names)
    pooled = _limited(pool.train, train_limit, split_seed)
    count = max(1, round(validation_fraction * len(pooled)))
    if len(pooled) < 2 * count:
        raise InputError(f"dataset '{source}': {len(pooled)} training images are too few to hold {count} of them out")
    held_out = stratified_indices(pooled.labels, count, split_seed)
    kept = torch.ones(len(pooled), dtype=torch.bool)
    kept[held_out] = False
    train = _prepared(pooled.subset(kept.nonzero().flatten()), image_size)
    val = _prepared(pooled.subset(held_out), image_size)
    test = _prepared(_limited(pool.test, test_limit, split_seed), image_size)
    return DataSplits(train, val, test, pool.classes, train.input_shape, pool.class_names)


def input_shape_of(source: str, root: Path | str | None = None, image_size: int | None = None) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images that :func:`load_data` gives; nothing is fetched, and no folder decoded.

    Raises InputError where it can only be told by images that are not there.
    """
    known = published_shape(source, image_size)
    if known is not None:
        return known
    pool = read_pool(source, SourceOptions(None if root is None else Path(root), image_size=image_size))
    if isinstance(pool, DataSplits):
        return pool.input_shape
    channels, height, width = pool.train.input_shape
    return channels, image_size or height, image_size or width


def _refuse_options(
    validation_fraction: float, image_size: int | None, train_limit: int | None, test_limit: int | None, workers: int
) -> None:
    check_type(validation_fraction, Real, "validation_fraction", "give a number such as 0.1")
    if not 0.0 < validation_fraction <= 0.5:
        raise InputError(f"validation_fraction must lie in (0, 0.5], got {validation_fraction}")
    for name, value, least in (
        ("image_size", image_size, 1),
        ("train_limit", train_limit, 2),
        ("test_limit", test_limit, 1),
        ("workers", workers, 0),
    ):
        if value is not None:
            check_type(value, Integral, name, "give a whole number")
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def _limited(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    if limit is None or limit >= len(images):
        return images
    return images.subset(stratified_indices(images.labels, limit, seed))


def _prepared(images: ImageSet, image_size: int | None) -> ImageSet:
    """Bring one split to the wanted size, and into memory where it is small."""
    if isinstance(images, FolderImages):
        fits = len(images) * math.prod(images.input_shape) <= _MEMORY_LIMIT_BYTES
        return images.decoded() if fits and max(images.size) <= SMALL_PIXELS else images
    if isinstance(images, TargetImages) and image_size and images.input_shape[1:] != (image_size, image_size):
        raise InputError(
            f"image_size = {image_size}: the images of this source are {images.input_shape[1:]}, and targets that have "
            "a place in them are not resized; leave it out, or resize both where they are made"
        )
    if isinstance(images, MemoryImages) and image_size and images.input_shape[1:] != (image_size, image_size):
        return images.resized(image_size)
    return images
