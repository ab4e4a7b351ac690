"""Networks that take several inputs, a dict or none but whole numbers, and return any structure: to files and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dnas import QuantizerChoice, apply, calibrate, load, quantize_fixed, read_graph, save_packed
from dnas.export.calls import tensors_of
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.pt2e import export_pt2e
from dnas.export.qonnx import QonnxFormat
from dnas.export.stored import StoredNet
from dnas.export.targets import find_target
from dnas.quantization.proof import outputs_on_noise
from dnas.switchable.net import SwitchableNet
from results.preprocessing import Preprocessing
from search_spaces import BitAssignment, LayerBits, LayerGraph, ModelReference
from search_spaces.errors import InputError
from search_spaces.network.examples import Call, call_of, drawn

pytestmark = pytest.mark.filterwarnings(
    "ignore:The given buffer is not writable"
)  # PyTorch's own, in loading a program


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Body(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3))


class Named(Body):
    """Two inputs by name; a tuple, one part of which is an input."""

    def forward(self, image: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.features(image) * gain[:, None]), gain


class OneDict(Body):
    """A dict of inputs as the only argument; a dict within a dict, and what is no tensor."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        features = self.features(batch["image"]) + batch["weight"].mean((1, 2))[:, None]
        return {"logits": self.head(features), "more": {"features": features}, "classes": 4, "nothing": None}


class Anything(Body):
    """However many inputs by position; a named tuple."""

    def forward(self, *images: Tensor) -> Pair:
        one, two = (self.features(image) for image in images)
        return Pair(self.head(one), self.head(two))


@dataclass
class Found:
    """What newer libraries return instead of a dict."""

    logits: Tensor
    features: tuple[Tensor, ...]
    nothing: Tensor | None = None


class Ordered(Body):
    """A dict that has an order; a dataclass."""

    def forward(self, batch: OrderedDict[str, Tensor]) -> Found:
        assert isinstance(batch, OrderedDict)
        features = self.features(batch["image"])
        return Found(self.head(features * batch["gain"]), (features,))


class OnePair(Body):
    """A named tuple in a list."""

    def forward(self, pairs: list[Pair]) -> Tensor:
        return self.head(self.features(pairs[0].first) * pairs[0].second)


class Nested(Body):
    """A plain value, a tuple in a dict, and a default that is not given; a list."""

    def forward(self, image: Tensor, extras: Mapping[str, Any], scale: float = 1.0, own: Tensor | None = None) -> Any:
        shift, (left, _) = extras["shift"], extras["pair"]
        return [self.head(self.features(image * scale) + shift + left), shift]


class Tokens(nn.Module):
    """Whole numbers and a mask of booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        found = self.first(self.embed(ids)).relu()
        return {"logits": self.second((found * mask[..., None]).sum(1))}


class Words(Tokens):
    """Whole numbers alone."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.second(self.first(self.embed(ids)).relu().mean(1))


class Crossed(nn.Module):
    """Two tensors without an axis of samples in common."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor, matrix: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(x).relu()) @ matrix,)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))


CALLS: dict[type[nn.Module], Callable[[int], Any]] = {
    Named: lambda n: {"image": images(n), "gain": torch.rand(n) + 0.5},
    OneDict: lambda n: {"batch": {"weight": torch.rand(n, 2, 2), "image": images(n)}},
    Anything: lambda n: (images(n), images(n).flip(0)),
    Ordered: lambda n: {"batch": OrderedDict(image=images(n), gain=torch.rand(n, 1) + 0.5)},
    OnePair: lambda n: {"pairs": [Pair(images(n), torch.rand(n, 1) + 0.5)]},
    Nested: lambda n: {
        "image": images(n),
        "extras": {"shift": torch.rand(n, 6), "pair": (torch.rand(n, 1), 2)},
        "scale": 0.5,
    },
    Tokens: lambda n: (torch.randint(0, 11, (n, 5)), torch.rand(n, 5) > 0.3),
    Words: lambda n: torch.randint(0, 11, (n, 5)),
    Crossed: lambda n: (torch.rand(3, 5), torch.rand(4, 4)),
}
INPUTS = {
    Named: ["image", "gain"],
    OneDict: ["batch.weight", "batch.image"],
    Anything: ["images.0", "images.1"],
    Ordered: ["batch.image", "batch.gain"],
    OnePair: ["pairs.0.first", "pairs.0.second"],
    Nested: ["image", "extras.shift", "extras.pair.0"],
    Tokens: ["ids", "mask"],
    Words: ["ids"],
    Crossed: ["x", "matrix"],
}
OUTPUTS = {
    Named: ["output.0", "output.1"],
    OneDict: ["logits", "more.features"],
    Anything: ["first", "second"],
    Ordered: ["logits", "features.0"],
    OnePair: ["output"],
    Nested: ["output.0", "output.1"],
    Tokens: ["logits"],
    Words: ["output"],
    Crossed: ["output"],
}
KINDS = list(CALLS)


def some(*often: type[nn.Module], whole: Sequence[type[nn.Module]] = ()) -> list[Any]:
    """All kinds, of which those that are named run with the default suite, or with whole jobs."""
    marks = {kind: pytest.mark.slow for kind in KINDS if kind not in often} | dict.fromkeys(whole, pytest.mark.whole)
    return [pytest.param(kind, marks=marks[kind]) if kind in marks else kind for kind in KINDS]


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kind().eval()


def fixed(kind: type[nn.Module]) -> tuple[nn.Module, LayerGraph, BitAssignment, nn.Module]:
    """A quantized net of the kind on its example, with the float network."""
    network = made(kind)
    graph = read_graph(network, call_of(CALLS[kind](6)))
    bits = {layer.name: LayerBits(4, 8) for layer in graph.layers}
    quantized = quantize_fixed(network, graph, bits, QuantizerChoice())
    calibrate(quantized, [call_of(CALLS[kind](6))])
    # As by hand: nothing is said of what the network is called with.
    return quantized.eval(), graph, BitAssignment("four", ModelReference("mine:net", (3, 6, 6)), bits), network


def results(network: Callable[..., Any], call: Call) -> list[np.ndarray]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in tensors_of(network(*call.args, **call.kwargs))]


def assert_near(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_is_called_with_is_told_and_drawn_again(kind: type[nn.Module]) -> None:
    _, graph, assignment, network = fixed(kind)
    assert graph.signature is not None
    told = BitAssignment("a", assignment.model.called_as(graph), assignment.layers)
    again = BitAssignment.from_json(told.to_json())
    assert again.model.example == graph.signature
    assert read_graph(network, again.model.example) == graph
    given = CALLS[kind](5)
    here, there = drawn(graph.example, 5, network).tensors, call_of(given).tensors
    assert [(x.shape, x.dtype) for x in here] == [(x.shape, x.dtype) for x in there]
    assert outputs_on_noise(network, graph.example) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_file_gives_the_same_net(kind: type[nn.Module], tmp_path: Path) -> None:
    quantized, graph, assignment, _ = fixed(kind)
    save_packed(tmp_path / "net.dnas", quantized, graph, assignment)
    call = call_of(CALLS[kind](5))
    for one, other in zip(
        results(load(tmp_path / "net.dnas", made(kind)), call), results(quantized, call), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", [Named, OneDict, Tokens])
def test_a_switchable_net_is_packed_and_applied_too(kind: type[nn.Module], tmp_path: Path) -> None:
    _, graph, assignment, network = fixed(kind)
    model, names = assignment.model, list(assignment.layers)
    widths = {f"w{bits}": BitAssignment(f"w{bits}", model, dict.fromkeys(names, LayerBits(bits, 8))) for bits in (4, 8)}
    net = SwitchableNet(network, graph, widths, QuantizerChoice("nested", "pact"))
    net.calibrate(network, [call_of(CALLS[kind](6))])
    save_packed(tmp_path / "net.dnas", net.eval())
    again, call = load(tmp_path / "net.dnas", made(kind)), call_of(CALLS[kind](5))
    for profile in widths:
        assert_near(results(again.use(profile), call), results(net.use(profile), call))
    stored = again.profiles["w4"].assignment
    assert stored.model.signature == graph.signature
    calibrate(apply(made(kind), stored), [call_of(CALLS[kind](6))])


@pytest.mark.whole
@pytest.mark.parametrize("kind", some(Named, OneDict, Ordered))
def test_an_onnx_file_takes_every_tensor_by_name(kind: type[nn.Module], tmp_path: Path) -> None:
    quantized, graph, assignment, _ = fixed(kind)
    export_graph(tmp_path / "net.onnx", OnnxFormat(), StoredNet(quantized, graph, assignment))
    model = onnx.load(tmp_path / "net.onnx")
    assert [value.name for value in model.graph.input] == INPUTS[kind]
    assert [value.name for value in model.graph.output] == OUTPUTS[kind]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        call = call_of(CALLS[kind](count))
        feeds = dict(zip(INPUTS[kind], [tensor.numpy() for tensor in call.tensors], strict=True))
        assert_near(session.run(None, feeds), results(quantized, call))


@pytest.mark.whole
@pytest.mark.parametrize("kind", some(Nested, whole=[Anything, OnePair]))
def test_a_program_is_called_as_the_network_is(kind: type[nn.Module], tmp_path: Path) -> None:
    quantized, graph, assignment, _ = fixed(kind)
    net = StoredNet(quantized, graph, assignment)
    if kind is OnePair:
        with pytest.raises(InputError, match=r"a .pt2 file cannot hold what this network is called with: .*namedtuple"):
            export_pt2e(tmp_path / "net.pt2", net)
        assert not [*tmp_path.iterdir()]
        return
    export_pt2e(tmp_path / "net.pt2", net)
    program = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 5):
        call = call_of(CALLS[kind](count))
        assert_near(results(program, call), results(quantized, call))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Named, Tokens])
def test_qonnx_has_them_too(kind: type[nn.Module], tmp_path: Path) -> None:
    quantized, graph, assignment, _ = fixed(kind)
    export_graph(tmp_path / "net.onnx", QonnxFormat(), StoredNet(quantized, graph, assignment))
    assert [value.name for value in onnx.load(tmp_path / "net.onnx").graph.input] == INPUTS[kind]


@pytest.mark.whole
def test_the_image_among_the_inputs_is_normalised_in_the_file(tmp_path: Path) -> None:
    quantized, graph, assignment, _ = fixed(Named)
    told = Preprocessing((3, 6, 6), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), 4)
    net = StoredNet(quantized, graph, assignment, preprocessing=told)
    export_graph(tmp_path / "net.onnx", OnnxFormat(), net, normalise=True)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    call = call_of(CALLS[Named](5))
    image, gain = call.tensors
    pixels = image * torch.tensor(told.std).reshape(3, 1, 1) + torch.tensor(told.mean).reshape(3, 1, 1)
    assert_near(session.run(None, {"image": pixels.numpy(), "gain": gain.numpy()}), results(quantized, call))
    quantized, graph, assignment, _ = fixed(Anything)
    net = StoredNet(quantized, graph, assignment, preprocessing=told)
    with pytest.raises(InputError, match=r"of the inputs images.0, images.1 several have the shape of an image"):
        export_graph(tmp_path / "two.onnx", OnnxFormat(), net, normalise=True)
    assert not (tmp_path / "two.onnx").exists()


class Masked(Body):
    """What is no number beside the result."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.head(self.features(image))
        return found, found > 0, found.argmax(1)


class Homonymous(Body):
    """Outputs that are named as an input, a parameter and each other."""

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Any]:
        found = self.head(self.features(image) * gain[:, None])
        return {"image": found, "head.weight": found + 1, "a": [found + 2], "a.0": found + 3}


def fixed_by(kind: type[nn.Module], example: Any, given: Any) -> StoredNet:
    network = made(kind)
    graph = read_graph(network, example)
    bits = {layer.name: LayerBits(4, 8) for layer in graph.layers}
    quantized = quantize_fixed(network, graph, bits, QuantizerChoice())
    calibrate(quantized, [given])
    return StoredNet(quantized.eval(), graph, BitAssignment("four", ModelReference("mine:net", (3, 6, 6)), bits))


@pytest.mark.whole
def test_results_that_are_no_numbers_are_compared_and_told_of(tmp_path: Path) -> None:
    net = fixed_by(Masked, (3, 6, 6), images(6))
    export_pt2e(tmp_path / "net.pt2", net)
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert_near(results(program, call_of(images(5))), results(net.network, call_of(images(5))))
    told = export_graph(tmp_path / "net.onnx", OnnxFormat(find_target("onnxruntime"), 8), net).notes
    assert any("move results by up to" in note for note in told)


@pytest.mark.whole
def test_outputs_have_names_of_their_own(tmp_path: Path) -> None:
    call = call_of(CALLS[Named](6))
    net = fixed_by(Homonymous, call, call)
    export_graph(tmp_path / "net.onnx", OnnxFormat(), net)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["image", "gain"]
    assert [value.name for value in session.get_outputs()] == ["image_", "head.weight_", "a.0", "a.0_"]
    feeds = dict(zip(("image", "gain"), [tensor.numpy() for tensor in call.tensors], strict=True))
    assert_near(session.run(None, feeds), results(net.network, call))
