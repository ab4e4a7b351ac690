"""A task is what any process can carry out; the graph lets begin what waits for nothing, the most valuable first."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from dnas.execution.executors import RemoteError, sendable
from dnas.execution.tasks import JobTask, TaskGraph
from search_spaces.errors import InputError
from tests.dnas.execution.pieces import Desk, doubled


def of(id: str, work: float = 1.0, reads: str = "", writes: str = "") -> JobTask:
    return JobTask(id, doubled, {}, work=work, reads=tuple(reads), writes=tuple(writes))


def test_a_task_is_sent_as_it_is() -> None:
    inputs = {"number": 3, "list": [1, ("a", None)], "deep": {"x": 0.5, 4: True}, "path": Path("a")}
    task = JobTask("double", doubled, inputs, seed=2, work=3.0, reads=("a",), writes=("b",))
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize("value", [torch.zeros(1), object(), {"a": [{1, 2}]}, {(1, 2): 3}, Path.cwd, doubled])
def test_live_objects_are_no_inputs(value: Any) -> None:
    with pytest.raises(TypeError, match="task 'one': its input 'given' is no plain value"):
        JobTask("one", doubled, {"given": value})


def test_functions_that_another_process_cannot_import_are_refused() -> None:
    def local(desk: Desk, seed: int) -> None: ...

    of_main = type(local)(local.__code__, {"__name__": "__main__"}, "of_main")
    for function in (local, lambda desk, seed: None, Desk.__init__, itertools.count(), of_main):
        with pytest.raises(TypeError, match="is not a function of a module that can be imported"):
            JobTask("one", function)


def test_an_error_is_sent_as_what_it_was_raised_from_where_memory_ended() -> None:
    memory, taken, odd = torch.OutOfMemoryError("CUDA out of memory"), InputError("images"), ValueError(lambda: 0)
    assert isinstance(sendable(odd, pickle.dumps), RemoteError)
    assert sendable(taken, pickle.dumps) is taken
    taken.__cause__ = memory
    assert isinstance(pickle.loads(pickle.dumps(sendable(taken, pickle.dumps))), torch.OutOfMemoryError)


def test_a_task_waits_for_the_files_that_it_reads_whoever_was_added_first() -> None:
    graph = TaskGraph()
    graph.add([of("reader", reads="ab"), of("a", writes="a")])
    graph.add([of("b", writes="b"), of("free", reads="c")])  # nobody makes c: it is there
    assert {task.id for task in graph.ready()} == {"a", "b", "free"}
    for id in ("a", "b", "free"):
        graph.begin(id)
    graph.end("a")
    assert graph.ready() == []
    graph.end("b")
    assert [task.id for task in graph.ready()] == ["reader"]
    graph.begin("reader")
    assert graph.ready() == []
    graph.again("reader")
    assert [task.id for task in graph.ready()] == ["reader"]


def test_what_most_waits_for_comes_first_and_equals_in_order() -> None:
    graph = TaskGraph()
    graph.add(
        [of("x", 3), of("y", 3), of("first", 1, writes="a"), of("second", 1, "a", "b"), of("third", 2, "b"), of("z", 5)]
    )
    assert [task.id for task in graph.ready()] == ["z", "first", "x", "y"]


@given(some.lists(some.tuples(some.floats(0, 9), some.sets(some.integers(0, 6))), max_size=7))
def test_values_are_the_longest_ways_that_brute_force_finds(made: list[tuple[float, set[int]]]) -> None:
    tasks = [
        JobTask(str(n), doubled, work=work, reads=tuple(str(file) for file in reads if file < n), writes=(str(n),))
        for n, (work, reads) in enumerate(made)
    ]

    def longest(task: JobTask) -> float:
        return task.work + max((longest(other) for other in tasks if task.id in other.reads), default=0.0)

    graph = TaskGraph()
    graph.add(reversed(tasks))
    assert graph.values() == pytest.approx({task.id: longest(task) for task in tasks})


def test_another_task_of_a_known_id_is_refused_and_changes_nothing() -> None:
    known = JobTask("one", doubled, {"number": 1}, seed=2, work=3.0, reads=("a",), writes=("b",))
    graph = TaskGraph()
    graph.add([known, known])
    graph.add([replace(known, work=9.0)])  # how much there is to do is only guessed
    for change in ({"inputs": {"number": 2}}, {"seed": 3}, {"reads": ()}, {"writes": ("c",)}, {"function": JobTask}):
        with pytest.raises(ValueError, match=r"^there is another task 'one' already, of other inputs or files$"):
            graph.add([of("new"), replace(known, **change)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another task 'two'"):
        graph.add([of("two"), of("two", reads="x")])
    assert graph.ready() == [known]


def test_tasks_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="tasks wait for each other"):
        TaskGraph().add([of("a", reads="b", writes="a"), of("b", reads="a", writes="b")])
