"""What files tell of how inputs are normalised is what the networks were given, or nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dnas.data.image_sets import DataSplits, MemoryImages
from dnas.jobs.normalisation import preprocessing_of


def splits(images: torch.Tensor, mean: Any, std: Any) -> DataSplits:
    data = MemoryImages(images, torch.arange(len(images)) % 2, (0.0,) * 3, (1.0,) * 3)
    data.mean, data.std = mean, std
    return DataSplits(data, data, data, 2, (3, 4, 4), ("a", "b"))


PIXELS = torch.rand(6, 3, 4, 4)


@pytest.mark.parametrize("images", [PIXELS, (255 * PIXELS).to(torch.uint8)], ids=["floats", "bytes"])
def test_pixels_that_are_given_as_they_are_are_told_so(images: torch.Tensor) -> None:
    told = preprocessing_of(splits(images, (0.0,) * 3, (1.0,) * 3))
    assert told is not None
    assert (told.mean, told.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("images", [2 * PIXELS - 1, 255 * PIXELS], ids=["normalised", "up to 255"])
def test_of_images_that_somebody_normalised_before_it_is_not_known_how(images: torch.Tensor) -> None:
    """A file that told mean 0 and std 1 of pixels in [0, 1] would be given pixels, and answer otherwise."""
    assert preprocessing_of(splits(images, (0.0,) * 3, (1.0,) * 3)) is None


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.5,)), ("abc", (1, 1, 1)), (lambda: 0, lambda: 0), ((0.1, 0.2, 0.3), (1, 0, 1)), ((0.1,) * 3, None)],
)
def test_attributes_that_are_no_number_for_each_channel_tell_nothing(mean: Any, std: Any) -> None:
    """A user's own set of images may call anything so; a job must not fail of it when all is measured."""
    assert preprocessing_of(splits(PIXELS, mean, std)) is None


def test_tensors_tell_it_too_and_images_without_it_do_not() -> None:
    told = preprocessing_of(splits(PIXELS, torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.5] * 3)))
    assert told is not None
    assert (told.mean, told.std) == ((0.25, 0.5, 0.75), (0.5,) * 3)
    data: Any = SimpleNamespace(labels=torch.zeros(3), input_shape=(3, 4, 4))
    assert preprocessing_of(replace(splits(PIXELS, (0.0,) * 3, (1.0,) * 3), train=data)) is None
