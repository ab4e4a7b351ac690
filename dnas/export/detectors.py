"""Detectors for graphs: from images to a box and scores at every place, before any box is chosen.

What follows, thresholds and the suppression of boxes that overlap, depends on values: no graph of fixed shapes holds
it, and every runtime has its own. The decoding is torchvision's (BoxCoder and BoxLinearCoder), for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from search_spaces.errors import InputError
from search_spaces.network.dense_part import dense_part


class EveryBox(nn.Module):
    """Backbone and head of an SSD, RetinaNet or FCOS, and what its numbers mean; the layers keep their names.

    Maps images (N, C, H, W) in [0, 1] to ``boxes`` (N, A, 4) as x0, y0, x1, y1 in their pixels and ``scores``
    (N, A, K): those of classes 1 to K of an SSD, 0 to K - 1 of the others, as the detector's labels are.
    """

    output_names = ("boxes", "scores")

    def __init__(self, detector: nn.Module, input_shape: Sequence[int]) -> None:
        super().__init__()
        known = cast(Any, detector)
        self.backbone, self.head = known.backbone, known.head
        self._kind, self._coder = type(detector), known.box_coder
        like = next(detector.parameters())
        image = torch.zeros(1, *input_shape, device=like.device)
        with torch.no_grad():
            images, _ = known.transform([image[0]])
            anchors = known.anchor_generator(
                ImageList(images.tensors, images.image_sizes), self._levels(images.tensors)
            )
        self.size, self.within, self.padded = tuple(input_shape[1:]), images.image_sizes[0], images.tensors.shape[-2:]
        self.register_buffer("anchors", anchors[0], persistent=False)
        for name, values in (("mean", known.transform.image_mean), ("std", known.transform.image_std)):
            self.register_buffer(name, torch.tensor(values, device=like.device)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores of every place."""
        x = (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        if tuple(x.shape[-2:]) != self.within:
            x = F.interpolate(x, self.within, mode="bilinear", align_corners=False)
        rows, columns = (whole - part for whole, part in zip(self.padded, self.within, strict=True))
        heads: Mapping[str, Tensor] = self.head(self._levels(F.pad(x, (0, columns, 0, rows))))
        boxes = self._decoded(heads["bbox_regression"])
        height, width = self.within
        boxes = torch.minimum(boxes.clamp_min(0), boxes.new_tensor([width, height, width, height]))
        scale = boxes.new_tensor([self.size[1] / width, self.size[0] / height] * 2)
        return boxes * scale, self._scores(heads)

    def _levels(self, x: Tensor) -> list[Tensor]:
        found: Any = self.backbone(x)
        return list(found.values()) if isinstance(found, Mapping) else [found]

    def _scores(self, heads: Mapping[str, Tensor]) -> Tensor:
        logits = heads["cls_logits"]
        if issubclass(self._kind, SSD):
            return logits.softmax(-1)[..., 1:]
        if issubclass(self._kind, FCOS):
            return (logits.sigmoid() * heads["bbox_ctrness"].sigmoid()).sqrt()
        return logits.sigmoid()

    def _decoded(self, codes: Tensor) -> Tensor:
        """Boxes (N, A, 4) of what the head says of each anchor."""
        anchors = cast(Tensor, self.anchors)
        sides, centres = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
        if issubclass(self._kind, FCOS):
            codes = codes * torch.cat([sides, sides], 1) if self._coder.normalize_by_size else codes
            return torch.cat([centres - codes[..., :2], centres + codes[..., 2:]], -1)
        weights = codes.new_tensor(self._coder.weights)
        moved = codes[..., :2] / weights[:2] * sides + centres
        half = (codes[..., 2:] / weights[2:]).clamp_max(self._coder.bbox_xform_clip).exp() * sides / 2
        return torch.cat([moved - half, moved + half], -1)


def before_boxes(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """What a graph can hold of a network: of a detector all before boxes are chosen, of another the whole.

    Raises :class:`InputError` for a detector whose boxes are chosen in the middle of it.
    """
    if isinstance(network, SSD | RetinaNet | FCOS):
        return EveryBox(network, input_shape)
    if dense_part(network) is not None and hasattr(network, "rpn"):
        raise InputError(
            f"{type(network).__name__} chooses boxes between its two stages, by the values of tensors, which no graph "
            "of fixed shapes holds; export it as packed, or take a detector of one stage (SSD, RetinaNet, FCOS)"
        )
    return network
