"""Image files with boxes: folders as COCO has them, and VOC's XML files.

COCO: ``annotations/instances_train*.json`` beside ``train*/``, or ``train/_annotations.coco.json`` among its images; so
for ``val`` and ``test``. VOC: ``Annotations/*.xml``, ``JPEGImages/`` and ``ImageSets/Main/train.txt``, or ``train/``
with files and images together. Boxes are checked as they are read, before any training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import resize

from dnas.data.decoding import decode
from search_spaces.errors import InputError, one_line, unreadable
from search_spaces.user_files import read_regular

_SLACK = 1.0  # pixels that a box may stand over the edge, as rounding leaves it; what stands over is cut off
_MOST_CLASSES = 1 << 16
_SPLITS = {"train": ("train",), "test": ("test", "val", "valid")}


@dataclass(frozen=True)
class Annotated:
    """One image file with its size in pixels, its boxes as x0, y0, x1, y1, their classes, and which are crowds."""

    path: str
    width: float
    height: float
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]
    crowds: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class BoxFiles:
    """Annotated image files, decoded and stretched to ``size`` (H, W) as they are read; boxes are stretched too."""

    files: Sequence[Annotated]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image (3, H, W), uint8, and its target; InputError for one that is not as large as its file says."""
        file = self.files[index]
        image = decode(file.path)
        if abs(image.shape[1] - file.height) > _SLACK or abs(image.shape[2] - file.width) > _SLACK:
            raise InputError(
                f"the image '{file.path}' is {image.shape[2]} x {image.shape[1]} pixels, and its annotation says "
                f"{file.width:g} x {file.height:g}; correct the annotation"
            )
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


def read_coco(root: Path) -> tuple[list[Annotated], list[Annotated], tuple[str, ...]]:
    """The files of the training and the test split, and the names of the classes by their number, 0 being no class.

    Classes keep their ids, as torchvision's pretrained detectors have them, but where one is 0: then they count from 1.
    """
    train_file, test_file = (_coco_file(root, names) for names in _SPLITS.values())
    contents = [(path, folder, _json(path)) for path, folder in (train_file, test_file)]
    numbers, names = _coco_classes(contents[0][0], contents[0][2])
    train, test = (_coco_split(*each, numbers) for each in contents)
    return train, test, names


def _coco_file(root: Path, splits: Sequence[str]) -> tuple[Path, Path]:
    """The annotations of the first of the splits that is there, and the folder of its images."""
    for split in splits:
        inside = root / split / "_annotations.coco.json"
        if inside.is_file():
            return inside, inside.parent
        for path in sorted((root / "annotations").glob(f"instances_{split}*.json")):
            folder = root / path.stem.removeprefix("instances_")
            return path, folder if folder.is_dir() else root / "images" / folder.name
    raise InputError(
        f"dataset 'coco': '{root}' has no annotations/instances_{splits[0]}*.json and no "
        f"{splits[0]}/_annotations.coco.json; give the folder that holds them"
    )


def _json(path: Path) -> Mapping[str, Any]:
    text = _read(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is no JSON: {one_line(error)}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise InputError(f"'{path}' is not in COCO's format: it needs lists of {', '.join(lists)}")
    return content


def _coco_classes(path: Path, content: Mapping[str, Any]) -> tuple[dict[int, int], tuple[str, ...]]:
    """The number of each category id, and the names by number."""
    try:
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}': a category has no id or name ({one_line(error)})") from error
    if not categories:
        raise InputError(f"'{path}' has no category")
    ids = sorted(categories)
    if ids[-1] - min(ids[0], 1) > _MOST_CLASSES:
        raise InputError(
            f"'{path}': category ids go from {ids[0]} to {ids[-1]}; a network has an output for each number"
        )
    shift = 1 - min(ids[0], 1)
    named = {number + shift: name for number, name in categories.items()}
    return {number: number + shift for number in ids}, tuple(named.get(n, "") for n in range(max(named) + 1))


def _coco_split(path: Path, folder: Path, content: Mapping[str, Any], numbers: Mapping[int, int]) -> list[Annotated]:
    of_image: dict[Any, list[Mapping[str, Any]]] = {}
    try:
        for annotation in content["annotations"]:
            of_image.setdefault(annotation.get("image_id"), []).append(annotation)
        images = {image["id"]: image for image in content["images"]}
        stray = next((key for key in of_image if key not in images), None)
        if stray is not None:
            raise InputError(f"'{path}': an annotation is of image {stray}, which is not among its images")
        return _some(
            [_coco_image(path, folder, image, of_image.get(key, []), numbers) for key, image in images.items()]
        )
    except InputError:  # a ValueError too
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"'{path}' is not in COCO's format: {one_line(error)}") from error


def _coco_image(
    path: Path,
    folder: Path,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    numbers: Mapping[int, int],
) -> Annotated:
    boxes, labels, crowds = [], [], []
    for annotation in annotations:
        where = f"'{path}', annotation {annotation.get('id', '?')}"
        x, y, width, height = _numbers(where, annotation["bbox"])
        boxes.append(checked_box(where, (x, y, x + width, y + height), image["width"], image["height"]))
        if annotation["category_id"] not in numbers:
            raise InputError(f"{where} is of category {annotation['category_id']}, which the training split has not")
        labels.append(numbers[annotation["category_id"]])
        crowds.append(bool(annotation.get("iscrowd", 0)))
    file = _inside(folder, image["file_name"])
    return Annotated(str(file), image["width"], image["height"], tuple(boxes), tuple(labels), tuple(crowds))


def _numbers(where: str, bbox: Any) -> list[float]:
    whole = isinstance(bbox, list) and len(bbox) == 4
    if not whole or any(isinstance(value, bool) or not isinstance(value, int | float) for value in bbox):
        raise InputError(f"{where}: bbox {bbox!r:.60} is not x, y, width and height; correct or remove it")
    return [float(value) for value in bbox]


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


def read_voc(root: Path) -> tuple[list[Annotated], list[Annotated], tuple[str, ...]]:
    """As :func:`read_coco`, of VOC's XML files; classes count from 1 in the order of their names.

    Objects that are marked as difficult need not be found.
    """
    found = [_voc_files(root, names) for names in _SPLITS.values()]
    trees = [[(path, _xml(path)) for path in paths] for paths, _ in found]
    names = sorted({_text(path, thing, "name") for path, tree in trees[0] for thing in tree.iter("object")})
    if not names:
        raise InputError(f"dataset 'voc': no object is in the training files of '{root}'")
    numbers = {name: number for number, name in enumerate(names, start=1)}
    train, test = (
        _some([_voc_image(path, tree, folder, numbers) for path, tree in some])
        for some, (_, folder) in zip(trees, found, strict=True)
    )
    return train, test, ("", *names)


def _voc_files(root: Path, splits: Sequence[str]) -> tuple[list[Path], Path]:
    """The XML files of the first of the splits that is there, and the folder of their images."""
    for split in splits:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if listed.is_file():
            names = [line.split()[0] for line in _read(listed).splitlines() if line.strip()]
            return [root / "Annotations" / f"{name}.xml" for name in names], root / "JPEGImages"
        if (root / split).is_dir():
            return sorted((root / split).rglob("*.xml")), root / split
    raise InputError(
        f"dataset 'voc': '{root}' has no ImageSets/Main/{splits[0]}.txt and no folder {splits[0]}/ of XML files; give "
        "the folder that holds one"
    )


def _read(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read '{path}': {unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is no text in UTF-8: {one_line(error)}") from error


def _xml(path: Path) -> ElementTree.Element:
    text = _read(path)
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"'{path}' is no XML: {one_line(error)}") from error


def _text(path: Path, element: ElementTree.Element, key: str) -> str:
    found = element.findtext(key)
    if found is None or not found.strip():
        raise InputError(f"'{path}': <{element.tag}> has no <{key}>")
    return found.strip()


def _voc_image(path: Path, tree: ElementTree.Element, folder: Path, numbers: Mapping[str, int]) -> Annotated:
    def number(element: ElementTree.Element, key: str) -> float:
        text = _text(path, element, key)
        try:
            return float(text)
        except ValueError as error:
            raise InputError(f"'{path}': <{key}> is '{text}', not a number") from error

    size = tree.find("size")
    if size is None:
        raise InputError(f"'{path}' has no <size>")
    width, height = number(size, "width"), number(size, "height")
    boxes, labels, crowds = [], [], []
    for thing in tree.iter("object"):
        box = thing.find("bndbox")
        if box is None:
            raise InputError(f"'{path}': <object> has no <bndbox>")
        x0, y0, x1, y1 = (number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append(checked_box(f"'{path}'", (x0 - 1, y0 - 1, x1, y1), width, height))  # VOC's pixels count from 1
        name = _text(path, thing, "name")
        if name not in numbers:
            raise InputError(f"'{path}': class '{name}' is not in the training split")
        labels.append(numbers[name])
        crowds.append(thing.findtext("difficult", "0").strip() == "1")
    file = _inside(folder, _text(path, tree, "filename"))
    return Annotated(str(file), width, height, tuple(boxes), tuple(labels), tuple(crowds))


def _inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder, in one below it perhaps; a name cannot lead out of it."""
    relative = Path(name)
    return folder / (relative.name if relative.is_absolute() or ".." in relative.parts else relative)


def _some(files: list[Annotated]) -> list[Annotated]:
    """The files; :class:`InputError` where there is none, or one is not there."""
    if not files:
        raise InputError("a split holds no image; give some")
    missing = next((file.path for file in files if not Path(file.path).is_file()), None)
    empty = next((file for file in files if not (file.width > 0 and file.height > 0)), None)
    if empty is not None:
        raise InputError(f"the annotation of '{empty.path}' says {empty.width:g} x {empty.height:g} pixels; correct it")
    if missing is not None:
        raise InputError(f"the image '{missing}' is annotated and not there; fetch it, or remove its annotation")
    return files
