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
    """The budgets of ``[squantizer]``; :class:`InputError` for a cost that does not depend on σ."""
    budgets = tuple(parse_budget(entry, table) for entry in section_of(config).budgets)
    for budget in budgets:
        for name in budget.limits:
            if name not in STORED:
                raise InputError(f"squantizer.budgets: sparsity does not change '{name}'; limit {' or '.join(STORED)}")
    return budgets
