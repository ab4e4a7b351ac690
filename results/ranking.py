"""How well a supernet ranks: its losses beside what fine-tuning made of the same assignments, as a file keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from search_spaces.metrics import Metric
from search_spaces.records import Record

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=-1, le=1)]


class Ranked(Record):
    """An assignment: bits by layer, costs, the supernet's loss and, once fine-tuned, its score (None: no number)."""

    bits: Mapping[str, tuple[int, int]]
    cost: Mapping[str, _Finite]
    loss: _Finite | None
    score: _Finite | None = None
    finetuned: bool = False


class Correlation(Record):
    """Kendall's τ with its standard error, its 95 % interval, and how likely chance alone gives one as far from 0.

    τ is None where all losses or all scores are equal.
    """

    tau: _Share | None
    error: _Finite | None
    low: _Share | None
    high: _Share | None
    chance: Annotated[float, Field(ge=0, le=1)] | None


class Ranking(Record):
    """Assignments of equal cost by the supernet's loss and by the score after ``epochs`` of fine-tuning.

    ``limits`` are those of the budget that they were drawn within, ``images`` validated the supernet, ``supernet`` is a
    digest of it. ``correlation`` is that of the loss with the score, above 0 where the supernet is right.
    """

    format: Literal["dnas.ranking/1"] = "dnas.ranking/1"
    supernet: str
    budget: str
    limits: Mapping[str, _Finite]
    images: int = Field(ge=1)
    epochs: int = Field(ge=0)
    metric: Mapping[str, Any]
    assignments: tuple[Ranked, ...]
    correlation: Correlation | None = None

    def to_json(self) -> dict[str, Any]:
        """All keys, as plain values."""
        return self.model_dump(mode="json")

    @property
    def done(self) -> tuple[Ranked, ...]:
        """Those that are fine-tuned."""
        return tuple(each for each in self.assignments if each.finetuned)

    @property
    def scored_by(self) -> Metric:
        """The metric of the scores."""
        return Metric.read(self.metric)

    @property
    def told(self) -> str:
        """In a sentence, how well the supernet ranks."""
        found, epochs = self.correlation, f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        where = f"{len(self.done)} assignments within {self.budget}, {epochs} of fine-tuning each"
        if found is None:
            return f"how well the supernet ranks is not known yet ({where})"
        if found.tau is None or found.error is None or found.low is None or found.high is None:
            return f"how well the supernet ranks cannot be told ({where}): all its losses or all scores are equal"
        if found.low <= 0 <= found.high:
            sure = "; it may be chance"
        else:
            sure = "" if found.tau > 0 else "; it ranks them the wrong way round"
        return (
            f"the supernet's loss ranks as the fine-tuned {self.scored_by.label} does by Kendall's τ = {found.tau:.2f} "
            f"± {found.error:.2f}, 95% interval {found.low:.2f} to {found.high:.2f} ({where}){sure}"
        )
