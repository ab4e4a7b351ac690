"""Quantized nets with statistics, gains and clips of their own, and the packed files that they become."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate, calibrate_weights
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from results.packed.file import DEFAULT_PROFILE, PackedFile, read_packed
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import tiny_resnet
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import Net, OwnForward, SharedWeight, seeded, trained


class Shapes(nn.Module):
    """Grouped, depthwise, strided, dilated and transposed layers, a BatchNorm before a layer, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.Hardswish(),
            nn.Conv2d(6, 9, (1, 3), padding="same", groups=3, dilation=(1, 2)),
            nn.PReLU(9),
            nn.ConvTranspose2d(9, 6, 3, stride=2, padding=1, output_padding=1, groups=3),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=(1, 2), padding_mode="reflect"),
        )
        self.offset = nn.Parameter(torch.ones(5, 1, 1))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(self.before(x)) + self.offset).mean((2, 3)))


def line() -> nn.Module:
    """One-dimensional, strided and transposed."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=2),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.ConvTranspose1d(4, 3, 2, stride=3, padding=1),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def cube() -> nn.Module:
    """Three-dimensional."""
    return nn.Sequential(
        nn.Conv3d(2, 4, 2, padding=1, padding_mode="circular"),
        nn.BatchNorm3d(4, affine=False),
        nn.ReLU(),
        nn.ConvTranspose3d(4, 2, 2, dilation=2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(2, 4),
    )


def own_forward() -> nn.Module:
    return nn.Sequential(OwnForward(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Scaled(nn.Conv2d):
    """A convolution with a parameter and a module of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale, self.norm = nn.Parameter(torch.ones(4, 1, 1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self._conv_forward(x, self.weight, self.bias) * self.scale)


def own_parameter() -> nn.Module:
    return nn.Sequential(Scaled(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def attention() -> nn.Module:
    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(36, 8), encoder, nn.Flatten(), nn.Linear(8, 3))


class Auxiliary(Net):
    """A head that only training runs, and one BatchNorm behind two layers."""

    def __init__(self) -> None:
        super().__init__(channels=5)
        self.second_norm = self.first_norm
        self.auxiliary = nn.Sequential(
            nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.auxiliary(self.stem(x)) if self.training else y


CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: Net(channels=5), (1, 6, 6)),
    "shapes": (Shapes, (3, 8, 8)),
    "line": (line, (2, 12)),
    "cube": (cube, (2, 4, 4, 4)),
    "shared": (SharedWeight, (1, 6, 6)),
    "own forward": (own_forward, (1, 6, 6)),
    "own parameter": (own_parameter, (1, 6, 6)),
    "attention": (attention, (1, 6, 6)),
    "auxiliary": (Auxiliary, (1, 6, 6)),
    "norm last": (lambda: tiny_resnet(num_classes=3, width=4, norm_last=True), (1, 8, 8)),
}


@dataclass(frozen=True)
class Packed:
    """A quantized net, what it was made of, and its file."""

    model: nn.Module
    graph: LayerGraph
    assignment: BitAssignment
    network: nn.Module
    path: Path
    file: PackedFile


def statistics(model: nn.Module) -> nn.Module:
    """Parameters and statistics as after training, for BatchNorms of any dimension."""
    trained(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d)):
                count = module.num_features
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(count, generator=seeded(3)))
                module.running_var.copy_(0.5 + torch.rand(count, generator=seeded(4)))
    return model.eval()


@functools.cache
def model_and_graph(name: str) -> tuple[nn.Module, LayerGraph]:
    build, shape = CASES[name]
    torch.manual_seed(0)
    model = statistics(build())
    return model, known_graph(model, shape)


def same_bits(graph: LayerGraph, weight_bits: int, activation_bits: int) -> dict[str, LayerBits]:
    return {spec.name: LayerBits(weight_bits, activation_bits, spec.out_channels) for spec in graph.layers}


def assignment_of(graph: LayerGraph, layers: Mapping[str, LayerBits], choice: QuantizerChoice) -> BitAssignment:
    table = CostTable(
        graph,
        build_space(graph, SpaceOptions((4,), (4,), first_layer="search", last_layer="search")),
        build_costs(choice.per_channel),
    )
    reference = ModelReference("tests", graph.input_shape)
    return BitAssignment("mine", reference, layers, table.price(layers), {}, {"quantizer": asdict(choice)})


def inputs_for(graph: LayerGraph, count: int = 4, seed: int = 7) -> Tensor:
    return torch.randn(count, *graph.input_shape, generator=seeded(seed))


def packed_net(
    path: Path,
    name: str,
    bits: Any,
    choice: QuantizerChoice | None = None,
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
    calibrated: bool = True,
) -> Packed:
    """Quantize a case at ``bits`` (a pair, or a function of the graph), calibrate it, ``change`` it, and pack it."""
    (model, graph), choice = model_and_graph(name), choice or QuantizerChoice()
    layers = bits(graph) if callable(bits) else same_bits(graph, *bits)
    network = quantize_fixed(model, graph, layers, choice)
    if calibrated:
        calibrate(network, [inputs_for(graph, 8, 5)])
    else:
        calibrate_weights(network)
    network = change(network).eval()
    assignment = assignment_of(graph, layers, choice)
    save_packed(path, network, graph, assignment, choice)
    return Packed(model, graph, assignment, network, path, read_packed(path))


def load_packed(path: Path, model: nn.Module) -> nn.Module:
    """The fixed net of a file of one profile."""
    return load(path, model).view_of(DEFAULT_PROFILE)
