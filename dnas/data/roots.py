"""Data sets that lie in a folder of the user's, and what is told where they do not lie there: without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from search_spaces.errors import InputError

TORCHVISION = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")
"""Data sets of torchvision; a job names them in lower case, or as ``torchvision:NAME``."""
DEFAULT_ROOT = Path("data")
"""Where those lie unless the job says it."""


def name_of(source: str) -> str:
    """The name that a data set is registered by."""
    prefix, _, name = source.partition(":")
    return name.lower() if prefix == "torchvision" else source


def check_root(source: str, root: Path | None, download: bool) -> None:
    """Refuse a root where the data of ``source`` cannot lie; what can be told by looking at folders alone."""
    name = name_of(source)
    if name in ROOTED:
        ROOTED[name](root)
    elif name in map(str.lower, TORCHVISION) and not download:
        check_fetched(name, root or DEFAULT_ROOT)


def check_fetched(name: str, root: Path) -> None:
    """Refuse a ``root`` that is no folder for data of torchvision that are not to be fetched."""
    if wrong := no_folder(root):
        raise InputError(
            f"dataset '{name}': root '{root}' {wrong}; set download = true to fetch it, or root to the folder that "
            "holds it"
        )


def class_folders_of(root: Path | None) -> tuple[Path, Path]:
    """The folders of training and of test images, each of which holds a folder for every class."""
    found = root_of("imagefolder", root, "train/CLASS/*", " and test/ or val/")
    test_folder = next((found / name for name in ("test", "val") if (found / name).is_dir()), None)
    if not (found / "train").is_dir() or test_folder is None:
        missing = "train/" if test_folder else "test/ or val/"
        raise InputError(f"dataset 'imagefolder': '{found}' has no folder {missing}")
    return found / "train", test_folder


def root_of(source: str, root: Path | None, held: str = "it", besides: str = "") -> Path:
    """The root of data that a user must have; ``held`` and ``besides`` say what it holds."""
    if root is None:
        raise InputError(f"dataset '{source}' needs root, the folder that holds {held}{besides}")
    if wrong := no_folder(root):
        raise InputError(f"dataset '{source}': root '{root}' {wrong}; give the folder that holds {held}")
    return root


def no_folder(root: Path) -> str:
    """What is wrong with a root that is no folder, in words; empty where it is one."""
    try:
        if root.is_dir():
            return ""
        return "is no folder" if root.exists() else f"does not exist (looked for {root.absolute()})"
    except OSError as error:  # a name that is too long, a folder that cannot be looked into
        return f"cannot be read: {error.strerror or error}"


ROOTED: Mapping[str, Callable[[Path | None], object]] = {
    "imagefolder": class_folders_of,
    **{name: partial(root_of, name) for name in ("coco", "voc", "masks")},
}
"""Name of a source → what tells that its root is wrong, as its reader does."""
