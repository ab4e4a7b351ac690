"""Whatever an executor does first, the caller sees what one process would have shown it."""

from __future__ import annotations

import pickle
import queue
import random
from collections.abc import Sequence
from typing import Any

import pytest

from dnas.execution.executors import Done, Executor, Lost, Refused, Report, Told
from dnas.execution.scheduler import Ahead, InThisProcess
from dnas.execution.tasks import JobTask
from search_spaces.errors import InputError, JobError
from tests.dnas.execution.pieces import Desk, doubled, prepare, raises, task


class Hostile(Executor):
    """Carries out whatever it likes of what it has, in any order, and loses some of it half done."""

    def __init__(self, places: int, seed: int = 0, lost: Sequence[str] = (), final: bool = False) -> None:
        self.places, self.draw, self.lost, self.final = places, random.Random(seed), list(lost), final
        self.has: list[JobTask] = []
        self.began: list[str] = []
        self.awake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.closed = False

    @property
    def free(self) -> int:
        return self.places - len(self.has)

    def start(self, task: JobTask) -> None:
        assert len(self.has) < self.places
        self.began.append(task.id)
        self.has.append(pickle.loads(pickle.dumps(task)))

    def reports(self) -> list[Report]:
        if not self.has:
            self.awake.get()
            return []
        task = self.has.pop(self.draw.randrange(len(self.has)))
        found: list[Report] = []
        bench = prepare(lambda message, live: found.append(Told(task.id, message, live)), "hostile")
        if task.id in self.lost:
            self.lost.remove(task.id)
            return [Told(task.id, {"number": "half"}), Lost(task.id, "its process was ended by SIGKILL", self.final)]
        try:
            ended = Done(task.id, bench(task))
        except InputError as error:
            return [Refused(task.id, error)]
        return [*found, ended]

    def wake(self) -> None:
        self.awake.put(None)

    def close(self) -> None:
        self.closed = True


def tasks_of(count: int) -> list[JobTask]:
    """Chains of two: every second one reads what the one before it wrote."""
    return [
        task(str(n), doubled, number=n, reads=(str(n - 1),) if n % 2 else (), writes=(str(n),)) for n in range(count)
    ]


def carried_out(scheduler: Any, tasks: Sequence[JobTask]) -> tuple[list[Any], list[Any]]:
    heard: list[Any] = []
    scheduler.announce(tasks)
    return [scheduler.outcome(each, heard.append) for each in tasks], heard


@pytest.mark.parametrize("places", [1, 2, 5])
def test_results_and_messages_are_those_of_one_process_in_order(places: int) -> None:
    heard: list[Any] = []
    alone = InThisProcess(Desk(lambda message, live: None if live else heard.append(message), "alone"))
    values = [alone.outcome(each, heard.append) for each in tasks_of(9)]
    for seed in range(5):
        live: list[tuple[str, Any, bool]] = []
        scheduler = Ahead(Hostile(places, seed), lambda *told, live=live: live.append(told))
        assert carried_out(scheduler, tasks_of(9)) == (values, heard)
        assert sorted(message["step"] for _, message, _ in live if message) == list(range(9))
        assert scheduler.close() == []


def test_what_is_not_asked_for_is_told_at_the_end() -> None:
    executor = Hostile(2)
    scheduler = Ahead(executor, lambda *told: None)
    tasks = tasks_of(4)
    scheduler.announce(tasks)
    assert scheduler.outcome(tasks[1], lambda message: None) == 2
    assert [each.id for each in scheduler.close()] == ["0", "2", "3"]
    assert executor.closed


def test_a_task_whose_process_dies_is_tried_again_twice() -> None:
    for losses in range(5):
        executor = Hostile(2, lost=["2"] * losses)
        scheduler = Ahead(executor, lambda *told: None)
        if losses < 3:
            assert carried_out(scheduler, tasks_of(4))[0] == [0, 2, 4, 6]
            assert executor.began.count("2") == losses + 1
            assert all(executor.began.count(other) == 1 for other in "013")
        else:
            with pytest.raises(
                JobError, match=r"^the task '2' was tried 3 times: its process was ended by SIGKILL; .* resume"
            ):
                carried_out(scheduler, tasks_of(4))
        scheduler.close()


def test_who_hears_of_progress_is_told_where_a_task_is_tried_again() -> None:
    live: list[Any] = []
    scheduler = Ahead(Hostile(1, lost=["0", "0"]), lambda *told: live.append(told))
    assert carried_out(scheduler, tasks_of(1))[0] == [0]
    kinds = [type(message).__name__ for id, message, _ in live if message is not None and id == "0"]
    assert kinds == ["Lost", "Lost", "dict"]
    scheduler.close()


def test_another_task_of_a_known_id_is_refused() -> None:
    scheduler = Ahead(Hostile(1), lambda *told: None)
    assert scheduler.outcome(task("one", doubled, number=1), lambda message: None) == 2
    assert scheduler.outcome(task("one", doubled, number=1), lambda message: None) == 2
    with pytest.raises(ValueError, match="there is another task 'one' already"):
        scheduler.outcome(task("one", doubled, number=2), lambda message: None)
    scheduler.close()


def test_what_was_tried_elsewhere_is_not_tried_again() -> None:
    executor = Hostile(1, lost=["0"], final=True)
    scheduler = Ahead(executor, lambda *told: None)
    with pytest.raises(JobError, match="the task '0' was tried 3 times"):
        carried_out(scheduler, tasks_of(1))
    assert executor.began == ["0"]
    scheduler.close()


def test_an_error_is_raised_where_it_is_asked_for_and_by_all_that_needed_the_task() -> None:
    scheduler = Ahead(Hostile(3), lambda *told: None)
    wrong = task("wrong", raises, what="no such file", writes=("w",))
    needy = task("needy", doubled, number=1, reads=("w",), writes=("v",))
    needier = task("needier", doubled, number=1, reads=("v",))
    fine = task("fine", doubled, number=4)
    scheduler.announce([wrong, needy, needier, fine])
    assert scheduler.outcome(fine, lambda message: None) == 8
    for each in (needier, wrong, needy):
        with pytest.raises(InputError, match=r"^no such file$"):
            scheduler.outcome(each, lambda message: None)
    scheduler.close()


def test_what_needs_a_task_that_failed_before_is_not_waited_for() -> None:
    silent = iter(range(5))
    scheduler = Ahead(Hostile(3), lambda *told: next(silent))  # ends what would wait for ever
    with pytest.raises(InputError, match=r"^no such file$"):
        scheduler.outcome(task("wrong", raises, what="no such file", writes=("w",)), lambda message: None)
    with pytest.raises(InputError, match=r"^no such file$"):
        scheduler.outcome(task("late", doubled, number=1, reads=("w",)), lambda message: None)
    scheduler.close()


def test_an_executor_that_breaks_ends_what_waits_for_it() -> None:
    class Broken(Hostile):
        def start(self, task: JobTask) -> None:
            raise JobError("worker processes end before they have anything to do")

    scheduler = Ahead(Broken(1), lambda *told: None)
    with pytest.raises(JobError, match="end before they have anything to do"):
        carried_out(scheduler, tasks_of(1))
    scheduler.close()
