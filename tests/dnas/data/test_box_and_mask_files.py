"""COCO folders, VOC folders and folders of masks are read for real; what is wrong in them is told in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.data.augmentation import Augmentation
from dnas.data.image_sets import DataSplits
from dnas.data.load import load_data
from search_spaces.errors import InputError

SIZE = (40, 20)  # width, height of every file


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path)


def annotation(number: int, image: int, box: list[float], category: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "bbox": box, "category_id": category, **more}


def coco(root: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None, style: str = "coco") -> Path:
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    for split in ("train", "val"):
        folder = root / (f"{split}2017" if style == "coco" else split)
        for number in range(4):
            picture(folder / f"{number}.png")
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in range(4)],
            "annotations": [
                annotation(1, 0, [10, 5, 20, 10]),
                annotation(2, 0, [0, 0, 40, 20], 1, iscrowd=1),
                annotation(3, 2, [30, 10, 10, 10], 1),
            ],
            "categories": categories,
        }
        if split == "train":
            change(content)
        file = root / "annotations" / f"instances_{split}2017.json"
        file = file if style == "coco" else folder / "_annotations.coco.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return root


def voc(root: Path, change: Callable[[str], str] = lambda text: text, style: str = "voc") -> Path:
    names = {"train": ["a", "b", "c", "d"], "val": ["e"]}
    for split, stems in names.items():
        images, xml = (root / "JPEGImages", root / "Annotations") if style == "voc" else (root / split,) * 2
        xml.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            picture(images / f"{stem}.png")
            text = (
                f"<annotation><filename>{stem}.png</filename><size><width>40</width><height>20</height></size>"
                "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax>"
                "<ymax>15</ymax></bndbox></object><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1"
                "</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object></annotation>"
            )
            (xml / f"{stem}.xml").write_text(change(text) if stem == "b" else text)
        if style == "voc":
            listed = root / "ImageSets" / "Main" / f"{split}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("\n".join(stems) + "\n")
    return root


def masks(root: Path) -> Path:
    for split in ("train", "val"):
        for number in range(3):
            picture(root / split / "images" / f"{number}.png")
            classes = np.zeros((20, 40), dtype=np.uint8)
            classes[5:15, 10:30], classes[0, 0] = 2, 255
            (root / split / "masks").mkdir(exist_ok=True)
            Image.fromarray(classes).save(root / split / "masks" / f"{number}.png")
    return root


def whole(data: DataSplits) -> list[dict[str, Any]]:
    """The targets of the test split, which is read in order."""
    return list(next(iter(data.test.batches(9)))[1])


@pytest.mark.parametrize("style", ["coco", "folders"])
def test_coco_folders_are_read_with_their_boxes_stretched(tmp_path: Path, style: str) -> None:
    data = load_data("coco", root=coco(tmp_path, style=style), image_size=10)
    assert (data.input_shape, data.classes, data.class_names) == ((3, 10, 10), 4, ("", "cat", "", "dog"))
    first, none, *_ = whole(data)
    assert first["boxes"].tolist() == [[2.5, 2.5, 7.5, 7.5], [0.0, 0.0, 10.0, 10.0]]
    assert (first["labels"].tolist(), first["iscrowd"].tolist()) == ([3, 1], [0, 1])
    assert none["boxes"].shape == (0, 4)
    x, _ = next(iter(data.test.batches(1)))
    assert torch.allclose(x[0, :, 5, 5], torch.tensor([10, 200, 30]) / 255)
    assert len(list(data.train.batches(2, seed=0, augmentation=Augmentation(crop_padding=2, flip=True)))) == 2


def test_ids_that_begin_with_0_count_from_1(tmp_path: Path) -> None:
    def from_0(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": n, "name": name} for n, name in ((0, "a"), (1, "b"), (3, "c"))]

    data = load_data("coco", root=coco(tmp_path, from_0), image_size=10)
    assert data.class_names == ("", "a", "b", "", "c")
    assert whole(data)[0]["labels"].tolist() == [4, 2]


@pytest.mark.parametrize("style", ["voc", "folders"])
def test_voc_folders_are_read_and_count_their_pixels_from_1(tmp_path: Path, style: str) -> None:
    data = load_data("voc", root=voc(tmp_path, style=style), image_size=20)
    (target,) = whole(data)
    assert data.class_names == ("", "cat", "dog")
    assert target["boxes"].tolist() == [[5.0, 5.0, 15.0, 15.0], [0.0, 0.0, 20.0, 20.0]]
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2, 1], [0, 1])


def test_masks_are_read_beside_their_images(tmp_path: Path) -> None:
    data = load_data("masks", root=masks(tmp_path), image_size=20)
    assert (data.classes, data.input_shape) == (3, (3, 20, 20))
    x, maps = next(iter(data.test.batches(3)))
    assert maps.shape == (3, 20, 20)
    assert set(maps.unique().tolist()) <= {0, 2, 255}
    assert (maps[:, 5:15, 5:15] == 2).all()
    assert x.shape == (3, 3, 20, 20)


def set_box(*box: float) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(bbox=list(box))


def annotated(**keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(keys)


def imaged(**keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][1].update(keys)


def added(which: str, *entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[which].extend(entries)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (set_box(30, 5, 20, 10), r"annotation 1: box \[30.0, 5.0, 50.0, 15.0\] lies outside its image, 40 x 20"),
        (set_box(-5, 5, 20, 10), "lies outside its image"),
        (set_box(1, 1, 1e308, 10), "lies outside its image"),
        (set_box(10, 5, 0, 10), "has no area; correct or remove it"),
        (set_box(10, 5, -3, 10), "has no area"),
        (set_box(10, 5, 1e-30, 10), "has no area"),
        (set_box(10, 5, float("nan"), 10), "annotation 1: bbox is nan, not a finite number"),
        (set_box(10, 5, float("inf"), 10), "bbox is inf, not a finite number"),
        (set_box(10**400, 5, 3, 10), "bbox is 1000+, not a finite number"),
        (set_box(10, 5, True, 10), "bbox is True, not a finite number"),
        (set_box(10, 5, 20), r"annotation 1: bbox is \[10, 5, 20\], not x, y, width and height; correct or remove it"),
        (annotated(bbox=["1", 2, 3, 4]), "bbox is '1', not a finite number"),
        (annotated(bbox=[[1, 2, 3, 4]]), "not x, y, width and height"),
        (annotated(bbox=None), "annotation 1: bbox is None, not x, y"),
        (lambda content: content["annotations"][0].pop("bbox"), "annotation 1: bbox is None, not x, y"),
        (annotated(category_id=9), "is of category 9, which"),
        (annotated(category_id="3"), "is of category '3', which"),
        (annotated(category_id=10**400), "is of category 1000+, which"),
        (annotated(category_id=True), "category_id is True, not a number or a text"),
        (annotated(category_id=[3]), r"category_id is \[3\], not a number or a text"),
        (lambda content: content["annotations"][0].pop("category_id"), "annotation 1 has no category_id"),
        (annotated(iscrowd="0"), "annotation 1: iscrowd is '0'; write 0 or 1"),
        (annotated(image_id=99), "annotation 1 is of image 99, which is not among the images"),
        (annotated(image_id=[0]), r"image_id is \[0\], not a number or a text"),
        (imaged(file_name="none.png"), "none.png' is annotated and not there"),
        (imaged(file_name="../../none.png"), "none.png' is annotated and not"),
        (imaged(file_name="a" * 5000), "a' is annotated and not there"),
        (imaged(file_name="a\0b.png"), "is annotated and not there"),
        (imaged(file_name="\ud800.png"), "is annotated and not there"),
        (imaged(file_name=7), "image 1: file_name is 7, not a name"),
        (imaged(file_name="0.png"), "annotates the image '.*0.png' twice; put its boxes together"),
        (imaged(file_name="../2.png"), "annotates the image '.*2.png' twice"),
        (imaged(id=0), "gives the image id 0 to two images"),
        (imaged(width=0), "image 1: width is 0 pixels"),
        (imaged(width=-40), "image 1: width is -40 pixels"),
        (imaged(width="40"), "image 1: width is '40', not a finite number"),
        (imaged(width=None), "image 1: width is None, not a finite number"),
        (imaged(width=10**400), "image 1: width is 1000+, not a finite number"),
        (imaged(height=float("nan")), "image 1: height is nan, not a finite number"),
        (imaged(width=80), "1.png' is 40 x 20 pixels, and its annotation says 80 x 20"),
        (lambda content: content.pop("categories"), "not in COCO's format: it needs lists of images, annotations"),
        (lambda content: content["images"].clear(), "is of image 0, which"),
        (added("annotations", 7), "not in COCO's format: entry 3 of annotations is 7, no object"),
        (added("images", "0.png"), "not in COCO's format: entry 4 of images is '0.png', no object"),
        (added("categories", {"id": 10**12, "name": "far"}), "category ids go from 1 to 1000"),
        (added("categories", {"id": 1, "name": "mouse"}), "gives the category id 1 to 'cat' and to 'mouse'"),
        (added("categories", {"id": 2.5, "name": "mouse"}), "category 2.5 has name 'mouse'; a category has a whole"),
        (added("categories", {"id": "7", "name": "mouse"}), "category '7': id is '7', not a finite number"),
        (added("categories", {"id": float("inf"), "name": "mouse"}), "id is inf, not a finite number"),
        (added("categories", {"id": 7}), "category 7 has name None; a category has a whole number for id, and a name"),
    ],
)
def test_bad_coco_files_are_told(tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load_data("coco", root=coco(tmp_path, change), image_size=10)
    assert ("COCO's format" in str(caught.value)) == ("COCO's format" in sentence), "one fault, not two"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b'{"images": [{"id"', "is no JSON"),
        (b"[" * 100_000, "is no JSON: RecursionError"),
        (b'{"images": ' + b"4" * 5000 + b"}", "is no JSON"),
        (b"[]", "not in COCO's format"),
        ("{}".encode("utf-16"), "is no text in UTF-8"),
    ],
)
def test_coco_files_that_are_none_are_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    root = coco(tmp_path)
    (root / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(InputError, match=f"instances_val2017.json' .*{sentence}"):
        load_data("coco", root=root, image_size=10)


def test_a_mark_of_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    root = coco(tmp_path)
    for file in (root / "annotations").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_data("coco", root=root, image_size=10).classes == 4


HEADER = '<?xml version="1.0" encoding="{}"?>'


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("<xmax>30", "<xmax>300", "b.xml': box .* lies outside its image"),
        ("<xmin>11", "<xmin>-9", "lies outside its image"),
        ("<xmax>30", "<xmax>10", "has no area"),
        ("<xmax>30", "<xmax>many", "<xmax> is 'many', not a finite number"),
        ("<xmax>30", "<xmax>nan", "<xmax> is 'nan', not a finite number"),
        ("<xmax>30", "<xmax>" + "9" * 400, "<xmax> is '999+', not a finite number"),
        ("<xmax>30", "<xmax><a>30</a>", "<bndbox> has no <xmax>"),
        ("<name>dog", "<nane>dog", "is no XML"),
        ("<name>dog</name>", "", "<object> has no <name>"),
        ("<name>dog", "<name>&dog;", "is no XML: ParseError: undefined entity"),
        ("<difficult>0", "<difficult>yes", "<difficult> is 'yes'; write 0 or 1"),
        ("<xmin>11</xmin>", "", "<bndbox> has no <xmin>"),
        ("<bndbox>", "<bndbox/><bndbox>", "<object> has 2 <bndbox>; it needs one"),
        ("<size><width>40</width><height>20</height></size>", "", "has no <size>"),
        ("b.png", "other.png", "other.png' is annotated and not there"),
        ("b.png", "../../etc/passwd", "JPEGImages/passwd' is annotated and not there"),
        ("b.png", "a" * 5000, "a' is annotated and not there"),
        ("b.png", "a.png", "train.txt' annotates the image '.*a.png' twice"),
        ("<filename>b.png</filename>", "", "<annotation> has no <filename>"),
        ("<width>40", "<width>0", "<width> is 0 pixels"),
        ("<width>40", "<width>1e999", "<width> is '1e999', not a finite number"),
        ("<width>40", "<width>80", "is 40 x 20 pixels, and its annotation says 80 x 20"),
        ("<annotation>", HEADER.format("none") + "<annotation>", "is no XML"),
        (
            "<annotation>",
            '<!DOCTYPE a [<!ENTITY dog SYSTEM "file:///etc/passwd">]><annotation>&dog;',
            "is no XML: ParseError: undefined entity &dog;",
        ),
    ],
)
def test_bad_voc_files_are_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_data("voc", root=voc(tmp_path, lambda text: text.replace(old, new, 1)), image_size=10)


def test_what_entities_grow_to_is_not_taken_into_memory(tmp_path: Path) -> None:
    grown = "".join(f'<!ENTITY {name} "{f"&{of};" * 1000}">' for name, of in ("ba", "cb", "dc"))
    bomb = f'<!DOCTYPE a [<!ENTITY a "ha">{grown}]><annotation>&d;'
    with pytest.raises(InputError, match=r"b.xml' is no XML"):
        load_data("voc", root=voc(tmp_path, lambda text: text.replace("<annotation>", bomb, 1)), image_size=10)


def test_an_xml_file_says_how_it_is_encoded(tmp_path: Path) -> None:
    root = voc(tmp_path)
    for file, encoding in zip(sorted((root / "Annotations").iterdir()), ("utf-8", "latin-1", "utf-16"), strict=False):
        text = file.read_text().replace("dog", "dachshündin")
        file.write_bytes((HEADER.format(encoding) + text).encode(encoding))
    assert load_data("voc", root=root, image_size=10).class_names == ("", "cat", "dachshündin", "dog")


def test_voc_lists_do_not_lead_out_of_their_folder(tmp_path: Path) -> None:
    root = voc(tmp_path / "data")
    (root / "Annotations" / "b.xml").rename(tmp_path / "b.xml")
    for name in ("../../b", str(tmp_path / "b")):
        (root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{name}\n")
        with pytest.raises(InputError, match=r"cannot read '.*data/Annotations/b.xml'"):
            load_data("voc", root=root, image_size=10)


def test_voc_lists_that_are_no_text_are_told(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=r"train.txt' is no text in UTF-8"):
        load_data("voc", root=root, image_size=10)


def test_bad_masks_are_told(tmp_path: Path) -> None:
    root = masks(tmp_path)
    target = root / "train" / "masks" / "1.png"
    Image.fromarray(np.zeros((20, 41), dtype=np.uint8)).save(target)
    with pytest.raises(InputError, match=r"1.png' is 41 x 20 pixels, and its image 40 x 20"):
        load_data("masks", root=root)
    picture(target)
    with pytest.raises(InputError, match=r"of mode RGB \(the colours of a picture\), not one class a pixel"):
        load_data("masks", root=root)
    for deep, mode in ((np.uint16, "I;16"), (np.float32, "F")):
        file = target.with_suffix(".png" if deep == np.uint16 else ".tif")
        target.unlink(missing_ok=True)
        Image.fromarray(np.zeros((20, 40), dtype=deep)).save(file)
        with pytest.raises(InputError, match=f"of mode {mode} .more than 8 bits a pixel"):
            load_data("masks", root=root)
    picture(target)
    with pytest.raises(InputError, match=r"1.png' and '1.tif' are of one image; remove one"):
        load_data("masks", root=root)
    file.unlink()
    target.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the mask"):
        load_data("masks", root=root)
    target.unlink()
    with pytest.raises(InputError, match=r"1.png' has no mask; write"):
        load_data("masks", root=root)
    target.with_suffix(".jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"; '1.jpg' is none, for masks are files that end in \.bmp, \.png, "):
        load_data("masks", root=root)


def test_folders_without_files_of_the_right_kind_say_which_are_read(tmp_path: Path) -> None:
    root = masks(tmp_path / "masks")
    for image in (root / "train" / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match="holds no images: no file lies there"):
        load_data("masks", root=root)
    for split in ("train", "val"):
        picture(tmp_path / "voc" / split / "1.jpg")
        (tmp_path / "voc" / split / "1.txt").touch()
    with pytest.raises(InputError, match=r"no annotations: files that end in \.xml .* others: 1 \.jpg, 1 \.txt"):
        load_data("voc", root=tmp_path / "voc", image_size=10)


@pytest.mark.parametrize(
    ("make", "source", "name"),
    [
        (coco, "coco", "annotations/instances_train2017.json"),
        (voc, "voc", "Annotations/b.xml"),
        (masks, "masks", "train/masks/0.png"),
        (coco, "coco", "train2017/1.png"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(make: Any, source: str, name: str, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError):
        whole(load_data(source, root=tmp_path, image_size=16))


def test_an_image_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for split, kind in ((split, kind) for split in ("train", "test") for kind in "ab"):
        for number in range(4):
            picture(tmp_path / split / kind / f"{number}.png")
    (tmp_path / "train" / "a" / "1.png").unlink()
    os.mkfifo(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(InputError, match="it is a pipe or a device; name a file"):
        load_data("imagefolder", root=tmp_path, image_size=16)


def test_a_mask_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript, whatever the name of the file says."""
    masks(tmp_path)
    Image.new("L", SIZE).save(tmp_path / "mask.eps")
    mask = next(iter(sorted((tmp_path / "train" / "masks").iterdir())))
    (tmp_path / "mask.eps").rename(mask)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: pytest.fail("it was started"))
    with pytest.raises(InputError, match="cannot read the mask"):
        load_data("masks", root=tmp_path)


@pytest.mark.parametrize("source", ["coco", "voc", "masks"])
def test_folders_that_hold_nothing_are_told(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match=f"'{source}': .*{tmp_path}' has no"):
        load_data(source, root=tmp_path)
    with pytest.raises(InputError, match=f"'{source}' needs root"):
        load_data(source)
    with pytest.raises(InputError, match="does not exist"):
        load_data(source, root=tmp_path / "none")


def test_a_file_of_another_size_than_its_annotation_is_told(tmp_path: Path) -> None:
    data = load_data("coco", root=coco(tmp_path), image_size=10)
    picture(tmp_path / "val2017" / "0.png", (41, 30))
    with pytest.raises(InputError, match="is 41 x 30 pixels, and its annotation says 40 x 20"):
        whole(data)
