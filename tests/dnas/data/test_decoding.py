"""JPEG files that the device decodes: the same images, draws and refusals as where processes decode them.

The CPU stands in for the device: torchvision's decoder runs there too, after the same steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from dnas.data.augmentation import Augmentation
from dnas.data.decoding import cannot_decode, decode, decode_by_pil, decode_there, encoded
from dnas.data.image_files import FolderImages, _decoded
from dnas.data.image_sets import Part
from dnas.data.load import load_data
from dnas.data.loaders import Loaders
from search_spaces.errors import InputError
from tests.dnas.data.test_load import refusal

CPU = torch.device("cpu")
SIZE = (20, 24)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1
JPEG: dict[str, dict[str, Any]] = {
    "plain.jpg": {},
    "progressive.jpeg": {"progressive": True},
    "fine.JPG": {"subsampling": 0},
    "upright.jpg": {"exif": UPRIGHT},
}
OTHERS: dict[str, dict[str, Any]] = {
    "drawing.png": {},
    "sideways.jpg": {"exif": ROTATED},
    "stored as rgb.jpg": {"keep_rgb": True},
    "grey.jpg": {"mode": "L"},
    "ink.jpg": {"mode": "CMYK"},
    "misnamed.jpg": {"format": "PNG"},
}


def photograph(number: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def written(folder: Path, files: dict[str, dict[str, Any]]) -> FolderImages:
    """A folder of different photographs in these files."""
    paths = []
    for number, (name, options) in enumerate(files.items()):
        paths.append(str(folder / name))
        rest = {key: value for key, value in options.items() if key != "mode"}
        photograph(number, (60 + 8 * number, 40)).convert(options.get("mode", "RGB")).save(paths[-1], **rest)
    return FolderImages(tuple(paths), torch.arange(len(paths)), SIZE, (0.5,) * 3, (0.5,) * 3, decoding="cpu")


def epoch(images: FolderImages, augmentation: Augmentation | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    seed = None if augmentation is None else 5
    batches = list(images.batches(4, seed=seed, augmentation=augmentation, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


AUGMENTATIONS = {
    "none": None,
    "crop, flip, cutout": Augmentation(2, True, 3),
    "flip": Augmentation(0, True),
    "transforms": Augmentation(2, True, 0, (v2.RandAugment(), v2.RandomInvert())),
}


@pytest.mark.filterwarnings("ignore:cpu decodes upright JPEG")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_device_gives_the_images_that_processes_give(
    name: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that it can decode among files that it cannot; torchvision's decoder and PIL's are the same library."""
    monkeypatch.setattr("dnas.data.image_files.decode", lambda path: decode_by_pil(Path(path).read_bytes()))
    images = written(tmp_path, {**JPEG, **OTHERS})
    mixed = images.subset(torch.tensor([4, 0, 5, 1, 6, 7, 2, 8, 3, 9]))
    there = replace(mixed, decoding="device", loaders=Loaders(workers))
    expected, found = (epoch(each, AUGMENTATIONS[name]) for each in (mixed, there))
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    assert len(expected[0].flatten(1).unique(dim=0)) == len(images)


@pytest.mark.filterwarnings("ignore:cpu decodes upright JPEG")
def test_a_part_of_a_batch_is_decoded_as_in_the_whole(tmp_path: Path) -> None:
    images = replace(written(tmp_path, {**JPEG, **OTHERS}), decoding="device")
    whole, _ = epoch(images.subset(torch.arange(8)), AUGMENTATIONS["crop, flip, cutout"])
    parts = [
        epoch(images.subset(torch.arange(8)), AUGMENTATIONS["crop, flip, cutout"], part=Part(number, 2))[0]
        for number in (0, 1)
    ]
    assert torch.equal(torch.cat([parts[0][:2], parts[1][:2], parts[0][2:], parts[1][2:]]), whole)


@pytest.mark.parametrize("name", JPEG)
def test_whole_upright_colour_photographs_stay_encoded(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, {name: JPEG[name]}).paths[0]
    found = encoded(path)
    assert found is not None
    assert bytes(found[0].numpy()) == Path(path).read_bytes()
    assert found[1] == (40, 60)
    expected = decode_by_pil(Path(path).read_bytes())
    assert torch.equal(decode_there([found[0]], CPU)[0], expected)
    assert torch.equal(decode(path), expected)


@pytest.mark.parametrize("name", [*OTHERS, "cut short", "no image", "nowhere"])
def test_other_files_are_left_to_processes(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, {name: OTHERS[name]} if name in OTHERS else {"plain.jpg": {}}).paths[0]
    content = Path(path).read_bytes()
    if name == "cut short":
        Path(path).write_bytes(content[: len(content) // 2])
    if name == "no image":
        Path(path).write_bytes(b"whatever")
    if name == "nowhere":
        Path(path).unlink()
    assert encoded(path) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named_whoever_decodes(workers: int, tmp_path: Path) -> None:
    images = replace(written(tmp_path, JPEG), decoding="device", loaders=Loaders(workers))
    cut = Path(images.paths[2])
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cannot read the image '.*fine.JPG'"):
        epoch(images)


def test_what_a_device_fails_on_is_decoded_by_the_cpu_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = written(tmp_path, JPEG)
    expected = epoch(images)
    assert not cannot_decode(CPU)

    def fails(files: Any, device: torch.device) -> list[Tensor]:
        raise RuntimeError("nvjpeg\nstatus 5")

    monkeypatch.setattr("dnas.data.image_files.decode_there", fails)
    with pytest.warns(UserWarning, match="^cpu cannot decode some JPEG files .RuntimeError: nvjpeg status 5.; the CPU"):
        found = epoch(replace(images, decoding="device"))
    assert torch.equal(found[0], expected[0])
    Path(images.paths[3]).write_bytes(b"whatever")  # after it was read as bytes
    with pytest.raises(InputError, match=r"cannot read the image '.*upright.jpg'"):
        _decoded([torch.zeros(9, dtype=torch.uint8)], images.paths[3:], CPU)


def test_files_of_another_kind_are_told_in_one_sentence(tmp_path: Path) -> None:
    images = replace(written(tmp_path, OTHERS), decoding="device")
    with pytest.warns(UserWarning, match="decodes upright JPEG files of RGB alone; data.workers decode the others$"):
        epoch(images)


@pytest.mark.parametrize("device", ["meta", "mps", "xpu"])
def test_a_device_without_a_decoder_is_refused_where_it_is_asked_for(device: str, tmp_path: Path) -> None:
    images = replace(written(tmp_path, JPEG), decoding="device")
    with pytest.raises(InputError, match=f"data.decode = 'device': {device} cannot decode JPEG files .*; set it to"):
        next(images.batches(2, device=device))


def test_a_data_set_is_told_who_decodes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            written(tmp_path / split / name, JPEG)
    splits = load_data("imagefolder", root=tmp_path, image_size=70, decode="device", workers=1)
    assert isinstance(splits.train, FolderImages)
    assert splits.train.decoding == splits.test.decoding == "device"  # type: ignore[attr-defined]
    assert splits.train.loaders is splits.val.loaders is splits.test.loaders  # type: ignore[attr-defined]
    assert "decode must be one of cpu, device, got 'gpu'" in refusal("digits", decode="gpu")
