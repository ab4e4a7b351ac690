"""Targets that have a place in the image: what moves with it, what does not, and that all follows from the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dnas.data.augmentation import Augmentation
from dnas.data.given import data_splits, image_set
from dnas.data.image_sets import WHOLE, MemoryImages, Part, stratified_indices
from dnas.data.load import load_data
from dnas.data.loaders import Loaders
from dnas.data.target_images import IGNORED, HeldItems, TargetImages, Targets, held_images
from search_spaces.errors import InputError

SIDE = 12


def boxed(count: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for number in range(count):
        corners = torch.randint(0, 6, (2, 2), generator=generator)
        boxes = torch.cat([corners, corners + torch.randint(2, 6, (2, 2), generator=generator)], 1).float()
        place = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIDE, SIDE))
        targets.append({"boxes": place, "labels": torch.tensor([1, 2]), "image_id": torch.tensor([number, 7])})
    return targets


def painted(targets: list[dict[str, Tensor]]) -> Tensor:
    """Images (N, 2, S, S) whose first channel is 255 in the first box, the second in the second."""
    images = torch.zeros(len(targets), 2, SIDE, SIDE, dtype=torch.uint8)
    for image, target in zip(images, targets, strict=True):
        for channel, box in enumerate(target["boxes"].int().tolist()):
            image[channel, box[1] : box[3], box[0] : box[2]] = 255
    return images


def around(pixels: Tensor) -> list[float]:
    """The box around what is not zero in (S, S)."""
    rows, columns = pixels.nonzero().T
    return [float(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


AUGMENTATIONS = {
    "flip": Augmentation(flip=True),
    "crop": Augmentation(crop_padding=3),
    "both": Augmentation(crop_padding=2, flip=True),
    "v2": Augmentation(transforms=(v2.RandomVerticalFlip(0.5),)),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_stay_around_what_they_were_drawn_around(name: str) -> None:
    targets = boxed()
    sets = TargetImages.of(HeldItems(painted(targets), targets))
    seen = 0
    for seed in range(4):
        for x, found in sets.batches(4, seed=seed, augmentation=AUGMENTATIONS[name]):
            for image, target in zip(x, found, strict=True):
                assert type(target["boxes"]) is Tensor
                for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                    assert box == around(image[label - 1])
                    seen += 1
                assert len(target["image_id"]) == 2
    assert seen > 30


def test_a_box_that_leaves_the_image_goes_with_its_label() -> None:
    place = tv_tensors.BoundingBoxes([[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 8.0, 8.0]], format="XYXY", canvas_size=(8, 8))
    target = {"boxes": place, "labels": torch.tensor([1, 2]), "image_id": torch.tensor([5, 6])}
    one = TargetImages.of(HeldItems(torch.zeros(1, 1, 8, 8), [target]))
    labels = set()
    for seed in range(40):
        ((_, found),) = one.batches(1, seed=seed, augmentation=Augmentation(crop_padding=4))
        assert len(found[0]["boxes"]) == len(found[0]["labels"])
        assert ((found[0]["boxes"][:, 2:] - found[0]["boxes"][:, :2]) >= 1).all()
        labels.add(tuple(found[0]["labels"].tolist()))
    assert {(2,), (1, 2)} <= labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_map_moves_with_its_image_and_what_a_crop_adds_counts_nowhere(dtype: torch.dtype) -> None:
    images = torch.randint(1, 256, (5, 1, 8, 8), dtype=torch.uint8)
    sets = held_images(images, images[:, 0].to(dtype).clamp_max(250), (0.0,), (1.0,))
    assert isinstance(sets, TargetImages)
    for x, maps in sets.batches(5, seed=3, augmentation=Augmentation(crop_padding=2, flip=True)):
        pixels = (x[:, 0] * 255).round().long()
        assert maps.shape == (5, 8, 8)
        assert torch.equal(torch.where(pixels == 0, IGNORED, pixels.clamp_max(250)), maps.long())
        assert (maps == IGNORED).any()


def test_numbers_of_the_images_size_move_and_vectors_do_not() -> None:
    images = torch.rand(3, 1, 4, 4)
    depths = held_images(images, images[:, 0].clone(), (0.0,), (1.0,))
    for x, found in depths.batches(3, seed=1, augmentation=Augmentation(flip=True)):
        assert torch.equal(x[:, 0], found)
    assert isinstance(held_images(images, torch.rand(3, 4), (0.0,), (1.0,)), MemoryImages)


def test_a_function_of_ones_own_changes_the_image_alone() -> None:
    targets = boxed(3)
    sets = TargetImages.of(HeldItems(painted(targets), targets))
    ((x, found),) = sets.batches(3, seed=0, augmentation=Augmentation(transforms=(lambda image: 255 - image,)))
    order = [int(target["image_id"][0]) for target in found]
    assert torch.equal((x * 255).round().to(torch.uint8), 255 - painted(targets)[order])
    for number, target in zip(order, found, strict=True):
        assert torch.equal(target["boxes"], targets[number]["boxes"].as_subclass(Tensor))


def test_batches_follow_from_the_seed_for_any_number_of_processes_and_parts() -> None:
    targets = boxed(7)
    augmentation = Augmentation(crop_padding=2, flip=True, cutout=2)

    def drawn(workers: int, part: Part = WHOLE) -> list[Any]:
        sets = TargetImages.of(HeldItems(painted(targets), targets), loaders=Loaders(workers))
        return list(sets.batches(4, seed=5, augmentation=augmentation, part=part))

    here, there = drawn(0), drawn(2)
    for (x, some), (y, others) in zip(here, there, strict=True):
        assert torch.equal(x, y)
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(some, others, strict=True))
    for (x, some), (y, others) in zip(here, drawn(0, Part(1, 2)), strict=True):
        rows = Part(1, 2).rows(len(x))
        assert torch.equal(x[rows], y)
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(some[rows], others, strict=True))


class Listed(Dataset[Any]):
    def __init__(self, *parts: Any) -> None:
        self.pairs = list(zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


class Pairs(Dataset[Any]):
    def __init__(self, target: Any) -> None:
        self.target = target

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.full((3, 5, 5), index / 10), self.target(index)


@pytest.mark.parametrize("given", ["tensors", "arrays", "dataset", "dataset of arrays"])
def test_boxes_without_a_type_of_their_own_move_too(given: str) -> None:
    targets = boxed(16)
    images = painted(targets)
    plain: list[dict[str, Any]] = [
        {key: x.as_subclass(Tensor) if key == "boxes" else x for key, x in each.items()} for each in targets
    ]
    if "arrays" in given:
        plain = [{key: x.numpy() for key, x in each.items()} for each in plain]
    pairs = image_set(list(zip(images, plain, strict=True)) if "dataset" not in given else Listed(images, plain))
    batch, moved = next(iter(pairs.batches(16, seed=1, augmentation=Augmentation(flip=True))))
    assert [around(x[1]) for x in batch] == [target["boxes"][1].tolist() for target in moved]
    assert any(not torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, moved, strict=True))


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["tensors", "arrays"])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_maps_of_a_dataset_move_whatever_holds_them(kind: Any, lead: tuple[int, ...]) -> None:
    maps = torch.randint(0, 3, (16, *lead, 5, 5), generator=torch.Generator().manual_seed(0))
    images = maps.reshape(16, 1, 5, 5).float()
    pairs = image_set(Listed([kind(image) for image in images], [kind(each) for each in maps]))
    batch, moved = next(iter(pairs.batches(16, seed=1, augmentation=Augmentation(flip=True))))
    assert torch.equal(batch, moved.reshape(16, 1, 5, 5).float())
    assert not torch.equal(moved, maps)


def test_what_people_have_at_hand_is_read() -> None:
    dicts = image_set(Pairs(lambda index: {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}))
    maps = image_set(Pairs(lambda index: torch.full((5, 5), index)))
    batch = (torch.rand(4, 3, 5, 5), [{"boxes": torch.rand(2, 4), "labels": torch.tensor([1, 1])}] * 4)
    pair, several = image_set(batch), image_set([batch, batch])
    collated = image_set([(list(batch[0]), tuple(batch[1]))])
    assert [len(each) for each in (dicts, maps, pair, several, collated)] == [6, 6, 4, 8, 4]
    for each in (dicts, maps, pair, several, collated):
        assert isinstance(each, TargetImages)
        assert isinstance(each.labels, Targets)
        assert len(each.subset(torch.tensor([1, 0])).labels) == 2
    assert torch.equal(next(iter(maps.batches(6)))[1][3], torch.full((5, 5), 3))
    splits = data_splits(several)
    assert (len(splits.train), len(splits.val), splits.classes) == (7, 1, 0)
    assert len(stratified_indices(dicts.labels, 3, seed=0)) == 3


def mixed() -> tuple[Any, ...]:
    images = torch.rand(8, 3, 6, 6)
    return images, [{"boxes": torch.rand(1, 4), "labels": torch.tensor([1])}] * 8, images, [{}] * 8


def short() -> tuple[Any, ...]:
    images, targets, *_ = mixed()
    return images, targets[:5], images, targets


def test_a_source_of_ones_own_gives_structures() -> None:
    splits = load_data(f"{__name__}:mixed")
    assert (len(splits.train), splits.input_shape) == (7, (3, 6, 6))
    x, found = next(iter(splits.train.batches(2)))
    assert (len(found), found[0]["labels"].tolist(), bool(x.max() <= 1)) == (2, [1], True)
    with pytest.raises(InputError, match=r"train images must be \(N, C, H, W\) and labels \(N,\), got \(8, 3, 6, 6\)"):
        load_data(f"{__name__}:short")
    with pytest.raises(InputError, match=r"image_size = 12: .* are not resized"):
        load_data(f"{__name__}:mixed", image_size=12)


def test_the_generated_shapes_are_always_the_same_and_their_boxes_hold_them() -> None:
    boxes, maps = load_data("detection-shapes", image_size=32), load_data("segmentation-shapes", image_size=32)
    assert (boxes.classes, maps.classes, boxes.input_shape) == (4, 4, (3, 32, 32))
    x, targets = next(iter(boxes.test.batches(40)))
    same, classes = next(iter(maps.test.batches(40)))
    assert torch.equal(x, same)
    for target, each in zip(targets, classes, strict=True):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            assert 0 <= box[0] < box[2] <= 32
            middle = each[int((box[1] + box[3]) / 2), int((box[0] + box[2]) / 2)]
            assert middle in (label, *target["labels"].tolist())
        assert set(each.unique().tolist()) <= {0, *target["labels"].tolist()}
