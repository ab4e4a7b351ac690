"""A network is read on a shape or on what it is called with: one tensor, positional arguments or keyword arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.network.examples import Example
from search_spaces.network.graph import read_graph
from tests.toys import SHAPE, Net


class Two(nn.Module):
    """An image and numbers of words, perhaps with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.words = nn.Conv2d(1, 4, 3), nn.Embedding(9, 4)
        self.norm, self.join, self.head = nn.BatchNorm2d(4), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, image: Tensor, words: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        told = self.words(words) if mask is None else self.words(words) * mask[..., None]
        return self.head(self.join(self.norm(self.look(image)).mean((2, 3)) + scale * told.mean(1)).relu())


class Nested(nn.Module):
    """One dict as its only argument."""

    def __init__(self) -> None:
        super().__init__()
        self.two = Two()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.two(batch["image"], words=batch["words"])


@dataclass
class Holder:
    """A structure that PyTorch does not know."""

    image: Tensor


class Holding(dict[str, Tensor]):
    """A dict of a class of its own, which PyTorch takes for one value."""


IMAGE, WORDS, MASK = torch.rand(5, 1, 6, 6), torch.randint(0, 9, (5, 7)), torch.ones(5, 7)


@pytest.mark.parametrize(
    "example",
    [
        SHAPE,
        list(SHAPE),
        torch.Size(SHAPE),
        tuple(np.array(SHAPE)),
        torch.rand(1, *SHAPE),
        torch.rand(9, *SHAPE),
        (torch.rand(3, *SHAPE),),
        [torch.rand(3, *SHAPE)],
        {"x": torch.rand(3, *SHAPE)},
    ],
)
def test_a_shape_and_an_example_of_it_tell_the_same(example: Example) -> None:
    network = Net()
    assert read_graph(network, example) == read_graph(network, SHAPE)


@pytest.mark.parametrize(
    "example",
    [
        (IMAGE, WORDS),
        (IMAGE[:1], WORDS[:1]),
        (IMAGE, WORDS, MASK),
        (IMAGE, WORDS, None),
        {"image": IMAGE, "words": WORDS},
        {"words": WORDS, "image": IMAGE, "mask": MASK, "scale": 0.5},
    ],
)
def test_several_inputs_are_read(example: Example) -> None:
    network = Two()
    graph = read_graph(network, example)
    assert [(spec.name, spec.macs, spec.norm) for spec in graph.layers] == [
        ("look", 16 * 36, "norm"),
        ("join", 24, None),
        ("head", 12, None),
    ]
    assert graph.other_bytes == 4 * 36
    assert list(graph.unsupported) == ["words.weight"]


def test_one_argument_that_holds_tensors() -> None:
    graph = read_graph(Nested(), ({"image": IMAGE, "words": WORDS},))
    assert [spec.name for spec in graph.layers] == ["two.look", "two.join", "two.head"]
    assert graph["two.look"].macs == 16 * 36


def test_a_batch_that_is_not_in_front_is_taken_whole() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([self.a(first), self.b(second)])

    graph = read_graph(Sequence(), (torch.rand(5, 1, 4), torch.rand(7, 1, 4)))
    assert [spec.macs for spec in graph.layers] == [5 * 12, 7 * 12]


def test_an_example_keeps_its_values_and_its_network(capfd: pytest.CaptureFixture[str]) -> None:
    network, image, words = Two(), IMAGE.clone(), WORDS.clone()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    read_graph(network, (image, words))
    assert torch.equal(image, IMAGE)
    assert torch.equal(words, WORDS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        ("3x6x6", "str is no example of a network's input"),
        (7, "int is no example"),
        ({}, "holds no tensor"),
        ((None,), "holds no tensor"),
        (({"x": Holder(IMAGE)},), "called with a Holder, in which PyTorch finds no tensors; let it take tensors, or"),
        ([Holding(x=IMAGE)], "called with a Holding, in which PyTorch finds no tensors"),
        (torch.tensor(1.0), "holds no tensor with a batch dimension"),
        ((IMAGE, WORDS, MASK[:, :3]), "does not run on inputs of shapes"),
        ({"picture": IMAGE}, "does not run on an input of shape"),
        ((-1, 6, 6), "is no shape"),
        ((1, 6.5, 6), "is no shape"),
        ((True, 6, 6), "is no shape"),
    ],
)
def test_what_is_no_example_is_refused(example: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_graph(Two(), example)
