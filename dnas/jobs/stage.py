"""What a stage of a job is: it checks, says what it will make and how much work that is, and carries it out.

A job is a list of stages. Nothing is trained before every one of them was checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.progress import Work
from results.pareto import FrontPoint
from search_spaces.assignments import BitAssignment
from search_spaces.sensitivities import SensitivityKind


@dataclass(frozen=True)
class Foreseen:
    """What stages will have made, as far as it can be told before any of them began.

    ``ids`` are those of all assignments that may be there, ``handed`` those that the next stage may get, of which
    ``count`` come at most; ``points`` assignments will have been measured, and these kinds of ``sensitivities`` worked
    out.
    """

    ids: tuple[str, ...] = ()
    handed: tuple[str, ...] = ()
    count: int = 0
    points: int = 0
    sensitivities: frozenset[SensitivityKind] = frozenset()

    def handing(self, ids: Iterable[str], count: int | None = None) -> Foreseen:
        """The same, with these assignments for the next stage; all of them unless ``count`` says how many."""
        handed = tuple(ids)
        known = tuple(dict.fromkeys((*self.ids, *handed)))
        return replace(self, ids=known, handed=handed, count=len(handed) if count is None else count)


@dataclass
class Findings:
    """What stages hand on: assignments to be measured, the points measured, the net that was pruned first of all."""

    found: list[BitAssignment] = field(default_factory=list)
    points: list[FrontPoint] = field(default_factory=list)
    base: BitAssignment | None = None


class Stage(ABC):
    """One stage of a job."""

    name: str

    def __init__(self, context: JobContext) -> None:
        self.context = context

    def check(self, before: Foreseen) -> None:  # noqa: B027 - most have nothing to refuse
        """Raise :class:`InputError` for what cannot work, before any training."""

    def foresee(self, before: Foreseen) -> Foreseen:
        """What will be there after this stage, given what is there before it."""
        return before

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """What this stage is sure to ask for, as far as it is known before it begins: it may run by then."""
        return ()

    @abstractmethod
    def work(self, before: Foreseen) -> Work:
        """What there is to do at most."""

    @abstractmethod
    def carry_out(self, findings: Findings) -> None:
        """Do it, or what is left of it, and add to what was found."""
