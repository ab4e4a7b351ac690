"""One step before the first: every number of images that a batch can have is tried, and nothing else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dnas
from dnas.config.training import TrainingSection
from dnas.data.augmentation import Augmentation
from dnas.data.image_sets import DataSplits, MemoryImages
from dnas.training.device import CPU
from dnas.training.processes import Processes
from dnas.training.rehearsal import rehearse
from dnas.training.task import CLASSIFICATION, Task
from dnas.training.trainer import Trainer, evaluate
from search_spaces.errors import InputError
from search_spaces.metrics import Metric
from tests.toys import SHAPE, Net, images


class Numbers(Task):
    """The squared error of whatever shape the targets have."""

    metric = Metric("mse", "smaller")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().flatten(1).mean(1)


class Shaped(Net):
    """A network whose outputs (N, 3) are given another shape at the end."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(super().forward(x))


def given(count: int, *shape: int) -> MemoryImages:
    plain = images(count)
    return MemoryImages(plain.images, torch.rand(count, *shape), plain.mean, plain.std) if shape else plain


def tried(change: Callable[[Tensor], Any], counts: tuple[int, int, int], *shape: int, batch_size: int = 8) -> nn.Module:
    """Rehearse a network whose outputs are changed; returns the network."""
    network = Shaped(change)
    train, val, test = (given(count, *shape) for count in counts)
    task = Numbers() if shape else CLASSIFICATION
    data = DataSplits(train, val, test, 3, SHAPE)
    rehearse(network, data, {"training": train}, batch_size, task=task)
    return network


FINE: dict[str, tuple[Callable[[Tensor], Any], tuple[int, int, int], tuple[int, ...]]] = {
    "logits, the last image alone under BatchNorm": (lambda y: y, (17, 9, 9), ()),
    "eight rows at most and batches of eight": (lambda y: y[:8], (17, 9, 8), ()),
    "maps (N, C, 1, 1)": (lambda y: y[:, :, None, None], (17, 9, 9), (3, 1, 1)),
    "sequences (N, T, C)": (lambda y: y[:, None].expand(-1, 4, -1), (17, 9, 9), (4, 3)),
    "squeezed, never alone": (lambda y: y.squeeze(), (18, 10, 10), ()),
}
UNFIT: dict[str, tuple[Callable[[Tensor], Any], tuple[int, int, int], tuple[int, ...], str]] = {
    "maps of a classification": (lambda y: y[:, :, None, None], (16, 8, 8), (), r"\(2, 3, 1, 1\); wrap it"),
    "sequences of a classification": (lambda y: y[:, None].expand(-1, 4, -1), (16, 8, 8), (), r"\(2, 4, 3\); wrap"),
    "seven rows at most": (lambda y: y[:7], (16, 8, 8), (), r"\(7, 3\) in eval mode for 8 images"),
    "tokens beside the batch": (
        lambda y: y[:, None].expand(-1, 4, -1).reshape(-1, 3),
        (16, 8, 8),
        (3,),
        r"\(8, 3\) in eval mode for 2 images",
    ),
    "batch behind the tokens": (lambda y: y[None].expand(4, -1, -1), (16, 8, 8), (4, 3), r"\(4, 2, 3\) in eval"),
    "one training image left, alone": (lambda y: y.squeeze(), (17, 8, 8), (), r"\(3,\) in eval mode for 1 image;"),
    "one validation image left": (lambda y: y.squeeze(), (16, 9, 8), (), r"\(3,\) in eval mode for 1 image;"),
    "one test image left": (lambda y: y.squeeze(), (16, 8, 9), (), r"\(3,\) in eval mode for 1 image;"),
    "a scalar for one image": (
        lambda y: y[:, :1] if len(y) > 1 else y[0, 0],
        (16, 8, 9),
        (1,),
        r"shape \(\) in eval mode for 1 image;",
    ),
    "a mean over the batch": (lambda y: y.mean(0, keepdim=True), (16, 8, 8), (3,), r"\(1, 3\) in eval mode"),
    "fewer than a batch to train on": (lambda y: y[: 6 - len(y) % 2], (7, 4, 4), (), r"\(5, 3\) in eval mode for 7"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_gives_a_row_for_each_image_is_accepted_and_left_untouched(name: str) -> None:
    change, counts, shape = FINE[name]
    torch.manual_seed(0)
    fresh = Shaped(change)
    torch.manual_seed(0)
    network = tried(change, counts, *shape)
    assert network.training is fresh.training
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", UNFIT)
def test_a_batch_whose_rows_are_not_its_images_is_refused_before_training(name: str) -> None:
    change, counts, shape, sentence = UNFIT[name]
    with pytest.raises(InputError, match=sentence) as caught:
        tried(change, counts, *shape)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_that_would_be_spread_over_the_targets_are_refused() -> None:
    with pytest.raises(InputError, match=r"task Numbers fails on a batch of training images: .*Using a target size"):
        tried(lambda y: y[:, 0], (16, 8, 8), 1)


def test_outputs_that_overflow_are_blamed_for_the_loss() -> None:
    data = images(16)
    with pytest.raises(InputError, match="is NaN on training images before any training, for the outputs hold inf"):
        rehearse(Shaped(lambda y: y + torch.inf), DataSplits(data, data, data, 3, SHAPE), {"training": data}, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_augmentation_that_spoils_images_is_blamed_for_it(value: float) -> None:
    data, augmentation = (
        DataSplits(*(images(16) for _ in range(3)), 3, SHAPE),
        Augmentation(transforms=(lambda image: image * value,)),
    )
    with pytest.raises(InputError, match=r"^the augmentation makes values that are not finite of training images"):
        rehearse(Net(), data, {"training": data.train}, 8, augmentation=augmentation)


def test_the_network_is_left_as_it_was() -> None:
    network = Shaped(lambda y: y).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = given(17)
    rehearse(network, DataSplits(data, data, data, 3, SHAPE), {"training": data}, 8)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_training_and_measuring_refuse_such_rows_where_nothing_was_rehearsed() -> None:
    network: nn.Module = Shaped(lambda y: y.mean(0, keepdim=True) if len(y) > 2 else y)
    with pytest.raises(InputError, match=r"\(1, 3\) for a batch of 8; wrap it so that it returns a row for each image"):
        evaluate(network, given(16, 3), 8, task=Numbers())
    with pytest.raises(InputError, match=r"\(1, 3\) for a batch of 8; wrap it"):
        list(Trainer(network, TrainingSection(epochs=1), images=given(16, 3), batch_size=8, task=Numbers()).epochs())


class Checkpointed(Net):
    """A network whose middle runs again in the backward pass."""

    def __init__(self, reentrant: bool, first: bool = False) -> None:
        super().__init__()
        self.part = nn.Sequential(Again(nn.Conv2d(1 if first else 3, 3, 1), reentrant))
        self.before = self.part if first else nn.Identity()
        self.behind = nn.Identity() if first else self.part

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.head(self.behind(self.stem(x.mean(1, keepdim=True))).mean((2, 3)))


class Again(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant) * 2


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("first", [False, True])
def test_reentrant_checkpoints_are_refused_before_a_search_and_nothing_else_is(first: bool) -> None:
    data = DataSplits(images(16), images(16), images(16), 3, SHAPE)
    sets = {"training": data.train}
    with pytest.raises(InputError, match=r"module 'part.0' uses torch.utils.checkpoint with use_reentrant=True"):
        rehearse(Checkpointed(True, first), data, sets, 8, searches=True)
    with pytest.raises(InputError, match=r"give it use_reentrant=False"):
        dnas.search_bits(Checkpointed(True, first), data, [{"size_bytes": "50%"}])
    rehearse(Checkpointed(False, first), data, sets, 8, searches=True)
    rehearse(Checkpointed(True, first), data, sets, 8)


class Counted(nn.Module):
    """Counts the images that it is run on in train mode; normalises them where it is asked to."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.head = nn.Linear(SHAPE[0], 3)
        self.norm = nn.BatchNorm1d(SHAPE[0]) if norm else nn.Identity()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += [len(x)] if self.training else []
        return self.head(self.norm(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "norm", "seen"),
    [
        (24, 4, Processes(0, 4, True), True, [2, 2]),  # statistics are those of four images
        (24, 4, Processes(0, 4), False, [1, 1]),
        (24, 8, Processes(3, 4), True, [2, 2]),
        (24, 16, Processes(0, 4, True), True, [2, 4]),
        (3, 16, Processes(0, 2, True), True, [2, 2]),
        (24, 4, Processes(0, 4), True, "each of 4 processes has one image of a batch for training, .*module 'norm'"),
        (3, 16, Processes(1, 2), True, "each of 2 processes has one image .*synchronise_batchnorm = true"),
        (24, 1, Processes(), True, "batch_size = 1 trains with one image per batch"),
    ],
)
def test_a_batch_is_rehearsed_as_its_process_has_it(
    count: int, batch_size: int, processes: Processes, norm: bool, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data = Counted(norm), images(count)
    monkeypatch.setattr("dnas.training.rehearsal.fresh_copy", lambda network: network)
    splits, device = DataSplits(data, data, data, 3, SHAPE), replace(CPU, processes=processes)
    if isinstance(seen, str):
        with pytest.raises(InputError, match=seen):
            rehearse(network, splits, {"training": data}, batch_size, device=device)
        return
    rehearse(network, splits, {"training": data}, batch_size, device=device)
    assert network.seen == seen
