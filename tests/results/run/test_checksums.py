"""A flipped bit in anything that a run reads back is told, or changes nothing; files without checksums still open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from results.pareto import Estimate, FrontPoint, ParetoFront
from results.run.folder import Run
from results.run.lost import damage_of
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError

ASSIGNMENT = BitAssignment(
    "a", ModelReference("zoo:resnet20", (3, 32, 32)), {"conv1": LayerBits(4, 8)}, {"size_bytes": 10.5}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "run", "seed = 1\nname = 'ä'\n", {"torch": "2"}) as run:
        run.journal.append({"event": "started", "version": 2})
        run.journal.append({"event": "note", "text": "zwölf ☃\n"})
        run.save_assignment(ASSIGNMENT)
        run.save_front(ParetoFront.from_points([FrontPoint("a", "search", 10.0, 5.0, 1.0, Estimate(0.5))]))
        run.save_checkpoint("net-a-seed0", {"w": torch.randn(5), "n": torch.tensor(3)}, {"seed": 0})
    return tmp_path / "run"


def net(run: Run) -> Any:
    loaded = run.load_checkpoint("net-a-seed0")
    assert loaded is not None
    return {name: tensor.tolist() for name, tensor in loaded[0].items()}, loaded[1].get("seed")


KNOWN = ("event", "time", "version", "text")
READ: dict[str, Callable[[Run], Any]] = {
    "job.toml": lambda run: run.job_toml(),
    "environment.json": lambda run: run.environment(),
    "front.json": lambda run: run.load_front(),
    "assignments/a.json": lambda run: run.assignment("a"),
    "journal.jsonl": lambda run: [
        {k: v for k, v in event.to_json().items() if k in KNOWN} for event in run.journal.events()
    ],
    "checkpoints/net-a-seed0.safetensors": net,
}


def told_of(name: str, run: Run) -> str:
    """The sentence that says that this file is damaged."""
    with pytest.raises(InputError) as caught:
        READ[name](run)
    return str(caught.value)


def is_read(name: str, run: Run) -> Any:
    """What is read of a file; None where that is refused."""
    try:
        return READ[name](run)
    except InputError:
        return None


@pytest.mark.parametrize("name", READ)
def test_a_flipped_bit_is_told(name: str, folder: Path) -> None:
    path, run = folder / name, Run.open(folder)
    whole, expected = path.read_bytes(), READ[name](run)
    told = 0
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place // 2 % 8]) + whole[place + 1 :])
        found = is_read(name, run)
        if found is None:
            told += 1
            assert place % 50 or str(path) in told_of(name, run)
        elif name == "environment.json":
            assert {key: found.get(key) for key in expected} == expected  # the key of the checksum was hit
        elif name == "job.toml":
            assert found.endswith(expected)  # the comment was hit: the lines below it are whole
        else:  # of the journal the last line may be missing, as torn by a kill: that step is made again
            assert found == (expected[: len(found)] if name == "journal.jsonl" else expected)
    assert told > 0.2 * len(whole)


@pytest.mark.parametrize("name", READ)
def test_a_checksum_of_another_name_is_told(name: str, folder: Path) -> None:
    path, run = folder / name, Run.open(folder)
    whole = path.read_bytes()
    place = whole.rindex(b"sha256")
    path.write_bytes(whole[:place] + b"sha257" + whole[place + 6 :])
    assert str(path) in told_of(name, run)


def test_a_resume_finds_what_was_changed(folder: Path) -> None:
    run = Run.open(folder)
    for name in ("assignments/a.json", "checkpoints/net-a-seed0.safetensors", "front.json", "environment.json"):
        assert damage_of(run, name) == ""
        data = bytearray((folder / name).read_bytes())
        place = data.rindex(b"0.5") if name == "front.json" else data.index(b"4", 30) if name[0] == "a" else -9
        data[place] ^= 1
        (folder / name).write_bytes(data)
        assert damage_of(run, name) == "damaged"


def test_files_of_earlier_versions_have_no_checksums(folder: Path) -> None:
    run = Run.open(folder)
    expected = {name: READ[name](run) for name in READ}
    for name in ("environment.json", "front.json", "assignments/a.json"):
        data = json.loads((folder / name).read_text())
        assert data.pop("sha256")
        (folder / name).write_text(json.dumps(data))
    (folder / "job.toml").write_text((folder / "job.toml").read_text().partition("\n")[2])
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    bare = ({key: value for key, value in line.items() if key != "sha256"} for line in lines)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    tensors, _ = run.load_checkpoint("net-a-seed0") or ({}, {})
    path = folder / "checkpoints" / "net-a-seed0.safetensors"
    save_file(tensors, path, metadata={"dnas": json.dumps({"name": "net-a-seed0", "seed": 0})})
    found = {name: READ[name](run) for name in READ}
    found["job.toml"] = "seed = 1\nname = 'ä'\n"
    assert found == expected


def test_a_job_that_was_changed_on_purpose_is_taken_without_its_checksum(folder: Path) -> None:
    path, run = folder / "job.toml", Run.open(folder)
    path.write_text(path.read_text().replace("seed = 1", "seed = 2"))
    with pytest.raises(InputError, match="remove its first line"):
        run.job_file()
    path.write_text(path.read_text().partition("\n")[2])
    assert run.job_file() == str(path)
    assert "seed = 2" in run.job_toml()
