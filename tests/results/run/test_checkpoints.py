import pytest
import torch
from safetensors.torch import save_file

from results.run.checkpoints import read_checkpoint
from results.run.folder import Run
from search_spaces.errors import InputError, JobError


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", "", {}) as run:
        yield run


def test_tensors_and_metadata_come_back_bit_for_bit(run):
    base = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    tensors = {
        "whole": base,
        "same storage": base,
        "view": base[1:],
        "transposed": base.t(),
        "expanded": torch.ones(1).expand(5),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0),
        "generator": torch.Generator().get_state(),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3).to(torch.bfloat16),
        "special": torch.tensor([float("nan"), -0.0, float("inf")]),
    }
    run.save_checkpoint("search", tensors, {"epoch": 3, "lr": 0.1, "names": ["ä"]})
    loaded, metadata = run.load_checkpoint("search")
    assert metadata == {"epoch": 3, "lr": 0.1, "names": ["ä"]}
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["search.safetensors"]


def test_what_was_loaded_is_not_tied_to_the_file(run):
    run.save_checkpoint("a", {"w": torch.zeros(3)}, {})
    first, _ = run.load_checkpoint("a")
    first["w"].add_(1)
    run.save_checkpoint("a", {"w": torch.full((3,), 5.0)}, {})
    assert first["w"].tolist() == [1, 1, 1]
    assert run.load_checkpoint("a")[0]["w"].tolist() == [5, 5, 5]


def test_absent_and_deleted(run):
    assert run.load_checkpoint("search") is None
    run.save_checkpoint("search", {}, {})
    assert run.load_checkpoint("search") == ({}, {})
    run.delete_checkpoint("search")
    run.delete_checkpoint("search")
    assert run.load_checkpoint("search") is None


def test_a_nan_in_the_metadata_keeps_the_old_checkpoint(run):
    run.save_checkpoint("search", {}, {"epoch": 1})
    with pytest.raises(JobError, match=r"checkpoint search\.safetensors: best = nan"):
        run.save_checkpoint("search", {}, {"best": float("nan")})
    assert run.load_checkpoint("search") == ({}, {"epoch": 1})


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_damaged_checkpoint_is_told_by_path(run, keep):
    run.save_checkpoint("search", {"w": torch.zeros(3)}, {})
    path = run.folder / "checkpoints" / "search.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"the checkpoint .*search\.safetensors is damaged"):
        run.load_checkpoint("search")


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"dnas": "[]"}, {"dnas": "{"}])
def test_foreign_metadata_is_refused(tmp_path, metadata):
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(tmp_path / "a.safetensors")
