"""What is asked and what is proposed: plain immutable records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bayesopt.ratios import Limits
from search_spaces.errors import InputError


@dataclass(frozen=True)
class CostRange:
    """The whole front: proposals are spread over ``cost`` from ``lowest`` to ``highest``, which none exceeds."""

    cost: str
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise InputError(f"the range of {self.cost} is empty: {self.lowest:g} is not below {self.highest:g}")


@dataclass(frozen=True)
class Proposal:
    """A configuration to evaluate: kept counts by group within ``limits``; plain numbers throughout.

    ``budget`` is the index of its budget (0 for a cost range), ``source`` one of ``"uniform"``, ``"sensitivity"``,
    ``"initial"``, ``"random"`` and ``"model"``; the surrogate's prediction comes only with the last.
    """

    number: int
    budget: int
    limits: dict[str, float]
    counts: dict[str, int]
    x: tuple[float, ...]
    source: str
    predicted_mean: float | None = None
    predicted_std: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; :meth:`from_json` leads back."""
        return {**asdict(self), "x": list(self.x)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Proposal:
        """Read what :meth:`to_json` wrote."""
        return cls(**{**entry, "x": tuple(entry["x"])})


@dataclass(frozen=True)
class Suggestion:
    """What a proposer would try: counts within the limits, and what its model says of them."""

    counts: tuple[int, ...]
    limits: Limits
    source: str
    mean: float | None = None
    spread: float | None = None
