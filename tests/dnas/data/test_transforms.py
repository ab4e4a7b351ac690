"""Transforms of single images: what they draw follows from the seed of the epoch alone, whoever draws it and where."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from dnas.config.file import load_job
from dnas.data.augmentation import Augmentation
from dnas.data.decoding import decode
from dnas.data.given import image_set
from dnas.data.image_files import FolderImages
from dnas.data.image_sets import Batched, ImageSet, MemoryImages, Part
from dnas.data.loaders import Loaders
from dnas.data.transforms import transform_of
from dnas.jobs.job import Job
from search_spaces.errors import InputError

COUNT, SIZE = 12, 20
PIXELS = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(COUNT) % 2
V2 = "torchvision.transforms.v2"


def shaded(image: Tensor, least: float = 0.2) -> Tensor:
    """Darker by three random factors, drawn from each global generator there is."""
    drawn = float(torch.rand(())) * np.random.rand() * random.random()
    return (image * (least + drawn * (1 - least))).to(image.dtype)


def halved(image: Tensor) -> Tensor:
    return image[:, ::2]


def failing(image: Tensor) -> Tensor:
    raise ValueError("no light")


def listed(image: Tensor) -> Any:
    return image.tolist()


class Inverted:
    def __call__(self, image: Tensor) -> Tensor:
        return 255 - image


def in_folder(root: Path, workers: int = 0) -> FolderImages:
    paths = []
    for number, image in enumerate(PIXELS):
        paths.append(str(root / f"{number}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return FolderImages(tuple(paths), LABELS, (SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, Loaders(workers))


SETS: dict[str, Callable[[Path], ImageSet]] = {
    "memory": lambda root: MemoryImages(PIXELS, LABELS, (0.5,) * 3, (0.5,) * 3),
    "floats in memory": lambda root: MemoryImages(PIXELS / 255, LABELS, (0.5,) * 3, (0.5,) * 3),
    "dataset": lambda root: image_set(TensorDataset(PIXELS, LABELS)),
    "folder": in_folder,
}
MANY = Augmentation(2, True, 3, (v2.RandomRotation(30), v2.ColorJitter(0.4, 0.4), shaded, v2.RandomInvert()))


def epoch(images: ImageSet, seed: int, augmentation: Augmentation = MANY, size: int = 5) -> Tensor:
    return torch.cat([x for x, _ in images.batches(size, seed=seed, augmentation=augmentation)])


@pytest.mark.parametrize("name", SETS)
def test_what_transforms_draw_follows_from_the_seed_alone(name: str, tmp_path: Path) -> None:
    images = SETS[name](tmp_path)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first = epoch(images, 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    torch.rand(7), np.random.rand(3), random.random()
    assert torch.equal(epoch(images, 3), first)
    assert not torch.equal(epoch(images, 4), first)


@pytest.mark.parametrize("name", SETS)
def test_every_image_draws_numbers_of_its_own(name: str, tmp_path: Path) -> None:
    images = SETS[name](tmp_path).subset(torch.zeros(6, dtype=torch.int64))
    found = epoch(images, 1, Augmentation(transforms=(shaded,)), size=6)
    means = found.mean((1, 2, 3))
    assert len(means.unique()) == 6


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_batches_are_the_rows_of_whole_ones(name: str, parts: int, tmp_path: Path) -> None:
    """Augmentation and transforms included; of seven and of five rows one or two are left out."""
    images, options = SETS[name](tmp_path), {"seed": 3, "augmentation": MANY}
    assert isinstance(images, Batched)
    whole = list(images.batches(7, **options))
    found = [list(images.batches(7, **options, part=Part(number, parts))) for number in range(parts)]
    for index, (x, y) in enumerate(whole):
        kept = len(x) // parts * parts
        assert torch.equal(torch.cat([each[index][0] for each in found]), x[:kept])
        assert torch.equal(torch.cat([each[index][1] for each in found]), y[:kept])


def test_only_the_files_of_a_part_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, read = in_folder(tmp_path), []
    monkeypatch.setattr("dnas.data.image_files.decode", lambda path: read.append(path) or decode(path))
    list(images.batches(6, part=Part(1, 2)))
    assert read == [images.paths[index] for index in (3, 4, 5, 9, 10, 11)]


def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    alone, together = in_folder(tmp_path), in_folder(tmp_path, workers=2)
    assert torch.equal(epoch(alone, 5), epoch(together, 5))


@pytest.mark.parametrize("name", ["memory", "folder"])
def test_transforms_see_pixels_before_they_are_normalised_and_keep_their_order(name: str, tmp_path: Path) -> None:
    images = SETS[name](tmp_path)
    expected = (255 - PIXELS).float() // 2 / 127.5 - 1
    found = epoch(images, 0, Augmentation(transforms=(Inverted(), lambda image: image // 2)))
    order = torch.cdist(found.flatten(1), expected.flatten(1)).argmin(1)
    assert order.sort().values.tolist() == list(range(COUNT))
    torch.testing.assert_close(found, expected[order], atol=1e-5, rtol=0)


def test_a_transform_is_an_object_of_a_class_or_a_function_with_its_arguments() -> None:
    rotation = transform_of(f"{V2}:RandomRotation", {"degrees": 15})
    assert isinstance(rotation, v2.RandomRotation)
    assert rotation.degrees == [-15.0, 15.0]
    assert transform_of(f"{__name__}:shaded", {}) is shaded
    assert float(transform_of(f"{__name__}:shaded", {"least": 1.0})(torch.ones(1, 2, 2)).min()) == 1.0
    assert isinstance(transform_of(f"{__name__}:Inverted", {}), Inverted)


@pytest.mark.parametrize(
    ("source", "arguments", "sentence"),
    [
        (f"{V2}:RandAugmen", {}, "did you mean 'RandAugment'"),
        (f"{V2}:RandomRotation", {}, "cannot be made: TypeError"),
        (f"{__name__}:COUNT", {}, "'COUNT' is an int, not a callable"),
        ("mine.nowhere:fog", {}, "cannot import module 'mine.nowhere'"),
    ],
)
def test_what_is_no_transform_is_refused(source: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        transform_of(source, arguments)


@pytest.mark.parametrize("workers", [None, 0, 1])
@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        (halved, r"augmentation halved makes a uint8 tensor of shape \(3, 10, 20\) of .*; keep the shape"),
        (failing, "augmentation failing fails on a uint8 tensor .*: ValueError: no light"),
        (listed, "augmentation listed makes a list of 3 values"),
        (v2.Normalize([0.5], [0.5]), "augmentation Normalize fails on"),
    ],
)
def test_a_transform_that_cannot_be_used_is_named(
    transform: Any, sentence: str, workers: int | None, tmp_path: Path
) -> None:
    images = SETS["memory"](tmp_path) if workers is None else in_folder(tmp_path, workers)
    with pytest.raises(InputError, match=sentence) as caught:
        epoch(images, 0, Augmentation(transforms=(transform,)))
    assert "\n" not in str(caught.value)


def test_a_job_gives_its_transforms_to_the_search_and_to_fine_tuning() -> None:
    settings = [f"data.transforms=['{V2}:RandomInvert', {{kind = '{__name__}:shaded', arguments = {{least = 0.5}}}}]"]
    job = Job.of(load_job("digits", ["data.cutout=2", *settings]))
    assert job.augmentation
    assert [str(each) for each in job.augmentation.transforms] == ["RandomInvert", "shaded"]
    assert job.search_data.augmentation == Augmentation(transforms=job.augmentation.transforms)
