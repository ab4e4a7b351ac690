"""The proposers of pruning ratios by name: one interface, three engines, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bayesopt.asktell import Proposer
from bayesopt.model_proposer import ModelProposer
from bayesopt.optuna_proposer import OptunaProposer
from bayesopt.proposals import CostRange, Proposal, Suggestion
from bayesopt.ratios import Limits, RatioSpace
from search_spaces.errors import InputError, told_as
from search_spaces.registry import Registry

__all__ = ["CostRange", "ModelProposer", "OptunaProposer", "Proposal", "Proposer", "RandomProposer", "make_proposer"]


class RandomProposer(Proposer):
    """Random ratios, repaired: the baseline that any model must beat."""

    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        """Nothing: what is left is chance."""
        return iter(())


def _own(source: str, found: Any) -> type[Proposer]:
    if not (isinstance(found, type) and issubclass(found, Proposer)):
        raise InputError(f"proposer '{source}' is no class derived from bayesopt.Proposer")
    return found


PROPOSERS: Registry[type[Proposer]] = Registry(
    "proposer", {"scikit-optimize": ModelProposer, "optuna": OptunaProposer, "random": RandomProposer}, _own
)


def make_proposer(
    name: str, space: RatioSpace, targets: Sequence[Limits] | Limits | CostRange, **options: Any
) -> Proposer:
    """One of :data:`PROPOSERS`, or the user's ``package.module:Class``, for one or more budgets."""
    if isinstance(targets, Mapping):  # one budget
        targets = [targets]
    found = PROPOSERS.find(name)
    if name in PROPOSERS:
        return found(space, targets, **options)
    given = "".join(f", {option}=..." for option in options)
    called = f"it has suggestions(number, limits) and is called as Class(space, targets{given})"
    with told_as(lambda reason: f"proposer '{name}' cannot be made: {reason}; {called}"):
        made = found(space, targets, **options)
    if not hasattr(made, "budgets"):
        raise InputError(f"proposer '{name}': its __init__ does not hand on to super().__init__ what it is called with")
    return made
