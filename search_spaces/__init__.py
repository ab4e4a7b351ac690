"""What can be chosen, and what a choice costs: layers, assignments, spaces, costs, budgets and the small model zoo.

The names below are loaded when first used, so that importing ``search_spaces`` costs nothing. This package knows
nothing of training and imports none of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from search_spaces.allocation.program import allocate, check_reachable
    from search_spaces.allocation.widening import allocate_widest
    from search_spaces.assignments import BitAssignment, LayerBits, ModelReference, check_fits
    from search_spaces.costs.budgets import Budget, parse_budget
    from search_spaces.costs.kinds import Cost
    from search_spaces.costs.pruned import PrunedCosts
    from search_spaces.costs.table import CostTable, build_costs
    from search_spaces.errors import InputError, JobError
    from search_spaces.groups import ChannelGroup, ChannelGroups
    from search_spaces.layers import LayerGraph, LayerSpec, ResidualBranch
    from search_spaces.models.load import LoadedModel, available_models, load_checkpoint, load_model
    from search_spaces.models.sources import ZOO
    from search_spaces.network.graph import read_graph
    from search_spaces.options import SpaceOptions, read_capability
    from search_spaces.spaces import Decision, PrecisionSpace, build_space

__all__ = [
    "BitAssignment",
    "Budget",
    "ChannelGroup",
    "ChannelGroups",
    "Cost",
    "CostTable",
    "Decision",
    "InputError",
    "JobError",
    "LayerBits",
    "LayerGraph",
    "LayerSpec",
    "LoadedModel",
    "ModelReference",
    "PrecisionSpace",
    "PrunedCosts",
    "ResidualBranch",
    "SpaceOptions",
    "ZOO",
    "allocate",
    "allocate_widest",
    "available_models",
    "build_costs",
    "build_space",
    "check_fits",
    "check_reachable",
    "load_checkpoint",
    "load_model",
    "parse_budget",
    "read_capability",
    "read_graph",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "search_spaces.allocation.program": ("allocate", "check_reachable"),
        "search_spaces.allocation.widening": ("allocate_widest",),
        "search_spaces.assignments": ("BitAssignment", "LayerBits", "ModelReference", "check_fits"),
        "search_spaces.costs.budgets": ("Budget", "parse_budget"),
        "search_spaces.costs.kinds": ("Cost",),
        "search_spaces.costs.table": ("CostTable", "build_costs"),
        "search_spaces.errors": ("InputError", "JobError"),
        "search_spaces.network.graph": ("read_graph",),
        "search_spaces.layers": ("LayerGraph", "LayerSpec", "ResidualBranch"),
        "search_spaces.models.load": ("LoadedModel", "available_models", "load_checkpoint", "load_model"),
        "search_spaces.groups": ("ChannelGroup", "ChannelGroups"),
        "search_spaces.costs.pruned": ("PrunedCosts",),
        "search_spaces.options": ("SpaceOptions", "read_capability"),
        "search_spaces.spaces": ("Decision", "PrecisionSpace", "build_space"),
        "search_spaces.models.sources": ("ZOO",),
    },
)
