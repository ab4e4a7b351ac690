"""A network that is compiled whole, with its quantizers, is one graph and gives what it gives; gradients too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnas import LayerBits, QuantizerChoice, calibrate, quantize_fixed, read_graph
from tests.toys import SHAPE, build_supernet, inputs, seeded, trained

SEARCHED: Any = {"weight_bits": (2, 32), "activation_bits": (2, 4), "first_layer": "search", "last_layer": "search"}


def small() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    return trained(nn.Sequential(*layers)).train()


def fixed(choice: QuantizerChoice) -> Any:
    model = small()
    graph = read_graph(model, SHAPE)
    network = quantize_fixed(model, graph, {layer.name: LayerBits(4, 3) for layer in graph.layers}, choice)
    calibrate(network, [inputs()])
    return network, lambda: nullcontext()


def searched(choice: QuantizerChoice) -> Any:
    supernet = build_supernet(small(), choice=choice, **SEARCHED)
    calibrate(supernet.network, [inputs()])
    return supernet.network, lambda: supernet.sampled(supernet.sample(1.0, "softmax", seeded()))


def found(network: nn.Module, run: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
    """What it gives, and the gradients of its mean square."""
    network.zero_grad(set_to_none=True)
    out = run(inputs())
    out.square().mean().backward()
    return {"output": out.detach(), **{name: p.grad for name, p in network.named_parameters()}}


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo asks what is lent
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch 2.9 itself
@pytest.mark.parametrize(
    ("make", "choice"),
    [(fixed, QuantizerChoice()), (searched, QuantizerChoice("lsq", "lsq", True))],
    ids=["fixed", "searched"],
)
def test_a_network_is_one_graph_with_its_quantizers(make: Any, choice: QuantizerChoice) -> None:
    network, lending = make(choice)
    ends = []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        with lending():
            ends.append(found(network, run))
    for name, value in ends[0].items():
        assert value is not None
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6, msg=name)
