"""What a log of a team's tool is to this package, and how a job's events reach it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from results.events import Decoded, Event, Finished, Note, read_event
from results.run.folder import Run
from results.run.lost import sound_events, standing
from results.tracking.scalars import Scalar, scalars_of
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, one_line, quoted
from search_spaces.registry import Lazy, hidden_working_directory

Report = Callable[[Mapping[str, Any]], None]


class Tracker(ABC):
    """A log of a run; ``title`` is what users call it. Made before any training, and again by each process."""

    title: str

    def __init__(self, run: Run) -> None:
        self.run = run

    def begin(self, events: Sequence[Event]) -> None:
        """Tell all that the journal tells so far; what the log knows of it stays as it is."""
        self.scalars([scalar for event in events for scalar in scalars_of(event)])
        for name in dict.fromkeys(event.assignment for event in events if isinstance(event, Decoded)):
            self._keep(name)
        if events and isinstance(events[-1], Finished):
            self._end()

    def take(self, event: Event) -> None:
        """Tell what has just been journaled."""
        if found := scalars_of(event):
            self.scalars(found)
        if isinstance(event, Decoded):
            self._keep(event.assignment)
        if isinstance(event, Finished):
            self._end()

    def _keep(self, name: str) -> None:
        with suppress(InputError):  # lost or damaged: it is made again, and told then
            self.assignment(self.run.assignment(name))

    def _end(self) -> None:
        with suppress(InputError):
            self.run.load_front()  # whole, or not told
            self.front()

    @abstractmethod
    def scalars(self, found: Sequence[Scalar]) -> None:
        """Tell numbers; what was told by an earlier process may come again."""

    @abstractmethod
    def assignment(self, assignment: BitAssignment) -> None:
        """Tell an assignment that the run has saved."""

    @abstractmethod
    def front(self) -> None:
        """Tell the front that the run has saved."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Write all that was told; ``finished`` where the job has ended well."""


TRACKERS: Mapping[str, type[Tracker]] = Lazy(
    {
        "tensorboard": "results.tracking.tensorboard_log:TensorboardLog",
        "mlflow": "results.tracking.mlflow_log:MlflowLog",
    }
)


def check_trackers(names: Sequence[str]) -> None:
    """Raise :class:`InputError` for a log whose extra is missing."""
    for name in names:
        with hidden_working_directory():
            missing = find_spec(name) is None
        if missing:
            raise InputError(f"log.{name} = true needs {name}, which is not installed: pip install 'dnas[{name}]'")


def open_trackers(names: Sequence[str], run: Run) -> list[Tracker]:
    """These logs of a run; :class:`InputError` for one whose extra is missing or that cannot be had."""
    check_trackers(names)
    with hidden_working_directory():
        return [TRACKERS[name](run) for name in names]


@contextmanager
def tracked(trackers: Sequence[Tracker], report: Report) -> Iterator[Report]:
    """A report that passes events on, and tells the logs of those of the journal, after all that it told before.

    A log that cannot be written ends with a sentence, and the job goes on: the next process that takes the run up
    tells it the rest.
    """
    left = list(trackers)

    def each(what: Callable[[Tracker], None]) -> None:
        for tracker in list(left):
            try:
                what(tracker)
            except Exception as error:  # whatever its library raises
                left.remove(tracker)
                again = f"dnas resume {quoted(tracker.run.folder)}"
                text = f"{tracker.title} is told no more ({one_line(error)}); {again} goes on"
                report(Note(text=f"{text} with it once the job has ended or was stopped").to_json())

    def passed_on(record: Mapping[str, Any]) -> None:
        report(record)
        if left and record["event"] != "progress":
            event = read_event(record)
            each(lambda tracker: tracker.take(event))

    finished = False
    each(lambda tracker: tracker.begin(standing(sound_events(tracker.run))))
    try:
        yield passed_on
        finished = True
    finally:
        each(lambda tracker: tracker.close(finished))
