"""The laws of a switchable net: shared weights, private BatchNorms, and every profile the fixed net that it names."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.quantizers import encode, nested_grid
from dnas.switchable.net import SwitchableNet
from dnas.switchable.profiles import by_width
from dnas.switchable.views import Picked
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.known import known_graph
from tests.packed_nets import CASES, assignment_of, inputs_for, model_and_graph, same_bits
from tests.toys import Net, seeded

NESTED = QuantizerChoice("nested", "pact")
CHOICES = [NESTED, QuantizerChoice("nested", "nested", True), QuantizerChoice("dorefa", "dorefa"), QuantizerChoice()]
WIDTHS = {"wide": (8, 8), "middle": (4, 3), "narrow": (2, 2)}


def assignments(case: str, widths: Mapping[str, tuple[int, int]], choice: QuantizerChoice) -> dict[str, BitAssignment]:
    graph = model_and_graph(case)[1]
    return {name: assignment_of(graph, same_bits(graph, *pair), choice) for name, pair in widths.items()}


def pruned(case: str, bits: tuple[int, int], choice: QuantizerChoice, every: int = 2) -> BitAssignment:
    """Every so-manieth unit of each group is left."""
    graph = model_and_graph(case)[1]
    kept = {group.name: tuple(range(0, group.units, every)) for group in graph.channels.groups if group.units > 1}
    rows = kept_rows(graph.channels, kept)
    layers = {
        spec.name: LayerBits(*bits, len(rows.get(spec.name, [0] * spec.out_channels)), rows.get(spec.name))
        for spec in graph.layers
    }
    return assignment_of(graph, layers, choice)


def net_of(case: str, profiles: Mapping[str, BitAssignment], choice: QuantizerChoice, **options: Any) -> SwitchableNet:
    model, graph = model_and_graph(case)
    net = SwitchableNet(model, graph, profiles, choice, **options)
    x = inputs_for(graph, 8, 5)
    net.calibrate(model, [x])
    net.recalibrate([x])
    return net.eval()


def in_turns(*cases: str) -> list[tuple[str, QuantizerChoice]]:
    """Each case with every second choice, each choice with every second case."""
    return [(case, choice) for at, case in enumerate(cases) for choice in CHOICES[at % 2 :: 2]]


def norms(net: SwitchableNet, profile: str) -> dict[str, Tensor]:
    view = net.view_of(profile)
    found = {name: module for name, module in view.named_modules() if isinstance(module, _BatchNorm)}
    return {f"{name}.{key}": value.clone() for name, norm in found.items() for key, value in norm.state_dict().items()}


@pytest.mark.parametrize(("case", "choice"), in_turns("residual", "shapes", "shared", "attention"))
def test_a_profile_is_the_fixed_net_with_the_same_weights_bit_for_bit(case: str, choice: QuantizerChoice) -> None:
    profiles = assignments(case, WIDTHS, choice)
    net = net_of(case, profiles, choice)
    model, graph = model_and_graph(case)
    for name, assignment in profiles.items():
        fixed = quantize_fixed(model, graph, assignment.layers, choice)
        fixed.load_state_dict(net.view_of(name).state_dict())
        x = inputs_for(graph)
        assert torch.equal(fixed.eval()(x), net.use(name)(x))


def test_one_profile_trains_like_a_fixed_net() -> None:
    profiles = assignments("residual", {"only": (4, 4)}, QuantizerChoice())
    net = net_of("residual", profiles, QuantizerChoice())
    model, graph = model_and_graph("residual")
    fixed = quantize_fixed(model, graph, profiles["only"].layers, QuantizerChoice())
    fixed.load_state_dict(net.view_of("only").state_dict())
    for either in (net, fixed):
        either.train()
        either(inputs_for(graph)).square().sum().backward()
    own = dict(fixed.named_parameters())
    assert all(
        torch.equal(parameter.grad, own[name].grad) for name, parameter in net.view_of("only").named_parameters()
    )


def test_there_and_back_again_changes_nothing() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    x = inputs_for(net.graph)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net.use("narrow")(x)
    with net.using("wide"):
        assert net.active == "wide"
        other = net(x)
    assert net.active == "narrow"
    assert not torch.equal(other, first)
    assert torch.equal(net(x), first)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_using_goes_back_after_an_error() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    net.use("middle")
    with pytest.raises(ZeroDivisionError), net.using("wide"):
        raise ZeroDivisionError
    assert net.active == "middle"


def test_views_share_storage_and_run_different_profiles_at_once() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    x, found = inputs_for(net.graph, 64), {}
    expected = {name: net.view(name)(x) for name in WIDTHS}
    views = {name: net.view(name) for name in WIDTHS}

    def run(name: str) -> None:
        found[name] = [views[name](x) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(name,)) for name in WIDTHS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in WIDTHS:
        assert all(torch.equal(y, expected[name]) for y in found[name])
        assert views[name].shared is net.shared
    assert net.active == "wide"


def test_parameters_are_stored_once_and_norms_by_profile() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    model = model_and_graph("residual")[0]
    plain = [p for name, p in model.named_parameters() if "norm" not in name]
    assert sum(p.numel() for p in net.shared.parameters()) == sum(p.numel() for p in plain)
    weights = {id(net.view_of(name).get_submodule("first").weight) for name in WIDTHS}
    assert len(weights) == 1
    separate = {id(net.view_of(name).get_submodule("first_norm")) for name in WIDTHS}
    assert len(separate) == len(WIDTHS)
    one = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED, private_norms=False)
    assert len({id(one.view_of(name).get_submodule("first_norm")) for name in WIDTHS}) == 1


def test_training_one_profile_leaves_the_norms_of_the_others() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    before = {name: norms(net, name) for name in WIDTHS}
    net.train()
    net.use("middle")(inputs_for(net.graph, seed=9)).square().sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    for name in ("wide", "narrow"):
        assert all(torch.equal(value, before[name][key]) for key, value in norms(net, name).items())
    moved = {key for key, value in norms(net, "middle").items() if not torch.equal(value, before["middle"][key])}
    assert {key.rpartition(".")[2] for key in moved} >= {"weight", "bias", "running_mean", "running_var"}


def test_fp32_profiles_are_equal_at_the_start() -> None:
    layers = {"a": (32, 32), "b": (32, 32), "c": (2, 2)}
    model, graph = model_and_graph("residual")
    net = SwitchableNet(model, graph, assignments("residual", layers, NESTED), NESTED).eval()
    x = inputs_for(graph)
    assert torch.equal(net.use("a")(x), model(x))
    assert torch.equal(net.use("b")(x), model(x))


def test_recalibration_is_idempotent() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    x = inputs_for(net.graph, 16, 3)
    net.recalibrate([x])
    once = {name: norms(net, name) for name in WIDTHS}
    net.recalibrate([x])
    assert all(torch.equal(value, once[name][key]) for name in WIDTHS for key, value in norms(net, name).items())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 10**6))
def test_codes_at_fewer_bits_are_the_first_bits_of_the_codes(high: int, low: int, seed: int) -> None:
    high, low = max(high, low), min(high, low)
    w = torch.randn(500, generator=seeded(seed))
    w[:3] = torch.tensor([0.0, 2.0, -2.0])
    clip = torch.tensor(0.37 + seed % 7)
    wide, narrow = (encode(w, clip, nested_grid(bits, True), signed=True) for bits in (high, low))
    assert torch.equal(wide >> (high - low), narrow)


def test_all_widths_of_a_weight_share_their_clip_and_have_a_gain_each() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    layers: list[Any] = [net.view_of(name).get_submodule("first") for name in WIDTHS]
    assert len({id(layer.quantize_weight.clip) for layer in layers}) == 1
    assert len({id(layer.quantize_weight.gain) for layer in layers}) == 3
    assert len({id(layer.quantize_input.clip) for layer in layers}) == 3
    net.train()
    net.use("narrow")(inputs_for(net.graph)).square().sum().backward()
    assert layers[2].quantize_weight.gain.grad.abs().item() > 0
    assert layers[0].quantize_weight.gain.grad is None


@pytest.mark.parametrize(("case", "choice"), in_turns("residual", "shapes", "line", "norm last"))
def test_a_pruned_profile_is_the_pruned_net_with_the_same_weights(case: str, choice: QuantizerChoice) -> None:
    """An oracle of another make: filters removed from a fixed net with the weights of the whole one."""
    profiles = {**assignments(case, {"wide": (5, 6)}, choice), "small": pruned(case, (4, 4), choice)}
    net = net_of(case, profiles, choice)
    model, graph = model_and_graph(case)
    alone = net.alone("small")
    fixed = quantize_fixed(model, graph, profiles["small"].layers, choice)
    fixed.load_state_dict(alone.state_dict())
    x = inputs_for(graph)
    assert torch.equal(fixed.eval()(x), net.use("small")(x))
    assert torch.equal(alone(x), net(x))
    trained = copy.deepcopy(net).train().use("small")
    trained(x).square().sum().backward()
    gradients = {name: p.grad for name, p in trained.shared.items()}
    fixed.train()
    fixed(x).square().sum().backward()
    for name, parameter in fixed.named_parameters():
        whole = gradients.get(name.replace(".", "/"))
        if whole is not None:  # the entries that the pruned profile uses, and nothing else
            torch.testing.assert_close(whole.abs().sum(), parameter.grad.abs().sum())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_picked_takes_rows_and_columns_or_single_entries(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    whole = torch.randn(shape, generator=seeded())
    rows = sorted(data.draw(st.sets(st.integers(0, shape[0] - 1), min_size=1)))
    part = whole[rows]
    positions = torch.arange(whole.numel()).reshape(shape)[rows]
    if len(shape) > 1:
        columns = sorted(data.draw(st.sets(st.integers(0, shape[1] - 1), min_size=1)))
        part, positions = part[:, columns], positions[:, columns]
    assert torch.equal(Picked(positions, shape)(whole), part)
    shuffled = positions.flatten()[torch.randperm(positions.numel(), generator=seeded(1))].reshape(positions.shape)
    assert torch.equal(Picked(shuffled, shape)(whole), whole.flatten()[shuffled])


@pytest.mark.parametrize("case", CASES)
def test_the_state_holds_every_tensor_once_and_comes_back(case: str) -> None:
    profiles = assignments(case, WIDTHS, NESTED)
    net = net_of(case, profiles, NESTED)
    tensors = {name: value.clone() for name, value in net.tensors().items()}
    pointers = [value.data_ptr() for value in net.tensors().values() if value.numel()]
    assert len(set(pointers)) == len(pointers)
    model, graph = model_and_graph(case)
    other = SwitchableNet(model, graph, profiles, NESTED)
    other.load_tensors(tensors)
    x = inputs_for(graph)
    for name in WIDTHS:
        assert torch.equal(other.eval().view(name)(x), net.view(name)(x))
    with pytest.raises(InputError, match="another switchable net"):
        other.load_tensors({**tensors, "more": torch.zeros(1)})


def test_the_model_is_left_untouched() -> None:
    model = Net(4)
    state = copy.deepcopy(model.state_dict())
    net = SwitchableNet(model, known_graph(model, (1, 6, 6)), toy_profiles(model), NESTED)
    net.calibrate(model, [torch.randn(4, 1, 6, 6, generator=seeded())])
    net.train()(torch.randn(4, 1, 6, 6, generator=seeded())).sum().backward()
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def toy_profiles(model: nn.Module) -> dict[str, BitAssignment]:
    graph = known_graph(model, (1, 6, 6))
    return {
        name: BitAssignment(name, ModelReference("toy", (1, 6, 6)), same_bits(graph, bits, 4))
        for name, bits in (("a", 4), ("b", 2))
    }


def measured(top1: float, size: float, bitops: float) -> BitAssignment:
    graph = model_and_graph("residual")[1]
    found = assignment_of(graph, same_bits(graph, 2, 2), NESTED)
    cost = {"size_bytes": size, "bitops": bitops}
    metrics = {"val_top1": {"mean": top1, "std": 0.0, "n": 1}}
    return BitAssignment(found.id, found.model, found.layers, cost, metrics)


def test_choosing_by_demand() -> None:
    told = {"small": measured(0.8, 10, 50), "large": measured(0.9, 30, 20), "huge": measured(0.85, 90, 10)}
    net = net_of("residual", told, NESTED)
    assert net.cheapest(min_top1=0.8) == "small"
    assert net.cheapest(min_top1=0.81) == "large"
    assert net.cheapest(min_top1=0.81, cost="bitops") == "huge"
    assert net.best() == "large"
    assert net.best(max_size_bytes=29) == "small"
    assert net.best(max_size_bytes=29, max_bitops=50) == "small"
    assert net.best(max_bitops=15) == "huge"
    with pytest.raises(InputError, match=r"no profile reaches 95.00 %; the best is 'large' with 90.00 %"):
        net.cheapest(min_top1=0.95)
    with pytest.raises(InputError, match=r"min_top1 = 90 is not a share"):
        net.cheapest(min_top1=90)
    with pytest.raises(InputError, match=r"as cheapest\(min_top1=...\), got max_mae"):
        net.cheapest(max_mae=0.1)
    with pytest.raises(InputError, match=r"no profile is within .*the smallest is 'small' \(size_bytes 10"):
        net.best(max_size_bytes=5)
    with pytest.raises(InputError, match=r"has no cost 'size_byte'; did you mean 'size_bytes'"):
        net.best(max_size_byte=5)
    with pytest.raises(InputError, match="'size_bytes' is no limit"):
        net.best(size_bytes=5)
    with pytest.raises(InputError, match=r"no profile is called 'smal'; there are .*; did you mean 'small'"):
        net.use("smal")


def test_an_unmeasured_net_is_not_chosen_from() -> None:
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    with pytest.raises(InputError, match="profile 'wide' was never measured"):
        net.best()


def test_profiles_are_ordered_from_the_widest() -> None:
    told = {"narrow": (2, 8), "wide": (8, 2), "tall": (2, 32), "middle": (4, 1)}
    graph = model_and_graph("residual")[1]
    assert by_width(graph, assignments("residual", told, NESTED)) == ["wide", "middle", "tall", "narrow"]
    whole = {**assignments("residual", {"whole": (4, 4)}, NESTED), "part": pruned("residual", (4, 4), NESTED)}
    assert by_width(graph, whole) == ["whole", "part"]


def test_what_cannot_be_shared() -> None:
    model, graph = model_and_graph("residual")
    with pytest.raises(InputError, match="at least one profile"):
        SwitchableNet(model, graph, {}, NESTED)
    layers = {**same_bits(graph, 4, 4), "first": LayerBits(4, 4, scheme=SparseWeights(0.0))}
    with pytest.raises(InputError, match="profile 'a' has sparse weights"):
        SwitchableNet(model, graph, {"a": BitAssignment("a", ModelReference("t", graph.input_shape), layers)}, NESTED)
    with pytest.raises(InputError, match="profile 'p' is pruned, which needs BatchNorms of its own"):
        net_of("residual", {"p": pruned("residual", (4, 4), NESTED)}, NESTED, private_norms=False)
    other = assignments("shapes", WIDTHS, NESTED)
    with pytest.raises(InputError, match="which this network does not have"):
        SwitchableNet(model, graph, other, NESTED)
    with pytest.raises(InputError, match="'binary' has no 4-bit form"):
        net_of("residual", assignments("residual", {"a": (4, 4)}, NESTED), QuantizerChoice("binary", "pact"))


def test_a_layer_that_no_profile_quantizes_may_be_read_in_any_way() -> None:
    class Asking(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).relu()) * (2 if type(self[1]) is nn.Linear else 1)

    model = Asking(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    graph, x = known_graph(model, (4,)), torch.randn(3, 4)
    reference, fp32 = ModelReference("toy", (4,)), LayerBits(32, 32)
    half, whole = (
        BitAssignment(name, reference, {"0": LayerBits(bits, bits), "1": last})
        for name, bits, last in (("half", 4, fp32), ("whole", 4, LayerBits(4, 4)))
    )
    floats = BitAssignment("float", reference, {"0": fp32, "1": fp32})
    net = SwitchableNet(model, graph, {"half": half, "float": floats}, QuantizerChoice()).eval()
    assert torch.equal(net.use("float")(x), model(x))
    with pytest.raises(InputError, match="layer '1' cannot be quantized"):
        SwitchableNet(model, graph, {"half": half, "whole": whole}, QuantizerChoice())


def test_switching_is_a_change_of_pointers() -> None:
    """No module is called and no tensor is made when switching."""
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    with _Refusing():
        for name in WIDTHS:
            net.use(name)
            assert isinstance(net.view_of(name).get_submodule("first"), QuantizedLayer)


class _Refusing(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")


@pytest.mark.parametrize(
    "choice", [QuantizerChoice("nested", "nested", True), QuantizerChoice("dorefa", "dorefa", True)]
)
def test_what_views_share_stays_shared_when_the_net_moves(choice: QuantizerChoice) -> None:
    """A move replaces buffers, on a GPU or to another dtype; a net that was moved loads into one that was not."""
    profiles = {"small": pruned("residual", (3, 4), choice), **assignments("residual", {"whole": (4, 8)}, choice)}
    net = net_of("residual", profiles, choice)
    x, names = inputs_for(net.graph), list(net.tensors())
    expected = {name: net.view(name)(x) for name in profiles}
    net.double().float()
    assert list(net.tensors()) == names
    model, graph = model_and_graph("residual")
    other = SwitchableNet(model, graph, profiles, choice).eval()
    other.load_tensors(net.tensors())
    for name in profiles:
        assert torch.equal(other.view(name)(x), expected[name])


def test_shared_norms_get_the_average_over_all_profiles() -> None:
    profiles = assignments("residual", {"wide": (8, 8), "narrow": (1, 1)}, NESTED)
    shared = net_of("residual", profiles, NESTED, private_norms=False)
    apart = net_of("residual", profiles, NESTED)
    # The first norm: what it reads depends on the profile's widths, but on no other norm.
    wide, narrow = (norms(apart, name)["stem_norm.running_mean"] for name in profiles)
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(norms(shared, "wide")["stem_norm.running_mean"], (wide + narrow) / 2)


@pytest.mark.parametrize("name", ["values", "a/b"])
def test_a_parameter_with_a_name_that_cannot_be_kept_is_refused(name: str) -> None:
    model = Net(4)
    model.register_parameter(name, nn.Parameter(torch.ones(1)))
    with pytest.raises(InputError, match=f"cannot hold a parameter called '{name}'"):
        SwitchableNet(model, known_graph(model, (1, 6, 6)), toy_profiles(model), NESTED)


def test_parts_are_read_on_another_device() -> None:
    """The meta device stands for any that is not the CPU: an operation on tensors of both fails."""
    for choice in (NESTED, QuantizerChoice("nested", "pact", True)):
        model, graph = model_and_graph("residual")
        profiles = {**assignments("residual", {"whole": (4, 4)}, choice), "part": pruned("residual", (4, 4), choice)}
        net = SwitchableNet(copy.deepcopy(model).to("meta"), graph, profiles, choice).eval()
        assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"meta"}
        for name in profiles:
            assert net.use(name)(inputs_for(graph).to("meta")).shape == model(inputs_for(graph)).shape
