"""Real runtimes: what is asked of them is refused in a sentence, and nets run in them as they are."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dnas.latency import engines, templates
from dnas.latency.engines import EIGHT, ENGINES, FLOAT, find_engine, processor_name
from dnas.latency.nets import NetMaker
from dnas.latency.places import Place
from dnas.latency.shapes import LAYER, Alone, LayerShape, shape_of, small_input
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerSpec
from tests.known import known_graph
from tests.toys import SHAPE, Net


@pytest.mark.parametrize(
    ("name", "place", "told"),
    [
        ("openvno", Place(), "unknown runtime 'openvno'; choose one of .*; did you mean 'openvino'"),
        ("tensorrt", Place(), "choose one of onnxruntime, openvino, torch, packed"),
        ("torch", Place("tpu"), "unknown device 'tpu'"),
        ("openvino", Place("cuda"), "openvino is measured on the CPU alone"),
        ("packed", Place("cuda"), "packed is measured on the CPU alone"),
        ("packed", Place("cpu", 2), "the packed runtime runs on one thread"),
        ("onnxruntime", Place("cuda"), "built without cuda"),
        ("torch", Place("cpu", 0), "--threads 0"),
        ("torch", Place("cpu", 10_000), f"this machine has {os.cpu_count()} cores"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, place: Place, told: str) -> None:
    if name == "packed" and os.cpu_count() == 1 and place.threads == 2:
        told = "this machine has 1 cores"
    with pytest.raises(InputError, match=told):
        find_engine(name, place)


def test_a_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no cuda device here; take --device cpu"):
        find_engine("torch", Place("cuda"))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    extra = {"onnxruntime": "onnx", "openvino": "openvino"}[name]
    with pytest.raises(InputError, match=rf"pip install 'dnas\[{extra}\]'"):
        find_engine(name, Place())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("onnxruntime", marks=pytest.mark.slow),
        pytest.param("openvino", marks=pytest.mark.whole),
        "torch",
        "packed",
    ],
)
def test_nets_of_other_widths_and_filters_come_from_one_base(name: str) -> None:
    torch.manual_seed(0)
    model = Net(channels=16).eval()
    maker = NetMaker(model, known_graph(model, SHAPE))
    load, image = ENGINES[name].loader(maker.stored(maker.uniform(EIGHT)), Place()), maker.images[:1].numpy()
    mixed = maker.uniform(EIGHT) | {"first": LayerBits(32, 32)}
    group = maker.graph.channels.groups[0]
    rows = kept_rows(maker.graph.channels, {group.name: tuple(range(8))})
    pruned = {key: replace(bits, kept_channels=rows.get(key)) for key, bits in maker.uniform(EIGHT).items()}
    for layers in (maker.uniform(FLOAT), mixed, pruned):
        net = maker.stored(layers)
        with torch.no_grad():
            wanted = net.network(maker.images[:1]).numpy()
        found = load(net, image)()
        first = np.asarray(found if isinstance(found, np.ndarray | torch.Tensor) else found[0])
        assert first.shape == wanted.shape
        if name != "onnxruntime":  # its sums have ranges of no net
            np.testing.assert_allclose(first, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("onnxruntime", nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        ("openvino", nn.Conv2d(16, 24, 3, groups=2)),
    ],
)
def test_a_layer_alone_with_fewer_inputs_comes_from_the_base_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Conv2d, name: str
) -> None:
    """And from no export of its own, which takes seconds."""
    (spec,) = known_graph(nn.Sequential(layer), (16, 6, 6)).layers
    shape = shape_of(spec, layer)
    nets = []
    for inputs, filters in shape.sizes(True, True):
        net = Alone(shape.module(inputs, filters), shape, inputs).eval()
        maker = NetMaker(net, known_graph(net, small_input(shape, inputs)))
        layers = maker.uniform(EIGHT) | {"entry": LayerBits(32, 32, inputs)}
        nets.append((maker.stored(layers), maker.images[:1].numpy()))
    monkeypatch.setattr(templates, "exported", None)
    load = ENGINES[name].loader(nets[0][0], Place())
    found = [np.asarray(load(net, image)()[0]).shape[1] for net, image in nets]
    assert found == [filters for _, filters in shape.sizes(True, True)]
    assert len(set(found)) > 1


def test_the_processor_has_a_name() -> None:
    assert processor_name(Place())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(16, 24, 3, 2, 1), (16, 9, 9)),
        (nn.Conv2d(3, 16, 5, padding="same"), (3, 8, 8)),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), (16, 6, 6)),
        (nn.Conv2d(16, 32, 3, padding=2, dilation=2, groups=4), (16, 9, 9)),
        (nn.Conv1d(8, 16, 3), (8, 12)),
        (nn.Conv3d(8, 8, 2), (8, 4, 4, 4)),
        (nn.ConvTranspose2d(16, 8, 3, 2, output_padding=1), (16, 5, 5)),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), (16, 6, 6)),
        (nn.Conv1d(16, 16, 3, padding="same", padding_mode="reflect", groups=16), (16, 12)),
        (nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate"), (8, 4, 4, 4)),
        (nn.Linear(24, 16), (24,)),
        (nn.Linear(24, 16, bias=False), (5, 24)),
    ],
)
def test_a_layer_alone_is_the_layer_of_the_network(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (spec,) = known_graph(nn.Sequential(layer), shape).layers
    found = shape_of(spec, layer)
    assert (found.inputs, found.filters) in found.sizes(True, True)
    assert repr(found.module(found.inputs, found.filters)) == repr(layer)
    for inputs, filters in found.sizes(True, True):
        net = Alone(found.module(inputs, filters), found, inputs).eval()
        own = {s.name: s for s in known_graph(net, small_input(found, inputs)).layers}[LAYER]
        whole = (inputs, filters) == (found.inputs, found.filters)
        assert not whole or _sized(own) == _sized(spec)
        assert own.macs * found.inputs * found.filters == pytest.approx(
            spec.macs * inputs * filters * (found.inputs / inputs if found.is_depthwise else 1)
        )


def _sized(spec: LayerSpec) -> tuple[object, ...]:
    return spec.kind, spec.weight_shape, spec.input_shape, spec.output_shape, spec.groups, spec.bias_elements


def test_pruned_sizes_are_whole_multiples() -> None:
    conv = LayerShape("Conv2d", 64, 96, 1, (("kernel_size", (3, 3)),), (64, 8, 8), False)
    assert conv.sizes(False, False) == [(64, 96)]
    assert conv.sizes(True, False) == [(64, 96), (16, 96)]
    assert len(conv.sizes(True, True)) == 4
    depthwise = LayerShape("Conv2d", 40, 40, 40, (("kernel_size", (3, 3)),), (40, 8, 8), False)
    assert depthwise.sizes(True, True) == [(40, 40), (16, 16)]
    assert LayerShape("Conv2d", 12, 20, 1, (), (12, 8, 8), False).sizes(True, True)[-1] == (8, 8)


def test_the_layer_that_is_timed_has_the_widths() -> None:
    shape = LayerShape("Conv2d", 16, 16, 1, (("kernel_size", (3, 3)), ("padding", (1, 1))), (16, 6, 6), False)
    net = Alone(shape.module(16, 16), shape, 16).eval()
    graph = known_graph(net, (16, 6, 6))
    assert [spec.name for spec in graph.layers] == ["entry", LAYER]
    layers = {"entry": LayerBits(32, 32), LAYER: LayerBits(8, 8)}
    stored = NetMaker(net, graph).stored(layers)
    assert stored.assignment.pairs == {"entry": FLOAT, LAYER: EIGHT}
    assert engines.EIGHT == (8, 8)
