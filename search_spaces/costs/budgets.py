"""Budgets as people write them: absolute, or in % of fp32 or of uniform 8 bit; on one or several costs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search_spaces.costs.amounts import parse_amount
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, check_type


@dataclass(frozen=True)
class Budget:
    """Upper limits on one or several costs, in their units; ``label`` is how the user wrote it."""

    limits: Mapping[str, float]
    label: str

    def check(self, table: CostTable) -> None:
        """Raise :class:`InputError` for a limit that is no amount, or on a cost that the table does not know."""
        for name, limit in self.limits.items():
            parse_amount(limit, 0.0, 0.0, table.require(name))

    def note(self, table: CostTable) -> str:
        """What a user should know of a budget that every choice meets; "" for others."""
        most = {name: table.most(name) for name in self.limits}
        if not self.met_by(most):
            return ""
        told = " and ".join(f"{name} {value:,.10g}" for name, value in most.items())
        return f"budget '{self.label}' limits nothing, no choice costs more than {told}; give less"

    def met_by(self, costs: Mapping[str, float]) -> bool:
        """Whether no limit is exceeded."""
        for name in self.limits:
            if name not in costs:
                raise InputError(f"budget '{self.label}' limits {name}, which the given costs lack: {', '.join(costs)}")
        return all(costs[name] <= limit for name, limit in self.limits.items())


def parse_budget(
    entry: Mapping[str, str | float] | Budget, table: CostTable, own: Mapping[str, float] | None = None
) -> Budget:
    """Read one budget of a job file, such as ``{size_bytes = "12%", bitops = "5%"}``; one that is read stays as it is.

    A plain percentage is of fp32, or of the costs ``own`` where these are given.
    """
    check_type(table, CostTable, "the table of a budget", "give CostTable(graph, space, build_costs())")
    if isinstance(entry, Budget):
        entry.check(table)
        return entry
    if not isinstance(entry, Mapping):
        raise InputError(f"budget {entry!r} does not say of which cost; write for example {{ size_bytes = '12%' }}")
    if not entry:
        raise InputError("a budget is empty; write for example { size_bytes = '12%' }")
    limits = {}
    for name, amount in entry.items():
        cost = table.require(name)
        fp32 = uniform8 = 0.0
        if "%" in str(amount):  # asked for only then: a latency table need not hold these widths
            fp32, uniform8 = (table.uniform(bits, [name])[name] for bits in (32, 8))
        if own is not None and "of" not in str(amount):
            fp32 = own[name]
        limits[name] = parse_amount(amount, fp32, uniform8, cost)
    return Budget(limits, " & ".join(f"{name} {amount}" for name, amount in entry.items()))
