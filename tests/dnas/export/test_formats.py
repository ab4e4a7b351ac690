"""The contract of a format: one file, the sizes that it tells, the same bytes each time; ours and the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from torch import nn

from dnas.commands import run_commands
from dnas.export import graph_export, pt2e
from dnas.export.formats import NET_EXPORTERS, ExportOptions, NetExporter
from dnas.export.stored import StoredNet
from dnas.export.targets import target_names
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from results.tables.export import EXPORTERS
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.toys import SHAPE, inputs, trained

OWN = """
import json

def bits(path, net):
    path.write_text(json.dumps({name: pair.weight_bits for name, pair in net.assignment.layers.items()}))

def nothing(path, net):
    pass

def fails(path, net):
    raise OSError("disk gone")

number = 3
"""
FORMATS = [*NET_EXPORTERS, "own_format:bits"]


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_format.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_format", raising=False)


@pytest.fixture(scope="module")
def net() -> StoredNet:
    model = trained(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))).eval()
    graph = read_graph(model, SHAPE)
    layers = {layer.name: LayerBits(4, 8) for layer in graph.layers}
    network = quantize_fixed(model, graph, layers)
    calibrate(network, [inputs()])
    table = CostTable(graph, build_space(graph, SpaceOptions(first_layer="search")), build_costs())
    assignment = BitAssignment("w4a8", ModelReference("own", SHAPE), layers, table.price(layers))
    return StoredNet(network.eval(), graph, assignment, QuantizerChoice(), {"source": "own"}, None, 0, None)


@pytest.mark.whole
@pytest.mark.parametrize("format", FORMATS)
def test_a_format_writes_one_file_of_the_size_it_tells_and_the_same_again(format: str, net: StoredNet) -> None:
    folder = Path("out")
    folder.mkdir()
    exporter = NET_EXPORTERS.find(format)
    assert isinstance(exporter, NetExporter)
    written = [exporter.write(folder / name, net, ExportOptions()) for name in ("first", "second")]
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()
    for file in written:
        assert file.file_bytes == file.path.stat().st_size > 0
        assert set(file.left_out) <= {layer.name for layer in net.graph.layers}
    assert not net.network.training


def test_the_command_offers_what_is_registered() -> None:
    hints = get_type_hints(run_commands.export, include_extras=True)
    assert hints["format"].__metadata__[0].metavar == "|".join([*EXPORTERS, *NET_EXPORTERS, "package.module:name"])
    offered = hints["target"].__metadata__[0].metavar.split("|")
    assert sorted(offered) == sorted([*target_names(), "FILE.toml"])


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        ("own_format:nothing", "wrote no file"),
        ("own_format:fails", "format 'own_format:fails' failed for 'w4a8': OSError: disk gone"),
        ("own_format:number", "'number' is an int, not a callable"),
        ("own_format:bit", "did you mean 'bits'"),
        ("onxn", "unknown format 'onxn'; known are packed, .*did you mean 'onnx'"),
    ],
)
def test_what_is_no_format_is_refused(format: str, sentence: str, net: StoredNet) -> None:
    with pytest.raises(InputError, match=sentence):
        NET_EXPORTERS.find(format).write(Path("net"), net, ExportOptions())


def _half(path: Path, net: StoredNet) -> None:
    path.write_text("half")
    path.with_name("beside.txt").write_text("half")
    raise RuntimeError("half way")


def _elsewhere(path: Path, net: StoredNet) -> None:
    path.with_suffix(".other").write_text("whole")


def _folder(path: Path, net: StoredNet) -> None:
    path.mkdir()


@pytest.mark.parametrize("function", [_half, _elsewhere, _folder])
@pytest.mark.parametrize("before", [None, "precious"])
def test_a_format_that_fails_leaves_everything_as_it_was(
    function: Any, before: str | None, net: StoredNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "given", function, raising=False)
    if before:
        Path("net.txt").write_text(before)
    with pytest.raises(InputError, match=f"^format '{__name__}:given' (failed for|wrote no file net.txt where)"):
        NET_EXPORTERS.find(f"{__name__}:given").write(Path("net.txt"), net, ExportOptions())
    assert {path.name: path.read_text() for path in Path().glob("*") if path.suffix != ".py"} == (
        {"net.txt": before} if before else {}
    )
    assert not [path for path in Path().glob(".*") if path.name.endswith(".tmp")]


def _two(path: Path, net: StoredNet) -> None:
    path.write_text("file")
    path.with_suffix(".data").write_text("data")
    folder = path.with_name("tensors")
    folder.mkdir()
    (folder / "a").write_text("tensor")


def test_all_that_a_format_writes_beside_its_file_is_put_there(net: StoredNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "given", _two, raising=False)
    folder = Path("out")
    folder.mkdir()
    (folder / "net.data").write_text("old")
    for _ in range(2):
        file = NET_EXPORTERS.find(f"{__name__}:given").write(folder / "net.txt", net, ExportOptions())
    files = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {"net.txt": "file", "net.data": "data", "a": "tensor"}
    assert (file.path, file.file_bytes) == (folder / "net.txt", 4)


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_writes_through_a_link(format: str, net: StoredNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before the network is traced, which takes minutes where it is large."""
    for module, function in ((graph_export, "trace"), (pt2e, "deployed_copy")):
        monkeypatch.setattr(module, function, None)
    Path("precious").write_text("precious")
    Path("out").symlink_to("precious")
    with pytest.raises(InputError, match="out is a link"):
        NET_EXPORTERS.find(format).write(Path("out"), net, ExportOptions())
    assert Path("precious").read_text() == "precious"
