"""Networks that find boxes, run as torchvision's are: losses of images and targets, or boxes of images alone.

Such a network computes its losses itself, in training mode, and boxes in eval mode. Here both are had in either mode of
its normalisations: only the modules that choose between the two are switched for the time of a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dnas.data.described import described
from dnas.quantization.randomness import seeded
from search_spaces.errors import InputError

Target = Mapping[str, Tensor]
"""``boxes`` (K, 4) as x0, y0, x1, y1 in pixels and ``labels`` (K,) from 1 on; ``iscrowd`` (K,) marks those that a
network need not find."""
_CHOOSING = (RegionProposalNetwork, RoIHeads, GeneralizedRCNNTransform)


@dataclass(frozen=True, eq=False)
class Detected:
    """What a detector says of a batch of images (N, C, H, W).

    ``losses`` are its own, of the targets that it was given; ``heads`` what its heads said before any box was chosen, a
    structure of tensors.
    """

    images: int
    losses: Mapping[str, Tensor]
    heads: Any
    find: Callable[[], Any]

    @cached_property
    def boxes(self) -> Sequence[Target]:
        """``boxes`` (K, 4), ``scores`` (K,) and ``labels`` (K,) found in each image; computed when first asked for."""
        found = self.find()
        if not isinstance(found, list | tuple) or len(found) != self.images or not all(map(_are_boxes, found)):
            raise InputError(
                f"the network returns {described(found)} in eval mode; a detector returns for each image a dict of "
                "'boxes' (K, 4), 'scores' (K,) and 'labels' (K,)"
            )
        return found


def detect(network: nn.Module, images: Tensor, targets: Sequence[Target] | None) -> Detected:
    """Run a detector, perhaps one inside ``network``, on images (N, C, H, W).

    Raises :class:`InputError` for a network that is none.
    """
    detector = detector_in(network)
    losses, heads = _losses(network, detector, images, targets) if targets is not None else ({}, {})

    def find() -> Any:
        with torch.no_grad(), _choosing(detector, losses=False):
            return network(images)

    return Detected(len(images), losses, heads, find)


def detector_in(network: nn.Module) -> nn.Module:
    """The outermost module that takes targets beside images."""
    for module in network.modules() if isinstance(network, nn.Module) else ():
        if "targets" in inspect.signature(type(module).forward).parameters:
            return module
    raise InputError(
        f"the network ({type(network).__name__}) is no detector: its forward takes no targets; a detector gives a dict "
        "of losses for (images, targets) in training mode and boxes for images in eval mode, as torchvision's do"
    )


def _losses(
    network: nn.Module, detector: nn.Module, images: Tensor, targets: Sequence[Target]
) -> tuple[Mapping[str, Tensor], Any]:
    """The losses, and what the heads said; outside training what a detector draws follows from nothing else."""
    heads: list[Any] = []
    head = _head_of(detector)
    handles = [head.register_forward_hook(lambda module, inputs, output: heads.append(output))] if head else []
    drawn = nullcontext() if network.training else seeded(0, images.device)
    try:
        with drawn, _choosing(detector, losses=True):
            found = network(images, [to_be_found(target) for target in targets])
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(found, Mapping) or not all(isinstance(loss, Tensor) and not loss.ndim for loss in found.values()):
        raise InputError(
            f"the network returns {described(found)} for images and targets; a detector returns a dict of losses"
        )
    return found, heads[0] if heads else {}


def to_be_found(target: Target) -> dict[str, Tensor]:
    """A target without its crowds."""
    if "iscrowd" not in target:
        return dict(target)
    count, single = len(target["boxes"]), target["iscrowd"] == 0
    return {key: x[single] if isinstance(x, Tensor) and x.ndim and len(x) == count else x for key, x in target.items()}


def _head_of(detector: nn.Module) -> nn.Module | None:
    """The module that speaks of every place of the image: the head, or that of the proposals."""
    head = getattr(detector, "head", None) or getattr(getattr(detector, "rpn", None), "head", None)
    return head if isinstance(head, nn.Module) else None


def classes_of(detector: nn.Module) -> int | None:
    """How many classes a detector built as torchvision's are tells apart, the background too; None of another."""
    score = getattr(getattr(getattr(detector, "roi_heads", None), "box_predictor", None), "cls_score", None)
    if isinstance(score, nn.Linear):
        return int(score.out_features)
    head = getattr(getattr(detector, "head", None), "classification_head", None)
    found = getattr(head, "num_classes", getattr(head, "num_columns", None))
    return None if found is None else int(found)


@contextmanager
def _choosing(detector: nn.Module, *, losses: bool) -> Iterator[None]:
    """Let the detector compute losses, or boxes; everything else keeps its mode."""
    modules = [detector, *(module for module in detector.modules() if isinstance(module, _CHOOSING))]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = losses
        yield
    finally:
        for module, training in modes:
            module.training = training


def _are_boxes(found: Any) -> bool:
    return isinstance(found, Mapping) and {"boxes", "scores", "labels"} <= set(found)
