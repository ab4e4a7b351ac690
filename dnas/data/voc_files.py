"""VOC: ``Annotations/*.xml``, ``JPEGImages/`` and ``ImageSets/Main/train.txt``, or ``train/`` with files and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from dnas.data.box_files import SPLITS, Annotated, checked_box, content_of, inside, number, side, split_of
from dnas.data.endings import ending, told_unread, visible
from search_spaces.errors import InputError, one_line

_DIFFICULT = {"": False, "0": False, "1": True}


def read_voc(root: Path) -> tuple[list[Annotated], list[Annotated], tuple[str, ...]]:
    """The files of the training and the test split, and the names of the classes by their number, 0 being no class.

    Classes count from 1 in the order of their names. Objects that are marked as difficult need not be found.
    """
    found = [_files(root, names) for names in SPLITS.values()]
    trees = [[(path, _xml(path)) for path in paths] for _, paths, _ in found]
    names = sorted({_text(path, thing, "name") for path, tree in trees[0] for thing in tree.iter("object")})
    if not names:
        raise InputError(f"dataset 'voc': no object is in the training files of '{root}'")
    numbers = {name: position for position, name in enumerate(names, start=1)}
    train, test = (
        split_of(_annotated(some, folder, numbers), where)
        for some, (where, _, folder) in zip(trees, found, strict=True)
    )
    return train, test, ("", *names)


def _files(root: Path, splits: Sequence[str]) -> tuple[Path, list[Path], Path]:
    """The first of the splits that is there: what lists its XML files, these, and the folder of their images."""
    for split in splits:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if listed.is_file():
            names = [line.split()[0] for line in _lines(listed) if line.strip()]
            return listed, [inside(root / "Annotations", f"{name}.xml") for name in names], root / "JPEGImages"
        if (root / split).is_dir():
            return root / split, _annotations(root / split), root / split
    raise InputError(
        f"dataset 'voc': '{root}' has no ImageSets/Main/{splits[0]}.txt and no folder {splits[0]}/ of XML files; give "
        "the folder that holds one"
    )


def _annotations(folder: Path) -> list[Path]:
    """The XML files in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and visible(path.name)]
    if not (found := [path for path in files if ending(path.name) == ".xml"]):
        others = (ending(path.name) for path in files)
        raise InputError(f"dataset 'voc': '{folder}' holds no annotations: {told_unread(('.xml',), others)}")
    return found


def _lines(path: Path) -> list[str]:
    content = content_of(path)
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is no text in UTF-8: {one_line(error)}") from error


def _xml(path: Path) -> ElementTree.Element:
    content = content_of(path)
    try:
        return ElementTree.fromstring(content)  # its own header says how it is encoded; nothing else is opened
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"'{path}' is no XML: {one_line(error)}") from error


def _text(path: Path, element: ElementTree.Element, key: str) -> str:
    found = element.findtext(key)
    if found is None or not found.strip():
        raise InputError(f"'{path}': <{element.tag}> has no <{key}>")
    return found.strip()


def _number(path: Path, element: ElementTree.Element, key: str) -> float:
    text = _text(path, element, key)
    try:
        return number(f"'{path}'", f"<{key}>", float(text))
    except ValueError as error:  # of float, and ours
        raise InputError(f"'{path}': <{key}> is '{text:.60}', not a finite number; correct or remove it") from error


def _annotated(
    trees: Sequence[tuple[Path, ElementTree.Element]], folder: Path, numbers: Mapping[str, int]
) -> Iterator[Annotated]:
    for path, tree in trees:
        size = tree.find("size")
        if size is None:
            raise InputError(f"'{path}' has no <size>")
        width, height = (side(f"'{path}'", f"<{key}>", _number(path, size, key)) for key in ("width", "height"))
        boxes, labels, crowds = [], [], []
        for thing in tree.iter("object"):
            boxes.append(checked_box(f"'{path}'", _corners(path, thing), width, height))
            if (name := _text(path, thing, "name")) not in numbers:
                raise InputError(f"'{path}': class '{name:.60}' is not in the training split")
            labels.append(numbers[name])
            if (difficult := thing.findtext("difficult", "").strip()) not in _DIFFICULT:
                raise InputError(f"'{path}': <difficult> is '{difficult:.60}'; write 0 or 1")
            crowds.append(_DIFFICULT[difficult])
        file = inside(folder, _text(path, tree, "filename"))
        yield Annotated(str(file), width, height, tuple(boxes), tuple(labels), tuple(crowds))


def _corners(path: Path, thing: ElementTree.Element) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of an object; VOC's pixels count from 1."""
    found = thing.findall("bndbox")
    if len(found) != 1:
        raise InputError(f"'{path}': <object> has {len(found) or 'no'} <bndbox>; it needs one")
    x0, y0, x1, y1 = (_number(path, found[0], key) for key in ("xmin", "ymin", "xmax", "ymax"))
    return x0 - 1, y0 - 1, x1, y1
