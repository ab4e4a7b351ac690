"""Whatever a run loses is made again by `dnas resume`, as it was; nothing goes in circles."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from dnas.commands import cli
from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs.run import run_job
from results.run.environment import environment
from results.run.folder import Run
from results.run.lost import lost_files

Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\x00"),
}
SETTINGS = (
    "finetune.start=supernet",
    "search.sample_every=1",
    "search.samples=1",
    "prune.enabled=true",
    "prune.assignments=['search-1']",
    "prune.budgets=[{size_bytes='80%'}]",
    "prune.trials=3",
    "prune.finalists=1",
    "prune.controls=['uniform']",
    "finalise.enabled=true",
    "finalise.epochs=1",
    "finalise.profiles=['search-1','w4a4']",
)


@pytest.fixture(scope="module")
def whole(
    smaller: Callable[..., JobConfig], carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return carried_out(smaller(*SETTINGS), tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def dnas(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    passing = ("journal.jsonl", ".lock", ".owner")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in passing]
    return {str(path.relative_to(folder)): content(path) for path in files}


def content(path: Path) -> bytes:
    """What a file holds; of a checkpoint the tensors, as its header tells how many seconds an epoch took."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :] if path.suffix == ".safetensors" else data


LOSSES = (
    # Files that do not need each other, each harmed in its own way; what is in front.csv and front.png nobody reads.
    {"checkpoints/pretrain": "gone", "assignments/uniform-4": "empty", "front.json": "damaged"},
    {"checkpoints/warmup": "empty", "checkpoints/net-uniform-4-seed0": "damaged", "assignments/w4a4": "gone"},
    {"checkpoints/net-search-1-seed0": "damaged", "checkpoints/net-switchable-1-seed0": "gone"},
    {"checkpoints/net-search-1-pruned-1-seed0": "empty", "assignments/sampled-1-epoch1-1": "damaged"},
    {"assignments/search-1": "gone", "assignments/switchable-1-search-1": "empty"},
    {"assignments/search-1-pruned-1": "damaged", "front.csv": "gone", "front.png": "empty", "environment.json": "gone"},
)


def named(file: str) -> str:
    """The whole name of a file of a run."""
    folder = file.partition("/")[0]
    return f"{file}.safetensors" if folder == "checkpoints" else f"{file}.json" if folder == "assignments" else file


@pytest.mark.whole
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: next(iter(loss)))
def test_lost_files_are_made_again_as_they_were(whole: Path, folder: Path, loss: dict[str, str]) -> None:
    for file, damage in loss.items():
        DAMAGES[damage](folder / named(file))
    result = dnas("resume", folder)
    assert result.exit_code == 0, result.output
    for file, damage in loss.items():
        assert f"{named(file)} is {damage}: it is made again" in result.stdout
    kept = {path: data for path, data in contents(whole).items() if path != "environment.json"}
    assert {path: data for path, data in contents(folder).items() if path != "environment.json"} == kept
    assert json.loads((folder / "environment.json").read_text())["torch"]
    assert "nothing is left to do" in dnas("resume", folder).stderr


class Killed(BaseException):
    """What no code but this test catches."""


def flip(path: Path, draw: random.Random) -> None:
    """Change some bytes of a file, wherever."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    path.write_bytes(data)


@pytest.mark.whole
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 25))])
def test_bytes_that_change_at_random_are_told_and_never_make_another_result(
    seed: int, whole: Path, smaller: Callable[..., JobConfig], tmp_path: Path
) -> None:
    draw, config, folder = random.Random(seed), smaller(*SETTINGS), tmp_path / "run"
    left = draw.randrange(10, len((whole / "journal.jsonl").read_text().splitlines()))

    def report(event: Any) -> None:
        nonlocal left
        left -= event["event"] != "progress"
        if left <= 0:
            raise Killed

    with Run.create(folder, dump_job(config), environment()) as run, pytest.raises(Killed):
        run_job(config, run, report)
    paths = [folder / name for name in contents(folder) if name not in ("job.toml", ".origin")]
    harmed = [path for path in paths if path.stat().st_size and draw.random() < 0.7]
    for path in harmed:
        flip(path, draw)
    for path in harmed:
        result = dnas("resume", folder)
        if result.exit_code == 0:
            break
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        (named,) = [path for path in harmed if str(path) in result.stderr]
        named.unlink()
    assert contents(folder).keys() == contents(whole).keys()
    different = {name for name, data in contents(folder).items() if data != contents(whole)[name]}
    assert different <= {"environment.json"}
    for path in harmed:
        name = str(path.relative_to(folder))
        assert name in result.output or name in different or path.name.startswith(("search", "front")), name


@pytest.mark.whole
@pytest.mark.parametrize("name", ["journal.jsonl", "job.toml"])
def test_bytes_that_change_in_what_a_run_stands_on_are_told(name: str, folder: Path) -> None:
    path, draw = folder / name, random.Random(name)
    sound = path.read_bytes()
    for _ in range(30):
        path.write_bytes(sound)
        flip(path, draw)
        harmed, before = path.read_bytes(), contents(folder)
        result = dnas("resume", folder)
        torn = name == "journal.jsonl" and result.exit_code == 0 and harmed[:-500] == sound[:-500]
        assert torn or (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert torn or str(path) in result.stderr
        assert {**contents(folder), "job.toml": b""} == {**before, "job.toml": b""}


def test_the_file_of_another_net_is_damaged(whole: Path, folder: Path) -> None:
    """Both fit the same network: without its name one would be served for the other."""
    other, file = (folder / "checkpoints" / f"net-{name}-seed0.safetensors" for name in ("uniform-4", "search-1"))
    shutil.copy(other, file)
    assert "it is the file of 'net-uniform-4-seed0'" in dnas("evaluate", folder, "search-1").stderr
    assert dnas("resume", folder).exit_code == 0
    assert contents(folder) == contents(whole)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "net", "damage", "told"),
    [
        ("search-1", "net-search-1-seed0", "values", "holds NaN"),
        ("float", "pretrain", "shapes", "are not those of this net"),
    ],
)
def test_a_checkpoint_that_can_be_read_but_not_used_is_told(
    folder: Path, name: str, net: str, damage: str, told: str
) -> None:
    run = Run.open(folder, write=True)
    tensors, values = run.load_checkpoint(net) or ({}, {})
    spoilt = {key: tensor * torch.nan if damage == "values" else torch.zeros(7) for key, tensor in tensors.items()}
    run.save_checkpoint(net, spoilt, values)
    run.close()
    result = dnas("evaluate", folder, name)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert told in result.stderr
    (folder / "checkpoints" / f"{net}.safetensors").unlink()  # does what it said
    assert dnas("resume", folder).exit_code == 0
    assert dnas("evaluate", folder, name).exit_code == 0


@pytest.mark.whole
def test_commands_that_need_a_lost_net_say_what_makes_it_again(whole: Path, folder: Path, tmp_path: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    nets = ("search-1", "search-1-pruned-1", "switchable-1-w4a4", "switchable-1")
    exports = {net: ("export", folder, net, "--format", "packed", "--out", tmp_path / net) for net in nets}
    for export in exports.values():
        result = dnas(*export)
        assert result.exit_code == 2
        assert result.stderr.endswith(f"is gone from {folder}; train it again with: dnas resume {folder}\n")
    shutil.rmtree(folder / "assignments")
    assert dnas(*result.stderr.rpartition("dnas ")[2].split()).exit_code == 0  # does what it said
    assert contents(folder) == contents(whole)
    for net, export in exports.items():
        assert dnas(*export).exit_code == 0
        assert (tmp_path / net).stat().st_size


@pytest.mark.whole
def test_one_damaged_assignment_stops_no_other_command(folder: Path, tmp_path: Path) -> None:
    damaged = folder / "assignments" / "uniform-4.json"
    damaged.write_text("{")
    for words in (
        ("show", folder),
        ("show", folder, "search-1"),
        ("switch", folder),
        ("status", folder),
        ("plot", folder, "--out", tmp_path / "picture.png"),
        ("export", folder, "search-1", "--format", "packed", "--out", tmp_path / "net.safetensors"),
        ("export", folder, "--format", "packed", "--out", tmp_path / "nets.safetensors"),
        ("evaluate", folder, "search-1"),
    ):
        result = dnas(*words)
        assert result.exit_code == 0, (words, result.output)
    assert f"{damaged} is damaged" in dnas("show", folder, "uniform-4").stderr
    shown = folder / "assignments" / f"{Run.open(folder).load_front().front[0].assignment}.json"
    whole = shown.read_bytes()
    shown.write_text("{")
    assert f"{shown} is damaged" in dnas("show", folder).stderr
    shown.write_bytes(whole)
    refused = dnas("show", folder, "uniform-4")
    assert refused.exit_code == 2
    assert f"make it again with: dnas resume {folder}" in refused.stderr
    assert dnas("finalise", folder, "--profiles", "search-1", "--set", "epochs=1").exit_code == 0
    assert dnas("show", folder, "uniform-4").exit_code == 0


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"garbage",
        b"\x00\xff\x00",
        b'{"event": 3, "time": 1.0}\n',
        b'{"event": "epoch", "time": 1.0, "stage": "search"}\n',
    ],
)
def test_a_journal_that_was_emptied_or_replaced_is_refused_untouched(folder: Path, journal: bytes) -> None:
    (folder / "journal.jsonl").write_bytes(journal)
    before = contents(folder)
    for words in (
        ("resume", folder),
        ("status", folder),
        ("prune", folder, "search-1"),
        ("evaluate", folder, "search-1"),
    ):
        result = dnas(*words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (words, result.output)
        assert "restore the file from a copy, or start again with another --run" in result.stderr
    assert contents(folder) == before
    assert (folder / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize(("name", "part"), [("job.toml", "put the job file"), ("journal.jsonl", "start again")])
def test_a_run_without_its_job_or_its_journal_is_told_and_stops_no_list_of_runs(
    folder: Path, name: str, part: str
) -> None:
    text = (folder / name).read_bytes()
    (folder / name).unlink()
    for command in ("resume", "show", "status"):
        result = dnas(command, folder)
        assert result.exit_code == 2
        assert f"has lost its {name}" in result.stderr
        assert part in result.stderr
    shutil.copytree(folder, folder.parent / "runs" / "other")
    rows = json.loads(dnas("status", folder, folder.parent / "runs", "--json").stdout)
    assert [row["state"] for row in rows] == ["damaged", "damaged"]
    (folder / name).write_bytes(text)
    assert "nothing is left to do" in dnas("resume", folder).stderr


READING = {
    "front.json": (("show",), ("show", "float"), ("switch",), ("plot",)),
    "front.png": (("plot",),),
    "assignments/search-1.json": (("show", "search-1"), ("evaluate", "search-1"), ("export", "search-1", "--out", "o")),
    "checkpoints/pretrain.safetensors": (("evaluate", "float"),),
    "checkpoints/net-search-1-seed0.safetensors": (("evaluate", "search-1"),),
    "checkpoints/net-switchable-1-seed0.safetensors": (("evaluate", "switchable-1-w4a4"),),
    "environment.json": (),
    "front.csv": (),
    ".lock": (),
    ".owner": (),
}


@pytest.mark.whole
@pytest.mark.parametrize("file", READING)
def test_a_folder_in_the_place_of_a_file_is_named_with_the_next_step(folder: Path, file: str) -> None:
    path = folder / file
    path.unlink(missing_ok=True)
    path.mkdir()
    before = contents(folder)
    writing = (("resume",), ("prune", "search-1"), ("finalise",))
    for command, *words in (*READING[file], *writing):
        result = dnas(command, folder, *words)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (command, result.output)
        assert f"{path}" in result.stderr
        assert "is a folder" in result.stderr
        assert "move it away" in result.stderr
        assert f"dnas resume {folder}" in result.stderr or command == "plot"
    assert contents(folder) == before
    path.rmdir()  # does what it said; that files are made again is tested above
    if file in ("front.json", "assignments/search-1.json", ".owner"):
        assert dnas("resume", folder).exit_code == 0


@pytest.mark.parametrize("name", ["journal.jsonl", "job.toml"])
def test_a_folder_in_the_place_of_what_a_run_stands_on_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    for command in ("resume", "show", "status", "switch"):
        result = dnas(command, folder)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (command, result.output)
        assert f"{folder / name} is a folder where the run keeps a file; move it away and restore" in result.stderr


@pytest.mark.parametrize("name", ["assignments", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    (folder / name).write_text("")
    result = dnas("resume", folder)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert f"{folder / name} is a file where the run keeps a folder; move it away, then go on" in result.stderr


def test_a_file_is_no_run(tmp_path: Path) -> None:
    for name, step in (("net.safetensors", "a packed net is opened in Python: dnas.load("), ("front.json", "a run")):
        (tmp_path / name).write_text("")
        for words in (("evaluate", "search-1"), ("switch",), ("show",), ("resume",), ("export", "--out", "o")):
            result = dnas(words[0], tmp_path / name, *words[1:])
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
            assert f"{tmp_path / name} is a file, and a run is a folder; name the folder of" in result.stderr
            assert step in result.stderr


def test_a_run_whose_job_was_emptied_is_not_resumed_as_another_job(folder: Path) -> None:
    (folder / "job.toml").write_text("")
    result = dnas("resume", folder)
    assert result.exit_code == 2
    assert "job.toml is empty" in result.stderr


def test_lost_files_of_a_whole_run_are_none(whole: Path) -> None:
    assert lost_files(Run.open(whole)) == []


def test_the_float_network_is_measured_again(folder: Path) -> None:
    reference = Run.open(folder).load_front().reference
    assert reference is not None
    for split, top1 in (("val", reference.val), ("test", reference.test)):
        shown = json.loads(dnas("evaluate", folder, "float", "--split", split, "--json").stdout)
        assert (shown["assignment"], shown["top1"]["mean"]) == ("float", top1)
    (folder / "checkpoints" / "pretrain.safetensors").unlink()
    assert "train it again with: dnas resume" in dnas("evaluate", folder, "float").stderr
    assert dnas("resume", folder).exit_code == 0
    assert dnas("evaluate", folder, "float").exit_code == 0
