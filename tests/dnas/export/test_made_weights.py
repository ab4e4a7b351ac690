"""Files hold the codes of what a layer multiplies with, and a loaded net multiplies with those and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from dnas.export.aimet import export_aimet
from dnas.export.save import save_packed
from dnas.export.torchao import export_torchao
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.switchable.net import SwitchableNet
from results.packed.file import read_packed
from results.packed.weights import weight_values
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.copies import copy_network
from search_spaces.network.graph import read_graph
from tests.exported_nets import export_onnx
from tests.made_weights import KINDS, graph_of, images, name_of, network
from tests.packed_nets import assignment_of

NESTED = QuantizerChoice("nested", "pact")


def trained_net(kind: str, bits: tuple[int, int]) -> tuple[nn.Module, LayerGraph, BitAssignment]:
    """A fixed net after a step of training."""
    model, graph = network(kind), graph_of(kind)
    layers = {name: LayerBits(*bits, spec.out_channels) for name, spec in graph.by_name.items()}
    net = quantize_fixed(model, graph, layers)
    calibrate(net, [images()])
    step(net)
    return net.eval(), graph, assignment_of(graph, layers, QuantizerChoice())


def step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    net.train()(images()).square().mean().backward()
    optimizer.step()


def other_network(kind: str) -> nn.Module:
    """A network of the kind with other values everywhere."""
    model = network(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7).add_(0.01)
    return model


@pytest.mark.parametrize("bits", [(3, 4), (32, 32)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_net_multiplies_with_what_the_saved_one_did(kind: str, bits: tuple[int, int], tmp_path: Path) -> None:
    net, graph, assignment = trained_net(kind, bits)
    packed = save_packed(tmp_path / "net", net, graph, assignment)
    assert packed.tensor_bytes == assignment.cost["size_bytes"]
    if bits == (32, 32):  # weights and biases, a BatchNorm of 4 channels, the parameter of standardised layers
        elements = sum(spec.weight_elements + spec.bias_elements for spec in graph.layers)
        assert packed.tensor_bytes == 4 * (elements + 2 * 4 + kind.endswith("standardisation"))
    made: Any = net.get_submodule(name_of(kind))
    if isinstance(made, QuantizedLayer):
        stored = torch.tensor(weight_values(read_packed(tmp_path / "net"), name_of(kind)))
        assert torch.equal(stored, made.quantized_weight())
    assert torch.equal(load(tmp_path / "net", other_network(kind))(images()), net(images()))


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_a_switchable_net_shares_what_weights_are_made_of(kind: str, tmp_path: Path) -> None:
    model, graph = network(kind), graph_of(kind)
    profiles = {
        name: assignment_of(graph, {n: LayerBits(bits, 4, s.out_channels) for n, s in graph.by_name.items()}, NESTED)
        for name, bits in {"wide": 4, "narrow": 2}.items()
    }
    net = SwitchableNet(model, graph, profiles, NESTED)
    net.calibrate(model, [images()])
    step(net.use("wide"))  # spectral norm's vectors move for both
    net.eval()
    save_packed(tmp_path / "net", net)
    loaded = load(tmp_path / "net", other_network(kind))
    for name in profiles:
        expected = net.use(name)(images())
        assert torch.equal(net.alone(name).eval()(images()), expected)
        assert torch.equal(loaded.use(name)(images()), expected)
        assert torch.equal(load(tmp_path / "net", other_network(kind), name)(images()), expected)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["masks", "a parametrization under standardisation"])
def test_onnx_holds_the_codes_of_what_is_multiplied_with(kind: str, tmp_path: Path) -> None:
    """The exporter compares every layer with PyTorch, and refuses a file that differs."""
    net, graph, assignment = trained_net(kind, (3, 4))
    export_onnx(tmp_path / "net", net, graph, assignment)
    assert (tmp_path / "net").stat().st_size > 0


@pytest.mark.parametrize("kind", KINDS)
def test_tools_that_quantize_parameters_are_not_given_what_these_do_not_hold(kind: str, tmp_path: Path) -> None:
    net, graph, assignment = trained_net(kind, (8, 8))
    told = export_torchao(tmp_path / "net", net, graph, assignment)
    assert "multiplies with one that is made of others" in told.left_out[name_of(kind)]
    with pytest.raises(InputError, match=f"layer '{name_of(kind)}' multiplies with a weight that is made of others"):
        export_aimet(tmp_path / "other", net, assignment)
    assert not (tmp_path / "other").exists()


@pytest.mark.whole
def test_whole_networks_of_timm_with_standardised_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    config = timm.models.nfnet.NfCfg(
        depths=(1, 1), channels=(16, 24), stem_type="3x3", stem_chs=8, num_features=24, group_size=8, bottle_ratio=0.5
    )
    free = timm.models.nfnet.NormFreeNet(config, num_classes=3)
    layer = timm.layers.StdConv2d
    residual = timm.models.resnetv2.ResNetV2((1, 1), (128, 128), num_classes=3, conv_layer=layer, stem_chs=32)
    x = torch.randn(4, 3, 32, 32)
    for model in (free.eval(), residual.eval()):
        graph = read_graph(model, (3, 32, 32))
        made = [spec for spec in graph.layers if spec.weight_from == "made"]
        assert made
        assert not graph.unsupported
        layers = {name: LayerBits(4, 8, spec.out_channels) for name, spec in graph.by_name.items()}
        net = quantize_fixed(model, graph, layers)
        calibrate(net, [x])
        save_packed(tmp_path / "net", net.eval(), graph, assignment_of(graph, layers, QuantizerChoice()))
        assert torch.equal(load(tmp_path / "net", copy_network(model))(x), net(x))


@pytest.mark.parametrize("switchable", [False, True])
@pytest.mark.parametrize(
    ("make", "plain", "told"),
    [
        (
            lambda norm: prune.l1_unstructured(norm, "bias", 1),
            lambda norm: prune.remove(norm, "bias"),
            r"the bias of the BatchNorm '1' is behind a mask .* prune\.remove\(",
        ),
        (
            lambda norm: parametrize.register_parametrization(norm, "weight", nn.Softplus(), unsafe=True),
            lambda norm: parametrize.remove_parametrizations(norm, "weight"),
            "the weight of the BatchNorm '1' is computed of other tensors, .*remove_parametrizations does",
        ),
    ],
    ids=["mask", "parametrization"],
)
def test_a_batchnorm_that_makes_its_weight_anew_is_named(
    make: Any, plain: Any, told: str, switchable: bool, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()

    def save() -> None:
        graph = read_graph(model, (2, 4, 4))
        layers = {name: LayerBits(4, 4, spec.out_channels) for name, spec in graph.by_name.items()}
        assignment = assignment_of(graph, layers, NESTED)
        made = SwitchableNet(model, graph, {"one": assignment}, NESTED) if switchable else None
        net = made or quantize_fixed(model, graph, layers, NESTED)
        calibrate(net, [torch.randn(4, 2, 4, 4)])
        save_packed(tmp_path / "net.dnas", net, graph, assignment)

    make(model[1])
    with pytest.raises(InputError, match=told):
        save()
    plain(model[1])
    save()
