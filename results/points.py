"""A measured assignment as a point of the front."""

from __future__ import annotations

from collections.abc import Mapping

from results.pareto import COSTS, Estimate, FrontPoint
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.metrics import Metric


def point_of(assignment: BitAssignment, val: Estimate, filters: Mapping[str, int], metric: Metric) -> FrontPoint:
    """The point of an assignment that reached ``val``; ``filters`` are those of the unpruned network, by layer.

    Raises :class:`InputError` for an assignment that does not tell a cost which every point has, or which is limited.
    """
    origin, cost = assignment.provenance, dict(assignment.cost)
    missing = [name for name in (*COSTS, *origin.limits) if name not in cost]
    if missing:
        raise InputError(f"assignment '{assignment.id}' does not tell its {missing[0]}; it tells {', '.join(cost)}")
    return FrontPoint(
        assignment=assignment.id,
        kind=origin.kind,
        size_bytes=cost.pop("size_bytes"),
        bitops=cost.pop("bitops"),
        macs=cost.pop("macs"),
        val=val,
        metric=metric,
        feasible=all(assignment.cost[name] <= limit for name, limit in origin.limits.items()),
        budget=origin.budget,
        extra_costs=cost,
        limits=origin.limits,
        parent=origin.source,
        kept_filters=kept_share(assignment.layers, filters),
    )


def kept_share(layers: Mapping[str, LayerBits], filters: Mapping[str, int]) -> float | None:
    """The share of all ``filters`` (by layer) that stay, or None where no layer loses any."""
    kept = {name: len(bits.kept_channels) for name, bits in layers.items() if bits.kept_channels is not None}
    return sum({**filters, **kept}.values()) / sum(filters.values()) if kept else None
