"""Files of a run that were changed after they were written are told by every command that builds a net of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.jobs.job import load_network
from dnas.jobs.run import run_job
from results.files import read_sealed_json, write_sealed_json
from results.run.folder import Run
from search_spaces.errors import InputError


@pytest.fixture
def folder(smaller_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smaller_run.folder, tmp_path / "run"))


def changed(path: Path, change: Callable[[dict[str, Any]], None], sealed: bool) -> None:
    """Change a file; ``sealed``: with the checksum that it then has, as whoever does it on purpose can."""
    data = read_sealed_json(path)
    change(data)
    if sealed:
        write_sealed_json(path, data)
    else:
        path.write_text(json.dumps({**data, "sha256": json.loads(path.read_text())["sha256"]}))


def layer_of(data: dict[str, Any]) -> dict[str, Any]:
    """A layer in the middle, which is quantized."""
    return next(layer for layer in data["layers"].values() if layer["weight_bits"] not in (0, 32))


def other_activation_bits(data: dict[str, Any]) -> None:
    layer = layer_of(data)
    layer["activation_bits"] = 2 if layer["activation_bits"] == 8 else 8


def other_weight_bits(data: dict[str, Any]) -> None:
    layer = layer_of(data)
    layer["weight_bits"] = 3 if layer["weight_bits"] != 3 else 5


def float_weights(data: dict[str, Any]) -> None:
    layer_of(data).update(weight_bits=32)


def other_input(data: dict[str, Any]) -> None:
    data["model"]["input_shape"] = [1, 9, 9]


CHANGES = (other_activation_bits, other_weight_bits, float_weights, other_input)


def test_an_assignment_is_that_of_its_net(folder: Path, tmp_path: Path) -> None:
    own = (id for id, item in Run.open(folder).assignments().items() if "same_as" not in item.metrics)
    id = next(own)
    path, out = folder / "assignments" / f"{id}.json", tmp_path / "out"
    words = [["evaluate", str(folder), id], ["export", str(folder), id, "--format", "packed", "--out", str(out)]]
    for command in words:
        assert CliRunner().invoke(app, command).exit_code == 0
    out.unlink()
    before = path.read_bytes()
    for change, sealed in product(CHANGES, (False, True)):
        path.write_bytes(before)
        changed(path, change, sealed)
        for command in words:
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 2, (change, sealed)
            assert str(path) in result.stderr
            assert "changed" in result.stderr
            assert "dnas resume" in result.stderr
        assert not out.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(id="another"),
        lambda data: data.update(id="../a"),
        lambda data: data["cost"].update(size_bytes=-5.0),
        lambda data: data["metrics"].update(val_top1={"mean": 7.5, "std": 0.0, "n": 1}),
        lambda data: data["metrics"].update(val_top1={"mean": 0.5, "std": -1.0, "n": 1}),
        lambda data: data["metrics"].update(val_top1={"mean": 0.5, "std": 0.0, "n": 0}),
        lambda data: data["metrics"].update(val_top1=7),
        lambda data: data["metrics"].update(metric={"name": "x", "scale": 0}),
        lambda data: data["layer_costs"].update(conv1=3),
    ],
)
def test_figures_that_nothing_can_have_are_damage(change: Callable[[dict[str, Any]], None], folder: Path) -> None:
    id = next(iter(Run.open(folder).assignments()))
    path = folder / "assignments" / f"{id}.json"
    changed(path, change, sealed=True)
    result = CliRunner().invoke(app, ["show", str(folder), id])
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_a_changed_bit_of_a_net_is_told_and_the_net_is_made_again(folder: Path, carried_out: Any) -> None:
    id = next(id for id, item in Run.open(folder).assignments().items() if "same_as" not in item.metrics)
    path = folder / "checkpoints" / f"net-{id}-seed0.safetensors"
    whole = path.read_bytes()
    place = len(whole) - 6
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    for words in (["evaluate"], ["export", "--format", "packed", "--out", str(folder.parent / "out")]):
        result = CliRunner().invoke(app, [words[0], str(folder), id, *words[1:]])
        assert result.exit_code == 2
        assert f"the checkpoint {path} is damaged (its checksum is wrong)" in result.stderr
    result = CliRunner().invoke(app, ["resume", str(folder)])
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes() == whole


def test_what_a_kill_left_of_a_search_that_is_done_is_removed(folder: Path) -> None:
    search = next(record["run"] for record in Run.open(folder).journal.records() if record["event"] == "searched")
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))  # killed before it finished
    with Run.open(folder, write=True) as run:
        run.save_checkpoint(search, {}, {})
    result = CliRunner().invoke(app, ["resume", str(folder)])
    assert result.exit_code == 0, result.stderr
    assert not Run.open(folder).has_checkpoint(search)


def test_what_ran_ahead_of_a_kill_and_nobody_asks_for_is_removed(folder: Path) -> None:
    """A worker trained a net; it was killed, and by then another assignment of the same bits had been measured."""
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    with Run.open(folder, write=True) as run:
        twin = replace(run.assignment("search-1"), id="twin").with_metrics(same_as="search-1")
        run.save_assignment(twin)
        run.journal.append({"event": "decoded", "assignment": "twin", "kind": "ilp", "run": "twin", "cost": {}})
        for name in ("twin-seed0", "net-twin-seed0", "net-twin-seed1"):
            run.save_checkpoint(name, {}, {})
    result = CliRunner().invoke(app, ["resume", str(folder)])
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (folder / "checkpoints").iterdir()} == kept


@pytest.mark.whole
def test_a_run_goes_on_from_the_weights_that_it_was_started_from(
    smaller: Any, carried_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = smaller("model.checkpoint='weights.pt'", "pretrain.epochs=0")
    network = load_network(smaller()).module
    torch.save(network.state_dict(), "weights.pt")
    folder = carried_out(job, tmp_path / "run").folder
    journal = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(b"".join(journal.splitlines(keepends=True)[:-1]))
    torch.save({key: 2 * value for key, value in network.state_dict().items()}, "weights.pt")
    for words in (["resume"], ["evaluate", "float"], ["sensitivity"], ["prune", "search-1"]):
        result = CliRunner().invoke(app, [words[0], str(folder), *words[1:]])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert "the checkpoint 'weights.pt' is not the file that" in result.stderr
    torch.save(network.state_dict(), "weights.pt")
    assert CliRunner().invoke(app, ["resume", str(folder)]).exit_code == 0


def energy(layer: Any, weight_bits: int, activation_bits: int) -> float:
    return float(layer.macs * weight_bits * float(os.environ.get("WORTH", "1")))


@pytest.mark.whole
@pytest.mark.parametrize("changed", ["table", "function"])
def test_a_run_goes_on_by_the_prices_that_it_was_started_with(
    changed: str, smaller: Any, carried_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = load_network(smaller()).module.named_modules()
    names = [name for name, module in layers if isinstance(module, nn.Conv2d | nn.Linear)]
    rows = [f"{name},{w},{a},{w + a}" for name in names for w in (2, 4, 8, 32) for a in (2, 4, 8, 32)]
    table, head = tmp_path / "latency.csv", "layer,weight_bits,activation_bits,latency_ms"
    table.write_text("\n".join([head, *rows]))
    job = smaller(f"costs.latency_table='{table}'", f"costs.functions={{energy = '{__name__}:energy'}}")
    folder = carried_out(job, tmp_path / "run").folder
    journal = folder / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    before, table_before = journal.read_bytes(), table.read_text()
    with monkeypatch.context() as patch:
        if changed == "table":
            table.write_text("\n".join([head, *rows[:-1], rows[-1] + "9"]))
        else:
            patch.setenv("WORTH", "2")
        with Run.open(folder, write=True) as run, pytest.raises(InputError, match="says other prices than when"):
            run_job(job, run, lambda event: None)
    assert journal.read_bytes() == before
    table.write_text(table_before)
    with Run.open(folder, write=True) as run:
        run_job(job, run, lambda event: None)
    assert run.journal.records()[-1]["event"] == "finished"
