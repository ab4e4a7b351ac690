"""Records of figures that stand under the name of their metric, and what a trial of pruning is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from search_spaces.metrics import ACCURACY
from search_spaces.records import Record


class Scored(Record):
    """Figures that files hold under the name of their metric, such as ``val_NAME``; ``keys`` tells how each is called.

    Of a metric other than the accuracy the name is written as ``metric``.
    """

    keys: ClassVar[Mapping[str, str]] = {}

    metric: str = ACCURACY.name

    @model_validator(mode="before")
    @classmethod
    def _by_field(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        names = {key.format(data.get("metric", ACCURACY.name)): field for field, key in cls.keys.items()}
        return {names.get(key, key): value for key, value in data.items()}

    @model_serializer(mode="wrap")
    def _by_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        if self.metric == ACCURACY.name:
            values.pop("metric", None)
        return {self.keys[key].format(self.metric) if key in self.keys else key: v for key, v in values.items()}


class Proposal(Record):
    """A configuration to try within ``limits``; of a model's proposal, what the model foretold."""

    number: int
    budget: int = 0
    limits: Mapping[str, float] = Field(default_factory=dict)
    counts: Mapping[str, int] = Field(default_factory=dict)
    x: tuple[float, ...] = ()
    source: str = ""
    predicted_mean: float | None = None
    predicted_std: float | None = None


class TrialResult(Scored):
    """A proposal and what came of it; ``loss`` is None where it failed."""

    keys = {"score": "{}"}  # noqa: RUF012

    proposal: Proposal
    cost: Mapping[str, float] = Field(default_factory=dict)
    loss: float | None = None
    score: float | None = None
    failed: str = ""
