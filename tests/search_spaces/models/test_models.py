"""Model sources and checkpoints: what loads is what was saved, and what cannot be used is one clear sentence."""

from __future__ import annotations

import hashlib
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.models import load as models
from search_spaces.models.load import LoadedModel, available_models, check_finite, load_model
from search_spaces.models.sources import ZOO
from search_spaces.models.zoo import tiny_resnet

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def same(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def refusal(source: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_model(source, **options)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets_for_test.py").write_text(
        "from torch import nn\n"
        "def build(features=3):\n    return nn.Linear(features, 2)\n"
        "def wrong():\n    return 'a string'\n"
        "def broken():\n    raise KeyError('two\\nlines')\n"
        "number = 3\n"
    )
    (tmp_path / "broken_nets_for_test.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets_for_test", raising=False)
    return tmp_path


def test_zoo_model_takes_arguments() -> None:
    loaded = load_model("zoo:tiny_resnet", arguments={"num_classes": 4})
    assert isinstance(loaded.module, nn.Module)
    assert loaded == LoadedModel(loaded.module, "zoo:tiny_resnet")
    assert loaded.module(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_networks_return_plain_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def remember(_: str, **arguments: object) -> nn.Module:
        given.update(arguments)
        return nn.Identity()

    monkeypatch.setattr(models.torchvision.models, "get_model", remember)
    load_model(f"torchvision:{name}")
    assert given == {"weights": None, "aux_logits": False, "init_weights": True}
    load_model(f"torchvision:{name}", arguments={"aux_logits": True})
    assert given["aux_logits"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_networks_train_on_plain_logits(name: str) -> None:
    loaded = load_model(f"torchvision:{name}", arguments={"num_classes": 3})
    assert loaded.module.training
    assert loaded.module(torch.rand(2, 3, 299, 299)).shape == (2, 3)


def test_torchvision_model() -> None:
    loaded = load_model("torchvision:squeezenet1_1", arguments={"num_classes": 3})
    assert loaded.module.num_classes == 3


def test_timm_model() -> None:
    pytest.importorskip("timm")
    assert load_model("timm:resnet10t", arguments={"num_classes": 3}).module.num_classes == 3


def test_missing_timm_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'dnas[timm]'" in refusal("timm:resnet18")


def test_timm_reads_no_file_behind_our_back() -> None:
    pytest.importorskip("timm")
    assert "checkpoint" in refusal("timm:resnet10t", arguments={"checkpoint_path": "x.pth"})


def test_own_callable_of_the_current_directory(own_module: Path) -> None:
    before = list(sys.path)
    assert load_model("own_nets_for_test:build", arguments={"features": 5}).module.in_features == 5
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("resnet20", ["'resnet20'", "zoo:resnet20"]),
        ("zoo:", ["'zoo:'"]),
        (":resnet20", ["':resnet20'"]),
        ("zoo:tiny_resnt", ["'tiny_resnt'", "did you mean 'tiny_resnet'"]),
        ("torchvision:resnet19", ["torchvision has no model 'resnet19'", "did you mean"]),
        ("torchvision:raft_large", ["torchvision has no model"]),
        ("torchvison:resnet18", ["'torchvison'", "did you mean 'torchvision'"]),
        ("no_such_module_here:build", ["'no_such_module_here'", "ModuleNotFoundError"]),
        ("own_nets_for_test:biuld", ["has no 'biuld'", "did you mean 'build'"]),
        ("own_nets_for_test:number", ["int, not a callable"]),
        ("own_nets_for_test:wrong", ["returned a str"]),
        ("own_nets_for_test:broken", ["KeyError"]),
        ("broken_nets_for_test:build", ["broken_nets_for_test", "RuntimeError: first line second line"]),
    ],
)
def test_unusable_source_is_one_sentence(source: str, parts: list[str], own_module: Path) -> None:
    sentence = refusal(source)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("source", ["zoo:resnet20", "torchvision:resnet18"])
def test_rejected_argument_is_named(source: str) -> None:
    sentence = refusal(source, arguments={"num_clases": 3})
    assert "num_clases" in sentence
    assert "did you mean 'num_classes'" in sentence


def test_available_models() -> None:
    names = available_models()
    assert names["zoo"] == list(ZOO)
    assert "resnet18" in names["torchvision"]
    assert {"fcn_resnet50", "ssdlite320_mobilenet_v3_large"} <= set(names["torchvision"])


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoint_round_trip(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    saved = tiny_resnet()
    weights = {prefix + key: value for key, value in saved.state_dict().items()}
    path = tmp_path / "weights.th"
    torch.save(weights if wrapper is None else {"epoch": 3, wrapper: weights}, path)
    loaded = load_model("zoo:tiny_resnet", checkpoint=path)
    assert same(loaded.module, saved)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ((), ())
    assert loaded.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_round_trip(tmp_path: Path) -> None:
    saved = tiny_resnet()
    safetensors.torch.save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    assert same(load_model("zoo:tiny_resnet", checkpoint=tmp_path / "weights.safetensors").module, saved)


def test_a_model_whose_own_keys_start_like_a_wrapper_keeps_them(tmp_path: Path, own_module: Path) -> None:
    (own_module / "wrapped_nets_for_test.py").write_text(
        "from torch import nn\ndef build():\n    return nn.ModuleDict({'module': nn.Linear(2, 2)})\n"
    )
    saved = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    loaded = load_model("wrapped_nets_for_test:build", checkpoint=tmp_path / "weights.pt")
    assert same(loaded.module, saved)


def test_partial_checkpoint_reports_both_sides(tmp_path: Path) -> None:
    weights = tiny_resnet().state_dict()
    del weights["linear.weight"], weights["bn1.num_batches_tracked"]
    weights["head.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "weights.pt")
    loaded = load_model("zoo:tiny_resnet", checkpoint=tmp_path / "weights.pt")
    assert loaded.missing_keys == ("linear.weight",)
    assert loaded.unexpected_keys == ("head.weight",)
    assert torch.equal(loaded.module.state_dict()["conv1.weight"], weights["conv1.weight"])


def test_shape_mismatch_names_key_and_shapes(tmp_path: Path) -> None:
    torch.save(tiny_resnet(num_classes=4).state_dict(), tmp_path / "weights.pt")
    sentence = refusal("zoo:tiny_resnet", checkpoint=tmp_path / "weights.pt")
    assert "'linear.weight' has shape (4, 32) in the file and (10, 32) in the model" in sentence


class Bomb:
    """What a hostile checkpoint does: it calls a function while it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('exploded').touch()",)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"other.weight": torch.zeros(1)}, "shares no key"),
        ({"epoch": 3}, "holds no tensors"),
        ([torch.zeros(1)], "holds a list"),
        (b"garbage", "no plain weights file"),
        (b"", "no plain weights file"),
        ({"conv1.weight": Bomb()}, "no plain weights file"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_unusable_checkpoint_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, part: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
        if suffix == ".safetensors":
            part = "no plain weights file"  # a pickle under another name
    assert part in refusal("zoo:tiny_resnet", checkpoint=path)
    assert not (tmp_path / "exploded").exists()


def test_a_bare_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    assert "no plain weights file" in refusal("zoo:tiny_resnet", checkpoint=tmp_path / "weights.pkl")
    assert not (tmp_path / "exploded").exists()


def test_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(tiny_resnet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "no plain weights file" in refusal("zoo:tiny_resnet", checkpoint=path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")])
def test_published_checkpoints_fit_exactly(name: str, file: str) -> None:
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"needs {file} in shared/data beside the repository")
    loaded = load_model(f"zoo:{name}", checkpoint=path)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ((), ())
    # The file's own name carries the start of its sha256.
    assert loaded.checkpoint_sha256 is not None
    assert loaded.checkpoint_sha256.startswith(file.removesuffix(".th").partition("-")[2])
    published: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    assert torch.equal(loaded.module.state_dict()["linear.bias"], published["module.linear.bias"])


@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.bn1.running_var"])
def test_a_checkpoint_that_is_not_finite_is_refused_by_name(tmp_path: Path, name: str) -> None:
    state = load_model("zoo:tiny_resnet").module.state_dict()
    state[name].view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=rf"bad.pth: '{name}' holds 1 of \d+ values that are not finite"):
        load_model("zoo:tiny_resnet", checkpoint=tmp_path / "bad.pth")


@pytest.mark.parametrize(("variance", "refused"), [(-0.5, True), (-1e-5, True), (-1e-7, False), (0.0, False)])
def test_a_variance_is_refused_by_name_where_it_has_no_root(variance: float, refused: bool) -> None:
    network: nn.Module = load_model("zoo:tiny_resnet").module.eval()
    network.get_buffer("layer1.0.bn1.running_var")[0] = variance
    check: Any = pytest.raises(InputError, match=r"'layer1\.0\.bn1' has a variance") if refused else nullcontext()
    with check, torch.no_grad():
        check_finite(network)
        assert network(torch.ones(1, 1, 8, 8)).isfinite().all()
