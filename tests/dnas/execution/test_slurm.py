"""Slurm's queue gives what one process gives, though jobs of it die; what is wrong with it is told at once.

Jobs go through submitit to processes of this machine, and to a Slurm of five shell scripts that answers as Slurm does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnas.config.job import JobConfig
from dnas.execution.executors import Executor, Setting, make_executor
from dnas.execution.scheduler import Ahead
from results.run.folder import Run
from search_spaces.errors import InputError, JobError
from tests.dnas.execution.pieces import doubled, killed_so_often, prepare, raises, raises_oddly, refuse, task, waits
from tests.dnas.jobs.test_workers import same

slurm = pytest.importorskip("dnas.execution.slurm", reason="the extra submitit is not installed")

SCRIPTS = {
    # Hands the number of a process out as that of a job, like sbatch; its environment is what Slurm gives a job.
    "sbatch": """job="$SLURM_STANDIN/job$(( $(ls "$SLURM_STANDIN" | grep -c '^job') + 1000 ))"; mkdir "$job"
cp "$1" "$job/script"
export SLURM_JOB_ID=${job##*job} SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_JOB_NODELIST=here
setsid bash -c 'bash "$0/script"; echo $? > "$0/rc"' "$job" > /dev/null 2> "$job/err" < /dev/null &
echo $! > "$job/pid"
echo "Submitted batch job $SLURM_JOB_ID" """,
    "srun": """while [ "${1#--}" != "$1" ]; do
  case $1 in --output) out=$2; shift;; --error) err=$2; shift;; esac
  shift
done
fill() { echo "$1" | sed "s/%j/$SLURM_JOB_ID/; s/%A/$SLURM_JOB_ID/; s/%t/0/"; }
exec "$@" > "$(fill "$out")" 2> "$(fill "$err")" """,
    "sacct": """echo 'JobID|State|NodeList'
for job in "$SLURM_STANDIN"/job*; do
  state=RUNNING; [ -e "$job/rc" ] && { [ "$(cat "$job/rc")" = 0 ] && state=COMPLETED || state=FAILED; }
  echo "${job##*job}|$state|here"
done""",
    "scancel": """touch "$SLURM_STANDIN/cancelled"; pkill -KILL -s "$(cat "$SLURM_STANDIN/job$1/pid")" || true""",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that is none."""
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    for name, script in SCRIPTS.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("SLURM_STANDIN", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that is not there when its job has ended is not waited for: this disk is no network's."""
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    monkeypatch.setattr(slurm, "_SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.fixture
def made(tmp_path: Path, at_once: None) -> Iterator[Callable[..., Executor]]:
    executors: list[Executor] = []

    def make(how: Callable[..., Any] = prepare, **options: Any) -> Executor:
        chosen = {"cluster": "local", "threads": 1, "num_gpus": 0, "most": 2, "parameters": {}, "suffix": ".tmp"}
        executors.append(
            make_executor("submitit", [Setting(how, ("a job",))], folder=tmp_path, **{**chosen, **options})
        )
        return executors[-1]

    yield make
    for each in executors:
        each.close()


def left(folder: Path) -> list[Path]:
    return list(folder.glob(".submitit-*"))


@pytest.mark.whole
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_queue_carries_tasks_out(cluster: str, made: Callable[..., Executor], stand_in: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    scheduler = Ahead(made(cluster=cluster, most=4), lambda *told: None)
    number = task("number", doubled, number=4)
    once = task("once", killed_so_often, file=str(tmp_path / "once"), times=1)
    wrong, odd = task("wrong", raises, what="no such file"), task("odd", raises_oddly)
    scheduler.announce([number, once, wrong, odd])
    assert scheduler.outcome(number, heard.append) == 8
    assert heard == [{"number": 4}, {"twice": 8}]
    assert scheduler.outcome(once, heard.append) == "done after 1"
    with pytest.raises(InputError, match=r"^no such file$"):
        scheduler.outcome(wrong, heard.append)
    with pytest.raises(Exception, match="1 and 2"):
        scheduler.outcome(odd, heard.append)
    assert scheduler.close() == []
    assert not left(tmp_path)


@pytest.mark.whole
def test_a_task_whose_jobs_die_is_given_up_and_a_machine_without_a_device_is_named(
    made: Callable[..., Executor], tmp_path: Path
) -> None:
    scheduler = Ahead(made(), lambda *told: None)
    often = task("often", killed_so_often, file=str(tmp_path / "often"), times=9)
    with pytest.raises(JobError, match=r"^the task 'often' was tried 3 times: its job \d+ of the queue ended with: "):
        scheduler.outcome(often, lambda message: None)
    assert len((tmp_path / "often").read_text()) == 3
    scheduler.close()
    scheduler = Ahead(made(refuse), lambda *told: None)
    with pytest.raises(InputError, match=r"^on .*: a job has no device$"):
        scheduler.outcome(task("any", doubled, number=1), lambda message: None)
    scheduler.close()


@pytest.mark.whole
def test_what_runs_ends_when_nobody_waits_for_it_any_more(
    made: Callable[..., Executor], stand_in: Path, tmp_path: Path
) -> None:
    executor, file = made(cluster="slurm"), tmp_path / "process"
    executor.start(task("waits", waits, file=str(file)))
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        executor.reports()
    executor.close()
    assert (stand_in / "cancelled").exists()
    number = int(file.read_text())
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < deadline
        os.sched_yield()
    assert not left(tmp_path)


def test_a_job_asks_for_what_the_settings_say(made: Callable[..., Executor], stand_in: Path) -> None:
    parameters = {"timeout_min": 90, "partition": "night", "slurm_setup": ["module load python"]}
    executor = made(cluster="slurm", threads=3, num_gpus=2, parameters=parameters)
    executor.start(task("number", doubled, number=4))
    script = (stand_in / "job1000" / "script").read_text()
    for line in ("cpus-per-task=3", "gpus-per-node=2", "time=90", "partition=night", "job-name=dnas"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load python\n" in script
    assert executor.free == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cluster": "slurm"}, r"'slurm' takes no job: Could not detect \"srun\".*[?] start where srun and sbatch are"),
        ({"parameters": {"queue": "night"}}, "takes no job: .*'queue' need to be prefixed"),
        ({"parameters": {"slurm_queue": "night"}}, "takes no job: .*Unknown argument 'queue'"),
        ({"parameters": {"timeout_min": "soon"}}, "takes no job: .*timeout_min.*soon"),
        ({"parameters": {"nodes": 2}}, "takes no job: .*one node"),
    ],
)
def test_a_queue_that_takes_no_job_is_told_and_leaves_nothing(
    options: dict[str, Any],
    sentence: str,
    made: Callable[..., Executor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=sentence) as told:
        made(**options)
    assert len(str(told.value)) < 500
    assert not left(tmp_path)


@pytest.mark.parametrize("gone", ["folder", "beat"])
def test_a_job_ends_without_a_beat(gone: str, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_SECONDS_WITHOUT_BEAT", 0.2 if gone == "beat" else 60.0)
    beat, ended = tmp_path / "handed in" / "beat", []
    if gone == "beat":
        beat.parent.mkdir()
        beat.write_text("1")
    monkeypatch.setattr(os, "_exit", ended.append)
    slurm._end_without_beat(beat)
    assert ended == [1]


@pytest.mark.slow
def test_a_job_through_a_queue_gives_the_same(
    smaller: Callable[..., JobConfig],
    smaller_run: Run,
    carried_out: Callable[..., Run],
    stand_in: Path,
    tmp_path: Path,
) -> None:
    told: list[str] = []
    run = carried_out(
        smaller("executor=submitit", "workers=2"), tmp_path / "run", lambda event: told.append(event.get("text", ""))
    )
    same(run, smaller_run)
    assert len(list(stand_in.glob("job*"))) >= 5  # tasks of the run, a job each
    assert any(text.startswith("tasks go to the queue of slurm, at most 2 at once") for text in told)
    assert not left(run.folder)
