"""Processes that read images: they stay between epochs, and neither their number nor their order matters."""

from __future__ import annotations

import copy
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dnas.data.augmentation import Augmentation
from dnas.data.decoding import decode
from dnas.data.given import image_set
from dnas.data.image_sets import Batched, ImageSet, Part
from dnas.data.load import load_data
from dnas.data.loaders import Loaders
from search_spaces.errors import InputError, JobError
from tests.dnas.data.test_transforms import MANY, epoch, in_folder


def who(wanted: Sequence[int]) -> tuple[int, list[int]]:
    """The process that reads, and what it was asked for."""
    if -1 in wanted:
        raise InputError("there is no image -1")
    if -2 in wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), list(wanted)


class Noisy(Dataset[Any]):
    """Images with noise of every global generator, drawn as they are read."""

    targets = [0, 1] * 6

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = float(torch.rand(())) + np.random.rand() + random.random()
        return torch.full((1, 4, 4), index + noise / 4), self.targets[index]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_stay_for_the_next_epoch(workers: int) -> None:
    loaders = Loaders(workers)
    first, second = (list(loaders.batches(who, [[n], [n + 1], [n + 2]])) for n in (0, 5))
    assert [wanted for _, wanted in second] == [[5], [6], [7]]
    assert {process for process, _ in first} == {process for process, _ in second}
    assert (os.getpid() in dict(first)) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_may_be_left_early_and_read_at_once(workers: int) -> None:
    loaders = Loaders(workers)
    next(loaders.batches(who, [[n] for n in range(9)]))
    pairs = list(zip(*(loaders.batches(who, [[n], [n + 1]]) for n in (3, 6)), strict=True))
    assert [(a[1], b[1]) for a, b in pairs] == [([3], [6]), ([4], [7])]
    assert [wanted for _, wanted in loaders.batches(who, [[1]])] == [[1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_refused_is_refused_here_and_the_next_epoch_is_read(workers: int) -> None:
    loaders = Loaders(workers)
    with pytest.raises(InputError, match=r"^there is no image -1$"):
        list(loaders.batches(who, [[1], [-1], [2]]))
    assert [wanted for _, wanted in loaders.batches(who, [[3]])] == [[3]]


def test_a_process_that_dies_is_told_and_replaced() -> None:
    loaders = Loaders(1)
    with pytest.raises(JobError, match=r"a process that reads images died .* fewer data.workers"):
        list(loaders.batches(who, [[1], [-2], [2]]))
    assert [wanted for _, wanted in loaders.batches(who, [[3]])] == [[3]]


def test_a_copy_has_processes_of_its_own() -> None:
    loaders = Loaders(1)
    list(loaders.batches(who, [[1]]))
    twin = copy.deepcopy(loaders)
    assert twin.workers == 1
    assert dict(twin.batches(who, [[1]])).keys().isdisjoint(dict(loaders.batches(who, [[1]])))


@pytest.fixture
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be more processes than this machine has cores."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


RANDOM = replace(MANY, transforms=(*MANY.transforms, v2.RandAugment()))


@pytest.mark.usefixtures("_many_cores")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.whole), 3])
@pytest.mark.parametrize("name", ["folder", "dataset"])
def test_no_number_of_processes_changes_any_epoch(name: str, workers: int, tmp_path: Path) -> None:
    sets: dict[str, Any] = {
        "folder": lambda count: in_folder(tmp_path, count),
        "dataset": lambda count: image_set(DataLoader(Noisy(), num_workers=count)),
    }
    augmentation = RANDOM if name == "folder" else Augmentation(1, True, 1)
    alone, together = (sets[name](count) for count in (0, workers))
    assert together.loaders.workers == workers
    for seed in (3, 4):
        torch.rand(seed)
        assert torch.equal(epoch(together, seed, augmentation), epoch(alone, seed, augmentation))
    measured = [torch.cat([x for x, _ in images.batches(5)]) for images in (alone, together)]
    assert torch.equal(*measured)


@pytest.mark.usefixtures("_many_cores")
@pytest.mark.parametrize("workers", [0, 3])
def test_a_damaged_file_is_named_whoever_meets_it_and_the_next_epoch_is_read(workers: int, tmp_path: Path) -> None:
    images = in_folder(tmp_path, workers)
    whole, path = epoch(images, 5, RANDOM), Path(images.paths[7])
    content = path.read_bytes()
    for damage in (content[:60], content[:-30], b"", b"no image"):
        path.write_bytes(damage)
        for read in (lambda: epoch(images, 5, RANDOM, size=2), images.decoded):
            with pytest.raises(InputError, match=rf"^cannot read the image '{path}': \S") as caught:
                read()
            assert "\n" not in str(caught.value)
    path.write_bytes(content)
    assert torch.equal(epoch(images, 5, RANDOM), whole)


def test_what_a_dataset_draws_follows_from_seed_and_image_alone() -> None:
    images = image_set(Noisy())
    assert isinstance(images, Batched)
    whole = epoch(images, 3, Augmentation())
    parts = [list(images.batches(4, seed=3, augmentation=Augmentation(), part=Part(n, 2))) for n in (0, 1)]
    assert torch.equal(torch.cat([x for pair in zip(*parts, strict=True) for x, _ in pair]), whole)
    assert len(whole.unique()) == len(whole)
    assert not torch.equal(epoch(images, 4, Augmentation()).sort(0).values, whole.sort(0).values)


class Broken(Noisy):
    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise OSError("disk gone")
        shape = (1, 4, 5) if index == 9 else (1, 4, 4)
        return torch.zeros(shape), 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("index", "sentence"), [(7, "item 7 of the dataset cannot be read: OSError"), (9, "images of one shape are needed")]
)
def test_an_item_that_cannot_be_read_is_named(index: int, sentence: str, workers: int) -> None:
    images = image_set(DataLoader(Broken(), num_workers=workers), "the training images")
    with pytest.raises(InputError, match=f"^the training images: {sentence}"):
        list(images.subset(torch.tensor([0, index])).batches(2))


def test_a_folder_larger_than_memory_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is opened as its batch is wanted, and of all pixels those of one batch are held at most."""
    read: list[str] = []
    images: ImageSet = in_folder(tmp_path)
    monkeypatch.setattr("dnas.data.image_files.decode", lambda path: read.append(path) or decode(path))
    images = images.subset(torch.arange(12)).subset(torch.arange(1, 12))
    assert not read
    batches = images.batches(4, seed=1, augmentation=Augmentation(2, True))
    for count in (4, 8, 11):
        next(batches)
        assert len(read) == count
    assert not any(isinstance(value, Tensor) and value.ndim == 4 for value in vars(images).values())


def test_a_folder_of_large_images_is_never_decoded_to_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for path in in_folder(tmp_path / split / name).paths[6:]:
                Path(path).unlink()
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"whatever")
    splits = load_data("imagefolder", root=tmp_path, image_size=100, workers=2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (11, 1, 12)
