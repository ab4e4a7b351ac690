"""Where datasets come from: scikit-learn's digits, torchvision, a folder of images, or the user's own callable."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor

from dnas.data.archives import unpacked
from dnas.data.checks import check_splits
from dnas.data.class_folders import class_folders
from dnas.data.image_sets import DataSplits, MemoryImages, has_classes, stratified_indices
from dnas.data.pool import COLOUR, Pool, Source, SourceOptions
from dnas.data.roots import DEFAULT_ROOT, TORCHVISION, check_fetched, name_of
from dnas.data.shapes import SIDE
from dnas.data.target_images import are_structures, held_images
from dnas.data.target_sources import TARGET_SOURCES
from search_spaces.errors import InputError, one_line
from search_spaces.registry import DOWNLOAD, Registry, called, importable_working_directory, refuse_reaching_out

_NORMALISED = dict(zip(TORCHVISION, (((0.1307,), (0.3081,)), ((0.2860,), (0.3530,)), COLOUR, COLOUR), strict=True))
_SHAPES = {"mnist": (1, 28), "fashionmnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32)}
_SHAPES |= dict.fromkeys(("detection-shapes", "segmentation-shapes"), (3, SIDE))


def published_shape(source: str, image_size: int | None) -> tuple[int, int, int] | None:
    """The shape (C, H, W) of the images of a source, resized, where no file need be read for it; else None."""
    if source == "imagefolder":
        return (3, image_size, image_size) if image_size else None
    channels, side = _SHAPES.get(name_of(source), (0, 0))
    return (channels, image_size or side, image_size or side) if channels else None


def read_pool(source: str, options: SourceOptions) -> Pool | DataSplits:
    """Read training and test images of ``source``; raises InputError as :func:`dnas.data.load.load_data`."""
    return SOURCES.find(name_of(source))(options)


def _digits(options: SourceOptions) -> Pool:
    """scikit-learn's 1,797 digits; a stratified fifth, drawn once and for all with seed 0, is the test split."""
    content = load_digits()
    images = torch.from_numpy(content.images).float()[:, None] / 16.0
    labels = torch.from_numpy(content.target).long()
    test = stratified_indices(labels, round(len(labels) / 5), seed=0)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[test] = False
    whole = MemoryImages(images, labels, mean=(float(images[kept].mean()),), std=(float(images[kept].std()),))
    return Pool(whole.subset(kept.nonzero().flatten()), whole.subset(test), 10, tuple(map(str, range(10))))


def _torchvision(name: str, options: SourceOptions) -> Pool:
    """Open a torchvision dataset; only files whose MD5 torchvision knows are ever unpickled (the CIFAR batches)."""
    source, root = name.lower(), options.root or DEFAULT_ROOT
    try:
        train, test = _open(name, root)
    except Exception as error:  # missing, cut short or altered files fail anywhere in torchvision's readers
        if not options.download:
            # torchvision's own sentence would advise an argument that is not ours.
            reason = "" if "download=True" in str(error) else f" ({one_line(error)})"
            check_fetched(source, root)
            raise InputError(
                f"dataset '{source}' is not in '{root}', or not whole{reason}; set download = true to fetch it, or "
                "root to the folder that holds it"
            ) from error
        refuse_reaching_out(DOWNLOAD, f"dataset '{source}' is to be fetched")
        _download(source, name, root)
        train, test = _open(name, root)
    mean, std = _NORMALISED[name]
    return Pool(MemoryImages(*train, mean, std), MemoryImages(*test, mean, std), len(torch.unique(train[1])))


def _open(name: str, root: Path) -> list[tuple[Tensor, Tensor]]:
    """The images and labels of both splits; from the archives where those are all there is."""
    dataset = getattr(torchvision.datasets, name)
    try:
        return _parts(dataset, root)
    except Exception:
        with unpacked(dataset, root) as folder:
            if folder is None:
                raise
            return _parts(dataset, folder)


def _parts(made: Any, root: Path) -> list[tuple[Tensor, Tensor]]:
    parts = []
    for train in (True, False):
        dataset = made(root, train=train)
        images, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        parts.append((images, labels))
    return parts


def _download(source: str, name: str, root: Path) -> None:
    """Fetch into a folder beside the final one, and move the files only when all of them are whole."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            getattr(torchvision.datasets, name)(folder, download=True)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file() and file.suffix != ".gz":  # the archives are not read again
                    target = root / file.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
    except Exception as error:  # every layer of the network stack has its own
        with contextlib.suppress(OSError):
            for folder_made in created:
                folder_made.rmdir()
        raise InputError(
            f"dataset '{source}' could not be downloaded to '{root}' ({one_line(error)}); check the network, or set "
            "root to a folder that holds it"
        ) from error


def _called(source: str, function: Callable[[], Any]) -> Pool | DataSplits:
    """Call the user's function and check what it returned."""
    with importable_working_directory():
        try:
            content = function()
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # the user's own code may fail in any way
            raise InputError(f"dataset '{source}' failed: {one_line(error)}") from error
    if isinstance(content, DataSplits):
        check_splits(content)
        return content
    if not isinstance(content, tuple | list) or len(content) != 4:
        raise InputError(
            f"dataset '{source}' must return DataSplits or (train images, train labels, test images, test labels), "
            f"got {type(content).__name__}"
        )
    train_images, train_labels = _checked(source, "train", content[0], content[1])
    test_images, test_labels = _checked(source, "test", content[2], content[3])
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = f"{tuple(train_images.shape[1:])} and {tuple(test_images.shape[1:])}"
        raise InputError(f"dataset '{source}': train and test images differ in shape: {shapes}")
    mean, std = ((), ()) if isinstance(train_labels, list) else _normalisation(train_images)
    train, test = (held_images(*each, mean, std) for each in ((train_images, train_labels), (test_images, test_labels)))
    if not has_classes(train_labels):
        return Pool(train, test, 0)
    classes = int(train_labels.max()) + 1
    if int(test_labels.max()) >= classes:
        raise InputError(f"dataset '{source}': test label {int(test_labels.max())} is not among the train labels")
    return Pool(train, test, classes)


def _checked(source: str, split: str, images: Any, labels: Any) -> tuple[Tensor, Any]:
    """Check images (N, C, H, W), uint8 or finite floats, and classes (N,) from 0 on or targets (N, ...) of a task.

    Targets that are structures, such as dicts of boxes, are a list of N.
    """
    try:
        images, labels = torch.as_tensor(images), labels if are_structures(labels) else torch.as_tensor(labels)
    except Exception as error:
        raise InputError(f"dataset '{source}': {split} data are no tensors: {one_line(error)}") from error
    if images.ndim != 4 or not getattr(labels, "ndim", 1) or len(labels) != len(images) or not len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(getattr(labels, 'shape', (len(labels),)))}"
        raise InputError(f"dataset '{source}': {split} images must be (N, C, H, W) and labels (N,), got {shapes}")
    if has_classes(labels) and (labels.dtype == torch.bool or int(labels.min()) < 0):
        raise InputError(f"dataset '{source}': {split} labels must be integers from 0 on")
    if images.dtype != torch.uint8 and not (images.is_floating_point() and bool(images.isfinite().all())):
        raise InputError(f"dataset '{source}': {split} images must be uint8 or finite floats, got {images.dtype}")
    return images, labels


def _normalisation(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of uint8 images by channel; floats are taken as normalised already."""
    channels = images.shape[1]
    if images.dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    # Counting the 256 values needs no float copy of the images.
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, stds = [], []
    for channel in range(channels):
        weights = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = float((weights * values).sum() / weights.sum())
        means.append(mean)
        stds.append(max(1e-3, float((weights * (values - mean) ** 2).sum() / weights.sum()) ** 0.5))
    return tuple(means), tuple(stds)


def _own(source: str, found: Any) -> Source:
    function = called(source, found, "dataset", [DataSplits, tuple, list])
    return lambda options: _called(source, function)


SOURCES: Registry[Source] = Registry(
    "dataset",
    {
        "digits": _digits,
        "imagefolder": class_folders,
        **TARGET_SOURCES,
        **{name.lower(): partial(_torchvision, name) for name in TORCHVISION},
    },
    _own,
)
"""Data sets by name; the names of torchvision's may be written out, as in torchvision:CIFAR10."""
