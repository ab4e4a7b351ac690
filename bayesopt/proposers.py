"""The proposers of pruning ratios by name: one interface, three engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bayesopt.asktell import Proposer
from bayesopt.model_proposer import ModelProposer
from bayesopt.optuna_proposer import OptunaProposer
from bayesopt.proposals import CostRange, Proposal, Suggestion
from bayesopt.ratios import Limits, RatioSpace
from search_spaces.errors import InputError, nearest

__all__ = ["CostRange", "ModelProposer", "OptunaProposer", "Proposal", "Proposer", "RandomProposer", "make_proposer"]


class RandomProposer(Proposer):
    """Random ratios, repaired: the baseline that any model must beat."""

    def _suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        return iter(())


PROPOSERS: dict[str, type[Proposer]] = {
    "scikit-optimize": ModelProposer,
    "optuna": OptunaProposer,
    "random": RandomProposer,
}


def make_proposer(
    name: str, space: RatioSpace, targets: Sequence[Limits] | Limits | CostRange, **options: Any
) -> Proposer:
    """Return ``"scikit-optimize"``, ``"optuna"`` or ``"random"`` for one or more budgets, as :class:`Proposer`."""
    if isinstance(targets, Mapping):  # one budget
        targets = [targets]
    if name not in PROPOSERS:
        raise InputError(f"there is no proposer '{name}'{nearest(name, PROPOSERS)}; choose from {', '.join(PROPOSERS)}")
    return PROPOSERS[name](space, targets, **options)
