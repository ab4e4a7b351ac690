"""Who decides what runs next: tasks begin when what they read is there, and their results are taken in the order asked.

What is announced may run ahead of what asks for it, in any order; what is asked for is heard in the order of asking. So
the caller sees the same, whatever the number of workers and whichever is faster.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dnas.execution.executors import Done, Executor, Lost, Refused, Report, Told
from dnas.execution.tasks import JobTask, TaskGraph
from search_spaces.errors import JobError

MOST_TRIES = 3
"""Of a task whose process was killed."""

Hear = Callable[[Any], None]
HearLive = Callable[[str, Any, bool], None]
"""hear_live(task, message, asked): ``asked`` says whether it is this task that is asked for now. The message is None
where nobody had anything to say for a second: whoever waits may look whether it still wants to. It is a :class:`Lost`
where the task is tried again, and will tell what it told once more."""


class Scheduler(ABC):
    """Carries tasks out; :meth:`close` ends what is still running."""

    in_process = False

    @abstractmethod
    def announce(self, tasks: Iterable[JobTask]) -> None:
        """Say that these will be asked for, so that they may begin.

        Raises ValueError for another task of a known id.
        """

    @abstractmethod
    def outcome(self, task: JobTask, hear: Hear) -> Any:
        """What a task gives; ``hear`` is told its messages, in order. Raises what it raised.

        Raises :class:`JobError` where the process that carried it out was killed again and again.
        """

    @abstractmethod
    def close(self) -> list[JobTask]:
        """End everything; returns what was announced and never asked for."""


class InThisProcess(Scheduler):
    """Carries a task out when it is asked for, at the caller's own bench."""

    in_process = True

    def __init__(self, bench: Any) -> None:
        self._bench = bench

    def announce(self, tasks: Iterable[JobTask]) -> None:
        """Nothing runs ahead."""

    def outcome(self, task: JobTask, hear: Hear) -> Any:
        """What the task gives; its messages go where the bench sends them."""
        return task.carry_out(self._bench)

    def close(self) -> list[JobTask]:
        """Nothing is running."""
        return []


@dataclass
class _Course:
    """What is known of one task."""

    task: JobTask
    messages: list[Any] = field(default_factory=list)
    ended: Done | Refused | None = None
    tries: int = 0
    asked: bool = False


class Ahead(Scheduler):
    """Lets an executor carry out whatever can begin, the most valuable first, while the caller does other things."""

    def __init__(self, executor: Executor, hear_live: HearLive) -> None:
        self._executor, self._hear_live = executor, hear_live
        self._graph = TaskGraph()
        self._courses: dict[str, _Course] = {}
        self._live: list[tuple[str, Any]] = []
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="dnas scheduler", daemon=True)
        self._thread.start()

    def announce(self, tasks: Iterable[JobTask]) -> None:
        """Let these begin as soon as they can."""
        with self._changed:
            known = list(tasks)
            self._graph.add(known)
            new = {task.id: _Course(task) for task in known if task.id not in self._courses}
            self._courses |= new
            for course in list(self._courses.values()) if new else ():
                if isinstance(course.ended, Refused):  # what needs it can never begin
                    self._fail(course, course.ended.error)
        if new:
            self._executor.wake()

    def outcome(self, task: JobTask, hear: Hear) -> Any:
        """What the task gives, once it is done."""
        self.announce([task])
        course, heard = self._courses[task.id], 0
        course.asked = True
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._is_news, course, heard), timeout=1.0)
                live, self._live = self._live, []
                messages, ended, failure = course.messages[heard:], course.ended, self._failure
            for id, message in live or ([] if messages or ended else [(task.id, None)]):
                self._hear_live(id, message, id == task.id)
            for message in messages:
                hear(message)
            heard += len(messages)
            if failure is not None and ended is None:
                raise failure
            if isinstance(ended, Refused):
                raise ended.error
            if ended is not None:
                return ended.value

    def close(self) -> list[JobTask]:
        """End the executor and its tasks."""
        self._closing = True
        self._executor.wake()
        self._thread.join()
        self._executor.close()
        return [course.task for course in self._courses.values() if not course.asked]

    def _is_news(self, course: _Course, heard: int) -> bool:
        return bool(self._live or len(course.messages) > heard or course.ended or self._failure)

    def _watch(self) -> None:
        """Begin what can begin, and note what becomes of it; runs in a thread of its own."""
        try:
            while not self._closing:
                with self._changed:
                    for task in self._graph.ready()[: self._executor.free]:
                        self._graph.begin(task.id)
                        self._executor.start(task)
                reports = self._executor.reports()
                with self._changed:
                    for report in reports:
                        self._note(report)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _note(self, report: Report) -> None:
        course = self._courses[report.task]
        match report:
            case Told(live=True):
                self._live.append((report.task, report.message))
            case Told():
                course.messages.append(report.message)
            case Done():
                course.ended = report
                self._graph.end(report.task)
            case Refused():
                self._fail(course, report.error)
            case Lost():
                course.tries += 1
                if report.final or course.tries >= MOST_TRIES:
                    self._fail(course, JobError(_given_up(course.task, report.why)))
                else:
                    self._live.append((report.task, report))
                    self._graph.again(report.task)

    def _fail(self, course: _Course, error: BaseException) -> None:
        """Note that a task, and whatever needs it, gives nothing but an error."""
        for id in [course.task.id, *self._graph.following(course.task.id)]:
            if self._courses[id].ended is None:
                self._courses[id].ended = Refused(id, error)
                self._graph.begin(id)


def _given_up(task: JobTask, why: str) -> str:
    return (
        f"the task '{task.id}' was tried {MOST_TRIES} times: {why}; where memory ran out, ask for fewer workers or a "
        "smaller data.batch_size, and resume the run"
    )
