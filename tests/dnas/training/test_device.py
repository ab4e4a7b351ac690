"""Where a network computes: what is not there is refused, and precision and memory format keep figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnas.config.file import load_job
from dnas.config.training import TrainingSection
from dnas.data.image_sets import MemoryImages
from dnas.training.device import CPU, Device, available, deterministic
from dnas.training.trainer import Trainer, evaluate
from search_spaces.errors import InputError, JobError
from tests.dnas.training.test_trainer import IMAGES, network
from tests.toys import images


class Watching(nn.Module):
    """Notes how its first layer computes, and how its images lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(108, 3)
        self.seen: list[tuple[bool, torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen.append((self.training, y.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return self.head(y.flatten(1))


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert available() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert Device.named("cuda:1").place == torch.device("cuda:1")
    assert Device.named("auto").place == torch.device("cuda")
    for name in ("cuda:2", "mps"):
        with pytest.raises(InputError, match=f"device = '{name}' is not here; PyTorch finds cpu, cuda, cuda:0, cuda:1"):
            Device.named(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.named("auto") == CPU
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    assert available() == ["cpu", "xpu", "xpu:0"]
    assert Device.named("xpu:0", "auto", "auto") == Device(torch.device("xpu:0"))
    with pytest.raises(InputError, match="device = 'xpu:1' is not here; PyTorch finds cpu, xpu, xpu:0; or use auto"):
        Device.named("xpu:1")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(InputError, match="device = 'cuda' is not here; PyTorch finds cpu; or use auto"):
        Device.named("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_what_is_no_device_is_refused_in_the_job_file(name: str) -> None:
    with pytest.raises(InputError, match=r"device = .*expected auto, cpu, mps, xpu, cuda or cuda:NUMBER"):
        load_job("digits", [f"device={name!r}"])


@pytest.mark.parametrize("device", [CPU, torch.device("cpu"), "cpu"])
def test_every_way_to_name_a_device_measures_alike(device: Any) -> None:
    model = network().eval()
    assert evaluate(model, IMAGES, 16, device) == evaluate(model, IMAGES, 16)


def test_steps_take_the_precision_and_measurements_do_not() -> None:
    model, device = Watching(), Device(CPU.place, "bf16", True)
    grey = images(32)
    colour = MemoryImages(grey.images.expand(-1, 3, -1, -1).contiguous(), grey.labels, (0.5,) * 3, (0.5,) * 3)
    one = Trainer(model, TrainingSection(epochs=1), images=colour, batch_size=16, device=device)
    for _ in one.epochs():
        one.measured(colour)
    assert {(training, dtype) for training, dtype, _ in model.seen} == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(last for *_, last in model.seen)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("device", [Device(CPU.place, "bf16"), Device(CPU.place, "fp32", True)])
def test_a_quantized_network_learns_in_every_precision_and_format(device: Device) -> None:
    losses = []
    for each in (CPU, device):
        one = Trainer(
            network(), TrainingSection(epochs=3, learning_rate=0.05), images=IMAGES, batch_size=16, device=each
        )
        losses.append([result.loss for result in one.epochs()])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1][-1] < losses[1][0]


def test_files_of_before_ask_for_mixed_precision_in_the_search() -> None:
    assert load_job("digits", ["search.mixed_precision=true"]).precision == "bf16"
    assert load_job("digits", ["search.mixed_precision=false"]).precision == "fp32"
    assert load_job("digits", ["search.mixed_precision=true", "precision=fp32"]).precision == "fp32"
    with pytest.raises(InputError, match="mixed_precision"):
        load_job("digits", ["search.mixed_precision=3"])


@pytest.mark.parametrize(("halves", "expected"), [(True, ("bf16", True)), (False, ("fp32", False))])
def test_automatic_precision_is_what_the_device_is_made_for(
    halves: bool, expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: halves)
    found = Device.named("cuda", "auto", "auto")
    assert (found.precision, found.channels_last) == expected
    assert Device.named("cuda", "fp32", False) == Device(torch.device("cuda"))
    assert Device.named("cpu", "auto", "auto") == CPU
    assert Device.named("cpu", "bf16", "auto") == Device(torch.device("cpu"), "bf16", False)


def test_each_of_several_processes_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Device.named("auto").place == torch.device("cuda:1")
    assert Device.named("cuda:0").place == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="device = 'cuda:2' is not here; PyTorch finds cpu, cuda, cuda:0, cuda:1"):
        Device.named("cuda")


def test_what_cannot_be_deterministic_is_told_by_its_name() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    sentence = "put_ does not have a deterministic implementation. You can turn it off."
    with pytest.raises(JobError, match=r"^deterministic = true: put_ does not have .*; set deterministic = false$"):
        refused(True, sentence)
    with pytest.raises(RuntimeError, match="turn it off"):
        refused(False, sentence)
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        refused(True, "shapes")
    assert not torch.are_deterministic_algorithms_enabled()


def refused(wanted: bool, sentence: str) -> None:
    with deterministic(wanted):
        raise RuntimeError(sentence)
