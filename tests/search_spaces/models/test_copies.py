"""A copy of a network is the network; one that a copy cannot be is refused by name."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.models.copies import copy_network


class Scaled(nn.Module):
    """Scales what a layer gives by a factor that ``find`` looks up in what ``keep`` made of the layer."""

    def __init__(self, keep: Callable[[Any], Any], find: Callable[[Any, Any], float]) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.kept, self.find = keep(self.part[0]), find

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * self.find(self.kept, self.part[0])  # type: ignore[no-any-return]


LOST: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], float]]] = {
    "an id": (id, lambda kept, layer: 3.0 if kept == id(layer) else 1.0),
    "a dict of ids": (lambda layer: {id(layer): 3.0}, lambda kept, layer: kept.get(id(layer), 1.0)),
    "a set of ids": (lambda layer: {"some": {id(layer)}}, lambda kept, layer: 1.0 + (id(layer) in kept["some"])),
    "ids of parameters": (lambda layer: [id(layer.bias)], lambda kept, layer: 1.0 + (id(layer.bias) in kept)),
    "a weak reference": (lambda layer: [weakref.ref(layer)], lambda kept, layer: 1.0 + (kept[0]() is layer)),
    "weak keys": (lambda layer: weakref.WeakKeyDictionary({layer: 3.0}), lambda kept, layer: kept.get(layer, 1.0)),
    "weak values": (lambda layer: weakref.WeakValueDictionary(a=layer), lambda kept, layer: 1.0 + (kept["a"] is layer)),
    "a weak set": (lambda layer: weakref.WeakSet([layer]), lambda kept, layer: 1.0 + (layer in kept)),
}
FOUND: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], float]]] = {
    "modules as keys": (lambda layer: {layer: 3.0}, lambda kept, layer: kept.get(layer, 1.0)),
    "large numbers": (lambda layer: [1 << 40, {1 << 41: 5}], lambda kept, layer: len(kept)),
    "weak references to others": (lambda layer: weakref.ref(OTHER), lambda kept, layer: 3.0),
}
OTHER = nn.ReLU()


@pytest.mark.parametrize("how", LOST)
def test_a_network_that_finds_its_parts_by_their_place_in_memory_is_refused_by_name(how: str) -> None:
    """Its copy would find none, and compute something else without a word."""
    model = nn.Sequential(Scaled(*LOST[how]))
    with pytest.raises(InputError, match=r"'kept' of module '0' finds modules or parameters by id\(\) or by weak"):
        copy_network(model)


@pytest.mark.parametrize("how", FOUND)
def test_what_a_copy_finds_as_well_is_copied(how: str) -> None:
    model, x = nn.Sequential(Scaled(*FOUND[how])), torch.randn(2, 3)
    assert torch.equal(copy_network(model)(x), model(x))


def test_recurrent_layers_are_copied() -> None:
    """PyTorch's hold weak references to their weights, which it makes anew."""
    model, x = nn.LSTM(3, 4, 2), torch.randn(5, 3)
    assert torch.equal(copy_network(model)(x)[0], model(x)[0])


@pytest.mark.whole
def test_compiled_networks_are_copied() -> None:
    """PyTorch marks them with an id, which nothing is found by."""
    model, x = torch.compile(nn.Sequential(nn.Linear(3, 4)), backend="eager"), torch.randn(5, 3)
    assert torch.equal(copy_network(model)(x), model(x))


def test_a_parameter_that_cannot_be_copied_is_named_with_its_module() -> None:
    class Own(Tensor):
        pass

    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(model[1].weight.detach().as_subclass(Own))
    with pytest.raises(InputError, match="deepcopy fails on '_parameters' of module '1'"):
        copy_network(model)


def test_tensors_that_an_object_kept_from_a_run_are_copied() -> None:
    class Note:
        last: Any = None

        def take(self, module: nn.Module, given: Any, output: Tensor) -> None:
            self.last = [output]

    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    model[0].note = Note()
    model[0].register_forward_hook(model[0].note.take)
    expected = model(x)
    twin = copy_network(model)
    assert torch.equal(twin[0].note.last[0], expected)
    assert twin[0].note is not model[0].note
