"""What a task is, and the graph that tasks make: one waits for the files that it reads.

Files are named by their paths inside the one folder that tasks share; what a task needs of it and what it leaves there
is told by its names alone, so that it can be carried out where that folder is not.

A task is a function of a module and plain values, so that any process on any machine can carry it out and gets the same
from it. It returns plain values and may write named files. What it does twice over, it does to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import networkx as nx

_PLAIN = (str, int, float, bool, type(None), PurePath)


@dataclass(frozen=True)
class JobTask:
    """``function(bench, seed=seed, **inputs)``, where a bench is what every process works with.

    ``work`` is how much there is to do, in units of the caller's, and no part of what it is. ``reads`` and ``writes``
    name files; one that it writes may be there already, half done by an earlier try, and is then gone on with. Raises
    TypeError for a function that another process could not import, and for inputs that are not plain values.
    """

    id: str
    function: Callable[..., Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    work: float = field(default=1.0, compare=False)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name, module = getattr(self.function, "__qualname__", "<none>"), getattr(self.function, "__module__", None)
        if "<" in name or "." in name or module in (None, "__main__"):
            raise TypeError(f"task '{self.id}': {module}.{name} is not a function of a module that can be imported")
        for key, value in self.inputs.items():
            if not _is_plain(value):
                raise TypeError(f"task '{self.id}': its input '{key}' is no plain value: {type(value).__name__}")

    def carry_out(self, bench: Any) -> Any:
        """What the function gives at this bench."""
        return self.function(bench, seed=self.seed, **self.inputs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


class TaskGraph:
    """Tasks that are to be carried out: which of them can begin, the most valuable first.

    The value of a task is the work on the longest way from its beginning to the end of all tasks that are known: what
    is on it makes everything later where it waits. Of equal ones the first that was added comes first.
    """

    def __init__(self) -> None:
        self._graph: nx.DiGraph = nx.DiGraph()
        self._tasks: dict[str, JobTask] = {}
        self._begun: set[str] = set()
        self._done: set[str] = set()
        self._values: dict[str, float] | None = None

    def __contains__(self, id: str) -> bool:
        return id in self._tasks

    def add(self, tasks: Iterable[JobTask]) -> None:
        """Add tasks; one that is known is left as it is.

        Raises ValueError for another task of a known id, and where tasks would wait for each other.
        """
        new: dict[str, JobTask] = {}
        for task in tasks:
            if task != (self._tasks.get(task.id) or new.setdefault(task.id, task)):
                raise ValueError(f"there is another task '{task.id}' already, of other inputs or files")
        self._tasks |= new
        self._graph.add_nodes_from(new)
        writers = {file: task.id for task in self._tasks.values() for file in task.writes}
        for task in self._tasks.values() if new else ():
            self._graph.add_edges_from((writers[file], task.id) for file in task.reads if file in writers)
        if new and not nx.is_directed_acyclic_graph(self._graph):
            raise ValueError(f"tasks wait for each other: {nx.find_cycle(self._graph)}")
        self._values = None

    def begin(self, id: str) -> None:
        """Note that a task is being carried out."""
        self._begun.add(id)

    def again(self, id: str) -> None:
        """Note that a task has to be carried out once more."""
        self._begun.discard(id)

    def end(self, id: str) -> None:
        """Note that a task is done."""
        self._done.add(id)

    def ready(self) -> list[JobTask]:
        """The tasks that wait for nothing any more and have not begun, the most valuable first."""
        values = self.values()
        free = [id for id in self._tasks if id not in self._begun and self._waits_for_nothing(id)]
        return [self._tasks[id] for id in sorted(free, key=lambda id: -values[id])]

    def values(self) -> dict[str, float]:
        """Id → the work on the longest way from the beginning of the task to the end."""
        if self._values is None:
            self._values = {}
            for id in reversed(list(nx.topological_sort(self._graph))):
                behind = max((self._values[after] for after in self._graph.successors(id)), default=0.0)
                self._values[id] = self._tasks[id].work + behind
        return self._values

    def following(self, id: str) -> set[str]:
        """The ids of all tasks that cannot begin without this one."""
        return set(nx.descendants(self._graph, id))

    def _waits_for_nothing(self, id: str) -> bool:
        return all(before in self._done for before in self._graph.predecessors(id))
