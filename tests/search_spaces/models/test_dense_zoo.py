"""Small networks with an output for every place: their sizes, their outputs, and what is no network."""

from __future__ import annotations

import pytest
import torch

from search_spaces.errors import InputError
from search_spaces.models.sources import ZOO


def test_a_segmenter_gives_logits_of_every_pixel() -> None:
    model = ZOO["tiny_segmenter"](num_classes=5, in_channels=2).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 2, 20, 12)).shape == (2, 5, 20, 12)


def test_a_detector_gives_boxes_within_the_image() -> None:
    torch.manual_seed(0)
    model = ZOO["tiny_ssd"](num_classes=3, size=32).eval()
    with torch.inference_mode():
        found = model([torch.rand(3, 32, 32), torch.rand(3, 32, 32)])
    assert len(found) == 2
    for each in found:
        assert len(each["boxes"]) == len(each["scores"]) > 0
        assert bool((each["boxes"] >= 0).all() & (each["boxes"] <= 32).all())
        assert set(each["labels"].tolist()) <= {1, 2}  # 0 is the background


@pytest.mark.parametrize(("name", "thousands"), [("tiny_segmenter", 22), ("tiny_ssd", 116)])
def test_sizes_are_as_told(name: str, thousands: int) -> None:
    assert round(sum(parameter.numel() for parameter in ZOO[name]().parameters()) / 1000) == thousands


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"width": -1}, {"in_channels": 1.5}])
@pytest.mark.parametrize("name", ["tiny_segmenter", "tiny_ssd"])
def test_empty_counts_are_refused(name: str, arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be a whole number of 1 or more"):
        ZOO[name](**arguments)


@pytest.mark.parametrize("size", [16, 40, 100])
def test_a_detector_is_for_images_that_halve_four_times(size: int) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        ZOO["tiny_ssd"](size=size)
