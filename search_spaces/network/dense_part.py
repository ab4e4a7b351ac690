"""The part of a detector that runs the same for every image: its backbone and its head, before boxes are chosen.

What comes behind asks for values of tensors (scores above a threshold, boxes that overlap), so no run tells what
another image would do there. Channels and residual branches are read from the part; its modules have their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.network.examples import Call


class DensePart(nn.Module):
    """``backbone`` and ``head`` of a detector built as torchvision's are; of two stages ``rpn.head``.

    Maps images (N, C, H, W) to what the head gives. Behind the proposals a second head reads the levels too, so they
    are given with it.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.get_submodule("backbone")
        self.stages = 2 if hasattr(detector, "rpn") else 1
        name = "rpn" if self.stages == 2 else "head"
        setattr(self, name, detector.get_submodule(name))

    def forward(self, images: Tensor) -> Any:
        """What the head gives, and the levels that another one reads."""
        found: Any = self.backbone(images)
        levels = list(found.values()) if isinstance(found, Mapping) else [found]
        if self.stages == 2:
            return self.get_submodule("rpn.head")(levels), levels
        return self.get_submodule("head")(levels)


def dense_part(detector: nn.Module) -> DensePart | None:
    """The part, where the network is built so."""
    modules = dict(detector.named_modules())
    if "backbone" not in modules or not {"head", "rpn.head"} & set(modules):
        return None
    return DensePart(detector)


class _Reached(Exception):
    """The backbone is about to run on ``images``."""

    def __init__(self, images: Tensor) -> None:
        self.images = images


def entering(detector: nn.Module, call: Call) -> Tensor:
    """What the backbone is given (N, C, H, W): images as the detector itself resizes and pads them before it.

    Its layers may not fit images as small as those that it is called with.
    """

    def reached(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0])

    handle = detector.get_submodule("backbone").register_forward_pre_hook(reached)
    try:
        with torch.no_grad():
            call.run(detector)
    except _Reached as found:
        return found.images
    finally:
        handle.remove()
    return call.tensors[0]
