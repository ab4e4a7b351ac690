"""Buffers that the output depends on are in the file, counted, and come back bit for bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import FrozenBatchNorm2d

from dnas import apply, calibrate, load, read_graph, save_packed
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.net import SwitchableNet
from results.packed.file import PackedFile, read_packed, write_packed
from results.packed.header import FORMAT, FORMAT_WITH_BUFFERS
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from tests.packed_nets import assignment_of, same_bits, statistics
from tests.toys import seeded

SHAPE = (3, 6, 6)


class Held(nn.Module):
    """A convolution, ``use`` of its output and of a buffer called ``held``, and a classifier."""

    def __init__(
        self, buffer: Callable[[], Tensor | None], use: Callable[[Tensor, Any], Tensor], **options: Any
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.register_buffer("held", buffer(), **options)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.norm(self.conv(x)).relu(), getattr(self, "held", None)).mean((2, 3)))


def drawn(*shape: int) -> Tensor:
    """Other values each time, as a network that was trained and a fresh one have them."""
    return torch.rand(*shape) + 0.5


def permuted() -> Tensor:
    return torch.randperm(4)


def masked(x: Tensor, held: Tensor | None) -> Tensor:
    return x if held is None or held.shape != (4,) else x * held[:, None, None]


class Replacing(Held):
    """Puts another tensor, or other memory, in the place of the buffer as it runs, of the same values."""

    def __init__(self, replace: Callable[[Any], None]) -> None:
        super().__init__(lambda: drawn(4), masked)
        self.replace = replace

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.replace(self)
        return y


def other_tensor(model: Any) -> None:
    model.held = model.held * 1


def other_memory(model: Any) -> None:
    model.held.data = model.held.data.clone()


def set_anew(model: Any) -> None:
    model.held.set_(model.held * 1)


class Scaling(nn.Conv2d):
    """A layer with a buffer and a forward of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3)
        self.register_buffer("scale", drawn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self._conv_forward(x, self.weight, self.bias)


class Sloped(nn.BatchNorm2d):
    """A BatchNorm with more than its scale and shift: a slope for each channel, a number and a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.slope, self.size = nn.Parameter(drawn(channels)), nn.Parameter(drawn(1))
        self.register_buffer("gate", drawn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.slope * self.gate).view(-1, 1, 1) * self.size


class TwoNames(nn.Module):
    """One buffer under two names, whose entries are one number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Module(), nn.Module(), nn.Linear(108, 5)
        self.first.register_buffer("scale", drawn(1).expand(108))
        self.second.register_buffer("scale", self.first.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) * self.first.scale + self.second.scale)


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def frozen() -> nn.Module:
    norm = FrozenBatchNorm2d(4)
    for buffer in norm.buffers():
        buffer.copy_(drawn(4))
    return chain(norm, nn.ReLU())


def tracking() -> nn.Module:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    norm.running_mean, norm.running_var = drawn(4), drawn(4)
    return chain(norm, nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "frozen BatchNorm": (frozen, 4 * 4 * 4),
    "running InstanceNorm": (tracking, 2 * 4 * 4),
    "scale": (lambda: Held(lambda: drawn(4), masked), 4 * 4),
    "position table": (lambda: Held(lambda: drawn(1, 4, 6, 6), lambda x, held: x + held), 4 * 144),
    "one number": (lambda: Held(lambda: drawn(1).squeeze(), lambda x, held: x * held), 4),
    "half": (lambda: Held(lambda: drawn(4).half(), lambda x, held: masked(x, held.float())), 4 * 4),
    "bfloat16": (lambda: Held(lambda: drawn(4).bfloat16(), lambda x, held: masked(x, held.float())), 4 * 4),
    "double": (lambda: Held(lambda: drawn(4).double(), lambda x, held: masked(x.double(), held).float()), 8 * 4),
    "complex": (lambda: Held(lambda: torch.polar(drawn(4), drawn(4)), lambda x, held: masked(x, held.imag)), 8 * 4),
    "indices": (lambda: Held(permuted, lambda x, held: x[:, held]), 8 * 4),
    "int8": (lambda: Held(lambda: permuted().to(torch.int8), lambda x, held: masked(x, held.float())), 4),
    "mask": (lambda: Held(lambda: permuted() > 1, masked), 4),
    "set later": (lambda: Held(lambda: None, masked), 4 * 4),
    "replaced": (lambda: Replacing(other_tensor), 4 * 4),
    "of other memory": (lambda: Replacing(other_memory), 4 * 4),
    "set anew": (lambda: Replacing(set_anew), 4 * 4),
    "of a layer": (lambda: chain(Scaling(), nn.ReLU()), 4 * 4),
    "of a BatchNorm behind a layer": (lambda: chain(Sloped(4), nn.ReLU()), 4 * 4),
    "of a BatchNorm alone": (lambda: chain(nn.ReLU(), Sloped(4)), 4 * 4),
    "two names": (TwoNames, 4 * 108),
    "spectral norm": (lambda: chain(spectral_norm(nn.Conv2d(4, 4, 3))), 0),
    "average of weights": (lambda: Held(lambda: drawn(4, 3, 3, 3), lambda x, held: x + held.sum()), 4 * 108),
}


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build()
    if isinstance(model, Held) and model.held is None and seed == 0:
        model.held = drawn(4)
    return statistics(model)


def packed(path: Path, model: nn.Module) -> tuple[nn.Module, LayerGraph, BitAssignment, PackedFile]:
    graph = read_graph(model, SHAPE)
    assignment = assignment_of(graph, same_bits(graph, 4, 4), QuantizerChoice())
    network = apply(model, assignment)
    calibrate(network, [inputs()])
    file = save_packed(path, network.eval(), graph, assignment)
    return network, graph, assignment, file


def inputs() -> Tensor:
    return torch.randn(4, *SHAPE, generator=seeded(3))


@pytest.mark.parametrize("name", CASES)
def test_a_net_with_buffers_comes_back_bit_for_bit_into_another_network(tmp_path: Path, name: str) -> None:
    build, size = CASES[name]
    network, graph, assignment, file = packed(tmp_path / "a", made(build, 0))
    fresh = made(build, 1)
    state = copy.deepcopy(fresh.state_dict())
    with torch.no_grad():
        logits = load(tmp_path / "a", fresh)(inputs())
        assert torch.equal(logits, network(inputs()))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in state.items())
    stored = [file.tensors[entry["tensor"]].nbytes for entry in file.description["buffers"].values()]
    assert sum(stored) == size
    on_disk = (tmp_path / "a").stat().st_size - file.header_bytes
    assert on_disk == file.tensor_bytes == assignment.cost["size_bytes"]
    assert graph.other_bytes >= size


def test_a_buffer_that_only_training_reads_is_neither_counted_nor_stored(tmp_path: Path) -> None:
    *_, file = packed(tmp_path / "a", made(lambda: Held(lambda: drawn(4), lambda x, held: x), 0))
    assert file.description["buffers"] == {}
    load(tmp_path / "a", made(lambda: Held(lambda: drawn(4), lambda x, held: x), 1))


def own_type(held: Tensor) -> nn.Module:
    return Held(lambda: held, lambda x, held: x * held.to(torch.complex64).real)


def as_parameter(held: Tensor) -> nn.Module:
    model = own_type(held)
    del model.held
    model.held = nn.Parameter(held, requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "held", "sentence"),
    [
        (own_type, torch.ones(1, dtype=torch.uint16), "the buffer 'held' is of torch.uint16"),
        (as_parameter, torch.ones(1, dtype=torch.complex64), "the parameter 'held' is of torch.complex64"),
        (as_parameter, torch.tensor([2**40 + 1]), "the parameter 'held' is of torch.int64"),
    ],
)
def test_values_that_a_file_cannot_hold_are_refused(
    tmp_path: Path, make: Callable[[Tensor], nn.Module], held: Tensor, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        packed(tmp_path / "a", make(held).eval())
    assert not (tmp_path / "a").exists()


def test_integers_that_fp32_holds_are_parameters_too(tmp_path: Path) -> None:
    network, *_ = packed(tmp_path / "a", as_parameter(torch.tensor([3])).eval())
    loaded = load(tmp_path / "a", as_parameter(torch.tensor([5])).eval())
    assert torch.equal(loaded(inputs()), network(inputs()))


def test_statistics_of_instances_lose_the_entries_of_removed_filters() -> None:
    graph = read_graph(tracking(), SHAPE)
    assert graph.channels.entry_bytes["1"] == 4 * 4
    behind, alone = (read_graph(chain(*parts), SHAPE) for parts in ((Sloped(4),), (nn.ReLU(), Sloped(4))))
    assert behind.channels.entry_bytes["1"] == 2 * 4  # what is folded goes with its layer
    assert alone.channels.entry_bytes["2"] == 4 * 4


def test_profiles_share_what_a_batchnorm_holds_beside_scale_and_shift(tmp_path: Path) -> None:
    choice = QuantizerChoice("nested", "pact")
    model = made(lambda: chain(Sloped(4), nn.ReLU()), 0)
    graph = read_graph(model, SHAPE)
    profiles = {name: assignment_of(graph, same_bits(graph, bits, 4), choice) for name, bits in (("a", 4), ("b", 2))}
    net = SwitchableNet(model, graph, profiles, choice)
    net.calibrate(model, [inputs()])
    slopes = {id(net.view_of(name).get_parameter("1.slope")) for name in profiles}
    scales = {id(net.view_of(name).get_parameter("1.weight")) for name in profiles}
    assert (len(slopes), len(scales)) == (1, 2)
    save_packed(tmp_path / "a", net.eval())
    loaded = load(tmp_path / "a", made(lambda: chain(Sloped(4), nn.ReLU()), 1))
    for name in profiles:
        assert torch.equal(loaded.use(name)(inputs()), net.use(name)(inputs()))


def test_a_file_without_buffers_stays_one_of_the_first_format(tmp_path: Path) -> None:
    names = ("a.safetensors", "b.safetensors")
    packed(tmp_path / names[0], made(lambda: chain(nn.BatchNorm2d(4), nn.GroupNorm(2, 4)), 0))
    packed(tmp_path / names[1], made(frozen, 0))
    heads = [(tmp_path / name).read_bytes()[:200].decode(errors="replace") for name in names]
    assert FORMAT in heads[0]
    assert FORMAT_WITH_BUFFERS in heads[1]


def test_an_older_file_leaves_the_network_its_buffers(tmp_path: Path) -> None:
    model = made(frozen, 0)
    network, _, _, file = packed(tmp_path / "a", model)
    told = {key: value for key, value in file.description.items() if key not in ("buffers", "fingerprints", "digests")}
    tensors = {name: tensor for name, tensor in file.tensors.items() if not name.startswith("1.")}
    write_packed(tmp_path / "old", told, tensors)
    assert torch.equal(load(tmp_path / "old", model)(inputs()), network(inputs()))


def constant(fill: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Held(fill, lambda x, held: masked(x, held.clamp(-1, 1)), persistent=False)


def test_a_buffer_that_is_not_persistent_must_be_the_same(tmp_path: Path) -> None:
    table = torch.tensor([0.5, -torch.inf, torch.inf, 2.0])
    network, *_ = packed(tmp_path / "a", made(constant(lambda: torch.arange(1.0, 5.0).sin()), 0))
    loaded = load(tmp_path / "a", made(constant(lambda: torch.arange(1.0, 5.0).sin() * (1 + 1e-7)), 1))
    torch.testing.assert_close(loaded(inputs()), network(inputs()))
    for other in (lambda: drawn(4), lambda: torch.arange(4.0, 0, -1).sin()):
        with pytest.raises(InputError, match="the buffer 'held' is not persistent, so the file does not hold it"):
            load(tmp_path / "a", made(constant(other), 1))
    load(tmp_path / "a", made(constant(lambda: torch.empty(0)), 1))  # one that fills while the network runs
    packed(tmp_path / "b", made(constant(lambda: table), 0))
    load(tmp_path / "b", made(constant(lambda: table.clone()), 1))


class Reading(nn.Module):
    """A module with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("more", drawn(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.more


def of_another_shape(model: Any) -> None:
    model.held, model.use = drawn(1), lambda x, held: x * held


CHANGES: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "none": (lambda model: model.register_buffer("held", None), "fits"),
    "missing": (lambda model: delattr(model, "held"), "only the file has 'held'"),
    "shape": (of_another_shape, "'held' has the shape (4,) and torch.float32"),
    "type": (lambda model: model.register_buffer("held", permuted()), "and (4,) and torch.int64 in this network"),
}


def test_a_network_with_more_buffers_is_refused(tmp_path: Path) -> None:
    packed(tmp_path / "a", made(lambda: chain(nn.Identity()), 0))
    with pytest.raises(InputError, match="only this network has"):
        load(tmp_path / "a", made(lambda: chain(Reading()), 1))


@pytest.mark.parametrize("name", CHANGES)
def test_another_network_is_refused(tmp_path: Path, name: str) -> None:
    change, sentence = CHANGES[name]
    packed(tmp_path / "a", made(CASES["scale"][0], 0))
    other = made(CASES["scale"][0], 1)
    change(other)
    if sentence == "fits":
        load(tmp_path / "a", other)
        return
    with pytest.raises(InputError) as caught:
        load(tmp_path / "a", other)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"tensor": "gone"}, {"dtype": "object"}, {"dtype": "int64"}, {"shape": [10**9]}, {"shape": [-1]}, {"x": 1}],
)
def test_a_description_of_no_buffer_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    model = made(CASES["indices"][0] if "dtype" not in change else CASES["scale"][0], 0)
    *_, file = packed(tmp_path / "a", model)
    told = json.loads(json.dumps(file.description))
    told["buffers"]["held"].update(change)
    write_packed(tmp_path / "a", told, file.tensors)
    if change == {"x": 1}:  # a key of a later version
        load(tmp_path / "a", model)
        return
    with pytest.raises(InputError, match=r"a buffer|does not describe"):
        load(tmp_path / "a", model)


class Counting(nn.Module):
    """A module with state that is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> Any:
        return {"count": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_what_the_file_cannot_hold_is_refused_before_writing(tmp_path: Path) -> None:
    sparse = Held(lambda: torch.eye(4).to_sparse(), lambda x, held: x + held.to_dense().sum())
    for model, sentence in ((chain(Counting()), "'1' keeps state beside"), (sparse, "'held' is torch.sparse_coo")):
        with pytest.raises(InputError, match=sentence):
            packed(tmp_path / "a", statistics(model))
    assert not (tmp_path / "a").exists()


def test_a_file_is_read_whole_for_a_single_profile(tmp_path: Path) -> None:
    packed(tmp_path / "a", made(frozen, 0))
    assert {"1.weight", "1.running_var"} <= set(read_packed(tmp_path / "a", "default").tensors)


@pytest.fixture
def public(tmp_path: Path) -> tuple[Path, nn.Module, LayerGraph, BitAssignment]:
    network, graph, assignment, _ = packed(tmp_path / "a", made(frozen, 0))
    return tmp_path / "b", network, graph, assignment


def test_what_a_user_gives_wrong(public: tuple[Path, nn.Module, LayerGraph, BitAssignment]) -> None:
    path, network, graph, assignment = public
    with pytest.raises(InputError, match=r"save_packed\(path, network, graph, assignment\)"):
        save_packed(path, network)
    other = assignment_of(graph, same_bits(graph, 3, 4), QuantizerChoice())
    with pytest.raises(InputError, match="the weight of layer '0' has 4 bits in this net and 3 in the assignment"):
        save_packed(path, network, graph, other)
    with pytest.raises(InputError, match="the weight of layer '0' has 32 bits in this net and 4 in the assignment"):
        save_packed(path, frozen(), graph, assignment)
    loaded = load(path.with_name("a"), frozen())
    with pytest.raises(InputError, match="was read from a packed file"):
        save_packed(path, loaded)
    with pytest.raises(InputError, match="is in that file already"):
        save_packed(path, loaded.view_of("default"), graph, assignment)
    with pytest.raises(InputError, match="is on the meta device and has no values"):
        save_packed(path, copy.deepcopy(network).to("meta"), graph, assignment)
    with pytest.raises(InputError, match="names layer '5', which this network does not have"):
        save_packed(path, network, read_graph(chain(nn.Conv2d(4, 4, 3)), SHAPE), assignment)
    assert not path.exists()
    save_packed(str(path), network, graph, assignment)
    assert path.read_bytes() == path.with_name("a").read_bytes()


class NormReading(nn.Module):
    """Code that reads of a BatchNorm what folding changes, in a module of its own or not."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.conv, self.norm, self.key = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), key
        self.more = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.more(self.norm(self.conv(x)))
        return x * self.norm.eps if self.key == "eps" else x + getattr(self.norm, self.key)[:, None, None]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("key", ["weight", "bias", "running_mean", "running_var", "eps"])
def test_a_batchnorm_that_code_reads_itself_is_not_folded(tmp_path: Path, key: str, double: bool) -> None:
    model = made(lambda: NormReading(key), 0)
    graph = read_graph(model, SHAPE)
    assignment = assignment_of(graph, same_bits(graph, 4, 4), QuantizerChoice())
    network = apply(model, assignment).eval()
    with pytest.raises(InputError, match="statistics of the BatchNorm 'norm' itself"):
        save_packed(tmp_path / "a", network.double() if double else network, graph, assignment)
    assert not (tmp_path / "a").exists()


class Ranking(nn.Module):
    """Chooses by values that differ by less than fp32 tells, as detectors choose boxes by their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 1, 3), nn.BatchNorm2d(32)
        mean, variance = torch.rand(32), torch.rand(32) + 0.5
        with torch.no_grad():
            self.norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            self.norm.running_var.copy_(variance)  # type: ignore[union-attr]
            self.norm.weight.copy_((variance + self.norm.eps).sqrt())
            self.norm.bias.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).expand(-1, 32, -1, -1)).mean((2, 3)).argsort(1).float()


def test_a_net_that_chooses_by_its_values_is_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Ranking().eval()
    graph = read_graph(model, SHAPE)
    assignment = assignment_of(graph, same_bits(graph, 4, 8), QuantizerChoice())
    save_packed(tmp_path / "a", apply(model, assignment).eval(), graph, assignment)
    assert (tmp_path / "a").exists()
