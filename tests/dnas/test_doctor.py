from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dnas.config import SpaceSection
from dnas.doctor import FIXED, LEFT_ALONE, SEARCHED, default_input_shape, examine
from dnas.doctor_view import verdict_lines
from search_spaces.errors import InputError
from search_spaces.models import load_model
from search_spaces.zoo import resnet20, tiny_resnet


def test_every_layer_is_told_with_its_fate() -> None:
    space = SpaceSection(fix={"layer1.0.conv2": (4, 8)}, exclude=("layer2.0.conv1",), last_layer="search")
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
    space = SpaceSection(granularity="block", weight_bits=(0, 2, 4), first_layer=32, last_layer=32)
    budgets = [{"size_bytes": "50%"}, {"size_bytes": 10}, {"size_bytes": "60%", "bitops": 1}]
    report = examine(resnet20(), (3, 32, 32), space=space, budgets=budgets)
    assert report.decisions == len(report.branches) == 9
    assert {layer.decision for layer in report.layers if layer.status == SEARCHED} >= {"layer1.0", "layer3.2"}
    assert [budget.reachable for budget in report.budgets] == [True, False, False]
    assert report.budgets[0].least["size_bytes"] == report.budgets[1].least["size_bytes"]
    words = verdict_lines(report)
    assert f"the least possible is {report.budgets[1].least['size_bytes']:,.0f}" in words[1]
    assert words[-1] == "Searchable: 18 layers in 9 decisions, 2 fixed."


def test_uniform_costs_grow_with_bits() -> None:
    uniform = examine(resnet20(), (3, 32, 32)).uniform
    sizes = [uniform[bits]["size_bytes"] for bits in (2, 4, 8, 32)]
    assert sizes == sorted(sizes)
    assert uniform[32]["macs"] == uniform[2]["macs"] == 40_551_040


def test_what_is_left_alone_and_not_counted_is_told() -> None:
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
    assert {layer.name for layer in report.layers if layer.status == LEFT_ALONE} >= {"attention.in_proj_weight"}
    assert report.uncounted_macs > 0
    assert "Not counted in any cost" in verdict_lines(report)[0]
    json.dumps(report.to_json())


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
