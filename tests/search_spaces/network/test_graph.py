"""Reading a network: published counts, shapes, what is unsupported and why, and that nothing of it changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.nn.qat
import torch.ao.quantization as ao
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from search_spaces.assignments import LayerBits
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.toys import SHAPE, CalledTwice, Net, SharedWeight, Unwatchable


@pytest.mark.parametrize(
    ("name", "macs", "inner"),
    [
        ("resnet18", 1_814_073_344, 1_695_547_392),
        pytest.param("resnet34", None, 3_545_235_456, marks=pytest.mark.whole),
    ],
)
def test_macs_are_the_published_ones(name: str, macs: int | None, inner: int) -> None:
    graph = read_graph(getattr(torchvision.models, name)(), (3, 224, 224))
    assert macs is None or graph.macs == macs
    assert graph.macs - graph["conv1"].macs - graph["fc"].macs == inner
    shortcuts = sum(layer.macs for layer in graph.layers if "downsample" in layer.name)
    assert name != "resnet18" or shortcuts == 19_267_584


def test_every_layer_is_found_in_call_order_with_its_norm() -> None:
    graph = read_graph(Net(channels=3), SHAPE)
    assert [(layer.name, layer.norm, layer.norm_channels) for layer in graph.layers] == [
        ("stem", "stem_norm", 3),
        ("first", "first_norm", 3),
        ("second", "second_norm", 3),
        ("head", None, 0),
    ]
    first = graph["first"]
    assert (first.weight_shape, first.input_shape, first.output_shape) == ((3, 3, 3, 3), (3, 6, 6), (3, 6, 6))
    assert [layer.macs for layer in graph.layers] == [36 * 27, 36 * 81, 36 * 9, 9]
    assert (graph.other_bytes, graph.unsupported, graph.couplings_unknown) == (0, {}, "")


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (4, 10), 8 * 6 * 2 * 3),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5), 25 * 4 * 9),
        (nn.Conv3d(2, 3, 2, stride=2), (2, 4, 4, 4), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 4),
        (nn.Linear(7, 5), (9, 7), 9 * 35),
    ],
)
def test_macs_of_every_kind_of_layer_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    (spec,) = read_graph(nn.Sequential(layer), shape).layers
    assert spec.macs == macs
    assert spec.weight_elements == layer.get_parameter("weight").numel()
    assert spec.bias_elements == layer.get_parameter("bias").numel()


def test_a_layer_called_twice_costs_twice_the_macs() -> None:
    conv = read_graph(CalledTwice(), SHAPE)["conv"]
    assert (conv.calls, conv.macs) == (2, 2 * 36 * 9)


def test_a_shared_weight_is_told_and_each_layer_counts_its_own_macs() -> None:
    graph = read_graph(SharedWeight(), SHAPE)
    assert [layer.shares_weight_with for layer in graph.layers] == [None, "first", None]
    assert [layer.macs for layer in graph.layers] == [36 * 36, 36 * 36, 72]


def test_other_parameters_take_their_bytes_and_folded_norms_two_per_channel() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(5))
            self.alone = nn.BatchNorm1d(4)  # reads no layer's output
            self.scale = nn.LayerNorm(4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.scale(self.alone(x) + self.token.sum()))

    assert read_graph(Others(), (4,)).other_bytes == 4 * 5 + 2 * 4 * 4 + 4 * 8


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_behind_an_activation_belongs_to_no_layer(inplace: bool) -> None:
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2))
    graph = read_graph(model, SHAPE)
    with torch.inference_mode():
        assert read_graph(model, SHAPE) == graph
    assert [(layer.name, layer.norm, layer.norm_channels) for layer in graph.layers] == [
        ("0", None, 0),
        ("3", "4", 2),
        ("6", None, 0),
    ]
    assert graph.other_bytes == 2 * 4 * 3


def test_the_order_of_norm_and_activation_changes_neither_cost_nor_groups_nor_branches() -> None:
    usual, other = (read_graph(resnet20(norm_last=norm_last), (3, 32, 32)) for norm_last in (False, True))
    channels = 16 + 3 * 2 * (16 + 32 + 64)
    assert (usual.other_bytes, other.other_bytes) == (0, 2 * 4 * channels)
    assert {layer.norm for layer in other.layers} == {None}
    assert sum(layer.norm_channels for layer in usual.layers) == channels
    assert [layer.macs for layer in other.layers] == [layer.macs for layer in usual.layers]
    assert other.branches == usual.branches
    assert other.residual_ties == usual.residual_ties
    assert [(g.name, g.units, g.rows, g.columns, g.vectors) for g in other.channels.groups] == [
        (g.name, g.units, g.rows, g.columns, g.vectors) for g in usual.channels.groups
    ]
    assert len(other.channels.groups) == 12
    assert other.channels.frozen == usual.channels.frozen
    sizes = []
    for graph in (usual, other):
        table = CostTable(graph, build_space(graph, SpaceOptions()), build_costs())
        sizes.append(table.price({layer.name: LayerBits(4, 4) for layer in graph.layers})["size_bytes"])
    assert sizes[0] == sizes[1]


def test_branches_and_ties_of_resnet20() -> None:
    graph = read_graph(resnet20(), (3, 32, 32))
    assert [branch.terminal for branch in graph.branches] == [
        f"layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in range(3)
    ]
    assert all(len(branch.layers) == 2 for branch in graph.branches)
    (tie,) = graph.residual_ties  # option-A shortcuts pass channels on, through every stage
    assert set(tie) == {"conv1", *(branch.layers[1] for branch in graph.branches)}


class Woven(nn.Module):
    """A shortcut past one layer, a layer called twice in a row, a concatenation, and a gate that reads the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.gate, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        added = stem + self.norm(self.inner(stem.relu()))
        added = self.twice(self.twice(added))
        return self.head(torch.cat([added, stem], 1)) * self.gate(x).mean((1, 2, 3), keepdim=True)


def test_flows_lead_from_each_layer_to_those_that_read_it() -> None:
    assert read_graph(Woven(), (3, 5, 5)).flows == (
        ("", "stem"),
        ("stem", "inner"),
        ("inner", ".add1"),
        ("stem", ".add1"),
        (".add1", "twice"),
        ("twice", "twice"),
        ("stem", ".cat1"),
        ("twice", ".cat1"),
        (".cat1", "head"),
        ("", "gate"),
    )
    encoder = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    assert read_graph(encoder, (10, 8)).flows == (
        ("", "0"),
        ("0", "1.self_attn.in_proj"),
        ("1.self_attn.in_proj", "1.self_attn.out_proj"),
        ("0", ".add1"),
        ("1.self_attn.out_proj", ".add1"),
        (".add1", "1.linear1"),
        ("1.linear1", "1.linear2"),
    )


def test_every_layer_of_a_network_that_can_be_followed_reads_something() -> None:
    graph = read_graph(resnet20(), (3, 32, 32))
    additions = {f".add{number}" for number in range(1, 10)}
    assert {reader for _, reader in graph.flows} == set(graph.by_name) | additions
    assert len(graph.flows) == len(graph.layers) + 2 * len(additions)


def test_branches_and_ties_of_a_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    graph = read_graph(nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 2)), (10, 8))
    blocks = [(f"1.layers.{i}.", kind) for i in range(2) for kind in ("attention", "mlp")]
    layers = {"attention": ("self_attn.in_proj", "self_attn.out_proj"), "mlp": ("linear1", "linear2")}
    assert [branch.terminal for branch in graph.branches] == [
        f"{at}{'dropout1' if kind == 'attention' else 'dropout2'}" for at, kind in blocks
    ]
    assert [branch.layers for branch in graph.branches] == [
        tuple(f"{at}{name}" for name in layers[kind]) for at, kind in blocks
    ]
    (tie,) = graph.residual_ties
    assert {"0", "1.layers.0.linear2", "1.layers.1.linear2"} <= set(tie)
    assert graph.channels.names == ("1.layers.0.linear1", "1.layers.1.linear1")


def test_a_learned_offset_is_no_shortcut() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.last = nn.Linear(4, 4), nn.Identity()
            self.place, self.head = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.project(x)) + self.place)

    assert read_graph(Embedded(), (4,)).branches == ()


def test_a_network_that_cannot_be_followed_says_so_and_is_still_read() -> None:
    graph = read_graph(Unwatchable(), SHAPE)
    assert len(graph.layers) == 4
    assert graph.couplings_unknown == "its calls cannot be followed (it does not like to be watched)"
    assert graph.branches == ()


def test_layers_that_cannot_be_quantized_are_unsupported_with_the_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
            self.unused = nn.Linear(4, 4)
            self.embedding = nn.Embedding(4, 4)
            self.tied = nn.Linear(4, 4, bias=False)
            self.tied.weight = self.embedding.weight
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tied(self.normed(x)))

    graph = read_graph(Odd(), (4,))
    assert [layer.name for layer in graph.layers] == ["normed", "head"]
    assert "never calls it" in graph.unsupported["unused"]
    assert "shared with a module that is not a layer" in graph.unsupported["tied"]


def test_layers_that_are_called_with_or_return_no_single_tensor_are_told_so() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Any, mask: Tensor | None = None) -> Any:
            if isinstance(x, dict):
                return super().forward(x["x"])
            return super().forward(x) if mask is None else (super().forward(x * mask), mask)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dict, self.both, self.plain = (Masked(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y, mask = self.both(self.dict({"x": x}), x > 0)
            return self.plain(self.both(y) * mask)

    graph = read_graph(Odd(), (4,))
    assert [layer.name for layer in graph.layers] == ["plain"]
    ends = "and a layer takes one tensor first and returns one"
    assert graph.unsupported == {"dict": f"it takes a dict, {ends}", "both": f"it returns a tuple, {ends}"}


def test_layers_that_read_one_tensor_share_their_input() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            return self.left(x) * self.right(x)

    assert read_graph(Fork(), (4,)).shared_inputs == (("left", "right"),)


def test_an_input_that_does_not_fit_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"does not run on an input of shape \(2, 6, 6\)"):
        read_graph(Net(), (2, 6, 6))


def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="lazy"):
        read_graph(nn.LazyLinear(3), (4,))


class Growing(nn.Module):
    """Makes a part of itself when it runs first."""

    def __init__(self, make: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 4), make

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if not hasattr(self, "part"):
            self.make(self, y)
        return self.part(y) if isinstance(self.part, nn.Module) else y + self.part


GROWING: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a layer": (lambda m, y: setattr(m, "part", nn.Linear(4, 2)), "parameter 'part.weight'"),
    "a parameter": (lambda m, y: m.register_parameter("part", nn.Parameter(torch.zeros(4))), "parameter 'part'"),
    "of the input": (lambda m, y: m.register_buffer("part", y.mean(0).detach()), "buffer 'part'"),
    "of a parameter": (lambda m, y: m.register_buffer("part", m.layer.bias.detach() * 2, persistent=False), "buffer"),
}


@pytest.mark.parametrize("what", GROWING)
def test_a_network_that_grows_when_it_runs_first_is_refused_until_then(what: str) -> None:
    """Every copy of it would have another part, and the optimizer that was made before none."""
    make, told = GROWING[what]
    network = Growing(make).eval()
    with pytest.raises(InputError, match=rf"makes its {told}.* when it runs first"):
        read_graph(network, (4,))
    assert not hasattr(network, "part")
    network(torch.randn(2, 4))
    assert "layer" in read_graph(network, (4,)).by_name


def test_a_table_that_is_made_once_is_no_part_of_it() -> None:
    network = Growing(lambda m, y: m.register_buffer("part", torch.arange(y.shape[1]) / 4))
    assert "layer" in read_graph(network, (4,)).by_name


def test_reading_a_network_whose_filters_cannot_go_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class FixedSplit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.left, self.right = nn.Conv2d(1, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.leave = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            first, second = torch.split(self.enter(x), [4, 4], 1)
            return self.leave(torch.cat([self.left(first), self.right(second)], 1))

    graph = read_graph(FixedSplit(), SHAPE)
    assert "enter" in graph.channels.frozen
    assert capfd.readouterr() == ("", "")


class Conditional(nn.Module):
    """One of two branches, by an operator that takes functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: self.first(y), lambda y: self.second(y), (x,))


class Mapped(nn.Linear):
    """Maps itself over the batch."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.vmap(super().forward)(input)


def with_sparse_buffer() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 2))
    network.register_buffer("adjacency", torch.eye(3).to_sparse())
    return network


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (Conditional, 2),
        (lambda: nn.Sequential(Mapped(4, 2)), 1),
        (with_sparse_buffer, 1),
        (lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)), 2),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 2))), 0),
        (lambda: nn.DataParallel(nn.Linear(4, 2)), 1),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_unusual_networks_are_read(build: Callable[[], nn.Module], layers: int) -> None:
    assert len(read_graph(build(), (4,)).layers) == layers


def test_what_keeps_an_attention_in_fp32_is_told() -> None:
    """Its projection is parametrized, so it is not unfolded into linear layers."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
            parametrizations.weight_norm(self.attend.out_proj)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attend(x, x, x, need_weights=False)[0])

    graph = read_graph(Attending(), (6, 8))
    assert list(graph.by_name) == ["head"]
    assert graph.unsupported == {
        "attend.out_proj": "its parent reads the weight itself and never calls it",
        "attend.in_proj_weight": "a parameter of an attention module that no layer holds",
    }


def _qat_layer() -> nn.Module:
    settings = ao.get_default_qat_qconfig("fbgemm")
    return nn.Sequential(nn.Flatten(), torch.ao.nn.qat.Linear(36, 3, qconfig=settings))


def _prepared(prepare: Callable[[nn.Module], nn.Module], settings: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()
    model.qconfig = settings
    return prepare(model)


@pytest.mark.parametrize(
    "make",
    [
        _qat_layer,
        lambda: _prepared(ao.prepare_qat, ao.get_default_qat_qconfig("fbgemm")),
        lambda: _prepared(ao.prepare, ao.default_qconfig),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), ao.FakeQuantize()),
    ],
    ids=["qat layer", "prepare_qat", "observers", "fake quantizer"],
)
def test_a_network_that_quantizes_by_itself_is_refused_by_name(make: Callable[[], nn.Module]) -> None:
    """Its ranges follow what it is run on, in eval mode too: no packed file gives its outputs again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with pytest.raises(InputError, match=r"^module '[\w.]+' \(\w+\) is of PyTorch's own quantization and changes"):
        read_graph(model, (1, 6, 6))
    stubs = nn.Sequential(ao.QuantStub(), nn.Conv2d(1, 4, 3), ao.DeQuantStub())
    assert list(read_graph(stubs, (1, 6, 6)).by_name) == ["1"]
