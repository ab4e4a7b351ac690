"""A job gives the same whoever carries its tasks out, in whatever order, and however many of them are killed."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.execution import local, worker
from dnas.execution.executors import Folder, Setting
from dnas.execution.scheduler import Hear, HearLive, Scheduler
from dnas.execution.tasks import JobTask, TaskGraph
from dnas.execution.transfer import laid_out, needed_files, read_files, written_files
from dnas.jobs import bench
from dnas.jobs.context import JobContext
from dnas.jobs.rank_requests import RankRequest
from dnas.jobs.ranking import rank_run
from dnas.jobs.resources import Resources, resources_of
from dnas.jobs.run import run_job
from dnas.training.processes import ALONE, Processes
from results.events import Note, Trial
from results.files import write_bytes
from results.run.environment import environment
from results.run.folder import Run
from search_spaces.allocation.solver import NotProven
from search_spaces.errors import InputError
from search_spaces.registry import import_limits, imported, importing_only
from tests.computing import copies_compute
from tests.dnas.jobs.kills import Event, identity

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
EVERYTHING = (
    "search.sample_every=1",
    "search.samples=1",
    "search.budgets=[{size_bytes='25%'},{size_bytes='30%'}]",
    "controls.uniform=[4]",
    "controls.ilp=true",
    "choice.enabled=true",
    "choice.draws=1",
    "choice.programs=1",
    "choice.refined=1",
    "choice.learned=1",
    "prune.enabled=true",
    "prune.assignments=['search-1','uniform-4']",
    "prune.at_most=2",
    "prune.trials=2",
    "prune.batch=2",
    "prune.finalists=2",
    "prune.finetune_epochs=1",
    "prune.controls=['uniform']",
    "finalise.enabled=true",
    "finalise.epochs=1",
)


def journal(run: Run) -> list[str]:
    return [identity({**record, "version": 0}) for record in run.journal.records() if record["event"] != "resumed"]


def kept(run: Run) -> dict[str, str]:
    """The files of a run by digest, but for those that hold times; of the warm supernet, its tensors."""
    found = {}
    for path in sorted(run.folder.rglob("*")):
        name = str(path.relative_to(run.folder))
        if path.is_file() and name not in ("journal.jsonl", "job.toml", ".lock", ".origin"):
            data = path.read_bytes()
            if name == "checkpoints/warmup.safetensors":
                data = data[8 + int.from_bytes(data[:8], "little") :]
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def same(one: Run, other: Run) -> None:
    assert journal(one) == journal(other)
    assert kept(one) == kept(other)


class Contrary(Scheduler):
    """Carries out everything that could begin before what is asked for, the least valuable first, at another bench.

    That sees nothing of the run: only the files that a task says it reads or writes are there, as on another machine.
    """

    made: list[Contrary]

    def __init__(self, setting: Setting, hear_live: HearLive) -> None:
        setting = pickle.loads(pickle.dumps(setting))
        [self.folder] = (Path(each.path) for each in setting.arguments if isinstance(each, Folder))
        self.elsewhere = self.folder.with_name("elsewhere")
        setting = setting.moved(Folder(str(self.elsewhere)))
        self.hear_live, self.graph = hear_live, TaskGraph()
        self.messages: dict[str, list[Any]] = {}
        self.values: dict[str, Any] = {}
        self.tasks: dict[str, JobTask] = {}
        self.asked: list[str] = []
        self.begun: list[str] = []
        self.ahead: list[str] = []
        self.bench = setting.prepare(self.send, *setting.arguments)
        self.made.append(self)

    def send(self, message: Any, live: bool) -> None:
        message = pickle.loads(pickle.dumps(message))
        if live:
            self.hear_live(self.begun[-1], message, self.begun[-1] in self.asked)
        else:
            self.messages[self.begun[-1]].append(message)

    def announce(self, tasks: Iterable[JobTask]) -> None:
        tasks = [pickle.loads(pickle.dumps(task)) for task in tasks]
        self.tasks |= {task.id: task for task in tasks}
        self.graph.add(tasks)

    def outcome(self, task: JobTask, hear: Hear) -> Any:
        self.announce([] if task.id in self.tasks else [task])
        self.asked.append(task.id)
        while task.id not in self.values:
            ready = self.graph.ready()
            self.carry_out(next((each for each in reversed(ready) if each.id != task.id), task))
        for message in self.messages[task.id]:
            hear(message)
        return self.values[task.id]

    def carry_out(self, task: JobTask) -> None:
        self.begun.append(task.id)
        self.ahead += [task.id] if task.id not in self.asked else []
        self.messages[task.id] = []
        self.graph.begin(task.id)
        with laid_out(self.elsewhere, read_files(self.folder, needed_files(task)), task):
            self.values[task.id] = pickle.loads(pickle.dumps(self.bench(task)))
            files = read_files(self.elsewhere, [str(p.relative_to(self.elsewhere)) for p in self.elsewhere.rglob("*")])
        changed = {name for name in files if name not in task.reads}
        assert changed <= set(task.writes)
        for name, content in written_files(task, files).items():
            write_bytes(self.folder / name, content)
        self.graph.end(task.id)

    def close(self) -> list[JobTask]:
        return [task for id, task in self.tasks.items() if id not in self.asked]


@pytest.fixture
def contrary(monkeypatch: pytest.MonkeyPatch) -> list[Contrary]:
    """Let every job with workers be carried out so; those that were, one for each job."""
    monkeypatch.setattr(bench, "make_executor", lambda name, settings: settings[0])
    monkeypatch.setattr(Setting, "told", (), raising=False)
    monkeypatch.setattr(bench, "Ahead", Contrary)
    monkeypatch.setattr(Contrary, "made", [], raising=False)
    return Contrary.made


@pytest.fixture(scope="module")
def everything(smaller: Job) -> JobConfig:
    """A job with every kind of task."""
    return smaller(*EVERYTHING)


@pytest.fixture(scope="module")
def alone(everything: JobConfig, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(everything, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.whole
def test_neither_the_order_of_the_tasks_nor_where_they_are_changes_anything(
    everything: JobConfig, alone: Run, carried_out: CarriedOut, contrary: list[Contrary], tmp_path: Path
) -> None:
    events: list[Event] = []
    run = carried_out(everything.model_copy(update={"workers": 2}), tmp_path / "run", events.append)
    same(run, alone)
    [made] = contrary
    kinds = {id.split()[0] for id in made.begun}
    assert kinds == {
        "pretrain",
        "sensitivities",
        "warmup",
        "θ",
        "refine",
        "choice",
        "finetune",
        "filters",
        "bayesian",
        "finalist",
        "finalise",
        "test",
    }
    assert {"finetune", "θ", "choice"} <= {id.split()[0] for id in made.ahead}
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions[-1] == pytest.approx(1.0)


SPARSE = (
    "model.arguments={width=4}",
    "compression=squantizer",
    "search.budgets=[]",
    "squantizer.weight_bits=[3,4]",
    "squantizer.budgets=[{size_bytes='15%'},{size_bytes='16%'}]",
    "squantizer.sigma=[]",
    "squantizer.trials=3",
    "controls.uniform=[]",
)


@pytest.mark.whole
def test_searches_of_sigma_take_turns_and_give_the_same(
    smaller: Job, carried_out: CarriedOut, contrary: list[Contrary], tmp_path: Path
) -> None:
    alone = carried_out(smaller(*SPARSE), tmp_path / "alone")
    same(carried_out(smaller(*SPARSE, "workers=2"), tmp_path / "run"), alone)
    trials = [id for id in contrary[0].begun if id.startswith("trial")]
    assert len(trials) == 12
    numbers = [event.trial.proposal.number for event in alone.journal.events() if isinstance(event, Trial)]
    assert numbers == [n for n in range(3) for _ in range(4)]


@pytest.mark.whole
def test_a_ranking_by_workers_is_that_of_one_process(
    smaller: Job, carried_out: CarriedOut, contrary: list[Contrary], tmp_path: Path
) -> None:
    made = carried_out(smaller("model.arguments={width=4}"), tmp_path / "made")
    request, found = RankRequest(assignments=5, epochs=1), []
    for overrides in ((), ("workers=2",)):
        folder = shutil.copytree(made.folder, tmp_path / f"run-{len(overrides)}")
        with Run.open(folder, write=True) as run:
            found.append(rank_run(run, request, lambda text: None, overrides))
        assert run.ranking() == found[-1]
    assert found[0] == found[1]
    assert contrary[0].begun == [f"rank {n}" for n in (5, 4, 3, 2, 1)]


@pytest.mark.whole
def test_trials_of_several_prunings_take_turns(alone: Run) -> None:
    trials = [event for event in alone.journal.events() if isinstance(event, Trial)]
    told = [(each.trial.proposal.number, each.run) for each in trials]
    count = 1 + max(number for number, _ in told)
    assert told == [(number, run) for number in range(count) for run in ("prune-search-1", "prune-uniform-4")]


def workers_of(pid: int) -> list[int]:
    """The worker processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "dnas.execution.worker" in (path / "cmdline").read_text():
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Forked:
    """A worker process that is a copy of this one: it has imported what takes a new interpreter seconds."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.returncode: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: here they wait
            self.pid = os.fork()
        if not self.pid:
            try:
                sys.argv = command[command.index("-m") + 1 :]
                worker.main()
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


@pytest.mark.whole
@pytest.mark.parametrize("new_ones", [0, 1])
def test_several_workers_give_the_same_though_one_is_killed(
    new_ones: int,
    smaller: Job,
    smaller_run: Run,
    carried_out: CarriedOut,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some are new interpreters, as all are elsewhere, and get the first tasks; the others are forked if possible."""
    killed: list[int] = []
    started: list[Any] = []
    new, forks = subprocess.Popen, copies_compute()

    def start(command: list[str], **options: Any) -> Any:
        started.append(Forked(command) if forks and len(started) >= new_ones else new(command, **options))
        return started[-1]

    def report(event: Event) -> None:
        if event["event"] == "progress" and event.get("stage") == "finetune" and not killed:
            killed.append(started[new_ones].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(local.subprocess, "Popen", start)
    run = carried_out(smaller("workers=4"), tmp_path / "run", report)
    same(run, smaller_run)
    assert killed
    assert len(started) == 5  # one stands in for the killed one
    assert all(each.returncode == -signal.SIGKILL for each in started[new_ones:])
    assert workers_of(os.getpid()) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same(
    workers: int, everything: JobConfig, alone: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    draw, killed = random.Random(workers), []

    def report(event: Event) -> None:
        if event["event"] == "epoch" and draw.random() < 0.1:
            killed.append(pid := draw.choice(workers_of(os.getpid())))
            os.kill(pid, signal.SIGKILL)

    same(carried_out(everything.model_copy(update={"workers": workers}), tmp_path / "run", report), alone)
    assert killed


@pytest.mark.slow
def test_a_job_whose_workers_are_ahead_of_a_kill_ends_the_same(
    everything: JobConfig, alone: Run, tmp_path: Path
) -> None:
    """Every tenth journal entry ends the process that writes it; its workers may be anywhere."""

    class Killed(BaseException):
        pass

    places: set[str] = set()
    config = everything.model_copy(update={"workers": 2})
    run = Run.create(tmp_path / "run", dump_job(config), environment())

    def report(event: Event) -> None:
        if event["event"] in ("epoch", "measured", "judged", "searched", "trial") and len(journal(run)) % 10 == 0:
            place = identity(event)
            if place not in places:
                places.add(place)
                raise Killed

    for _ in range(100):
        try:
            run_job(config, run, report)
            break
        except Killed:
            run.close()
            run = Run.open(run.folder, write=True)
    run.close()
    assert len(places) > 5
    assert kept(run) == kept(alone)


def test_the_devices_and_threads_are_shared_out(smaller: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)

    def shared(*settings: str, processes: Processes = ALONE, at_least: int = 1) -> tuple[int, int]:
        found = resources_of(smaller("threads=0", *settings), processes, at_least)
        assert found.in_process == (found.devices == ())
        return len(found.devices), found.threads

    assert shared() == (0, 1)
    assert shared("workers=1") == (0, 1)
    assert shared("workers=3") == (3, 2)
    assert shared("workers=3", "threads=5") == (3, 5)
    assert shared("workers=auto") == (8, 1)
    assert shared("workers=auto", "threads=3") == (2, 3)
    assert shared("workers=auto", "threads=16") == (0, 1)
    assert shared(at_least=2) == (2, 4)  # prune.workers of earlier job files
    assert shared("workers=1", at_least=2) == (0, 1)
    assert shared("workers=auto", processes=Processes(0, 2)) == (0, 1)
    for setting in ("workers=2", "executor=ray"):
        with pytest.raises(InputError, match="2 processes train together here; leave out workers and executor"):
            shared(setting, processes=Processes(0, 2))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resources_of(smaller("device=auto", "workers=5"), ALONE).devices == (*["cuda:0", "cuda:1"] * 2, "cuda:0")
    assert resources_of(smaller("device=cuda", "workers=auto"), ALONE).devices == ("cuda:0", "cuda:1")
    assert resources_of(smaller("device=cuda:1", "workers=2"), ALONE).devices == ("cuda:1", "cuda:1")
    assert resources_of(smaller("device=cpu", "workers=2"), ALONE).devices == ("cpu", "cpu")


def test_a_ray_cluster_gets_the_device_of_its_tasks(smaller: Job) -> None:
    assert resources_of(smaller("executor=ray", "device=auto"), ALONE) == Resources(("cpu",), 1)
    assert resources_of(smaller("executor=ray", "device=auto", "ray.num_gpus=0.5"), ALONE) == Resources(("cuda",), 1)
    assert resources_of(smaller("executor=ray", "threads=3"), ALONE) == Resources(("cpu",), 3)
    with pytest.raises(InputError, match="device = 'cuda' with executor = 'ray' needs the GPUs of each task; set ray"):
        resources_of(smaller("executor=ray", "device=cuda"), ALONE)


def test_a_worker_imports_no_more_than_the_process_that_it_works_for_and_tells_as_much(
    smaller: Job, smaller_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[Setting] = []
    context = JobContext(smaller(), Run.open(smaller_run.folder), lambda event: None)
    monkeypatch.setattr(bench, "make_executor", lambda name, given: settings.extend(given))
    with importing_only({"mine:allowed"}, "nobody trusts it"):
        bench._executor(context, Resources(("cpu",), 1))
    told: list[Any] = []
    send = lambda message, live: told.append(message)  # noqa: E731
    worker = settings[0].prepare(send, *pickle.loads(pickle.dumps(settings[0].arguments)))
    with pytest.raises(InputError, match=r"^a model 'os:system' is code, and nobody trusts it$"):
        worker(JobTask("imports", imports, {"source": "os:system"}))
    assert import_limits() is None
    worker(JobTask("warns", warns, {"sentence": "not proven in 10 s"}))
    assert told == [Note(text="not proven in 10 s").to_json()]


def warns(context: JobContext, seed: int, sentence: str) -> None:
    warnings.warn(NotProven(sentence), stacklevel=1)


def imports(context: JobContext, seed: int, source: str) -> None:
    imported(source, "a model")
