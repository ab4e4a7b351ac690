"""The operations of a network as a packed file tells them: run in numpy they give what the network gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.export.operations import operations_of
from dnas.export.reference_net import run_net
from dnas.export.save import save_packed
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from results.packed.file import read_packed
from search_spaces.errors import InputError
from search_spaces.models.dense_zoo import tiny_ssd
from tests.known import known_graph
from tests.packed_nets import CASES, assignment_of, inputs_for, packed_net, same_bits, statistics
from tests.toys import seeded

SHAPE = (4, 6, 6)


class Between(nn.Module):
    """Any function between a convolution and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        with torch.no_grad():
            features = self.function(self.first(torch.zeros(1, *SHAPE))).flatten(1).shape[1]
        self.last = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)).flatten(1))


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def excited(x: Tensor) -> Tensor:
    return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([F.relu(second), first, x], 1)


def in_place(x: Tensor) -> Tensor:
    y = F.relu_(x)
    y += 0.5
    return y.mul_(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "clamp of one end": lambda x: x.clamp(max=0.0).clamp(min=-1.0),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "numbers": lambda x: 3 - (2 * x + 1) / 4,
    "difference": lambda x: x - 2 * F.relu(x),
    "scaled sum": lambda x: torch.add(x, F.relu(x), alpha=3),
    "product": lambda x: x * x,
    "squeeze and excitation": excited,
    "largest": lambda x: F.max_pool2d(x, 3, 2, 1),
    "largest, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "mean with padding": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive largest": lambda x: F.adaptive_max_pool2d(x, 4),
    "over space": lambda x: x.mean((2, 3)),
    "largest of space": lambda x: x.amax((-1, -2), keepdim=True),
    "subsampled and padded": lambda x: F.pad(x[:, :, ::2, 1:5], (1, 0, 0, 2, 3, 1)),
    "shuffled": shuffled,
    "halves": halves,
    "flipped": lambda x: x.flip(3).roll(1, 2),
    "chosen": lambda x: x[:, [3, 1, 1]],
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "in place": in_place,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "spread": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 3),
}

REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), "operation '_softmax' is none"),
    "over channels": (lambda x: x.mean(1), "operation 'mean' is none"),
    "samples": (lambda x: x.flip(0), "between samples"),
    "samples mixed": (lambda x: x - x.mean((0, 2, 3), keepdim=True), "operation 'mean' is none"),
    "swapped axes": (lambda x: F.relu(x.transpose(1, 2)), "no choice of indices along each axis"),
    "a constant": (lambda x: x + torch.arange(6.0), "neither made of its input nor a parameter"),
    "other padding": (lambda x: F.pad(x, (1, 1), value=2.0), "pads with 2"),
    "a written view": (lambda x: x[:, :2].relu_() + x[:, 2:4] + x[:, :2], "another view"),
    "by value": (lambda x: x * float(x.detach().mean()), "none that a packed file can tell"),
    "dilated": (lambda x: F.max_pool2d(x, 2, dilation=2), "operation 'max_pool2d_with_indices' is none"),
}


def packed(path: Path, function: Callable[[Tensor], Tensor], bits: tuple[int, int] = (32, 32)) -> tuple[Any, Any, Any]:
    torch.manual_seed(3)
    model, choice = statistics(Between(function)), QuantizerChoice()
    graph = known_graph(model, SHAPE)
    entries = same_bits(graph, *bits)
    network = quantize_fixed(model, graph, entries, choice).eval()
    save_packed(path, network, graph, assignment_of(graph, entries, choice), choice)
    return network, graph, read_packed(path)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_between_layers(tmp_path: Path, name: str) -> None:
    network, graph, file = packed(tmp_path / "a", FUNCTIONS[name])
    x = inputs_for(graph)
    with torch.inference_mode():
        expected = network(x)
    torch.testing.assert_close(torch.tensor(run_net(file, x.numpy())), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_when_it_is_run_and_loads_all_the_same(tmp_path: Path, name: str) -> None:
    function, words = REFUSED[name]
    *_, file = packed(tmp_path / "a", function)
    with pytest.raises(InputError, match=f"does not tell the network's operations: .*{words}"):
        run_net(file, np.zeros((2, *SHAPE), np.float32))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("own forward", "own parameter", "attention")])
@pytest.mark.parametrize("bits", [(1, 1), (3, 5), (2, 32), (8, 8)])
def test_whole_nets(tmp_path: Path, name: str, bits: tuple[int, int]) -> None:
    found = packed_net(tmp_path / "a", name, bits)
    x = inputs_for(found.graph)
    with torch.inference_mode():
        expected = found.network(x)
    torch.testing.assert_close(torch.tensor(run_net(found.file, x.numpy())), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["own forward", "own parameter", "attention"])
def test_layers_that_the_file_does_not_tell(tmp_path: Path, name: str) -> None:
    found = packed_net(tmp_path / "a", name, (4, 4))
    with pytest.raises(InputError, match=r"code of its own|over 2 axes"):
        run_net(found.file, inputs_for(found.graph).numpy())


def test_a_file_without_operations_says_what_to_do(tmp_path: Path) -> None:
    *_, file = packed(tmp_path / "a", F.relu)
    profile: Any = file.description["profiles"]["default"]
    del profile["operations"]
    with pytest.raises(InputError, match="of an earlier version, export it again"):
        run_net(file, np.zeros((1, *SHAPE), np.float32))


def test_the_exponential_is_exact_to_the_last_digits() -> None:
    from dnas.export.reference_net import _exponential

    x = torch.empty(1000, dtype=torch.float64).uniform_(-700, 700, generator=seeded(0)).numpy()
    assert np.allclose(_exponential(x), np.exp(x), rtol=1e-14, atol=0)
    assert np.isfinite(_exponential(np.array([-np.inf, np.inf, np.nan]))).all()


class Split(nn.Module):
    """A classifier whose parts are named as a detector's are."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return out


def test_detectors_are_told_and_what_is_only_named_like_one_is_not() -> None:
    for network, is_detector in ((tiny_ssd(width=4, size=32).eval(), True), (Split().eval(), False)):
        found = operations_of(network, known_graph(network, (3, 32, 32)), {}, {})
        assert ("a detector chooses its boxes by the values" in found.get("refused", "")) == is_detector
