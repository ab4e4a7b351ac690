"""What one epoch of a search looked like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from search_spaces.metrics import Scored


@dataclass(frozen=True)
class EpochRecord(Scored):
    """What one epoch of the search looked like; the journal's ``epoch`` event."""

    _names: ClassVar[Mapping[str, str]] = {"{}": "score", "argmax_{}": "argmax_score"}

    epoch: int
    epochs: int
    loss: float
    score: float
    argmax_score: float | None
    expected: Mapping[str, float]
    temperature: float | None
    entropy: float | None
    decision_entropy: Mapping[str, float]
    bits: Mapping[str, tuple[int, int]]
    seconds: float
    weight_probabilities: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    activation_probabilities: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self)


def by_width(names: Sequence[str], widths: Sequence[int], probabilities: Tensor) -> dict[str, dict[int, float]]:
    """Decision → width → its probability (D, K), with as many digits as a picture of it can show."""
    return {
        name: {bits: round(value, 4) for bits, value in zip(widths, row, strict=True) if value}
        for name, row in zip(names, probabilities.tolist(), strict=True)
    }
