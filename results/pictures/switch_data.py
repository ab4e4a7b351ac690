"""What a switchable net's profiles reach, beside the same assignments trained alone; computed before it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from results.pareto import Estimate, FrontPoint, ParetoFront
from search_spaces.assignments import BitAssignment
from search_spaces.metrics import ACCURACY, Metric
from search_spaces.provenance import Profile, in_order


@dataclass(frozen=True)
class SwitchRow:
    """One profile: costs, the metric in the net, and those of its assignment alone (None: not measured)."""

    net: str
    profile: str
    assignment: str
    size_bytes: float
    bitops: float
    val: Estimate
    test: Estimate | None
    alone_val: Estimate | None
    alone_test: Estimate | None
    metric: Metric = ACCURACY

    def to_json(self) -> dict[str, Any]:
        """The row as plain values, its figures under the name of the metric."""
        scores = ("val", "test", "alone_val", "alone_test")
        return {f"{key}_{self.metric.name}" if key in scores else key: value for key, value in asdict(self).items()}


def switch_rows(front: ParetoFront, assignments: Mapping[str, BitAssignment]) -> dict[str, list[SwitchRow]]:
    """Switchable net → its profiles from the smallest to the largest."""
    points = {point.assignment: point for point in front.points}
    nets: dict[str, list[SwitchRow]] = {}
    for point in sorted(front.points, key=lambda point: (point.size_bytes, point.bitops)):
        assignment = assignments.get(point.assignment)
        if assignment is not None and isinstance(assignment.provenance, Profile):
            origin = assignment.provenance
            nets.setdefault(origin.net, []).append(_row(origin, point, points.get(origin.alone)))
    return {net: nets[net] for net in in_order(nets)}


def _row(origin: Profile, point: FrontPoint, alone: FrontPoint | None) -> SwitchRow:
    return SwitchRow(
        origin.net,
        origin.profile,
        point.assignment,
        point.size_bytes,
        point.bitops,
        point.val,
        point.test,
        alone.val if alone else None,
        alone.test if alone else None,
        point.metric,
    )
