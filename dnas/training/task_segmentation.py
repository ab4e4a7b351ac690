"""Semantic segmentation: a class for every pixel, judged by the mean intersection over union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.data.described import described
from dnas.data.image_sets import ImageSet
from dnas.data.mask_files import MaskFiles
from dnas.data.target_images import IGNORED, HeldItems, TargetImages, looked_at
from dnas.training.metrics import Gauge
from dnas.training.task import Task, in_fp32
from search_spaces.errors import InputError
from search_spaces.metrics import MEAN_IOU, PIXEL_ACCURACY

MAIN = "out"

Maps = Mapping[str, Tensor]
"""Logits (N, classes, H, W): those that count under ``out``, as torchvision has it, and those of auxiliary heads."""


@dataclass(frozen=True)
class Segmentation(Task):
    """Logits (N, classes, H, W), or a dict of them, against maps of classes (N, H, W); 255 counts nowhere.

    The first of a tuple, or ``out`` of a dict, is what counts; further ones are auxiliary heads, whose cross-entropy is
    added times ``auxiliary_weight``, as torchvision trains its own. Maps of another size than the logits scale these.
    """

    auxiliary_weight: float = 0.5
    ignored: int = IGNORED
    label_smoothing: float = 0.0
    metric = MEAN_IOU
    auxiliary_layers = ("aux_classifier.*",)

    def __post_init__(self) -> None:
        beside = Gauge(PIXEL_ACCURACY, partial(Confusion, self.ignored, accuracy=True))
        object.__setattr__(self, "beside", (beside,))  # it is frozen, and its fields are its arguments

    def outputs(self, given: Any) -> Maps:
        """The logits of all heads by name, ``out`` first."""
        if isinstance(given, Tensor):
            given = {MAIN: given}
        elif isinstance(given, tuple | list) and given:
            given = {MAIN: given[0], **{f"aux{number}": each for number, each in enumerate(given[1:], start=1)}}
        if not isinstance(given, Mapping) or not isinstance(given.get(MAIN), Tensor):
            raise InputError(
                f"the network returns {described(given)}; a segmentation needs logits, alone or as '{MAIN}'"
            )
        heads = {name: in_fp32(each) for name, each in given.items() if isinstance(each, Tensor) and each.ndim == 4}
        return {MAIN: in_fp32(given[MAIN]), **heads}

    def loss(self, outputs: Maps, targets: Tensor) -> Tensor:
        """The mean cross-entropy of the pixels that count, auxiliary heads beside."""
        losses = {name: self._cross_entropy(logits, targets) for name, logits in outputs.items()}
        own = losses.pop(MAIN)
        return own + self.auxiliary_weight * sum(losses.values(), start=torch.zeros_like(own))

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """0 where no pixel counts: PyTorch's mean would be NaN there."""
        pixels = _of_size(logits, targets).movedim(1, -1).flatten(0, -2)  # of maps CUDA's sum is another each time
        targets = targets.long().flatten()
        summed = F.cross_entropy(
            pixels,
            targets,
            ignore_index=self.ignored,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return summed / (targets != self.ignored).sum().clamp_min(1)

    def meter(self) -> Confusion:
        """Gathers how often each class is taken for each."""
        return Confusion(self.ignored)

    def comparable(self, outputs: Maps) -> Tensor:
        """The logits that count."""
        return outputs[MAIN]

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """The mean KL divergence of each pixel's prediction from the teacher's."""
        each = F.kl_div(outputs.log_softmax(1), told.log_softmax(1), log_target=True, reduction="none")
        return each.sum(1).mean()

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logarithm of the mean prediction."""
        return torch.stack([logits.softmax(1) for logits in outputs]).mean(0).log()

    def smoothed(self, amount: float) -> Self:
        """Take ``amount`` of the probability from the label and share it out among all classes."""
        return replace(self, label_smoothing=amount)

    def check(self, sets: Mapping[str, ImageSet], outputs: Maps) -> None:
        """Refuse maps of another size than their images, and classes without an output."""
        logits = outputs[MAIN]
        if logits.ndim != 4:
            raise InputError(f"the network returns {described(logits)}; a segmentation needs logits (N, classes, H, W)")
        for name, images in sets.items():
            classes: set[int] = set()
            if isinstance(images, TargetImages) and isinstance(images.items, MaskFiles):
                self._check_class(name, images.classes - 1, logits.shape[1])  # all were read, once
            for target in _maps(images):
                classes |= self._classes_in(name, target, tuple(images.input_shape[1:]), logits.shape[1])
            if len(looked_at(images)) == len(images):  # else the others may say more
                self._check_variety(name, classes, logits.shape[1])

    def _check_variety(self, name: str, classes: set[int], known: int) -> None:
        """Refuse maps without a pixel that counts, and training ones of a single class."""
        if not classes:
            raise InputError(
                f"data: every pixel in the maps of the {name} images is {self.ignored}, which counts nowhere; give "
                "some a class"
            )
        if name == "training" and len(classes) < 2 <= known:
            raise InputError(
                f"data: every pixel that counts in the maps of the training images is of class {classes.pop()}; "
                f"give others their class ({self.ignored} is none: such pixels count nowhere)"
            )

    def _classes_in(self, name: str, target: Any, shape: tuple[int, ...], classes: int) -> set[int]:
        """Those in one map (H, W), or in several (N, H, W)."""
        if not isinstance(target, Tensor) or target.is_floating_point() or tuple(target.shape[-2:]) != shape:
            raise InputError(
                f"data: targets of the {name} images must be maps of classes, integers {shape}; got {described(target)}"
            )
        counted = target[target != self.ignored]
        if not counted.numel():
            return set()
        least, most = int(counted.min()), int(counted.max())
        self._check_class(name, most, classes)
        self._check_class(name, least, classes)
        return {least, most}

    def _check_class(self, name: str, found: int, classes: int) -> None:
        if not 0 <= found < classes:
            more = (
                f"give it more (such as model.arguments = {{num_classes = {found + 1}}})"
                if found > 0
                else "count from 0"
            )
            raise InputError(
                f"data: class {found} in the maps of the {name} images has no output: the network has {classes} (0 to "
                f"{classes - 1}); {more}, or write {self.ignored} for pixels that count nowhere"
            )


def _maps(images: ImageSet) -> Sequence[Any]:
    """The maps that are looked at, those in one tensor at once."""
    if isinstance(images, TargetImages) and isinstance(images.items, HeldItems):
        held = images.items.targets
        return [held[images.indices]] if isinstance(held, Tensor) else list(images.labels)
    found = looked_at(images)
    return [found] if isinstance(found, Tensor) else found


def _of_size(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[-2:] == targets.shape[-2:]:
        return logits
    return F.interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)


class Confusion:
    """Gathers the pixels (classes, classes) of each class, by what they are taken for.

    The mean intersection over union is over the classes that are there, or are taken for: none else says anything.
    """

    def __init__(self, ignored: int = IGNORED, accuracy: bool = False) -> None:
        self.ignored, self.accuracy = ignored, accuracy
        self.pixels: Tensor | None = None
        self.finite: Tensor | bool = True

    def update(self, outputs: Maps, targets: Tensor) -> None:
        """Count the pixels of one batch; nothing waits for the device."""
        logits = _of_size(outputs[MAIN], targets)
        classes = logits.shape[1]
        wrong = targets == self.ignored
        found = targets.long().masked_fill(wrong, 0) * classes + logits.argmax(1)
        counts = torch.zeros(classes**2, dtype=torch.int64, device=logits.device)
        counts.scatter_add_(0, found.flatten(), (~wrong).flatten().long())
        self.pixels = counts if self.pixels is None else self.pixels + counts
        self.finite = self.finite & ~logits.isnan().any()

    def compute(self) -> float:
        """The mean intersection over union, or the part of pixels that are right; NaN where a logit is."""
        if self.pixels is None or not bool(self.finite):
            return float("nan")
        classes = round(len(self.pixels) ** 0.5)
        table = self.pixels.view(classes, classes).double().cpu()
        right, union = table.diag(), table.sum(0) + table.sum(1) - table.diag()
        if self.accuracy:
            return float(right.sum() / table.sum().clamp_min(1))
        there = union > 0
        return float((right[there] / union[there]).mean()) if there.any() else 0.0
