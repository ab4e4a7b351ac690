"""Profiles of a switchable net: what each is, which can share weights, and which to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.assignments import BitAssignment, check_fits, kept_rows_of
from search_spaces.costs.amounts import number_text
from search_spaces.errors import InputError, check_type, nearest
from search_spaces.layers import LayerGraph
from search_spaces.metrics import Metric, metric_of, validation_of


@dataclass(frozen=True)
class Profile:
    """One way to run the net: a name, and what every layer gets, costs and (where measured) reaches."""

    name: str
    assignment: BitAssignment

    def cost(self, name: str) -> float:
        """A cost by name; :class:`InputError` for one that is not known."""
        costs = self.assignment.cost
        if name not in costs:
            raise InputError(f"profile '{self.name}' has no cost '{name}'{nearest(name, costs)}")
        return float(costs[name])

    @property
    def metric(self) -> Metric:
        """What the net was measured by."""
        return metric_of(self.assignment.metrics)

    @property
    def score(self) -> float | None:
        """The metric on validation, as measured in this net; None where it was not."""
        measured = validation_of(self.assignment.metrics)
        return None if measured is None else float(measured["mean"])

    def __getattr__(self, name: str) -> float | None:
        # The metric under its own name, as files have it: val_NAME.
        if name.startswith("val_") and name == f"val_{self.metric.name}":
            return self.score
        raise AttributeError(f"a profile has no '{name}'")


def by_width(graph: LayerGraph, assignments: Mapping[str, BitAssignment]) -> list[str]:
    """The names from the widest to the narrowest: by the bits of all weights, then by those of all inputs."""

    def width(name: str) -> tuple[float, float]:
        weights = inputs = 0.0
        for layer, bits in assignments[name].layers.items():
            spec = graph[layer]
            left = 1.0 if bits.kept_channels is None else len(bits.kept_channels) / spec.out_channels
            weights += spec.weight_elements * bits.weight_bits * left
            inputs += spec.input_elements * bits.activation_bits
        return weights, inputs

    return sorted(assignments, key=width, reverse=True)


def check_profiles(graph: LayerGraph, assignments: Mapping[str, BitAssignment], private_norms: bool = True) -> None:
    """Raise :class:`InputError` unless these assignments can share the weights of the network."""
    check_type(
        assignments, Mapping, "the profiles of a switchable net", "give assignments by the names of the profiles"
    )
    if not assignments:
        raise InputError("a switchable net needs at least one profile")
    for name, assignment in assignments.items():
        check_type(assignment, BitAssignment, f"profile '{name}'", "give a BitAssignment")
        check_fits(assignment, graph)
        for scheme in (bits.scheme for bits in assignment.layers.values() if bits.scheme):
            raise InputError(f"profile '{name}' has {scheme.words}, which others cannot share; leave it out")
        if kept_rows_of(assignment.layers) and not private_norms:
            raise InputError(f"profile '{name}' is pruned, which needs BatchNorms of its own; leave private_norms on")


def cheapest(profiles: Mapping[str, Profile], cost: str, goal: Mapping[str, float]) -> str:
    """The name of the profile of the least ``cost`` that is as good as ``goal`` says; see `SwitchableNet.cheapest`."""
    gains, metric = _gains(profiles)
    key = f"{'min' if metric.direction == 'larger' else 'max'}_{metric.name}"
    if list(goal) != [key]:
        raise InputError(f"say how good the profile must be as cheapest({key}=...), got {', '.join(goal) or 'none'}")
    least = goal[key]
    if metric.unit == "%" and not 0 <= least <= 1:
        raise InputError(f"{key} = {least} is not a share; 0.9 is 90 %")
    enough = [name for name, gain in gains.items() if gain >= metric.gain(least)]
    if not enough:
        top = max(gains, key=lambda name: gains[name])
        reached = metric.text(metric.gain(gains[top]))
        raise InputError(f"no profile reaches {metric.text(least)}; the best is '{top}' with {reached}")
    return min(enough, key=lambda name: (profiles[name].cost(cost), -gains[name]))


def best(profiles: Mapping[str, Profile], limits: Mapping[str, float]) -> str:
    """The name of the best profile within ``limits`` on costs; see `SwitchableNet.best`."""
    gains, _ = _gains(profiles)
    for key in limits:
        if not key.startswith("max_"):
            raise InputError(f"'{key}' is no limit; write it as max_size_bytes or max_bitops")
    within = list(gains)
    for key, limit in limits.items():
        name = key.removeprefix("max_")
        within = [profile for profile in within if profiles[profile].cost(name) <= limit]
    if not within:
        raise InputError(f"no profile is within {limits}; the smallest is {_smallest(profiles)}")
    return max(within, key=lambda name: (gains[name], -profiles[name].cost("size_bytes")))


def _gains(profiles: Mapping[str, Profile]) -> tuple[dict[str, float], Metric]:
    """How good each profile is, larger being better, and by which metric."""
    gains: dict[str, float] = {}
    for name, profile in profiles.items():
        if profile.score is None:
            raise InputError(f"profile '{name}' was never measured; choose by name with use()")
        gains[name] = profile.metric.gain(profile.score)
    return gains, next(iter(profiles.values())).metric


def _smallest(profiles: Mapping[str, Profile]) -> str:
    name = min(profiles, key=lambda name: profiles[name].cost("size_bytes"))
    costs = ", ".join(f"{cost} {number_text(value)}" for cost, value in profiles[name].assignment.cost.items())
    return f"'{name}' ({costs})"
