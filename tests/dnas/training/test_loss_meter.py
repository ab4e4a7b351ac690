"""Losses that the host looks at now and then: the same epochs, the same blame, no waiting for the device between."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnas.data.augmentation import Augmentation
from dnas.search.trainer import SupernetTrainer
from dnas.switchable.training import SwitchableTrainer
from dnas.training.device import CPU, Device
from dnas.training.loss_meter import LossMeter, NotFinite, looks_every
from dnas.training.task import CLASSIFICATION
from dnas.training.trainer import Trainer
from search_spaces.errors import JobError
from tests.dnas.search.test_trainer import budget
from tests.dnas.search.test_trainer import trainer as search_trainer
from tests.dnas.switchable.test_training import images as switchable_images
from tests.dnas.switchable.test_training import net_of, section
from tests.dnas.training.test_trainer import network, trainer
from tests.elsewhere import Waits, elsewhere


def fixed(batch_size: int = 4) -> Trainer:
    made = trainer()
    made.batch_size, made.augmentation = batch_size, None
    return made


def switchable(batch_size: int = 4) -> SwitchableTrainer:
    return SwitchableTrainer(net_of(), section(), images=switchable_images(), batch_size=batch_size)


def warming(batch_size: int = 4, warmup: str = "mixture") -> Any:
    made = search_trainer(warmup=warmup)
    made.data = replace(made.data, batch_size=batch_size)
    return made


EPOCHS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "fixed": (fixed, lambda made: made.epochs()),
    "switchable": (switchable, lambda made: made.epochs()),
    "warm-up": (warming, lambda made: made.warmup()),
    "sandwich": (partial(warming, warmup="sandwich"), lambda made: made.warmup()),
    "theta": (warming, lambda made: made.search(budget(made.supernet))),
}


def looking(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Let the host look at the losses once in so many steps."""
    for module in ("dnas.training.trainer", "dnas.search.trainer"):
        monkeypatch.setattr(f"{module}.looks_every", lambda device: every)


@pytest.mark.whole
@pytest.mark.parametrize("kind", EPOCHS)
def test_more_steps_make_the_host_wait_no_more_often(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a loss nor for images, augmentation, noise or coefficients."""
    make, epochs = EPOCHS[kind]
    looking(monkeypatch, 1000)
    monkeypatch.setattr("dnas.search.trainer.SupernetTrainer._record", lambda self, *rest: rest)
    counts = []
    for batch_size in (12, 6):
        with elsewhere() as place:
            iterator = epochs(moved(make(batch_size), Device(place)))
            with Waits() as waits:
                next(iterator)
        counts.append(waits.count)
    assert counts[1] <= counts[0] <= 4  # the first may bring the images there, which stay


def moved(made: Any, device: Device) -> Any:
    """The same trainer on another device."""
    if hasattr(made, "supernet"):
        supernet = made.supernet.to(device.place)
        return SupernetTrainer(supernet, made.section, made.data, seed=0, label="mine", device=device)
    return type(made)(
        made.network.to(device.place), made.section, images=made.images, batch_size=made.batch_size,
        augmentation=Augmentation(crop_padding=1, flip=True, cutout=1), device=device,
    )  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("kind", EPOCHS)
def test_looking_seldom_changes_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, epochs = EPOCHS[kind]
    ends = []
    for every in (1, 3):
        looking(monkeypatch, every)
        made = make(4)
        losses = [result.loss for _, result in zip(range(2), epochs(made), strict=False)]
        ends.append((losses, made.state()[0]))
    (losses, tensors), (others, found) = ends
    assert losses == others
    assert all(torch.equal(value, found[name]) for name, value in tensors.items())


@pytest.mark.parametrize("every", [2, 5, 1000])
def test_a_loss_that_is_not_finite_is_blamed_as_if_every_step_were_looked_at(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time of the look the network is NaN everywhere; the layer to blame is still the one that began."""
    seen = []
    for looks in (1, every):
        looking(monkeypatch, looks)
        made = fixed()
        overflow_on(made.network, next(made.images.batches(48))[0][20])
        with pytest.raises(JobError) as caught:
            next(made.epochs())
        assert not isinstance(caught.value, NotFinite)
        seen.append(str(caught.value))
    assert seen[0] == seen[1]
    assert "layer 'second' is the first" in seen[0]


def overflow_on(model: nn.Module, image: Tensor) -> None:
    """Let the layer `second` give infinities for every batch with ``image`` (1, H, W)."""
    there = []

    def watch(module: nn.Module, inputs: Any) -> None:
        there.append(bool((inputs[0] == image).flatten(1).all(1).any()))

    # Dropout comes first, so the whole network is watched.
    model.register_forward_pre_hook(watch)
    model.get_submodule("second").register_forward_hook(
        lambda module, inputs, output: output * math.inf if there[-1] else output
    )


def test_the_sum_is_that_of_all_losses_and_its_look_the_last() -> None:
    meter = LossMeter(CPU, 2)
    for value in (1.0, 2.0, 4.0):
        meter.add(torch.tensor(value), network(), (torch.zeros(1), None), CLASSIFICATION.run)
    assert (meter.sum(), meter.latest, meter.count) == (7.0, 2.0, 3)
    meter.total = meter.total * math.nan
    with pytest.raises(NotFinite):
        meter.sum()


def test_only_a_device_with_a_queue_of_its_own_is_left_alone_for_some_steps() -> None:
    assert looks_every(CPU) == 1
    assert looks_every(Device(torch.device("cuda"))) > 1


def test_a_set_that_lies_on_a_device_is_read_anew_and_written_without_it() -> None:
    images = switchable_images()
    first = next(images.batches(4))[0]
    with elsewhere() as place:
        assert torch.equal(next(images.batches(4, device=place))[0].cpu(), first)
        held = images._held
        assert images._held is held is not None
        images.images = 255 - images.images
        assert torch.equal(next(images.batches(4, device=place))[0].cpu(), next(images.batches(4))[0])
    assert pickle.loads(pickle.dumps(images))._held is None
