"""Progressive narrowing: in which order assignments are fine-tuned, each from what, and for how long.

Assignments of one arm (the search, one control) form a chain from the widest budget down: each starts from the trained
net of the next wider one. Every chain is trained for as many epochs in all as the longest, so that no arm has more
updates than another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dnas.quantization.layers import TensorQuantizer
from search_spaces.allocation.monotone import from_largest
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.provenance import CONTROL, ILP, MEASURED_ILP, RANDOM, SEARCH, UNIFORM

NARROWED = (SEARCH, UNIFORM, ILP, MEASURED_ILP, RANDOM, CONTROL)
"""The kinds that come in several widths of the same making."""


@dataclass(frozen=True)
class Course:
    """How an assignment is fine-tuned: from the trained net of ``start`` (None: as the job says), for how many epochs.

    ``links`` is how many trainings its weights have behind them.
    """

    epochs: int
    start: str | None = None
    links: int = 0


def courses(assignments: Sequence[BitAssignment], epochs: int, table: CostTable, *, narrows: bool) -> dict[str, Course]:
    """Id → course of every assignment, wider ones before those that start from them.

    Without narrowing each is trained by itself, for so many ``epochs``, in the order given.
    """
    if not narrows:
        return {assignment.id: Course(epochs) for assignment in assignments}
    chains = chains_of(assignments, table)
    longest = max(map(len, chains), default=0)
    found: dict[str, Course] = {}
    for chain in chains:
        start: str | None = None
        for link, (assignment, own) in enumerate(zip(chain, shares(epochs * longest, len(chain)), strict=True)):
            found[assignment.id] = Course(own, start, link)
            start = assignment.id
    return found


def chains_of(assignments: Sequence[BitAssignment], table: CostTable) -> list[list[BitAssignment]]:
    """The assignments as chains from wide to narrow; one of a kind that is not narrowed is alone.

    An arm with several assignments under one budget, such as random draws, has as many chains.
    """
    arms: dict[tuple[str, ...], list[BitAssignment]] = defaultdict(list)
    for assignment in assignments:
        arms[_arm(assignment)].append(assignment)
    return [chain for arm in arms.values() for chain in _chains(arm, table)]


def _arm(assignment: BitAssignment) -> tuple[str, ...]:
    """What assignments of one arm have in common: how they were made, and the pruned net they were made of."""
    origin = assignment.provenance
    if origin.kind not in NARROWED:
        return origin.kind, assignment.id
    return origin.kind, origin.run if origin.kind == CONTROL else "", origin.parent or ""


def _chains(arm: Sequence[BitAssignment], table: CostTable) -> list[list[BitAssignment]]:
    steps: dict[frozenset[tuple[str, float]], list[BitAssignment]] = defaultdict(list)
    for assignment in arm:
        steps[frozenset(_limits(assignment).items())].append(assignment)
    equals = list(steps.values())
    widest_first = from_largest([Budget(_limits(step[0]), "") for step in equals], table)
    longest = max(map(len, equals))
    return [[equals[place][n] for place in widest_first if n < len(equals[place])] for n in range(longest)]


def _limits(assignment: BitAssignment) -> Mapping[str, float]:
    """What an assignment was allowed to cost; of one without a budget what it costs."""
    return assignment.provenance.limits or {name: assignment.cost[name] for name in ("size_bytes", "bitops")}


def shares(epochs: int, links: int) -> list[int]:
    """The epochs of a chain shared out among its links, the first ones getting what is left over.

    >>> shares(6, 4), shares(6, 1)
    ([2, 2, 1, 1], [6])
    """
    each, left = divmod(epochs, links)
    return [each + (link < left) for link in range(links)]


def keep_ranges(network: nn.Module, before: nn.Module) -> None:
    """Give each quantizer of ``network`` the clip, gain and sign of the one ``before`` it, where that is as wide."""
    known = {name: module for name, module in before.named_modules() if isinstance(module, TensorQuantizer)}
    for name, quantizer in network.named_modules():
        old = known.get(name)
        if isinstance(quantizer, TensorQuantizer) and old is not None and old.bits == quantizer.bits:
            if old.clip.shape == quantizer.clip.shape:  # not the same filters, else
                quantizer.load_state_dict(old.state_dict())
