"""What pruning removed, read from assignments before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.assignments import BitAssignment
from search_spaces.provenance import PRUNED_UNIFORM, Pruned


@dataclass(frozen=True)
class GroupRatio:
    """One channel group: the share of its units that go, and in words how many of how many stay."""

    group: str
    ratio: float
    text: str


@dataclass(frozen=True)
class RatioPanel:
    """The ratios of one pruned assignment; ``uniform`` are those of the control with one ratio, by group."""

    assignment: str
    budget: str | None
    groups: tuple[GroupRatio, ...]
    uniform: Mapping[str, float]


def filters_of(assignment: BitAssignment, parent: BitAssignment | None) -> dict[str, tuple[int, int]]:
    """Layer → filters kept, of how many, for each layer that lost some and whose unpruned self is known."""
    whole = parent.layers if parent else {}
    return {
        name: (len(bits.kept_channels), whole[name].out_channels or 0)
        for name, bits in assignment.layers.items()
        if bits.kept_channels is not None and name in whole and whole[name].out_channels
    }


def parents_of(assignments: Mapping[str, BitAssignment]) -> dict[str, BitAssignment]:
    """Pruned assignment → the one that it was made from, as far as it is there."""
    named = {name: assignment.provenance.parent for name, assignment in assignments.items()}
    return {name: assignments[parent] for name, parent in named.items() if parent and parent in assignments}


def ratio_panels(names: Sequence[str], assignments: Mapping[str, BitAssignment]) -> list[RatioPanel]:
    """Return the ratios of those ``names`` that are pruned; ``assignments`` are all of the run."""
    panels = []
    for name in names:
        origin = assignments[name].provenance
        if isinstance(origin, Pruned) and origin.ratios:
            groups = tuple(
                GroupRatio(group, ratio, "/".join(map(str, origin.kept_units.get(group, ()))))
                for group, ratio in origin.ratios.items()
            )
            uniform = _uniform_control(name, origin, assignments.values())
            panels.append(RatioPanel(name, origin.budget, groups, uniform))
    return panels


def _uniform_control(name: str, origin: Pruned, others: Iterable[BitAssignment]) -> dict[str, float]:
    """The ratios of the control that belongs to this assignment: same parent, same budget, one ratio for all groups."""
    for other in others:
        found = other.provenance
        if isinstance(found, Pruned) and found.kind == PRUNED_UNIFORM and other.id != name:
            if (found.parent, found.run, found.budget) == (origin.parent, origin.run, origin.budget):
                return dict(found.ratios)
    return {}
