"""Detection: boxes with classes, judged by the mean average precision of COCO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dnas.data.described import described
from dnas.data.image_sets import ImageSet
from dnas.data.target_images import looked_at
from dnas.training.detectors import Detected, Target, classes_of, detect, detector_in, to_be_found
from dnas.training.task import Task, in_fp32
from search_spaces.errors import InputError, one_line
from search_spaces.metrics import MEAN_PRECISION
from search_spaces.registry import loaded

# COCO's, in fp64: the library's own are in fp32, which moves a recall of 0.6 to the other side of its threshold.
_OVERLAPS = np.linspace(0.5, 0.95, 10).tolist()
_RECALLS = np.linspace(0.0, 1.0, 101).tolist()
_INSTALL = "pip install 'dnas[detection]'"


@dataclass(frozen=True)
class Detection(Task):
    """Boxes with classes in images that stay in [0, 1], by a detector as torchvision's are, unedited.

    Targets are dicts of ``boxes`` (K, 4) as x0, y0, x1, y1 in pixels and ``labels`` (K,) from 1 on. The loss is the
    sum of the detector's own. A net learns from a teacher what its heads say of every place of the image. The layers
    that say where a box is stay in fp32 by default.
    """

    metric = MEAN_PRECISION
    exact_layers = ("*regression_head.module_list.*", "*.bbox_reg", "*.bbox_ctrness", "*.bbox_pred")

    def __post_init__(self) -> None:
        precision()  # said before anything else, if it is missing

    def run(self, network: Callable[..., Any], inputs: Any, targets: Any = None) -> Detected:
        """What the detector says of images (N, C, H, W): its losses where there are targets, boxes if asked for."""
        return detect(network, inputs, targets)  # type: ignore[arg-type]

    def outputs(self, given: Any) -> Detected:
        """The same."""
        if not isinstance(given, Detected):
            raise InputError(f"the network returns {described(given)}; a detector returns losses or boxes")
        return given

    def loss(self, outputs: Detected, targets: Sequence[Target]) -> Tensor:
        """The sum of the detector's losses, each a mean."""
        return torch.stack([in_fp32(loss) for loss in outputs.losses.values()]).sum()

    def loss_sum(self, outputs: Detected, targets: Sequence[Target]) -> Tensor:
        """The same for all images of the batch."""
        return self.loss(outputs, targets) * outputs.images

    def meter(self) -> FoundBoxes:
        """Gathers boxes, and those that were to be found."""
        return FoundBoxes()

    def comparable(self, outputs: Detected) -> Any:
        """What the heads said of every place of the image; nothing of a detector without ``head`` or ``rpn.head``."""
        return tree_map(lambda leaf: in_fp32(leaf) if isinstance(leaf, Tensor) else leaf, outputs.heads)

    def check_targets(self, sets: Mapping[str, ImageSet], network: nn.Module) -> None:
        """Refuse boxes that are none or lie outside their images, classes without an output, sets without a box."""
        classes = classes_of(detector_in(network))
        for name, images in sets.items():
            number, boxes, single = 0, 0, 0
            for number, target in enumerate(looked_at(images), start=1):
                where = f"image {number} of the {name} images"
                check_target(where, target, tuple(images.input_shape[1:]), classes)
                boxes += len(target["boxes"])
                single += len(to_be_found(target)["boxes"])
            if number and not single:
                what = "box but crowds and difficult ones" if boxes else "box"
                raise InputError(f"data: there is no {what} in the first {number} of the {name} images; give some")


def check_target(where: str, target: Any, size: tuple[int, ...], classes: int | None) -> None:
    """Raise :class:`InputError` for a target that cannot be learned in an image of ``size`` (H, W)."""
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
        raise InputError(f"data: the target of {where} must be a dict of 'boxes' and 'labels'; got {described(target)}")
    boxes, labels = target["boxes"], target["labels"]
    fits = isinstance(boxes, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.is_floating_point()
    whole = isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype == torch.int64
    if not fits or not whole or len(boxes) != len(labels):
        raise InputError(
            f"data: {where} has boxes {described(boxes)} and labels {described(labels)}; give floats (K, 4) and "
            "int64 (K,)"
        )
    crowds = target.get("iscrowd", labels)
    if not isinstance(crowds, Tensor) or crowds.shape != labels.shape:
        raise InputError(f"data: {where} has iscrowd {described(crowds)}; give a number for each of {len(boxes)} boxes")
    _check_places(where, boxes, size)
    for label in labels[(labels < 1) | (labels >= (classes or 2**63 - 1))].tolist():
        known = f"it has {classes} with the background, so 1 to {classes - 1}" if classes else "1 is the first"
        raise InputError(
            f"data: class {label} of {where} does not fit the network's head: {known}; give it more (such as "
            f"model.arguments = {{num_classes = {label + 1}}}), or count classes from 1"
        )


def _check_places(where: str, boxes: Tensor, size: tuple[int, ...]) -> None:
    """Raise :class:`InputError` for a box that lies outside its image, or without area."""
    height, width = size
    outside = ~boxes.isfinite() | (boxes < 0) | (boxes > boxes.new_tensor([width, height, width, height]))
    for wrong, reason in (
        (outside, f"lies outside the image, {width} x {height} pixels; correct or remove it"),
        (boxes[:, 2:] <= boxes[:, :2], "has no area; write x0, y0, x1, y1 with x0 < x1 and y0 < y1, or remove it"),
    ):
        for box in boxes[wrong.any(1)].tolist():
            raise InputError(f"data: box {[round(value, 2) for value in box]} of {where} {reason}")


def precision() -> Any:
    """A fresh mean average precision of torchmetrics, computed by COCO's own code or a faster copy of it."""
    source = "torchmetrics.detection:MeanAveragePrecision"
    failures = []
    for backend in ("pycocotools", "faster_coco_eval"):
        try:
            make = loaded(source, "metric map50_95")
            found = make(iou_type="bbox", backend=backend, iou_thresholds=_OVERLAPS, rec_thresholds=_RECALLS)
            found.warn_on_many_detections = False  # COCO counts the best 100 of an image, and detectors give more
            return found
        except (InputError, ImportError) as error:
            failures.append(error)
    reason = failures[0].__cause__ or failures[0]  # ours would tell another line to install
    raise InputError(f"the task detection needs torchmetrics and pycocotools: {_INSTALL} ({one_line(reason)})")


class FoundBoxes:
    """Gathers the boxes of all batches; computes COCO's mean average precision over ten thresholds of overlap."""

    def __init__(self) -> None:
        self._precision = precision()

    def update(self, outputs: Detected, targets: Sequence[Target]) -> None:
        """Take note of the boxes of one batch."""
        found = [_on_host(each, ("boxes", "scores", "labels")) for each in outputs.boxes]
        self._precision.update(found, [_on_host(each, ("boxes", "labels", "iscrowd")) for each in targets])

    def compute(self) -> float:
        """The mean average precision; 0 where there was no box to be found."""
        return max(0.0, float(self._precision.compute()["map"]))


def _on_host(target: Target, keys: Sequence[str]) -> dict[str, Tensor]:
    return {key: target[key].detach().cpu().as_subclass(Tensor) for key in keys if key in target}
