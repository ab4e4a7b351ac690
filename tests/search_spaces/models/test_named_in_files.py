"""A file of somebody else names a network: known packages and plain values, nothing fetched, read or made too large."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from search_spaces.errors import InputError
from search_spaces.models.load import load_model
from search_spaces.models.named_in_files import check_described, described_network, load_described

FETCHING: list[tuple[str, dict[str, Any]]] = [
    ("timm:resnet18", {"pretrained": True}),
    ("timm:resnet18", {"pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"}}),
    ("timm:resnet18", {"pretrained_cfg": "a1_in1k"}),
    ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "/tmp/x.pth"}}),
    ("timm:resnet18", {"checkpoint_path": "x.pth"}),
    ("timm:resnet18", {"cache_dir": "/tmp/x"}),
    ("timm:resnet18", {"features_only": True}),
    ("timm:resnet18", {"scriptable": True}),
    ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ("torchvision:resnet18", {"weights": "ResNet18_Weights.IMAGENET1K_V1"}),
    ("torchvision:resnet18", {"weights_backbone": "DEFAULT"}),
    ("torchvision:resnet18", {"pretrained": 1}),
    ("zoo:resnet20", {"num_classes": {"a": 1}}),
    ("zoo:tiny_resnet", {"width": 10**9}),
    ("zoo:tiny_resnet", {"stages": 10**9}),
    ("timm:vit_tiny_patch16_224", {"depth": 10**4}),
    ("zoo:resnet20", {"num_classes": float("nan")}),
    ("timm:hf-hub:somebody/net", {}),
    ("timm:local-dir:/tmp/x", {}),
    ("os:system", {"command": "true"}),
    ("zoo.evil:net", {}),
    ("", {}),
]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, refused)
    monkeypatch.setattr(torch, "load", refused)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("case", FETCHING, ids=lambda case: f"{case[0]}-{'-'.join(case[1])}")
def test_a_file_asks_for_nothing_from_elsewhere(case: tuple[str, dict[str, Any]]) -> None:
    source, arguments = case
    with pytest.raises(InputError) as caught:
        load_described({"source": source, "arguments": arguments}, (3, 32, 32), 10**7, {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("zoo:tiny_resnet", {"num_classes": 3, "width": 4, "stages": 2, "norm_last": True}),
        ("torchvision:resnet18", {"num_classes": 5, "weights": None, "progress": False}),
        ("torchvision:regnet_x_400mf", {}),
        ("timm:resnet10t", {"num_classes": 3, "pretrained": False, "drop_path_rate": 0.1, "act_layer": "gelu"}),
    ],
)
def test_what_is_built_may_be_said(source: str, arguments: dict[str, Any]) -> None:
    found = load_described({"source": source, "arguments": arguments}, (3, 32, 32), 10**7, {})
    assert not any(parameter.is_meta for parameter in found.parameters())
    built = load_model(source, arguments=arguments).module
    assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in built.named_parameters()}


@pytest.mark.parametrize(
    ("source", "arguments"),
    [("torchvision:vit_h_14", {}), ("torchvision:regnet_y_128gf", {}), ("zoo:tiny_resnet", {"width": 3000})],
)
def test_a_small_file_does_not_make_a_large_network(
    source: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn: what initializes weights gets only tensors without memory."""
    normal = torch.Tensor.normal_

    def only_outlines(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert tensor.is_meta
        return normal(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", only_outlines)
    with pytest.raises(InputError, match=r"parameters, which 10,000 bytes of tensors cannot be of"):
        load_described({"source": source, "arguments": arguments}, (3, 32, 32), 10_000, {})


def test_weights_of_another_shape_are_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"conv1": (8, 1, 3, 3), "linear": (10, 32)}
    load_described({"source": "zoo:tiny_resnet"}, (1, 8, 8), 10_000, shapes)
    with pytest.raises(InputError, match=r"layer 'linear' has a weight of shape \(10, 32\) in the file and \(9, 32\)"):
        load_described({"source": "zoo:tiny_resnet", "arguments": {"num_classes": 9}}, (1, 8, 8), 10_000, shapes)
    with pytest.raises(InputError, match="larger than a file may ask for"):
        load_described({"source": "zoo:tiny_resnet"}, (1, 10**6, 10**6), 10_000, shapes)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "resnet18"])
def test_a_net_of_published_weights_is_written_as_the_same_network_without_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(source: str, **given: Any) -> torch.nn.Module:
        model = torch.nn.Sequential()
        model.given = given  # type: ignore[assignment]
        return model

    monkeypatch.setattr(torchvision.models, "get_model", get)
    told = described_network(f"torchvision:{name}", {"weights": "DEFAULT"})
    source, arguments = check_described(told)
    given: Any = load_model(source, arguments=arguments).module.given
    assert given["weights"] is None
    assert given.get("transform_input", False) == (name != "resnet18")


def test_own_networks_are_written_as_they_are() -> None:
    assert described_network("mine:net", {"weights": "x"}) == {"source": "mine:net", "arguments": {"weights": "x"}}


@pytest.mark.parametrize("entry", ["", "cwd"])
def test_a_timm_of_the_current_folder_is_not_timm(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    (tmp_path / "timm.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path) if entry else "")
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.path)
    assert load_model("timm:resnet10t", arguments={"num_classes": 3}).module.num_classes == 3
    assert sys.path == before
