"""Pruning of low-precision networks: which filters are redundant, and ratios by Bayesian optimization.

The names below are loaded when first used. This package knows no supernet and no trainer: what a configuration is worth
is told to it by a callable that is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from bayesopt.criteria import CRITERIA, importance, removal_order
    from bayesopt.proposers import CostRange, Proposal, Proposer, make_proposer
    from bayesopt.pruning import choose, groups, prune, rebuild_optimizer
    from bayesopt.ratios import RatioSpace
    from bayesopt.trials import PruningTrial, best_trials, run_trials
    from search_spaces.channels.slicing import pruned_graph, remove_filters
    from search_spaces.groups import ChannelGroup, ChannelGroups

__all__ = [
    "CRITERIA",
    "ChannelGroup",
    "ChannelGroups",
    "CostRange",
    "Proposal",
    "Proposer",
    "PruningTrial",
    "RatioSpace",
    "best_trials",
    "choose",
    "groups",
    "importance",
    "make_proposer",
    "prune",
    "pruned_graph",
    "rebuild_optimizer",
    "remove_filters",
    "removal_order",
    "run_trials",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "bayesopt.criteria": ("CRITERIA", "importance", "removal_order"),
        "bayesopt.proposers": ("CostRange", "Proposal", "Proposer", "make_proposer"),
        "bayesopt.pruning": ("choose", "groups", "prune", "rebuild_optimizer"),
        "bayesopt.ratios": ("RatioSpace",),
        "bayesopt.trials": ("PruningTrial", "best_trials", "run_trials"),
        "search_spaces.groups": ("ChannelGroup", "ChannelGroups"),
        "search_spaces.channels.slicing": ("pruned_graph", "remove_filters"),
    },
)
