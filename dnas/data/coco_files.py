"""COCO: ``annotations/instances_train*.json`` beside ``train*/``, or ``train/_annotations.coco.json`` among its images.

So for ``val`` or ``test``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.data.box_files import SPLITS, Annotated, checked_box, content_of, inside, number, side, split_of
from search_spaces.errors import InputError, one_line

_MOST_CLASSES = 1 << 16
_LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}
"""The lists of a file, and what one entry is called."""


def read_coco(root: Path) -> tuple[list[Annotated], list[Annotated], tuple[str, ...]]:
    """The files of the training and the test split, and the names of the classes by their number, 0 being no class.

    Classes keep their ids, as torchvision's pretrained detectors have them, but where one is 0: then they count from 1.
    """
    train_file, test_file = (_file(root, names) for names in SPLITS.values())
    contents = [(path, folder, _json(path)) for path, folder in (train_file, test_file)]
    numbers, names = _classes(contents[0][0], contents[0][2])
    train, test = (split_of(_images(*each, numbers), each[0]) for each in contents)
    return train, test, names


def _file(root: Path, splits: Sequence[str]) -> tuple[Path, Path]:
    """The annotations of the first of the splits that is there, and the folder of its images."""
    for split in splits:
        among_images = root / split / "_annotations.coco.json"
        if among_images.is_file():
            return among_images, among_images.parent
        for path in sorted((root / "annotations").glob(f"instances_{split}*.json")):
            folder = root / path.stem.removeprefix("instances_")
            return path, folder if folder.is_dir() else root / "images" / folder.name
    raise InputError(
        f"dataset 'coco': '{root}' has no annotations/instances_{splits[0]}*.json and no "
        f"{splits[0]}/_annotations.coco.json; give the folder that holds them"
    )


def _json(path: Path) -> Mapping[str, Any]:
    content = content_of(path)
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is no text in UTF-8: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is no JSON: {one_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in _LISTS):
        raise InputError(f"'{path}' is not in COCO's format: it needs lists of {', '.join(_LISTS)}")
    return found


def _entries(path: Path, content: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each entry of a list, with the words for where it is."""
    for at, entry in enumerate(content[key]):
        if not isinstance(entry, dict):
            raise InputError(f"'{path}' is not in COCO's format: entry {at} of {key} is {entry!r:.60}, no object")
        yield f"'{path}', " + (f"{_LISTS[key]} {entry['id']!r:.60}" if "id" in entry else f"entry {at} of {key}"), entry


def _id(where: str, key: str, entry: Mapping[str, Any]) -> Any:
    """A number or a text that names something."""
    if key not in entry:
        raise InputError(f"{where} has no {key}")
    if isinstance(found := entry[key], bool) or not isinstance(found, int | float | str):
        raise InputError(f"{where}: {key} is {found!r:.60}, not a number or a text")
    return found


def _classes(path: Path, content: Mapping[str, Any]) -> tuple[dict[int, int], tuple[str, ...]]:
    """The number of each category id, and the names by number."""
    categories: dict[int, str] = {}
    for where, entry in _entries(path, content, "categories"):
        given, name = number(where, "id", entry.get("id")), entry.get("name")
        if not given.is_integer() or not isinstance(name, str):
            raise InputError(f"{where} has name {name!r:.60}; a category has a whole number for id, and a name")
        if given in categories:
            raise InputError(
                f"'{path}' gives the category id {given:g} to '{categories[int(given)]}' and to '{name}'; give each "
                "one of its own"
            )
        categories[int(given)] = name
    if not categories:
        raise InputError(f"'{path}' has no category")
    ids = sorted(categories)
    if ids[-1] - min(ids[0], 1) > _MOST_CLASSES:
        raise InputError(
            f"'{path}': category ids go from {ids[0]} to {ids[-1]}; a network has an output for each number"
        )
    shift = 1 - min(ids[0], 1)
    named = {known + shift: name for known, name in categories.items()}
    return {known: known + shift for known in ids}, tuple(named.get(n, "") for n in range(max(named) + 1))


def _images(path: Path, folder: Path, content: Mapping[str, Any], numbers: Mapping[int, int]) -> Iterator[Annotated]:
    images: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for where, image in _entries(path, content, "images"):
        name = _id(where, "id", image)
        if name in images:
            raise InputError(f"'{path}' gives the image id {name!r:.60} to two images; give each one of its own")
        images[name] = where, image
    of_image: dict[Any, list[tuple[str, Mapping[str, Any]]]] = {name: [] for name in images}
    for where, annotation in _entries(path, content, "annotations"):
        name = _id(where, "image_id", annotation)
        if name not in images:
            raise InputError(f"{where} is of image {name!r:.60}, which is not among the images; correct or remove it")
        of_image[name].append((where, annotation))
    for name, (where, image) in images.items():
        yield _annotated(folder, where, image, of_image[name], numbers)


def _annotated(
    folder: Path,
    where: str,
    image: Mapping[str, Any],
    annotations: Sequence[tuple[str, Mapping[str, Any]]],
    numbers: Mapping[int, int],
) -> Annotated:
    width, height = (side(where, key, image.get(key)) for key in ("width", "height"))
    if not isinstance(name := image.get("file_name"), str):
        raise InputError(f"{where}: file_name is {name!r:.60}, not a name")
    boxes, labels, crowds = [], [], []
    for told, annotation in annotations:
        x, y, across, down = _corner_and_sides(told, annotation.get("bbox"))
        boxes.append(checked_box(told, (x, y, x + across, y + down), width, height))
        category = _id(told, "category_id", annotation)
        if category not in numbers:
            raise InputError(f"{told} is of category {category!r:.60}, which the training split has not")
        labels.append(numbers[category])
        if (crowd := annotation.get("iscrowd", 0)) not in (0, 1):
            raise InputError(f"{told}: iscrowd is {crowd!r:.60}; write 0 or 1")
        crowds.append(bool(crowd))
    return Annotated(str(inside(folder, name)), width, height, tuple(boxes), tuple(labels), tuple(crowds))


def _corner_and_sides(where: str, bbox: Any) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise InputError(f"{where}: bbox is {bbox!r:.60}, not x, y, width and height; correct or remove it")
    return [number(where, "bbox", value) for value in bbox]
