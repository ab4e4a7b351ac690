"""The images of a search: what trains the weights, what trains θ, and what every choice is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from dnas.data.augmentation import Augmentation
from dnas.data.given import GivenImages, image_set
from dnas.data.image_sets import ImageSet, stratified_indices
from dnas.training.schedules import derived_seed


@dataclass(frozen=True)
class SearchData:
    """Images that train the weights, images that train θ, and images that every choice is judged on."""

    weights: ImageSet
    theta: ImageSet
    validation: ImageSet
    batch_size: int
    augmentation: Augmentation | None

    @classmethod
    def split(
        cls,
        train: GivenImages,
        val: GivenImages,
        theta_fraction: float = 0.2,
        batch_size: int = 128,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        most_validation: int = 2000,
    ) -> Self:
        """Split the training images by class; choices are made on at most ``most_validation`` validation images."""
        train, val = image_set(train, "the training images"), image_set(val, "the validation images")
        chosen = stratified_indices(
            train.labels, max(1, round(theta_fraction * len(train))), derived_seed(seed, "theta")
        )
        mask = torch.ones(len(train), dtype=torch.bool)
        mask[chosen] = False
        chosen_validation = stratified_indices(val.labels, min(len(val), most_validation), derived_seed(seed, "judge"))
        # Shuffled: folders hold one class after another, and a batch of one class has no usable batch statistics.
        order = torch.randperm(
            len(chosen_validation), generator=torch.Generator().manual_seed(derived_seed(seed, "order"))
        )
        validation = val.subset(chosen_validation[order])
        return cls(train.subset(mask.nonzero()[:, 0]), train.subset(chosen), validation, batch_size, augmentation)
