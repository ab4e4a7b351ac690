"""Ranges against brute force and least squares; BatchNorm statistics against float64 means."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dnas.quantization.calibration import (
    batch_statistics,
    calibrate,
    layer_inputs,
    observing,
    recalibrate_batchnorm,
)
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from dnas.quantization.fitting import best_clip
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import decode, encode, integer_grid
from dnas.quantization.samples import whole
from dnas.switchable.net import SwitchableNet
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError, JobError
from search_spaces.network.graph import read_graph
from tests.known import known_graph
from tests.toys import SHAPE, Net, build_supernet, inputs, seeded, trained


def fixed_net() -> nn.Module:
    model = trained(Net())
    graph = known_graph(model, SHAPE)
    return quantize_fixed(model, graph, {layer.name: LayerBits(3, 4) for layer in graph.layers}, QuantizerChoice())


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_clip_is_the_best_of_forty_for_each_row(bits: int, signed: bool) -> None:
    rows = torch.randn(3, 200, generator=seeded())
    grid = integer_grid(bits, signed)
    clips = best_clip(whole(rows), [grid], signed)
    for row, clip in zip(rows, clips, strict=True):
        top = row.abs().max() if signed else row.max()
        candidates = [top * share / 40 for share in range(1, 41)]
        errors = [float((row - decode(encode(row, c, grid, signed), c, grid)).square().mean()) for c in candidates]
        assert clip.item() == pytest.approx(candidates[int(np.argmin(errors))].item(), rel=1e-5)
    for times in (50, 200):  # so many values that fractions are tried a few or one at a time
        assert torch.equal(best_clip(whole(rows.repeat(1, times)), [grid], signed), clips)


@pytest.mark.parametrize("registry", [WEIGHT_QUANTIZERS, ACTIVATION_QUANTIZERS], ids=["weights", "activations"])
def test_the_gain_is_the_least_squares_one(registry: dict[str, object]) -> None:
    x = torch.randn(500, generator=seeded(), dtype=torch.float64)
    for quantizer in registry.values():
        if not quantizer.affine:
            continue  # its own test is in test_logarithmic.py
        module = TensorQuantizer(quantizer, quantizer.widths[:4], signed=True).double()
        with torch.no_grad():
            module.fit(x)
            prepared, clip = module.prepare(x)
        for k, bits in enumerate(module.widths):
            grid = quantizer.grid(bits, True)
            levels = decode(encode(prepared, clip[0], grid, True), clip[0], grid)
            residual = prepared - module.gain[k] * levels
            assert abs((residual * levels).sum()) < 1e-6 * levels.square().sum()  # the normal equation


def test_more_bits_never_fit_worse() -> None:
    x = torch.randn(2000, generator=seeded())
    for registry in (WEIGHT_QUANTIZERS, ACTIVATION_QUANTIZERS):
        for quantizer in registry.values():
            if quantizer.clip == "one" or not quantizer.affine:
                continue  # what its fixed range cuts off is most of its error
            errors = []
            for bits in quantizer.widths:
                module = TensorQuantizer(quantizer, (bits,), signed=True)
                with torch.no_grad():
                    module.fit(x)
                    errors.append(float((module(x) - (quantizer.transform or (lambda t: t))(x)).square().mean()))
            assert errors == sorted(errors, reverse=True), quantizer.name


def test_inputs_are_unsigned_where_no_value_is_negative() -> None:
    network = fixed_net()
    calibrate(network, [inputs()])
    signs = {
        name: module.quantize_input.signed
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLayer)
    }
    assert signs == {"stem": True, "first": False, "second": False, "head": False}


def test_calibration_changes_ranges_alone_and_is_repeatable() -> None:
    network = fixed_net().train()
    before = state(network)
    calibrate(network, [inputs()])
    once = state(network)
    changed = {name for name in before if not torch.equal(before[name], once[name])}
    assert {name.rpartition(".")[2] for name in changed} <= {"clip", "gain", "low", "grids"}
    assert any(name.endswith("quantize_weight.clip") for name in changed)
    assert network.training
    calibrate(network, iter([inputs()]))
    assert all(torch.equal(once[name], value) for name, value in network.state_dict().items())


def test_calibration_keeps_the_mode_of_every_module_also_when_a_batch_fails() -> None:
    network = fixed_net().train()
    network.stem_norm.eval()  # a frozen BatchNorm
    modes = {name: module.training for name, module in network.named_modules()}
    calibrate(network, [inputs()])
    assert {name: module.training for name, module in network.named_modules()} == modes
    with pytest.raises(InputError, match=r"does not run on a batch of \(1, 2, 6, 6\)"):
        calibrate(network, [torch.ones(1, 2, 6, 6)])
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(m.observed is None for m in network.modules() if isinstance(m, TensorQuantizer))


def test_inputs_are_observed_unquantized() -> None:
    model = trained(Net()).eval()
    network = fixed_net().eval()
    layers = [module for module in network.modules() if isinstance(module, QuantizedLayer)]
    with observing(layers):
        observed = network(inputs())
    assert torch.equal(observed, model(inputs()))


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_calibrated_supernet_has_ranges_from_its_own_tensors(engine: str) -> None:
    supernet = build_supernet(trained(Net()), engine=engine, weight_bits=(2, 4), activation_bits=(2, 4))
    calibrate(supernet.network, [inputs()])
    for module in supernet.modules():
        if isinstance(module, QuantizedLayer):
            assert 0.025 <= module.quantize_weight.clip.item() / module.weight.abs().max().item() <= 1.0 + 1e-6
            assert module.quantize_input.clip.item() != 1.0


class OneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(self.conv(x)))


def test_batchnorm_is_recalibrated_to_the_mean_over_batches() -> None:
    network = OneNorm().train()
    batches = [inputs(8, seed) for seed in range(5)]
    recalibrate_batchnorm(network, iter(batches))
    outputs = [network.conv(x).detach().double().numpy().transpose(1, 0, 2, 3).reshape(2, -1) for x in batches]
    np.testing.assert_allclose(network.norm.running_mean, np.mean([y.mean(1) for y in outputs], 0), atol=1e-6)
    np.testing.assert_allclose(network.norm.running_var, np.mean([y.var(1, ddof=1) for y in outputs], 0), rtol=1e-5)


def test_recalibration_is_idempotent_and_changes_statistics_alone() -> None:
    network = trained(Net()).train()
    network.first_norm.eval()
    network.second_norm.momentum = 0.3
    modes = [module.training for module in network.modules()]
    before, batches = state(network), [inputs(8, seed) for seed in range(3)]
    recalibrate_batchnorm(network, batches)
    once = state(network)
    recalibrate_batchnorm(network, batches)
    assert all(torch.equal(once[name], value) for name, value in network.state_dict().items())
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], once[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert [module.training for module in network.modules()] == modes
    assert (network.second_norm.momentum, network.first_norm.momentum) == (0.3, 0.1)


def test_batch_statistics_are_those_of_training_and_leave_the_running_ones() -> None:
    network = trained(Net())
    trained_mode = copy.deepcopy(network).train()(inputs())
    network.eval()
    before, evaluated = state(network), network(inputs())
    with batch_statistics(network):
        assert torch.equal(network(inputs()), trained_mode)
    assert torch.equal(network(inputs()), evaluated)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_batch_statistics_are_put_back_after_an_error() -> None:
    network = Net().eval()
    before = state(network)
    with pytest.raises(ValueError, match="stop"), batch_statistics(network):
        raise ValueError("stop")
    assert state(network).keys() == before.keys()
    assert not network.stem_norm.training


def spoiled(model: nn.Module, parameter: str, value: float) -> nn.Module:
    with torch.no_grad():
        dict(model.state_dict(keep_vars=True))[parameter].flatten()[1] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["first.weight", "second.bias", "stem_norm.weight", "first_norm.running_var"])
def test_a_network_that_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    network = spoiled(fixed_net(), name, value)
    before = state(network)
    with pytest.raises(InputError, match=rf"'{name}' holds 1 of \d+ values that are not finite"):
        calibrate(network, [inputs()])
    assert all(torch.equal(before[key], tensor) for key, tensor in state(network).items() if key != name)


@pytest.mark.parametrize("use", [calibrate, recalibrate_batchnorm])
def test_an_image_that_is_not_finite_is_named_and_nothing_is_lost(use: object) -> None:
    network = fixed_net()
    bad = inputs(8, 1)
    bad[5, 0, 2, 2] = float("nan")
    before = state(network)
    with pytest.raises(InputError, match="image 6 of batch 2 holds values that are not finite"):
        use(network, [inputs(), bad])
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())


def test_a_layer_that_overflows_is_named() -> None:
    network = fixed_net()
    with torch.no_grad():
        network.first_norm.weight.fill_(3e38)
    with pytest.raises(InputError, match="input of layer 'second' is not finite"):
        calibrate(network, [inputs()])


@pytest.mark.parametrize("scale", [1e-4, 1e-8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weights_below_the_smallest_clip_are_not_made_larger(bits: int, per_channel: bool, scale: float) -> None:
    """Weight decay leaves such filters, and the BatchNorm behind them would bring a level of 1e-6 back."""
    weight = scale * torch.randn(4, 50, generator=seeded())
    rows = {"channel_axis": 0, "rows": 4} if per_channel else {}
    module = TensorQuantizer(WEIGHT_QUANTIZERS["lsq"], (bits,), signed=True, **rows)
    with torch.no_grad():
        module.fit(weight)
        assert (module(weight) - weight).square().mean() <= weight.square().mean()


def test_statistics_that_overflow_are_refused_and_nothing_is_lost() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = state(network)
    with pytest.raises(InputError, match=r"'1\.running_var' holds 2 of 2 values that are not finite"):
        recalibrate_batchnorm(network, [1e30 * inputs()])
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())


def test_a_batch_without_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"batch 2 of shape .* holds no image"):
        calibrate(fixed_net(), [inputs(), inputs()[:0]])


@pytest.mark.parametrize("weights", ["lsq", "dorefa"])
def test_numbers_whose_squares_overflow_are_refused_by_the_name_of_the_layer(weights: str) -> None:
    """Their clip was any, and the gain of a quantizer without one infinite: every output NaN."""
    network = fixed_net()
    with pytest.raises(InputError, match=r"the input of layer 'stem' reaches 2\.\d+e\+30, to which no range can"):
        calibrate(network, [inputs(4) / inputs(4).abs().max() * 2.5e30])
    model = trained(Net())
    model.stem.weight.data.mul_(1e30)
    graph = known_graph(model, SHAPE)
    net = quantize_fixed(model, graph, dict.fromkeys(graph.by_name, LayerBits(4, 32)), QuantizerChoice(weights))
    before = state(net)
    with pytest.raises(InputError, match=r"the weight of layer 'stem' reaches .*e\+29, to which no range"):
        calibrate(net, [torch.zeros(4, *SHAPE)])
    assert all(torch.equal(value, before[key]) for key, value in state(net).items())


@pytest.mark.parametrize(("change", "what"), [(Tensor.to_sparse, "sparse_coo"), (lambda x: x.to("meta"), "no values")])
def test_a_batch_that_is_no_plain_tensor_is_refused(change: Callable[[Tensor], Tensor], what: str) -> None:
    with pytest.raises(InputError, match=f"batch 2 of shape .*{what}; give plain tensors of images"):
        calibrate(fixed_net(), [inputs(4), change(inputs(4))])


class Routed(nn.Module):
    """Each of an image's tokens goes to one of two experts, so that one may get none of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], 2)
        for index, expert in enumerate(self.experts):
            chosen = (x[..., 0] > 0) == bool(index)
            out[chosen] = expert(x[chosen])
        return out


@pytest.mark.parametrize("activations", ["pact", "tanh"])
def test_a_layer_that_gets_no_image_of_a_batch_is_calibrated_on_others(activations: str) -> None:
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(1, 12, 3, generator=seeded())
    graph = read_graph(model, x)
    parts = [x[x[..., 0] > 0][None], x[x[..., 0] <= 0][None]]
    assert set(graph.by_name) == {"experts.0", "experts.1"}
    choice = QuantizerChoice("lsq", activations)
    nets = [quantize_fixed(model, graph, {name: LayerBits(3, 3) for name in graph.by_name}, choice) for _ in range(2)]
    calibrate(nets[0], [x])
    calibrate(nets[1], parts)
    assert torch.equal(nets[0](x), nets[1](x))
    assert nets[1](parts[0]).isfinite().all()
    found = layer_inputs(model, list(graph.by_name), parts)
    assert all(sample.values.numel() for sample in found.values())


def test_an_error_of_the_code_that_gives_batches_is_told_with_their_number() -> None:
    def broken(error: BaseException) -> Iterator[Tensor]:
        yield inputs()
        raise error

    for use in (calibrate, recalibrate_batchnorm):
        network = fixed_net()
        before = state(network)
        with pytest.raises(InputError, match=r"^batch 2 cannot be read: KeyError: 'b'; repair what gives the batches$"):
            use(network, broken(KeyError("b")))
        with pytest.raises(InputError, match=r"^batch 2 cannot be read: SystemExit: 3; repair"):
            use(network, broken(SystemExit(3)))
        assert all(torch.equal(a, b) for a, b in zip(before.values(), state(network).values(), strict=True))
        for own in (JobError("the disk is gone"), MemoryError()):
            with pytest.raises(type(own)):
                use(network, broken(own))


@pytest.mark.parametrize("use", [calibrate, recalibrate_batchnorm])
@pytest.mark.parametrize("batches", [[], (), iter(())], ids=["list", "tuple", "generator"])
def test_no_batch_is_refused_and_nothing_is_lost(use: object, batches: object) -> None:
    network = fixed_net()
    before = state(network)
    with pytest.raises(InputError, match="no batch of images"):
        use(network, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())


def test_a_data_loader_calibrates_like_its_images() -> None:
    images = inputs(12)
    loader = DataLoader(TensorDataset(images, torch.zeros(12)), batch_size=6)
    networks = fixed_net(), fixed_net()
    calibrate(networks[0], loader)
    calibrate(networks[1], images.split(6))
    assert all(torch.equal(value, networks[1].state_dict()[name]) for name, value in networks[0].state_dict().items())
    with pytest.raises(InputError, match="batch 1 is str"):
        calibrate(networks[0], ["images"])


class TwoPaths(nn.Module):
    """One layer is called only where a second input is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.first(x)
        return y if other is None else y + self.second(other)  # type: ignore[no-any-return]


@pytest.mark.parametrize("switchable", [False, True])
def test_a_layer_that_no_batch_reaches_keeps_its_range_and_is_named(switchable: bool) -> None:
    """Fitted to nothing, the range was next to 0, and the layer gave next to nothing."""
    model, x = TwoPaths(), torch.randn(8, 4, generator=seeded())
    both = {"x": x, "other": x}
    graph = read_graph(model, both)
    layers = {name: LayerBits(8, 8) for name in graph.by_name}
    net: Any = quantize_fixed(model, graph, layers)
    if switchable:
        assignment = BitAssignment("a", ModelReference("toy", (4,)), layers)
        net = SwitchableNet(model, graph, {"a": assignment}, QuantizerChoice("nested", "pact"))

    def run(batch: Any) -> None:
        net.calibrate(model, [batch]) if switchable else calibrate(net, [batch])

    with pytest.warns(UserWarning, match="no batch reaches layer 'second', so the range"):
        run(x)
    clips = [q for n, q in net.named_modules() if isinstance(q, TensorQuantizer) and "second" in n and q.signed]
    assert len(clips) >= 2
    assert float(clips[0].clip.detach()) >= 0.1
    run(both)  # as all warnings are errors, without one
    torch.testing.assert_close(net.eval()(**both), model(**both), atol=0.2, rtol=0.05)
