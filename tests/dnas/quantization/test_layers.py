"""The one wrapper: every kind of layer is its own operation on quantized tensors, written out by hand."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.quantization.branches import skip_layer
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantized_layer
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import decode, encode
from tests.known import known_graph
from tests.toys import OwnForward, seeded

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"), (4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), (4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "own forward": (lambda: OwnForward(4, 6, 3), (4, 8, 8)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def wrap(
    layer: nn.Module, shape: tuple[int, ...], weight_bits: int, activation_bits: int, **choice: object
) -> QuantizedLayer:
    spec = known_graph(nn.Sequential(layer), shape).layers[0]
    wrapped = quantized_layer(copy.deepcopy(layer), spec, (weight_bits,), (activation_bits,), QuantizerChoice(**choice))
    calibrate(wrapped, [torch.randn(2, *shape, generator=seeded())])
    return wrapped


def quantized(quantizer: TensorQuantizer, x: Tensor, axis: int) -> Tensor:
    (bits,) = quantizer.widths
    shape = [1] * x.dim()
    shape[axis] = -1
    clip = quantizer.clip.detach().view(shape)
    grid = quantizer.quantizer.grid(bits, quantizer.signed)
    return decode(encode(x, clip, grid, quantizer.signed), clip * quantizer.gain, grid)


@every_kind
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_wrapper_runs_the_layer_on_quantized_tensors(kind: str, per_channel: bool) -> None:
    make, shape = KINDS[kind]
    layer = make()
    wrapped = wrap(layer, shape, 3, 4, per_channel=per_channel)
    axis = 1 if "transposed" in kind else 0
    if per_channel:
        assert wrapped.quantize_weight.clip.shape == (layer.weight.shape[axis], 1)
    x = torch.randn(2, *shape, generator=seeded(1))
    by_hand = copy.deepcopy(layer)
    with torch.no_grad():
        by_hand.weight.copy_(quantized(wrapped.quantize_weight, layer.weight, axis))
    torch.testing.assert_close(wrapped(x), by_hand(quantized(wrapped.quantize_input, x, 0)))


@every_kind
def test_at_32_bits_the_wrapper_is_the_layer_bit_for_bit(kind: str) -> None:
    make, shape = KINDS[kind]
    layer = make()
    x = torch.randn(2, *shape, generator=seeded(1))
    assert torch.equal(wrap(layer, shape, 32, 32)(x), layer(x))


@every_kind
def test_the_parameters_keep_their_names_and_all_get_a_gradient(kind: str) -> None:
    make, shape = KINDS[kind]
    layer = make()
    wrapped = wrap(layer, shape, 3, 4, per_channel=True)
    own = {name for name, _ in layer.named_parameters()}
    assert {name for name, _ in wrapped.named_parameters()} == own | {"quantize_input.clip", "quantize_weight.clip"}
    x = torch.randn(2, *shape, generator=seeded(1)).requires_grad_()
    wrapped(x).square().sum().backward()
    for tensor in (x, *wrapped.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["conv2d", "transposed2d", "linear"])
def test_per_channel_ranges_are_the_channels_own(kind: str) -> None:
    make, shape = KINDS[kind]
    layer = make()
    axis = 1 if "transposed" in kind else 0
    scaled = copy.deepcopy(layer)
    factors = torch.tensor([4.0] + [1.0] * (layer.weight.shape[axis] - 1))
    with torch.no_grad():
        scaled.weight.mul_(factors.view(-1, *[1] * (scaled.weight.dim() - 1)).transpose(0, axis))
    clips = [wrap(each, shape, 4, 8, per_channel=True).quantize_weight.clip.flatten() for each in (layer, scaled)]
    torch.testing.assert_close(clips[1], clips[0] * factors)


def test_attributes_of_the_layer_are_still_reachable() -> None:
    wrapped = wrap(nn.Conv2d(4, 6, 3, stride=2), (4, 8, 8), 4, 4)
    assert (wrapped.stride, wrapped.out_channels, wrapped.kernel_size) == ((2, 2), 6, (3, 3))
    with pytest.raises(AttributeError, match="nothing"):
        wrapped.nothing  # noqa: B018


def test_a_copy_is_whole_and_independent() -> None:
    wrapped = wrap(OwnForward(4, 6, 3), (4, 8, 8), 4, 4)
    twin = copy.deepcopy(wrapped)
    x = torch.randn(2, 4, 8, 8, generator=seeded())
    before = wrapped(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert torch.equal(wrapped(x), before)
    assert not torch.equal(twin(x), before)


def test_a_layer_with_several_candidates_asks_for_a_sample() -> None:
    quantizer = TensorQuantizer(find_quantizer("weights", "lsq"), (2, 4), signed=True)
    with pytest.raises(RuntimeError, match="no sample is lent"):
        quantizer(torch.ones(3))


def test_a_shared_step_gets_the_gradient_of_its_tensor_scaled_by_one_over_the_root_of_its_size() -> None:
    layer = nn.Linear(16, 4, bias=False)
    wrapped = wrap(layer, (16,), 3, 32)
    raw = copy.deepcopy(wrapped)
    raw.quantize_weight.clip_gradient_scale = 1.0
    x = torch.randn(8, 16, generator=seeded())
    for each in (wrapped, raw):
        each(x).square().sum().backward()
    torch.testing.assert_close(wrapped.quantize_weight.clip.grad, raw.quantize_weight.clip.grad / 8)  # sqrt(64)


@every_kind
def test_a_skipped_layer_gives_zeros_of_the_layers_shape(kind: str) -> None:
    make, shape = KINDS[kind]
    layer = make()
    x = torch.randn(2, *shape, generator=seeded())
    skipped = skip_layer(copy.deepcopy(layer))
    assert torch.equal(skipped(x), torch.zeros_like(layer(x)))
    assert not skipped.state_dict()


def test_mixed_candidates_are_the_weighted_sum_of_the_single_ones() -> None:
    x = torch.randn(50, generator=seeded(), dtype=torch.float64)
    family = find_quantizer("weights", "lsq")
    mixed = TensorQuantizer(family, (2, 3, 32), signed=True).double()
    mixed.set_sign(True)
    singles = [TensorQuantizer(family, (bits,), signed=True).double() for bits in (2, 3)]
    for single in singles:
        single.set_sign(True)
    mixed.lent = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(mixed(x), 0.2 * singles[0](x) + 0.5 * singles[1](x) + 0.3 * x, rtol=1e-12, atol=1e-12)


def test_a_subclass_keeps_parameters_and_buffers_of_its_own() -> None:
    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(2, 2, 1)
            self.scale = nn.Parameter(torch.full((2, 1, 1), 3.0))
            self.register_buffer("shift", torch.full((2, 1, 1), 5.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * F.conv2d(x, self.weight, self.bias) + self.shift

    wrapped = wrap(Scaled(), (2, 4, 4), 4, 4)
    x = torch.randn(2, 2, 4, 4, generator=seeded())
    wrapped(x).sum().backward()
    assert {name.rpartition(".")[2] for name in wrapped.state_dict()} >= {"scale", "shift"}
    assert any(parameter.shape == (2, 1, 1) and parameter.grad is not None for parameter in wrapped.parameters())
    wrapped.double()
    assert wrapped(x.double()).dtype == torch.float64


def loaded(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return cast(nn.Module, torch.load(file, weights_only=False))


@every_kind
@pytest.mark.parametrize(
    "through",
    [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), loaded],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_a_quantized_layer_survives_every_way_to_copy_it(kind: str, through: Callable[[nn.Module], nn.Module]) -> None:
    make, shape = KINDS[kind]
    wrapped = wrap(make(), shape, 3, 4, per_channel=True)
    x = torch.randn(2, *shape, generator=seeded(1))
    assert torch.equal(through(wrapped)(x), wrapped(x))


@every_kind
def test_the_wrapper_is_made_where_the_layer_is(kind: str) -> None:
    """The meta device stands for any that is not the CPU: an operation on tensors of both fails."""
    make, shape = KINDS[kind]
    layer = make()
    spec = known_graph(nn.Sequential(layer), shape).layers[0]
    wrapped = quantized_layer(layer.to("meta"), spec, (4,), (4,), QuantizerChoice("nested", "pact", True))
    assert {tensor.device.type for tensor in (*wrapped.parameters(), *wrapped.buffers())} == {"meta"}
    assert wrapped(torch.empty(2, *shape, device="meta")).device.type == "meta"


@pytest.mark.parametrize(
    "kind", ["conv2d", *(pytest.param(kind, marks=pytest.mark.whole) for kind in ("transposed3d", "linear"))]
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of PyTorch 2.9's compiler
def test_a_compiler_sees_a_quantized_layer_whole(kind: str) -> None:
    make, shape = KINDS[kind]
    wrapped = wrap(make(), shape, 3, 4)
    x = torch.randn(2, *shape, generator=seeded(1))
    torch._dynamo.reset()
    compiled = torch.compile(wrapped, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), wrapped(x))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own forward"])
def test_threads_can_share_a_quantized_layer(kind: str) -> None:
    make, shape = KINDS[kind]
    wrapped = wrap(make(), shape, 3, 4)
    inputs = [torch.randn(2, *shape, generator=seeded(seed)) for seed in range(4)]
    expected = [wrapped(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(wrapped, inputs * 25))
    assert all(torch.equal(y, expected[index % 4]) for index, y in enumerate(found))
