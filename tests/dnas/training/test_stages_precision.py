"""Every kind of training computes its steps in the device's precision, on tensors with their channels last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnas.search.trainer import SupernetTrainer
from dnas.training.device import CPU, Device
from dnas.training.optimization import Updates
from tests.dnas.training.test_processes import STAGES, stages
from tests.toys import images

OF_THETA = "theta", "branches"  # stages whose first step is one of the weights


class Convolutions(TorchDispatchMode):
    """Notes the 2-D convolutions that run inside: images, weights and what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and args[0].ndim == 4:
            self.found.append((args[0].detach(), args[1].detach(), given.detach()))
        return given


class Enough(Exception):
    """Ends a stage after a step of each kind."""


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """The convolutions of one step of each kind of every stage."""
    noted: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def noting(step: Callable[..., Any], is_last: Callable[[str], bool]) -> Callable[..., None]:
        def stepped(*arguments: Any, **named: Any) -> None:
            with Convolutions() as convolutions:
                step(*arguments, **named)
            stage = list(noted)[-1]
            noted[stage] += convolutions.found
            if is_last(stage):
                raise Enough

        return stepped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updates, "step", noting(Updates.step, lambda stage: stage not in OF_THETA))
        patch.setattr(SupernetTrainer, "_theta_step", noting(SupernetTrainer._theta_step, lambda stage: True))
        for stage, _, epochs in stages(replace(CPU, precision="bf16", channels_last=True)):
            noted[stage] = []
            with suppress(Enough):
                next(epochs)
    return noted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_in_the_precision_of_the_device(stage: str, found: Any) -> None:
    """A teacher too, forward; the gradients have the types of what they are gradients of."""
    assert {tensor.dtype for convolution in found[stage] for tensor in convolution} == {torch.bfloat16}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_with_channels_last(stage: str, found: Any) -> None:
    """Images of one channel too; a detector's are put together by torchvision, which asks nobody."""
    places = slice(1, 3) if stage == "detection" else slice(0, 3)
    strides = {tensor.stride(1) for convolution in found[stage] for tensor in convolution[places]}
    assert strides == {1}


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_have_their_channels_last_whatever_their_number(channels: int) -> None:
    x = images(4).images.expand(-1, channels, -1, -1).contiguous()
    laid_out = Device(CPU.place, channels_last=True).laid_out(x)
    assert torch.equal(laid_out, x)
    assert torch.nn.Conv2d(channels, 4, 3)(laid_out).is_contiguous(memory_format=torch.channels_last)
