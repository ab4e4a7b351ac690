"""A Ray cluster gives what one process gives, though a machine of it dies; what is wrong with one is told at once."""

from __future__ import annotations

import builtins
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnas.config.job import JobConfig
from dnas.execution.executors import Folder, Setting, make_executor
from dnas.execution.scheduler import Ahead
from results.files import write_bytes
from results.run.folder import Run
from search_spaces.errors import InputError, JobError
from tests.dnas.execution.pieces import joined, killed_so_often, prepare, prepare_in, raises, raises_oddly, refuse, task
from tests.dnas.jobs.test_workers import same

CarriedOut = Callable[..., Run]
OPTIONS: dict[str, Any] = {"threads": 1, "num_gpus": 0.0, "most": None, "keep": write_bytes}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *given: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return imported(name, *given, **more)

    monkeypatch.delitem(sys.modules, "dnas.execution.cluster", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)


def test_a_missing_extra_is_told_with_the_line_that_installs_it(without_ray: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^executor 'ray'.*No module named 'ray'; pip install 'dnas\[ray\]'$"):
        make_executor("ray", [Setting(prepare, ("desk",))], address="auto", folder=tmp_path, **OPTIONS)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("address", ["nowhere", "10.0.0.1", "host:", "ray://host:10001", ":6379", "host:port"])
def test_an_address_that_is_none_is_told(address: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^ray.address = '.*' is neither auto, local nor HOST:PORT, such as"):
        make_executor("ray", [Setting(prepare, ("desk",))], address=address, folder=tmp_path, **OPTIONS)


def test_an_address_that_nobody_answers_at_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    sentence = (
        rf"^ray.address = '{address}': nobody answers there \(.*\); start a cluster on that machine with: ray start"
    )
    with pytest.raises(InputError, match=sentence):
        make_executor("ray", [Setting(prepare, ("desk",))], address=address, folder=tmp_path, **OPTIONS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three machines of a cluster, all of them this one, with a CPU each; the first cannot be removed."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.others = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


@pytest.fixture
def ray_logs_nothing() -> Iterator[None]:
    yield
    logging.getLogger("ray").handlers.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_carries_tasks_out(cluster: Any, tmp_path: Path) -> None:
    heard: list[Any] = []

    def scheduler_of(how: Callable[..., Any], **options: Any) -> Ahead:
        chosen = {**OPTIONS, "address": cluster.address, "folder": tmp_path, **options}
        return Ahead(make_executor("ray", [Setting(how, ("a machine",))], **chosen), lambda *told: heard.append(told))

    with pytest.raises(InputError, match=r"no machine of the Ray cluster at .* has 1 CPUs and 1 GPUs for a task"):
        scheduler_of(prepare, num_gpus=1.0)
    scheduler = scheduler_of(prepare)
    once = task("once", killed_so_often, file=str(tmp_path / "once"), times=1)
    often = task("often", killed_so_often, file=str(tmp_path / "often"), times=9)
    wrong, odd = task("wrong", raises, what="no such file"), task("odd", raises_oddly)
    scheduler.announce([once, often, wrong, odd])
    assert scheduler.outcome(once, heard.append) == "done after 1"
    assert heard == ["try 1"]  # what a process said before it died is gone with it
    with pytest.raises(InputError, match=r"^no such file$"):
        scheduler.outcome(wrong, heard.append)
    with pytest.raises(Exception, match="1 and 2"):
        scheduler.outcome(odd, heard.append)
    with pytest.raises(JobError, match=r"^the task 'often' was tried 3 times: .*; .* resume the run$"):
        scheduler.outcome(often, heard.append)
    assert len((tmp_path / "often").read_text()) == 3
    scheduler.close()
    scheduler = scheduler_of(refuse)
    with pytest.raises(InputError, match=r"^on .*: a machine has no device$"):
        scheduler.outcome(wrong, heard.append)
    scheduler.close()


@pytest.fixture
def unseen(tmp_path: Path) -> Iterator[Path]:
    """A folder under a path that leads there in this process alone: an open file of its own."""
    descriptor, number = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY), 713
    os.dup2(descriptor, number)
    yield Path(f"/proc/self/fd/{number}")
    os.close(descriptor)
    os.close(number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_see_the_folder_is_sent_files_and_returns_what_tasks_write(
    cluster: Any, unseen: Path
) -> None:
    executor = make_executor(
        "ray", [Setting(prepare_in, (Folder(str(unseen)),))], address=cluster.address, folder=unseen, **OPTIONS
    )
    assert re.search(r"and 2 more do not see /proc/self/fd/713: tasks are sent what they read", executor.told[0])
    scheduler = Ahead(executor, lambda *told: None)
    (unseen / "in").mkdir()
    (unseen / "in" / "word").write_text("word")
    (unseen / "half").write_text("an earlier try's ")
    (unseen / "secret").write_text("no task's")
    first = task("first", joined, reads=("in/word", "in/none"), writes=("half",), more=" one")
    second = task("second", joined, reads=("half",), writes=("out/whole",), more=" two")
    scheduler.announce([second, first])
    assert scheduler.outcome(second, lambda message: None) == ["half"]
    assert scheduler.outcome(first, lambda message: None) == ["half", "in/word"]
    assert (unseen / "half").read_text() == "an earlier try's word one"
    assert (unseen / "out" / "whole").read_text() == "an earlier try's word one two"
    assert scheduler.close() == []
    assert not list(Path(tempfile.gettempdir()).glob("dnas-*/secret"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_whose_run_no_machine_sees_gives_the_same(
    cluster: Any, smaller: Callable[..., JobConfig], smaller_run: Run, carried_out: CarriedOut, unseen: Path
) -> None:
    told: list[str] = []
    report = lambda event: told.append(event.get("text", ""))  # noqa: E731
    run = carried_out(smaller("executor=ray", f"ray.address={cluster.address}"), unseen / "run", report)
    same(run, smaller_run)
    assert any("what they write is returned through Ray" in text for text in told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_on_three_machines_gives_the_same_though_one_dies(
    cluster: Any, smaller: Callable[..., JobConfig], smaller_run: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    told: list[str] = []

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            told.append(event["text"])
        if (event["event"], event.get("stage")) == ("epoch", "warmup"):
            cluster.remove_node(cluster.others.pop(), allow_graceful=False)

    run = carried_out(smaller("executor=ray", f"ray.address={cluster.address}"), tmp_path / "run", report)
    same(run, smaller_run)
    assert len(cluster.others) == 1
    assert any("3 machines, 3 tasks at once" in text and "on storage that all of them share" in text for text in told)
