"""A packed file of somebody else is data: opening it imports and fetches nothing, and makes what it accounts for."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import dnas
from results.packed.file import write_packed
from search_spaces.errors import InputError
from tests.packed_nets import Packed, inputs_for, packed_net

TINY = {"source": "zoo:tiny_resnet", "arguments": {"num_classes": 3, "width": 4, "norm_last": True}}


def with_description(found: Packed, **changes: Any) -> Path:
    told: Mapping[str, Any] = json.loads(json.dumps({**found.file.description, "model": TINY, **changes}))
    write_packed(found.path, told, found.file.tensors)
    return found.path


def test_a_file_is_opened_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed_net(tmp_path / "net", "norm last", (4, 4))
    x = inputs_for(found.graph)
    torch.testing.assert_close(dnas.load(with_description(found))(x), found.network(x), rtol=0, atol=0)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    for arguments in ({"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}, {"weights": "DEFAULT"}, {"width": 3000}):
        path = with_description(found, model={**TINY, "arguments": {**TINY["arguments"], **arguments}})
        with pytest.raises(InputError, match=r"dnas.load\(path, model\)"):
            dnas.load(path)
        assert dnas.load(path, found.model)(x).shape == (4, 3)  # what it says is not read then


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_a_quantizer_of_a_module_that_nobody_imported_stays_so(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_quantizer.py").write_text("import dnas\nmine = dnas.Quantizer('mine', dnas.nested_grid)\n")
    monkeypatch.chdir(tmp_path)
    found = packed_net(tmp_path / "net", "norm last", (4, 4))
    quantizer = {**found.file.description["quantizer"], kind: "own_quantizer:mine"}
    path = with_description(found, quantizer=quantizer)
    for model in (None, found.model):
        with pytest.raises(InputError, match="import own_quantizer, where it is from, first"):
            dnas.load(path, model)
    assert "own_quantizer" not in sys.modules


def test_a_net_of_published_weights_is_written_without_where_they_came_from(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "net", "norm last", (4, 4))
    packed = dnas.save_packed(
        tmp_path / "again",
        found.network,
        found.graph,
        found.assignment,
        model={"source": "timm:resnet18", "arguments": {"pretrained": True, "num_classes": 3}},
    )
    assert packed.description["model"] == {"source": "timm:resnet18", "arguments": {"num_classes": 3}}


@pytest.mark.parametrize("shape", [[3, 50_000, 50_000], [1, 2**30], [2**13, 2**14]])
def test_an_input_beyond_all_measure_is_refused_for_a_network_of_ones_own_too(shape: list[int], tmp_path: Path) -> None:
    found = packed_net(tmp_path / "net", "norm last", (4, 4))
    profiles = json.loads(json.dumps(found.file.description["profiles"]))
    for profile in profiles.values():
        profile["assignment"]["model"]["input_shape"] = shape
    path = with_description(found, profiles=profiles)
    for model in (None, found.model):
        with pytest.raises(InputError, match="are larger than a file may ask for"):
            dnas.load(path, model)
