"""The zoo: published parameter counts, published weights, shapes, and a parameter-free shortcut."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.errors import InputError
from search_spaces.models.sources import ZOO
from search_spaces.models.zoo import SubsampleShortcut, mobilenet_v1, resnet20, tiny_resnet

# Counted by the authors of the CIFAR ResNets' usual reimplementation (0.27 M ... 1.7 M) and of MobileNet v1 (4.2 M).
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "mobilenet_v1": 4_231_976,
}
CLASSIFIERS = sorted(set(ZOO) - {"tiny_segmenter", "tiny_ssd"})
INPUTS = {"tiny_resnet": (1, 8, 8), "mobilenet_v1": (3, 64, 64)}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert sum(parameter.numel() for parameter in ZOO[name]().parameters()) == PARAMETERS[name]


def test_tiny_resnet_is_tiny() -> None:
    assert sum(parameter.numel() for parameter in tiny_resnet().parameters()) < 25_000


def test_tiny_resnet_has_the_stages_that_are_asked_for() -> None:
    whole = tiny_resnet(width=4).state_dict()
    for stages in (1, 2, 3, 4):
        model = tiny_resnet(width=4, stages=stages)
        state = model.state_dict()
        assert {name.split(".")[0] for name in state if name.startswith("layer")} == {
            f"layer{number}" for number in range(1, stages + 1)
        }
        assert all(state[name].shape == whole[name].shape for name in {*state} & {*whole} if "linear" not in name)
        assert model.linear.in_features == 4 * 2 ** (stages - 1)
        assert model.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    for stages in (0, 5, 10**9, -1):
        with pytest.raises(InputError, match=rf"stages must lie in \[1, 4\].* got {stages}$"):
            tiny_resnet(stages=stages)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "resnet110"])
def test_gives_one_logit_per_class_and_traces(name: str) -> None:
    model = ZOO[name](num_classes=7).eval()
    images = torch.rand(2, *INPUTS.get(name, (3, 32, 32)))
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert torch.equal(torch.fx.symbolic_trace(model)(images), logits)


def test_in_channels_and_width_are_used() -> None:
    assert resnet20(in_channels=5).conv1.in_channels == 5
    half = mobilenet_v1(width=0.5, num_classes=3)
    assert half.linear.in_features == 512
    # Table 7 of the paper: 1.3 M parameters at width 0.5 with 1000 classes.
    assert round(sum(p.numel() for p in mobilenet_v1(width=0.5).parameters()) / 1e6, 1) == 1.3


def test_layer_names_are_those_of_published_checkpoints() -> None:
    names = [name for name, module in resnet20().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert names[-2:] == ["layer3.2.conv2", "linear"]
    assert len(names) == 20


def test_shortcut_has_no_parameters_and_keeps_every_second_pixel() -> None:
    shortcut = SubsampleShortcut(stride=2, before=3, after=3)
    x = torch.rand(2, 4, 5, 7)
    out = shortcut(x)
    assert not list(shortcut.parameters())
    assert out.shape == (2, 10, 3, 4)
    assert torch.equal(out[:, 3:7], x[:, :, ::2, ::2])
    assert not out[:, :3].any()
    assert not out[:, 7:].any()


def test_a_block_without_its_branch_is_its_shortcut() -> None:
    block = resnet20().layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # its bias starts at zero
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), block.shortcut(x))


def relu_then_norm(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What the BatchNorm ``name`` makes of a ReLU."""
    return model.get_submodule(name)(F.relu(x))


def test_norm_last_is_convolution_relu_batchnorm_and_no_relu_behind_an_addition() -> None:
    torch.manual_seed(0)
    model = tiny_resnet(width=4, norm_last=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -1, 1)
    images = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        x = relu_then_norm(model, "bn1", model.conv1(images))
        for stage in ("layer1", "layer2", "layer3"):
            block = model.get_submodule(f"{stage}.0")
            y = relu_then_norm(block, "bn1", block.conv1(x))
            x = relu_then_norm(block, "bn2", block.conv2(y)) + block.shortcut(x)
            assert y.min() < 0
            assert x.min() < 0
        assert torch.equal(model(images), model.linear(x.mean((2, 3))))


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in ("resnet110", "resnet56", "resnet44")])
def test_the_order_changes_no_name_so_that_checkpoints_load(name: str) -> None:
    torch.manual_seed(0)
    usual, other = ZOO[name]().eval(), ZOO[name](norm_last=True).eval()
    for module in usual.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -1, 1)  # at 0 the order makes no difference
    other.load_state_dict(usual.state_dict())
    images = torch.rand(2, *INPUTS.get(name, (3, 32, 32)))
    with torch.inference_mode():
        assert not torch.allclose(usual(images), other(images))
        assert torch.equal(torch.fx.symbolic_trace(other)(images), other(images))


def test_every_layer_but_the_first_reads_both_signs_where_norm_is_last() -> None:
    def signed(norm_last: bool) -> list[bool]:
        torch.manual_seed(0)
        model, found = tiny_resnet(width=4, norm_last=norm_last), []
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: found.append(bool(inputs[0].min() < 0)))
        model(torch.rand(4, 1, 8, 8))  # in training mode: BatchNorm centres each batch
        return found

    assert signed(True) == [False] + 7 * [True]
    assert signed(False) == 8 * [False]


def test_mobilenet_without_the_norms_between_depthwise_and_pointwise() -> None:
    whole, without = mobilenet_v1(width=0.25).state_dict(), mobilenet_v1(width=0.25, depthwise_norm=False)
    gone = set(whole) - set(without.state_dict())
    assert {name.rsplit(".", 1)[0] for name in gone} == {f"blocks.{block}.bn1" for block in range(13)}
    block = mobilenet_v1(width=0.25, depthwise_norm=False, norm_last=True).blocks[0].eval()
    x = torch.randn(2, 8, 8, 8)
    expected = block.bn2(F.relu(block.pointwise(F.relu(block.depthwise(x)))))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"in_channels": -1}])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1"])
def test_empty_counts_are_refused(name: str, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be at least 1"):
        ZOO[name](**arguments)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_widths_are_refused(width: float) -> None:
    with pytest.raises(InputError, match="width must lie in"):
        mobilenet_v1(width=width)


@pytest.mark.slow
def test_tiny_resnet_learns_digits() -> None:
    content = load_digits()
    images = torch.from_numpy(content.images).float()[:, None] / 16
    labels = torch.from_numpy(content.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    train, test = order[:1200], order[1200:]
    torch.manual_seed(0)
    model = tiny_resnet()
    _train(model, images[train], labels[train], epochs=15, generator=generator)
    with torch.inference_mode():
        accuracy = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    assert accuracy >= 0.97


def _train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, generator: torch.Generator) -> None:
    batches = len(labels) // 60
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
