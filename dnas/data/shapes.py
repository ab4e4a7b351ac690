"""A generated set for detection and segmentation: discs, squares and triangles on noise, always the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

NAMES = ("disc", "square", "triangle")
SIDE = 64
TRAIN, TEST = 1000, 300
_MOST = 3  # shapes in an image
_MOST_OVERLAP = 0.2  # of the smaller of two boxes


@dataclass(frozen=True)
class Shapes:
    """Images uint8 (N, 3, S, S), maps of classes int64 (N, S, S) with 0 behind the shapes, and the boxes of each."""

    images: Tensor
    maps: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """Boxes (K, 4) as x0, y0, x1, y1 in pixels, and labels (K,) from 1 on, of each image."""
        size = self.images.shape[-2:]
        return [
            {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), "labels": labels}
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]


def shapes(count: int, side: int = SIDE, seed: int = 0) -> Shapes:
    """Draw ``count`` images of ``side`` pixels with one to three shapes each; all follows from the seed."""
    generator = np.random.default_rng(seed)
    drawn = [_image(generator, side) for _ in range(count)]
    images, maps, boxes, labels = zip(*drawn, strict=True)
    return Shapes(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(maps)),
        [torch.from_numpy(each) for each in boxes],
        [torch.from_numpy(each) for each in labels],
    )


def _image(generator: np.random.Generator, side: int) -> tuple[np.ndarray, ...]:
    """One image (3, S, S), its map (S, S), boxes (K, 4) and labels (K,)."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    ground = generator.uniform(60, 200, 3)[:, None, None] + generator.normal(0, 12, (3, side, side))
    classes = np.zeros((side, side), dtype=np.int64)
    boxes: list[tuple[float, ...]] = []
    labels: list[int] = []
    for _ in range(generator.integers(1, _MOST + 1)):
        label = int(generator.integers(1, len(NAMES) + 1))
        radius = generator.uniform(0.09, 0.22) * side
        row, column = generator.uniform(radius, side - radius, 2)
        box = (column - radius, row - radius, column + radius, row + radius)
        if any(_overlap(box, other) > _MOST_OVERLAP for other in boxes):
            continue
        inside = _inside(label, rows - row, columns - column, radius)
        colour = generator.uniform(0, 255, 3)
        while np.abs(colour - ground.mean((1, 2))).max() < 80:
            colour = generator.uniform(0, 255, 3)
        ground = np.where(inside, colour[:, None, None] + generator.normal(0, 12, ground.shape), ground)
        classes[inside] = label
        boxes.append(box)
        labels.append(label)
    image = ground.clip(0, 255).astype(np.uint8)
    return image, classes, np.array(boxes, dtype=np.float32), np.array(labels, dtype=np.int64)


def _inside(label: int, row: np.ndarray, column: np.ndarray, radius: float) -> np.ndarray:
    """Which pixels (S, S) a shape covers, at distances from its centre."""
    if NAMES[label - 1] == "disc":
        return row**2 + column**2 <= radius**2
    if NAMES[label - 1] == "square":
        return (abs(row) <= radius) & (abs(column) <= radius)
    return (abs(row) <= radius) & (abs(column) <= (row + radius) / 2)  # its point is above


def _overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The part of the smaller box that both share."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return max(0.0, width) * max(0.0, height) / smaller
