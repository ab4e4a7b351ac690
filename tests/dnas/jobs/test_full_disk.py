"""A disk that is full, at whatever file: a sentence, the last good state, a resume that ends as if there was room."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs.run import run_job
from results.run.folder import Run
from results.run.lost import lost_files
from search_spaces.errors import JobError
from tests.dnas.jobs.kills import history, outcome

Job = Callable[..., JobConfig]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit on the size of every file that this process writes, which the system enforces as it does a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sizes(run: Run) -> dict[str, int]:
    return {str(path.relative_to(run.folder)): path.stat().st_size for path in run.folder.rglob("*") if path.is_file()}


def check(config: JobConfig, whole: Run, folder: Path, size: int) -> None:
    """Carry the job out with no room for larger files, which is told, then with room."""
    with Run.create(folder, dump_job(config), {}) as run:
        with files_of_at_most(size), pytest.raises(JobError, match=r"cannot write .* go on with dnas resume"):
            run_job(config, run, lambda event: None)
        assert lost_files(run) == []
        assert not list(folder.rglob(".*.tmp"))
    with Run.open(folder, write=True) as run:
        run_job(config, run, lambda event: None)
    assert history(run) == history(whole)
    assert outcome(run) == outcome(whole)


def test_the_journal_finds_no_room(smaller: Job, smaller_run: Run, tmp_path: Path) -> None:
    check(smaller(), smaller_run, tmp_path / "run", sizes(smaller_run)["journal.jsonl"] - 200)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.999])
def test_any_file_finds_no_room(share: float, smaller: Job, smaller_run: Run, tmp_path: Path) -> None:
    check(smaller(), smaller_run, tmp_path / "run", int(share * max(sizes(smaller_run).values())))
