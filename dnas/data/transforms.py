"""Transforms of single images, torchvision's or one's own, whose randomness follows from a seed for each image.

Such transforms draw from the global generators of torch, numpy and Python. Each image gets its seed before any process
starts to work on it, so that neither the number of processes nor their order can matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from dnas.data.described import described
from search_spaces.errors import InputError, one_line
from search_spaces.registry import called, importable_working_directory, imported

Transform = Callable[[Tensor], Tensor]
"""From an image (C, H, W), uint8 or float, to one of the same shape."""


@dataclass(frozen=True)
class OwnTransform:
    """A transform that is not ours: :class:`InputError` names it where it fails or changes the shape of an image."""

    function: Transform

    def __call__(self, image: Tensor) -> Tensor:
        """The changed image (C, H, W)."""
        try:
            found: Any = self.function(image)
        except Exception as error:  # the user's own code, or an image that a transform does not take
            raise InputError(f"augmentation {self} fails on {described(image)}: {one_line(error)}") from error
        if not isinstance(found, Tensor) or found.shape != image.shape:
            raise InputError(f"augmentation {self} makes {described(found)} of {described(image)}; keep the shape")
        return found.as_subclass(Tensor)

    def together(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """An image (C, H, W) and what of its target moves with it; a function of one's own changes the image alone."""
        if not isinstance(self.function, v2.Transform):
            return tv_tensors.wrap(self(image.as_subclass(Tensor)), like=image), target
        try:
            found: Any = self.function(image, target)
        except Exception as error:  # an image, or a target, that a transform does not take
            raise InputError(f"augmentation {self} fails on {described(image)}: {one_line(error)}") from error
        return found[0], found[1]

    def __str__(self) -> str:
        function = self.function.func if isinstance(self.function, partial) else self.function
        return type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", "given")


def transform_of(source: str, arguments: Mapping[str, Any]) -> Transform:
    """The transform that ``package.module:name`` names: an object of that class, or that function with ``arguments``.

    Raises :class:`InputError` for one that is not there, or cannot be made.
    """
    with importable_working_directory():
        found = imported(source, "augmentation")
        found = called(source, found, "augmentation", [Callable if isinstance(found, type) else Tensor])
        if not isinstance(found, type):
            return partial(found, **arguments) if arguments else found
        try:
            made = found(**arguments)
        except Exception as error:  # arguments that a class does not take, or the user's own code
            raise InputError(f"augmentation '{source}' cannot be made: {one_line(error)}") from error
    return called(source, made, "augmentation")


def seeds_of(count: int, generator: torch.Generator) -> Tensor:
    """A seed for each of ``count`` images, int64 (N,)."""
    return torch.randint(0, 2**31, (count,), generator=generator)


def transformed(images: Tensor, seeds: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Images (N, C, H, W), each through all transforms, which draw from its own seed (N,)."""
    with randomness_restored():
        return torch.stack([_one(image, int(seed), transforms) for image, seed in zip(images, seeds, strict=True)])


def _one(image: Tensor, seed: int, transforms: Sequence[Transform]) -> Tensor:
    seed_everything(seed)
    for transform in transforms:
        image = transform(image)
    return image


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (on the CPU), numpy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def randomness_restored() -> Iterator[None]:
    """Leave the global generators of torch (on the CPU), numpy and Python as they are now."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
