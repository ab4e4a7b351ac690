"""Training-free ways to choose bits within a budget, by name: what a search is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from dnas.quantization.conversion import QuantizerChoice
from dnas.search.measured import measured_sensitivities
from dnas.search.sensitivity import hessian_sensitivities
from dnas.training.task import CLASSIFICATION, Task
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, told_as
from search_spaces.models.copies import fresh_copy
from search_spaces.registry import Registry, called, importable_working_directory
from search_spaces.sensitivities import Sensitivities, SensitivityKind
from search_spaces.spaces import PrecisionSpace


@dataclass(frozen=True)
class Evidence:
    """What a control may look at: the float ``network``, what can be chosen, what it costs, and some training images.

    ``batches`` gives (images (N, C, H, W), targets of ``task``) when it is called. ``recall`` says where sensitivities
    of a kind come from: by default from the work that it is given.
    """

    network: nn.Module
    space: PrecisionSpace
    table: CostTable
    choice: QuantizerChoice
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] = field(repr=False)
    seed: int = 0
    task: Task = CLASSIFICATION
    recall: Callable[[SensitivityKind, Callable[[], Sensitivities]], Sensitivities] = field(
        default=lambda kind, work: work(), repr=False
    )

    @cached_property
    def sensitivities(self) -> np.ndarray:
        """Expected increase of the loss of every cell (D, Kw, Ka), without training; worked out once."""
        return self.found("hessian").losses(self.space)

    @cached_property
    def measured(self) -> np.ndarray:
        """Measured increase of the loss of every cell (D, Kw, Ka), one decision at a time; worked out once."""
        return self.found("measured").losses(self.space)

    def found(self, kind: SensitivityKind) -> Sensitivities:
        """The sensitivities of one kind, by layer or decision."""
        return self.recall(kind, self._measured if kind == "measured" else self._expected)

    def lent(self) -> Evidence:
        """The same with a network of its own, which whoever looks at it may change."""
        return replace(self, network=fresh_copy(self.network), recall=lambda kind, _: self.found(kind))

    def _expected(self) -> Sensitivities:
        batches, seed = self.batches(), self.seed
        return hessian_sensitivities(self.network, self.space, self.choice, batches, seed=seed, task=self.task)

    def _measured(self) -> Sensitivities:
        return measured_sensitivities(self.network, self.table, self.choice, self.batches(), task=self.task)


class Rehearsal(Evidence):
    """Evidence of drawn sensitivities: a control can be tried on it before there are any."""

    @cached_property
    def sensitivities(self) -> np.ndarray:
        """Numbers above 0, as an increase of a loss, (D, Kw, Ka)."""
        return np.random.default_rng(self.seed).uniform(1e-3, 1.0, self.space.allowed.shape)

    @cached_property
    def measured(self) -> np.ndarray:
        """The same numbers."""
        return self.sensitivities

    @classmethod
    def of(cls, evidence: Evidence) -> Rehearsal:
        """The same network, space, costs and images."""
        return cls(**{each.name: getattr(evidence, each.name) for each in fields(evidence)})


@dataclass(frozen=True)
class Question:
    """An assignment that is asked for: within ``budget``, the ``draw``-th of its kind; ``seed`` is the budget's own."""

    evidence: Evidence
    budget: Budget
    seed: int = 0
    draw: int = 1


Control = Callable[[Question], np.ndarray]
"""What each cell is worth, (D, Kw, Ka): the integer program takes the most that the budget allows."""


def ilp(question: Question) -> np.ndarray:
    """HAWQ-V2's sensitivities: the least expected increase of the loss (arXiv 1911.03852)."""
    return -question.evidence.sensitivities


def measured_ilp(question: Question) -> np.ndarray:
    """The least increase of the loss, measured with one decision at a time changed in a neutral net."""
    return -question.evidence.measured


def random(question: Question) -> np.ndarray:
    """Any assignment that the budget allows."""
    shape = question.evidence.space.allowed.shape
    return np.random.default_rng(question.seed).random((question.draw, *shape))[-1]


def _own(source: str, found: Any) -> Control:
    function = called(source, found, "control", [np.ndarray, Tensor, Sequence])

    def control(question: Question) -> np.ndarray:
        what = f"control '{source}' failed for {question.budget.label}"
        with importable_working_directory(), told_as(lambda reason: f"{what}: {reason}"):
            asked = replace(question, evidence=question.evidence.lent())
            worth = np.asarray(function(asked), dtype=np.float64)
        shape = question.evidence.space.allowed.shape
        if worth.shape != shape or not np.isfinite(worth).all():
            given = "values that are not all finite" if worth.shape == shape else f"values of shape {worth.shape}"
            raise InputError(
                f"control '{source}' gives {given}; it must give a finite one for every "
                f"decision, weight width and activation width, shape {shape}"
            )
        return worth

    return control


CONTROLS: Registry[Control] = Registry("control", {"ilp": ilp, "measured-ilp": measured_ilp, "random": random}, _own)
