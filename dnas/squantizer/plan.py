"""What a SQuantizer job says of its plan: the layers that become sparse, and the budgets that choose σ."""

from __future__ import annotations

from typing import cast

from dnas.config.job import JobConfig
from dnas.squantizer.section import SquantizerSection
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.stored import STORED
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS
from search_spaces.options import SpaceOptions


def section_of(config: JobConfig) -> SquantizerSection:
    """The section `[squantizer]` of a job."""
    return cast(SquantizerSection, config.squantizer)


def squantizer_options(config: JobConfig) -> SpaceOptions:
    """The layers that SQuantizer makes sparse, as a space; first and last stay in fp32 (arXiv 1812.08301)."""
    section = section_of(config)
    return SpaceOptions(
        weight_bits=tuple(sorted(set(section.weight_bits))),
        activation_bits=(section.activation_bits,),
        first_layer=FLOAT_BITS,
        last_layer=FLOAT_BITS,
        include=config.space.include,
        exclude=config.space.exclude + section.exclude,
        fix=config.space.fix,
    )


def sparse_budgets(config: JobConfig, table: CostTable) -> tuple[Budget, ...]:
    """The budgets of ``[squantizer]``; :class:`InputError` for one that limits no cost that depends on σ.

    Another cost beside it, such as a latency, is what the widths make of it, and must be within its limit.
    """
    budgets = tuple(parse_budget(entry, table) for entry in section_of(config).budgets)
    for budget in budgets:
        others = [name for name in budget.limits if name not in STORED]
        if len(others) == len(budget.limits):
            raise InputError(f"squantizer.budgets: sparsity does not change '{others[0]}'; limit {' or '.join(STORED)}")
        for bits in section_of(config).weight_bits:
            costs = table.price(table.space.uniform(bits), others)
            for name in others:
                if costs[name] > budget.limits[name]:
                    raise InputError(
                        f"squantizer.budgets: sparsity does not change '{name}', which is {costs[name]:.6g} at {bits} "
                        f"bits and over '{budget.label}'; raise that limit, or choose other widths"
                    )
    return budgets
