"""What is mistyped is told before PyTorch is loaded, by every command that takes a job or a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas import commands
from dnas.commands import beforehand, cli
from dnas.config.file import dump_job, load_job
from results.run.folder import Run
from search_spaces.errors import InputError

MISTAKES = {
    "search nosuch": "there is no job file and no preset 'nosuch'",
    "search job.toml": "job.toml, line 2: [search] has no key 'epocs'",
    "search digits --set search.epocs=3": "search.epocs",
    "search digits --run own": "own already holds a run",
    "search digits --run full": "full is not empty and is not a run",
    "search digits --run job.toml/run": "job.toml/run cannot hold a run: Not a directory",
    f"search digits --run {'x' * 300}": "cannot hold a run: File name too long",
    "search nosuch --detach": "there is no job file",
    "search nosuch --nproc-per-node 2": "there is no job file",
    "train-switchable nosuch": "there is no job file",
    "resume nosuch": "there is no run at",
    "resume own --workers none": "workers",
    "resume nosuch --detach": "there is no run at",
    "prune nosuch search-1": "there is no run at",
    "prune own serch-1": "has no assignment 'serch-1'",
    "prune own search-1 --budget size_bytes": "size_bytes",
    "prune own search-1 --set criterium=taylor": "prune.criterium",
    "finalise nosuch": "there is no run at",
    "finalise own --set epocs=3": "finalise.epocs",
    "finalise own --profiles ,": "no profile is named",
    "doctor": "name a MODEL",
    "doctor --job nosuch": "there is no job file",
    "doctor zoo:tiny_resnet --budget 12%": "not of the form COST=AMOUNT",
    "doctor zoo:tiny_resnet --input-shape 3,a": "is not a shape",
    "sensitivity nosuch": "'nosuch' is no run",
    "sensitivity --job nosuch": "there is no job file",
    "sensitivity own --device nowhere": "device",
    "rank nosuch": "there is no run at",
    "rank own --budget much": "not of the form COST=AMOUNT",
    "bench-latency own --runtime torch --input-shape 3,a": "is not a shape",
    "bench-latency own --runtime torch --out table.txt": "must be a file whose name ends in .json",
    "evaluate nosuch search-1": "there is no run at",
    "evaluate own serch-1": "has no assignment 'serch-1'",
    "export nosuch search-1 --out net.dnas --format packed": "there is no run at",
    "export own search-1 --out net.onnx --format onxx": "unknown format 'onxx'; did you mean 'onnx'?",
    "export own serch-1 --out net.onnx --format onnx": "has no assignment 'serch-1'",
}
HEAVY = ("doctor_view", "exporting", "latency_view", "launching", "processes", "rank_view", "sensitivity_view")
"""The modules of commands that load torch."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of the default job, beside a wrong job file and a folder of something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    Path("job.toml").write_text("[search]\nepocs = 3\n")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    with Run.create("own", dump_job(load_job("digits")), {}) as run:
        run.journal.append({"event": "started"})
    return tmp_path / "own"


@pytest.mark.parametrize("words", MISTAKES)
def test_what_is_mistyped_is_told_before_torch_is_loaded(
    own: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HEAVY:
        monkeypatch.delattr(commands, name, raising=False)
        monkeypatch.setitem(sys.modules, f"{commands.__name__}.{name}", None)  # to import it is an error
    done = CliRunner().invoke(cli.app, words.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert MISTAKES[words] in done.stderr
    assert sorted(path.name for path in own.parent.iterdir()) == ["full", "job.toml", "own"]


def test_what_tells_it_loads_no_torch() -> None:
    modules = ("beforehand", "cli", "detaching", "serving", "trust", "written")
    code = f"import sys, {', '.join(f'dnas.commands.{name}' for name in modules)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_a_folder_of_another_run_is_left_for_when_the_job_is_checked(own: Path) -> None:
    beforehand.check_new("digits", ["seed=1"], own)
    with pytest.raises(InputError, match="already holds a run"):
        beforehand.check_new("digits", [], own)


def test_processes_that_refuse_together_are_let_through(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    beforehand.check_new("nosuch", [], None)
    beforehand.check_run(Path("nosuch"))
