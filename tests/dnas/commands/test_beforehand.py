"""What is mistyped is told before PyTorch is loaded, by every command that takes a job or a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dnas.commands import beforehand
from dnas.config.file import dump_job, load_job
from results.run.folder import Run
from search_spaces.errors import InputError

MISTAKES = {
    "search nosuch": "there is no job file and no preset 'nosuch'",
    "search job.toml": "job.toml, line 2: [search] has no key 'epocs'",
    "search digits --set search.epocs=3": "search.epocs",
    "search digits --run own": "own already holds a run",
    "search digits --run full": "full is not empty and is not a run",
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
    "export own serch-1 --out net.onnx --format onnx": "has no assignment 'serch-1'",
}
CODE = """
import sys
from dnas.commands.cli import app
for words in sys.argv[1:]:
    code = app(words.split(), standalone_mode=False)
    print("after", words, code, "torch" in sys.modules, file=sys.stderr)
"""


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


def test_what_is_mistyped_is_told_before_torch_is_loaded(own: Path) -> None:
    command = [sys.executable, "-c", CODE, *MISTAKES]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=own.parent, env=environment, capture_output=True, text=True, check=True)
    told: list[str] = []
    for line in done.stderr.splitlines():
        told.append(line)
        if line.startswith("after "):
            words, code, heavy = line.removeprefix("after ").rsplit(" ", 2)
            assert (code, heavy) == ("2", "False"), told
            assert MISTAKES[words] in " ".join(told), told
            told = []
    assert done.stdout == ""
    assert sorted(path.name for path in own.parent.iterdir()) == ["full", "job.toml", "own"]


def test_a_folder_of_another_run_is_left_for_when_the_job_is_checked(own: Path) -> None:
    beforehand.check_new("digits", ["seed=1"], own)
    with pytest.raises(InputError, match="already holds a run"):
        beforehand.check_new("digits", [], own)


def test_processes_that_refuse_together_are_let_through(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    beforehand.check_new("nosuch", [], None)
    beforehand.check_run(Path("nosuch"))
