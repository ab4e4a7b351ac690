"""One file for all profiles: its size is the cost functions', every profile comes back bit for bit, parts alone too."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dnas
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import QuantizedLayer
from dnas.switchable.net import SwitchableNet
from results.packed.file import PackedFile, read_packed, write_packed
from results.packed.weights import weight_codes, weight_values
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from tests.dnas.switchable.test_net import CHOICES, NESTED, WIDTHS, assignments, net_of, pruned
from tests.packed_nets import assignment_of, inputs_for, model_and_graph, same_bits

MODEL = {"source": "tests", "arguments": {}}


def saved(path: Path, net: SwitchableNet) -> PackedFile:
    return save_packed(path, net, model=MODEL)


def weights(net: SwitchableNet, profile: str) -> dict[str, np.ndarray]:
    found = net.view_of(profile).named_modules()
    return {name: m.quantized_weight().detach().numpy() for name, m in found if isinstance(m, QuantizedLayer)}


def assert_same(net: SwitchableNet, other: SwitchableNet, profile: str) -> None:
    own = weights(other, profile)
    for name, weight in weights(net, profile).items():
        assert np.array_equal(own[name], weight), name
    x = inputs_for(net.graph)
    with torch.inference_mode():
        expected, found = net.view(profile)(x), other.view(profile)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def bytes_by_hand(net: SwitchableNet, profiles: dict[str, BitAssignment]) -> int:
    """The size counted anew: unpruned profiles, nested weights."""
    total = 0
    for spec in net.graph.layers:
        bits = [profile.layers[spec.name] for profile in profiles.values()]
        widest = max(one.weight_bits for one in bits)
        rows = spec.weight_shape["Transpose" in spec.kind] if net.choice.per_channel else 1
        if spec.shares_weight_with is None:
            total += 4 * spec.weight_elements if widest == 32 else widest * -(-spec.weight_elements // 8)
            total += 4 * rows if any(one.weight_bits < 32 for one in bits) else 0
        total += 4 * len({one.activation_bits for one in bits} - {32}) + 4 * spec.bias_elements
        total += 8 * spec.norm_channels * len(profiles)
    model = model_of(net)
    owned = {spec.norm for spec in net.graph.layers}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and name not in owned:
            total += 8 * module.num_features * len(profiles)
    layers = net.graph.by_name
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        is_layer = name.rpartition(".")[0] in layers and name.endswith((".weight", ".bias"))
        if not is_layer and not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            total += 4 * parameter.numel()
    return total


def model_of(net: SwitchableNet) -> Any:
    return next(model for model, graph in map(model_and_graph, CASES_USED) if graph is net.graph)


CASES_USED = ["residual", "shapes", "line", "cube", "shared", "own parameter", "norm last"]


@pytest.mark.parametrize(
    ("case", "choice"),
    [
        *((case, CHOICES[0]) for case in CASES_USED if case not in ("shapes", "shared")),
        *((case, CHOICES[1]) for case in ("shapes", "shared")),  # transposed weights have rows of their own
    ],
)
def test_the_size_is_what_is_counted_by_hand_and_every_profile_comes_back(
    tmp_path: Path, case: str, choice: QuantizerChoice
) -> None:
    profiles = assignments(case, WIDTHS, choice)
    net = net_of(case, profiles, choice)
    file = saved(tmp_path / "a", net)
    assert file.tensor_bytes == bytes_by_hand(net, profiles)
    assert (tmp_path / "a").stat().st_size == file.header_bytes + file.tensor_bytes
    back = load(tmp_path / "a", model_and_graph(case)[0])
    assert list(back.profiles) == list(net.profiles)
    for name in profiles:
        assert_same(net, back, name)
        part = read_packed(tmp_path / "a", name)
        assert part.tensor_bytes == profiles[name].cost["size_bytes"]  # what is read is what the profile alone takes
        assert_same(net, load(tmp_path / "a", model_and_graph(case)[0], name), name)


@pytest.mark.parametrize("high", [1, 8])
def test_every_pair_of_widths(tmp_path: Path, high: int) -> None:
    widths = {f"w{low}": (low, 4) for low in range(1, high + 1)}
    net = net_of("shapes", assignments("shapes", widths, NESTED), NESTED)
    file = saved(tmp_path / "a", net)
    back = load(tmp_path / "a", model_and_graph("shapes")[0])
    for profile, (low, _) in widths.items():
        for name in net.graph.by_name:
            wide = weight_codes(file, name, f"w{high}")
            assert np.array_equal(weight_codes(file, name, profile), wide >> (high - low))
        assert_same(net, back, profile)


ONE_WIDTH, WITH_FLOAT = {"a": (4, 4), "b": (4, 2)}, {"a": (32, 32), "b": (4, 4), "c": (2, 8)}
PER_CHANNEL = QuantizerChoice("dorefa", "dorefa", True)


@pytest.mark.parametrize(
    ("choice", "widths"),
    [
        *((NESTED, widths) for widths in (ONE_WIDTH, WITH_FLOAT, WIDTHS)),
        *((PER_CHANNEL, widths) for widths in (ONE_WIDTH, WIDTHS)),
    ],
)
def test_weights_of_several_widths_that_do_not_nest_are_stored_in_fp32(
    tmp_path: Path, choice: QuantizerChoice, widths: dict[str, tuple[int, int]]
) -> None:
    profiles = assignments("shapes", widths, choice)
    net = net_of("shapes", profiles, choice)
    file = saved(tmp_path / "a", net)
    storage = {entry["weight"]["storage"] for entry in file.description["layers"].values()}
    bits = {w for w, _ in widths.values()}
    planes = bits == {4} or (choice.weights == "nested" and 32 not in bits)
    assert storage == {"planes" if planes else "float32"}
    back = load(tmp_path / "a", model_and_graph("shapes")[0])
    for name in profiles:
        assert_same(net, back, name)
        assert_same(net, load(tmp_path / "a", model_and_graph("shapes")[0], name), name)


@pytest.mark.parametrize(
    ("case", "whole", "choice"),
    [
        ("residual", False, CHOICES[1]),
        ("shapes", True, CHOICES[1]),
        ("shapes", False, CHOICES[0]),
        ("norm last", True, CHOICES[0]),
    ],
)
def test_pruned_profiles(tmp_path: Path, case: str, whole: bool, choice: QuantizerChoice) -> None:
    profiles = {"small": pruned(case, (3, 4), choice), "other": pruned(case, (5, 2), choice, every=3)}
    if whole:
        profiles |= assignments(case, {"whole": (4, 8)}, choice)
    net = net_of(case, profiles, choice)
    file = saved(tmp_path / "a", net)
    back = load(tmp_path / "a", model_and_graph(case)[0])
    for name in profiles:
        assert_same(net, back, name)
        assert_same(net, load(tmp_path / "a", model_and_graph(case)[0], name), name)
        for layer, weight in weights(net, name).items():
            assert np.array_equal(weight_values(file, layer, name), weight)
    every = sum(spec.weight_elements for spec in net.graph.layers)
    stored = sum(int(np.prod(entry["shape"])) for entry in file.description["layers"].values())
    assert stored == every if whole else stored < every


def test_skipped_branches_and_shared_norms(tmp_path: Path) -> None:
    graph = model_and_graph("residual")[1]
    layers = {**same_bits(graph, 4, 4), "first": LayerBits(0, 0), "second": LayerBits(0, 0)}
    profiles = {**assignments("residual", {"whole": (3, 3)}, NESTED), "short": assignment_of(graph, layers, NESTED)}
    net = net_of("residual", profiles, NESTED)
    file = saved(tmp_path / "a", net)
    assert file.description["layers"]["first"]["weight"]["bits"] == 3
    back = load(tmp_path / "a", model_and_graph("residual")[0])
    for name in profiles:
        assert_same(net, back, name)
    one = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED, private_norms=False)
    private = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    sizes = [saved(tmp_path / "a", either).tensor_bytes for either in (one, private)]
    channels = sum(spec.norm_channels for spec in graph.layers)
    assert sizes[1] - sizes[0] == 2 * 8 * channels
    saved(tmp_path / "a", one)
    back = load(tmp_path / "a", model_and_graph("residual")[0])
    for name in WIDTHS:
        assert_same(one, back, name)


@pytest.mark.parametrize("case", ["shapes", "cube", "norm last"])
def test_the_reader_of_the_specification_reads_every_profile(
    tmp_path: Path, case: str, specified_reader: dict[str, Any]
) -> None:
    read = specified_reader["read_packed"]
    profiles = assignments(case, {**WIDTHS, **({"float": (32, 32)} if case == "cube" else {})}, NESTED)
    if case != "cube":
        profiles["small"] = pruned(case, (3, 4), NESTED)
    net = net_of(case, profiles, NESTED)
    saved(tmp_path / "a", net)
    for name in profiles:
        found = read(tmp_path / "a", name)[0]
        for layer, weight in weights(net, name).items():
            assert np.array_equal(found[layer], weight)


def test_a_file_that_names_its_network_needs_none(tmp_path: Path) -> None:
    graph = model_and_graph("norm last")[1]
    net = net_of("norm last", assignments("norm last", WIDTHS, NESTED), NESTED)
    arguments = {"num_classes": 3, "width": 4, "norm_last": True}
    save_packed(tmp_path / "a", net, model={"source": "zoo:tiny_resnet", "arguments": arguments})
    back = dnas.load(tmp_path / "a")
    assert back.active == "wide"
    assert_same(net, back, "narrow")
    saved(tmp_path / "b", net)
    with pytest.raises(InputError, match=r"it names 'tests' for its network; give a fresh network"):
        dnas.load(tmp_path / "b")
    assert inputs_for(graph).shape[1:] == net.graph.input_shape


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    file = saved(path, net)
    model = model_and_graph("residual")[0]
    with pytest.raises(InputError, match=r"has no profile 'narow'; there are .*; did you mean 'narrow'"):
        load(path, model, "narow")
    with pytest.raises(InputError, match="names layer 'stem', which this network does not have"):
        load(path, model_and_graph("own parameter")[0])
    told = json.loads(json.dumps(file.description))
    told["profiles"]["narrow"]["layers"]["first"]["weight"]["bits"] = 9
    write_packed(path, told, file.tensors)
    with pytest.raises(InputError, match="has not the 9 bit planes that are needed"):
        load(path, model, "narrow")
    with pytest.raises(InputError, match="export it again"):
        load(path, model)
    dorefa = {"p": pruned("residual", (4, 4), CHOICES[2]), **assignments("residual", {"a": (3, 3)}, CHOICES[2])}
    with pytest.raises(InputError, match="profile 'p' is pruned and its weights are scaled by their largest"):
        saved(path, net_of("residual", dorefa, CHOICES[2]))
    logarithmic = QuantizerChoice("logarithmic", "pact")
    with pytest.raises(InputError, match="which a packed file cannot hold"):
        saved(path, net_of("residual", assignments("residual", WIDTHS, logarithmic), logarithmic))


def test_a_change_of_any_plane_that_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    file = saved(path, net)
    data, model = bytearray(path.read_bytes()), model_and_graph("residual")[0]
    before = itertools.takewhile(lambda item: item[0] != "first.planes", file.tensors.items())
    start = file.header_bytes + sum(tensor.nbytes for _, tensor in before)
    row = file.tensors["first.planes"].shape[1]
    for plane, narrow_reads in ((0, True), (1, True), (2, False), (7, False)):
        changed = bytearray(data)
        changed[start + plane * row] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(InputError, match=r"the checksum of its tensor 'first\.planes' is wrong"):
            load(path, model)
        if narrow_reads:
            with pytest.raises(InputError, match="is wrong"):
                load(path, model, "narrow")
        else:
            assert_same(net, load(path, model, "narrow"), "narrow")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[SwitchableNet, PackedFile, Path]:
    """A net of three profiles, and its file."""
    net = net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED)
    path = tmp_path_factory.mktemp("plain") / "a"
    return net, saved(path, net), path


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_reader_of_one_profile_meets_nonsense_with_a_sentence(
    plain: tuple[SwitchableNet, PackedFile, Path], data: st.DataObject
) -> None:
    """Random edits of the description with right checksums, and truncations."""
    file, path = plain[1], plain[2].with_name("fuzzed")
    told = json.loads(json.dumps(file.description))
    place: Any = told
    key: Any = None
    for _ in range(data.draw(st.integers(1, 7))):
        if not isinstance(place, dict | list) or not place:
            break
        holder, keys = place, list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        place = holder[key]
    holder[key] = data.draw(st.sampled_from([None, -1, 10**9, "x", [], {}, True, 1.5, [[]], "first.planes"]))
    write_packed(path, told, file.tensors)
    written = path.read_bytes()
    path.write_bytes(written[: data.draw(st.integers(len(written) - 3, len(written)))])
    model = model_and_graph("residual")[0]
    for profile in (None, "narrow"):
        with contextlib.suppress(InputError):
            assert isinstance(load(path, model, profile), SwitchableNet)


def test_the_same_net_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        saved(tmp_path / name, net_of("shapes", assignments("shapes", WIDTHS, NESTED), NESTED))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_layers_that_share_a_weight_have_the_same_bits_of_it(tmp_path: Path) -> None:
    graph = model_and_graph("shared")[1]
    layers = {**same_bits(graph, 2, 4), "second": LayerBits(8, 4)}
    profiles = {"a": assignment_of(graph, layers, NESTED), **assignments("shared", {"b": (2, 2)}, NESTED)}
    net = net_of("shared", profiles, NESTED)
    with pytest.raises(InputError, match="layer 'second' shares its weight with 'first' but has other weight bits"):
        saved(tmp_path / "a", net)
    assert not (tmp_path / "a").exists()


def net_with_statistics() -> tuple[torch.nn.Module, SwitchableNet]:
    norm = torch.nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), norm, torch.nn.Flatten(), torch.nn.Linear(64, 3))
    graph = read_graph(model, (1, 6, 6))
    profiles = {name: assignment_of(graph, same_bits(graph, bits, 4), NESTED) for name, bits in (("a", 4), ("b", 2))}
    net = SwitchableNet(model, graph, profiles, NESTED)
    net.calibrate(model, [inputs_for(graph)])
    return model, net.eval()


def test_buffers_are_stored_once_for_all_profiles(tmp_path: Path) -> None:
    model, net = net_with_statistics()
    for view in net.views.values():
        view.get_submodule("1").running_mean.copy_(torch.arange(4.0))
    packed = saved(tmp_path / "a", net)
    assert packed.tensor_bytes == sum(tensor.nbytes for tensor in packed.tensors.values())
    assert sorted(packed.description["buffers"]) == ["1.running_mean", "1.running_var"]
    x = inputs_for(net.graph)
    for profile in (None, "a", "b"):
        loaded = load(tmp_path / "a", model, profile)
        for name in loaded.profiles:
            assert torch.equal(loaded.view(name)(x), net.view(name)(x))


def test_buffers_that_differ_between_profiles_are_refused_before_writing(tmp_path: Path) -> None:
    net = net_with_statistics()[1]
    net.view_of("b").get_submodule("1").running_mean.add_(1)
    with pytest.raises(InputError, match=r"'1.running_mean' differs between the profiles 'a' and 'b'"):
        saved(tmp_path / "a", net)
    assert not (tmp_path / "a").exists()


WHOLE = {"rows": None, "columns": None, "shape": [5, 5, 3, 3]}
CRAFTED = {
    "rows": (
        "p",
        "profiles.p.parts",
        {"first.planes": {**WHOLE, "rows": [0] * 10**5, "shape": [3, 3, 3, 3]}},
        "uses 100000 of 5 rows",
    ),
    "columns": (
        "p",
        "profiles.p.parts",
        {"first.planes": {**WHOLE, "columns": [0] * 10**5, "shape": [3, 3, 3, 3]}},
        "uses 100000 of 45",
    ),
    "shape": (None, "layers.first", {"shape": [10**6, 10**6]}, "is not stored as bit planes of its shape"),
    "bits": (None, "profiles.whole.layers.first.weight", {"bits": 3}, "other bits than the 8 of its assignment"),
    "accuracy": (None, "profiles.p.assignment.metrics", {"val_top1": 5}, "its metrics are damaged"),
    "cost": (None, "profiles.p.assignment.cost", {"size_bytes": None}, r"cost\.size_bytes = None: expected a number"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in ("rows", "shape") else pytest.mark.whole) for case in CRAFTED]
)
def test_a_crafted_description_takes_no_memory_and_ends_in_a_sentence(tmp_path: Path, case: str) -> None:
    profile, place, change, words = CRAFTED[case]
    file = crafted_file()
    told = json.loads(json.dumps(file.description))
    for one in told["profiles"].values():
        one["parts"].setdefault("first.planes", WHOLE)
    holder = told
    for key in place.split("."):
        holder = holder[key]
    holder.update(change)
    write_packed(tmp_path / "a", told, file.tensors)
    tracemalloc.start()
    with pytest.raises(InputError, match=words):
        load(tmp_path / "a", model_and_graph("residual")[0], profile)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@functools.cache
def crafted_file() -> PackedFile:
    profiles = {"p": pruned("residual", (3, 4), NESTED), **assignments("residual", {"whole": (8, 8)}, NESTED)}
    with tempfile.TemporaryDirectory() as folder:
        return saved(Path(folder) / "a", net_of("residual", profiles, NESTED))


def test_more_bits_than_are_stored(tmp_path: Path) -> None:
    path, model = tmp_path / "a", model_and_graph("residual")[0]
    file = saved(path, net_of("residual", assignments("residual", WIDTHS, NESTED), NESTED))
    fewer = {**file.tensors, "first.planes": file.tensors["first.planes"][:2]}
    write_packed(path, file.description, fewer)
    with pytest.raises(InputError, match="layer 'first' needs 8 bits of a weight that is stored in 2"):
        load(path, model)
    with pytest.raises(InputError, match=r"'first\.planes' has not the 8 bit planes that are needed of it"):
        load(path, model, "wide")


class Unusual(torch.nn.Module):
    """Parameters that are laid out otherwise, or held by two layers, or are no matrix of floats."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.factor = torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.Parameter(torch.tensor(2.0))
        if what == "channels last":
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif what == "a bias of two layers":
            self.third.bias = self.second.bias
        elif what == "a scalar and whole numbers":
            self.factor = torch.nn.Parameter(torch.tensor([2, 3, 1]), requires_grad=False)
        elif what == "nothing":
            self.none = torch.nn.Parameter(torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.third(self.second(self.first(x).relu()).relu()).mean((2, 3)) * self.factor.sum()
        return y + self.none.sum() if hasattr(self, "none") else y


@pytest.mark.parametrize("what", ["channels last", "a bias of two layers", "a scalar and whole numbers", "nothing"])
def test_parameters_of_every_kind_come_back(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unusual(what)
    graph, x = read_graph(model, (3, 8, 8)), torch.randn(4, 3, 8, 8)
    told = {
        name: assignment_of(graph, {layer: LayerBits(bits, 4) for layer in graph.by_name}, NESTED)
        for name, bits in {"wide": 4, "narrow": 2}.items()
    }
    net = SwitchableNet(model, graph, told, NESTED)
    net.calibrate(model, [x])
    save_packed(tmp_path / "net", net.eval())
    loaded = load(tmp_path / "net", Unusual(what))
    for profile in told:
        assert torch.equal(loaded.use(profile)(x), net.use(profile)(x)), profile


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_scripted_part_with_parameters_is_refused_by_name() -> None:
    part = torch.jit.script(torch.nn.Conv2d(3, 3, 1))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), part)
    graph = read_graph(model, (3, 8, 8))
    told = {"a": assignment_of(graph, {"0": LayerBits(4, 4)}, NESTED)}
    with pytest.raises(InputError, match=r"module '1' is made by torch\.jit"):
        SwitchableNet(model, graph, told, NESTED)


@pytest.mark.parametrize("what", ["weight", "bias", "clip"])
def test_nets_that_are_not_finite_are_not_written(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unusual("")
    graph, x = read_graph(model, (3, 8, 8)), torch.randn(4, 3, 8, 8)
    told = {"a": assignment_of(graph, {layer: LayerBits(4, 4) for layer in graph.by_name}, NESTED)}
    net = SwitchableNet(model, graph, told, NESTED)
    net.calibrate(model, [x])
    layer: Any = net.view_of("a").get_submodule("second")
    held = {"weight": layer.weight, "bias": layer.bias, "clip": layer.quantize_weight.clip}[what]
    with torch.no_grad():
        held.view(-1)[0] = float("nan" if what == "weight" else "inf")
    for network, more in ((net, ()), (net.alone("a"), (graph, told["a"]))):
        with pytest.raises(InputError, match=r"holds 1 of \d+ values that are not finite"):
            save_packed(tmp_path / "net", network, *more)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_net_of_16_bits_gives_the_same_after_loading(tmp_path: Path, dtype: torch.dtype) -> None:
    """A scale and a shift of 16 bits would be 0.2 % off, which the next quantizer makes a whole step."""
    model = copy.deepcopy(model_and_graph("residual")[0]).to(dtype)
    graph = read_graph(model, tuple(inputs_for(model_and_graph("residual")[1]).shape[1:]))
    profiles = {name: assignment_of(graph, same_bits(graph, *pair), NESTED) for name, pair in WIDTHS.items()}
    net, x = SwitchableNet(model, graph, profiles, NESTED), inputs_for(graph, 8, 5).to(dtype)
    net.calibrate(model, [x])
    net.recalibrate([x])
    saved(tmp_path / "net.dnas", net.eval())
    other = load(tmp_path / "net.dnas", model=model)
    for name in profiles:
        with torch.inference_mode():
            expected, found = net.view(name)(x), other.view(name)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
