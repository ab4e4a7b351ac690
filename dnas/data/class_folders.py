"""A folder of images with a folder for every class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from dnas.data.endings import counted, ending, is_picture, told_unread, visible
from dnas.data.image_files import FolderImages
from dnas.data.loaders import Loaders
from dnas.data.pool import COLOUR, Pool, SourceOptions, natural_size
from dnas.data.roots import class_folders_of
from search_spaces.errors import InputError

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))


def class_folders(options: SourceOptions) -> Pool:
    """List the files of both splits; a size that is not given is that of the first image if small, else 224."""
    train_folder, test_folder = class_folders_of(options.root)
    classes, train_paths, train_labels = _list_images(train_folder)
    test_classes, test_paths, test_labels = _list_images(test_folder)
    for name in sorted(set(classes) ^ set(test_classes)):
        holder, other = (train_folder, test_folder) if name in classes else (test_folder, train_folder)
        raise InputError(f"dataset 'imagefolder': class '{name}' is in '{holder}' but not in '{other}'")
    size = (options.image_size, options.image_size) if options.image_size else natural_size(train_paths[0])
    loaders = Loaders(options.workers)
    train, test = (
        FolderImages(paths, labels, size, *COLOUR, loaders, options.decoding)
        for paths, labels in ((train_paths, train_labels), (test_paths, test_labels))
    )
    return Pool(train, test, len(classes), tuple(classes))


def _list_images(folder: Path) -> tuple[list[str], tuple[str, ...], Tensor]:
    """Return the sorted classes, and the paths with their labels (N,)."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"dataset 'imagefolder': '{folder}' holds no class folders")
    numbers = {name: number for number, name in enumerate(classes)}
    files = make_dataset(folder, numbers, is_valid_file=visible, allow_empty=True)
    found = [(label, path) for path, label in files if ending(path) in _IMAGE_SUFFIXES]
    others = [(label, ending(path)) for path, label in files if ending(path) not in _IMAGE_SUFFIXES]
    labels, paths = zip(*sorted(found), strict=True) if found else ((), ())
    for empty in sorted({*range(len(classes))} - {*labels}):
        raise InputError(
            f"dataset 'imagefolder': class folder '{folder / classes[empty]}' holds no images: "
            f"{told_unread(_IMAGE_SUFFIXES, (suffix for label, suffix in others if label == empty))}"
        )
    if pictures := [suffix for _, suffix in others if is_picture(suffix)]:
        warnings.warn(
            f"dataset 'imagefolder': pictures in '{folder}' are left out, for their kind is not read: "
            f"{counted(pictures)}; save them as PNG or JPEG",
            stacklevel=2,
        )
    return classes, paths, torch.tensor(labels)
