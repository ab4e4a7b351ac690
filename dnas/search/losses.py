"""How cost enters the loss of θ: a pull to the budget from both sides or from above, DNAS's product, EdMIPS's sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dnas.config.job import SearchSection
from dnas.search.supernet import Sample, Supernet
from dnas.training.schedules import ramp
from search_spaces.costs.budgets import Budget

NEAR = 0.05
"""A two-sided pull is of full strength where E[cost] is further from the budget than this share of the room to it."""
_LEAST_ROOM = 1e-3  # of the limit

ThetaLoss = Callable[[Tensor, Sample, float], Tensor]
"""(loss of the task, sample, progress in [0, 1)) -> loss."""


def two_sided(supernet: Supernet, budget: Budget, penalty: float) -> ThetaLoss:
    """CE + λ · h(g), g = max over limits of (E[cost] - limit) / (limit - least cost), λ ramped up over the first half.

    h is Huber's function, |g| - NEAR / 2 but quadratic where |g| < NEAR: θ is pulled to the budget from above and from
    below, and settles there. E is over P(θ), not over the sample that the network runs: its noise has no part in it.
    """
    least = supernet.table.least
    room = {name: max(limit - least(name), _LEAST_ROOM * limit) for name, limit in budget.limits.items()}

    def loss(task_loss: Tensor, sample: Sample, progress: float) -> Tensor:
        soft = supernet.theta.probabilities()
        over = [(supernet.expected_cost(name, soft) - limit) / room[name] for name, limit in budget.limits.items()]
        distance = torch.stack(over).amax().abs().float()
        pull = torch.where(distance < NEAR, distance.square() / (2 * NEAR), distance - NEAR / 2)
        return task_loss + penalty * ramp(progress) * pull

    return loss


def hinge(supernet: Supernet, budget: Budget, penalty: float) -> ThetaLoss:
    """CE + λ · sum over limits of max(0, E[cost] / limit - 1), with λ ramped up over the first half."""

    def loss(task_loss: Tensor, sample: Sample, progress: float) -> Tensor:
        excess = torch.zeros((), device=task_loss.device)
        for name, limit in budget.limits.items():
            excess = excess + (supernet.expected_cost(name, sample) / limit - 1).clamp_min(0).float()
        return task_loss + penalty * ramp(progress) * excess

    return loss


def log_product_factor(cost: Tensor, beta: float, gamma: float) -> Tensor:
    """DNAS's factor β (ln Cost)^γ (arXiv 1812.00090, eq. 10); its published β and γ take the cost in bits."""
    return beta * cost.clamp_min(torch.e).log() ** gamma


def log_product(supernet: Supernet, cost: str, beta: float, gamma: float) -> ThetaLoss:
    """CE · β (ln E[cost])^γ over the searched layers alone, as published."""

    def loss(task_loss: Tensor, sample: Sample, progress: float) -> Tensor:
        searched = supernet.expected_cost(cost, sample) - supernet.table.constants[cost]
        return task_loss * log_product_factor(searched, beta, gamma).float()

    return loss


def additive(supernet: Supernet, cost: str, penalty: float) -> ThetaLoss:
    """CE + λ · E[cost] / E[cost at the undecided start] (arXiv 2004.05795, eq. 11, in our normalisation).

    Dividing by the cost at the start makes λ the penalty in nats that the search starts with, on any network.
    """
    with torch.no_grad():
        start = supernet.expected_cost(cost, _undecided(supernet)).item()

    def loss(task_loss: Tensor, sample: Sample, progress: float) -> Tensor:
        return task_loss + penalty * (supernet.expected_cost(cost, sample) / start).float()

    return loss


def _undecided(supernet: Supernet) -> Sample:
    allowed = supernet.theta.get_buffer("allowed").float()
    return Sample.from_cells(allowed / allowed.sum((1, 2), keepdim=True))


def theta_loss(section: SearchSection, supernet: Supernet, budget: Budget | None) -> ThetaLoss:
    """The loss that a job asks for."""
    if section.loss in ("two_sided", "hinge"):
        assert budget is not None  # JobConfig refuses them without budgets
        pull = two_sided if section.loss == "two_sided" else hinge
        return pull(supernet, budget, section.penalty)
    if section.loss == "log_product":
        return log_product(supernet, section.cost, section.beta, section.gamma)
    return additive(supernet, section.cost, section.penalty)
