from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from dnas.commands.doctor_view import render_report, verdict_lines
from dnas.jobs.doctor import FIXED, SEARCHED, UNSUPPORTED, UNUSED, DoctorReport, default_input_shape, examine
from search_spaces.errors import InputError
from search_spaces.models.load import load_model
from search_spaces.models.zoo import resnet20, tiny_resnet
from search_spaces.options import SpaceOptions
from tests.search_spaces.parameter_toys import ZOO
from tests.toys import SHAPE, Unwatchable


def test_every_layer_is_told_with_its_fate() -> None:
    space = SpaceOptions(fix={"layer1.0.conv2": (4, 8)}, exclude=("layer2.0.conv1",), last_layer="search")
    report = examine(tiny_resnet(), (1, 8, 8), space=space)
    found = {layer.name: (layer.status, layer.reason, layer.bits, layer.choices) for layer in report.layers}
    assert found["conv1"] == (FIXED, "first layer", (8, 8), 0)
    assert found["layer1.0.conv1"] == (SEARCHED, "", None, 36)
    assert found["layer1.0.conv2"] == (FIXED, "space.fix", (4, 8), 0)
    assert found["layer2.0.conv1"] == (FIXED, "space.exclude", (32, 32), 0)
    assert found["linear"] == (SEARCHED, "", None, 36)
    assert sum(layer.macs for layer in report.layers) == 189248
    assert report.decisions == 5


def test_groups_skips_and_budgets() -> None:
    space = SpaceOptions(granularity="block", weight_bits=(0, 2, 4), first_layer=32, last_layer=32)
    budgets = [{"size_bytes": "50%"}, {"size_bytes": 10}, {"size_bytes": "60%", "bitops": 1}]
    report = examine(resnet20(), (3, 32, 32), space=space, budgets=budgets)
    assert report.decisions == len(report.branches) == 9
    assert {layer.decision for layer in report.layers if layer.status == SEARCHED} >= {"layer1.0", "layer3.2"}
    assert [budget.reachable for budget in report.budgets] == [True, False, False]
    assert report.budgets[0].least["size_bytes"] == report.budgets[1].least["size_bytes"]
    words = verdict_lines(report)
    assert f"the least possible is {report.budgets[1].least['size_bytes']:,.0f}" in words[2]
    assert words[1].startswith("Budget 'size_bytes 50%' limits nothing, no choice costs more than size_bytes 143,608;")
    assert words[-1] == "Searchable: 18 layers in 9 decisions, 2 fixed."


def told(report: DoctorReport) -> str:
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(render_report(report))
    return out.getvalue()


def test_what_can_be_pruned_is_listed_with_its_size() -> None:
    report = examine(tiny_resnet(), (1, 8, 8))
    found = {group.name: (group.units, group.layers) for group in report.channels.groups}
    assert found["layer1.0.conv1"] == (8, ("layer1.0.conv1",))
    assert found["conv1"] == (8, ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"))
    assert next(iter(report.channels.frozen)) == "linear"
    shown = told(report)
    assert "Channel groups that can be pruned: 6, with 88 units" in shown
    assert ["conv1", "8", "4"] in [line.split() for line in shown.splitlines()]
    assert "it is the network's output: linear" in shown
    data = json.loads(json.dumps(report.to_json()))["channels"]
    assert data["groups"][1] == {
        "name": "layer1.0.conv1",
        "units": 8,
        "layers": ["layer1.0.conv1"],
        "readers": ["layer1.0.conv2"],
    }
    assert data["frozen"] == report.channels.frozen


def test_many_groups_are_abbreviated_in_words_alone() -> None:
    convs = [layer for _ in range(50) for layer in (nn.Conv2d(2, 2, 1), nn.ReLU())]
    report = examine(nn.Sequential(*convs, nn.Conv2d(2, 3, 1)), (2, 4, 4))
    assert len(report.to_json()["channels"]["groups"]) == 50
    assert "... and 10 more; --json lists all" in told(report)


def test_layers_that_keep_their_filters_are_grouped_by_reason() -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(5))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = self.stem(x)
            return tuple(head(x) for head in self.heads)

    shown = told(examine(Outputs(), (4,)))
    assert "it is the network's output: 5 layers (heads.0, heads.1, heads.2, ...)" in shown


def test_why_nothing_is_known_of_filters_is_told() -> None:
    report = examine(Unwatchable(), SHAPE)
    assert report.channels.groups == ()
    assert f"Which filters can be pruned is not known: {report.channels.unknown}" in " ".join(told(report).split())


def test_uniform_costs_grow_with_bits() -> None:
    uniform = examine(resnet20(), (3, 32, 32)).uniform
    sizes = [uniform[bits]["size_bytes"] for bits in (2, 4, 8, 32)]
    assert sizes == sorted(sizes)
    assert uniform[32]["macs"] == uniform[2]["macs"] == 40_551_040


def test_what_is_unsupported_and_not_counted_is_told() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)  # not unfolded
            self.middle = nn.Linear(8, 8)
            self.leave = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            x = self.attention(x, x, x)[0]
            return self.leave(self.middle(x))

    report = examine(Attending(), (5, 8))
    assert report.searchable
    assert {layer.name for layer in report.layers if layer.status == UNSUPPORTED} >= {"attention.in_proj_weight"}
    assert report.uncounted_macs > 0
    assert "Not counted in any cost" in verdict_lines(report)[0]
    json.dumps(report.to_json())


@pytest.mark.parametrize("name", ZOO)
def test_the_parameters_of_all_rows_are_those_of_the_network(name: str) -> None:
    network, example, *_ = ZOO[name]
    report = examine(network, example)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert sum(report.parameters.values()) == total
    assert sum(row.parameters for row in (*report.layers, *report.other_parameters)) == total
    assert f"Parameters: {total:,}, of which" in told(report)
    json.dumps(report.to_json())


def test_parameters_are_told_by_what_becomes_of_them() -> None:
    report = examine(ZOO["auxiliary"][0], (4,))
    assert report.parameters == {SEARCHED: 0, FIXED: 30, UNSUPPORTED: 0, UNUSED: 20 + 8 + 4 + 10}
    assert {layer.name: layer.status for layer in report.layers} == {
        **dict.fromkeys(("body", "head"), FIXED),
        **dict.fromkeys(("auxiliary.0", "auxiliary.4"), UNUSED),
    }
    shown = " ".join(told(report).split())
    assert "Parameters: 72, of which 0 searched, 30 fixed, 42 unused in eval mode (not deployed)." in shown
    assert "nothing reads it in eval mode: 12 parameters (auxiliary.2.weight, auxiliary.2.bias, " in shown
    lstm = examine(ZOO["lstm"][0], (5, 4))
    assert lstm.parameters[UNSUPPORTED] == 312
    rows = {layer.name: (layer.status, layer.parameters) for layer in lstm.layers}
    assert rows["a.weight_hh_l0"] == (UNSUPPORTED, 96)
    assert "a.weight_hh_l0" in told(lstm)


def test_a_network_without_layers_is_reported_and_priced() -> None:
    report = examine(nn.ReLU(), (3,))
    assert not report.searchable
    assert "no convolution and no linear layer" in report.reason
    assert report.uniform == {}
    report = examine(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), (4,), budgets=[{"size_bytes": 1}])
    assert not report.searchable
    assert report.uniform[8]["size_bytes"] > 0
    assert verdict_lines(report)[-1].startswith("Not searchable: all 2 layers are fixed")


def test_a_wrong_shape_or_budget_is_refused() -> None:
    with pytest.raises(InputError, match="does not run on an input"):
        examine(tiny_resnet(), (3, 8, 8))
    with pytest.raises(InputError, match="did you mean 'size_bytes'"):
        examine(tiny_resnet(), (1, 8, 8), budgets=[{"size_byte": "3%"}])


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("zoo:tiny_resnet", (1, 8, 8)),
        ("zoo:resnet20", (3, 32, 32)),
        ("zoo:mobilenet_v1", (3, 224, 224)),
        ("torchvision:squeezenet1_1", (3, 224, 224)),
        ("timm:mobilenetv3_small_100", (3, 224, 224)),
    ],
)
def test_the_usual_input_shape(source: str, shape: tuple[int, ...]) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    assert default_input_shape(load_model(source).module, source) == shape


def test_the_usual_input_shape_of_larger_networks() -> None:
    with torch.device("meta"):
        assert default_input_shape(nn.Identity(), "torchvision:inception_v3") == (3, 299, 299)
        assert default_input_shape(nn.Identity(), "torchvision:efficientnet_b1") == (3, 240, 240)
        assert default_input_shape(nn.Identity(), "mine:net") == (3, 224, 224)
