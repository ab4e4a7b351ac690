"""Data sets of torchvision that lie there as they are published, in archives: read without unpacking them for good."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torchvision.datasets.utils import check_integrity, extract_archive

_MOST = 64 << 20
"""Bytes that are unpacked of one file: the largest of MNIST has 47 MB. What is longer is found to be cut short."""


@contextmanager
def unpacked(dataset: Any, root: Path) -> Iterator[Path | None]:
    """A folder, for as long as it is needed, with what the archives of a class of torchvision in ``root`` hold.

    None where one of them is missing. An archive of pickled files, CIFAR's, must be the one that torchvision knows.
    """
    with TemporaryDirectory(prefix="dnas-data-") as folder:
        unpack = _unpack_idx if hasattr(dataset, "resources") else _unpack_batches
        yield Path(folder) if unpack(dataset, root, Path(folder)) else None


def _unpack_idx(dataset: Any, root: Path, folder: Path) -> bool:
    """MNIST and its like: images and labels in files of their own; one that is unpacked already is taken as it is."""
    raw = Path(dataset.__name__) / "raw"
    (folder / raw).mkdir(parents=True)
    for name, _ in dataset.resources:
        packed, plain = root / raw / name, raw / Path(name).stem
        if packed.is_file():
            with gzip.open(packed) as content:
                (folder / plain).write_bytes(content.read(_MOST))
        elif (root / plain).is_file():
            shutil.copyfile(root / plain, folder / plain)
        else:
            return False
    return True


def _unpack_batches(dataset: Any, root: Path, folder: Path) -> bool:
    archive = root / dataset.filename
    if not check_integrity(archive, dataset.tgz_md5):
        return False
    extract_archive(archive, folder)
    return True
