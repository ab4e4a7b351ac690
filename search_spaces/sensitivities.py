"""How much each width of each layer costs in loss, layer by layer: what training-free controls choose bits by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field

from search_spaces.errors import InputError
from search_spaces.records import Record

if TYPE_CHECKING:
    from search_spaces.spaces import PrecisionSpace

SensitivityKind = Literal["hessian", "measured"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Row = tuple[_Finite, ...]


class Sensitivities(Record):
    """Increases of the loss by layer and width; those of weights and of inputs add up.

    ``weights`` are by layer and ``weight_bits``, ``inputs`` by layer and ``activation_bits``. ``hessian`` ones are
    expected to second order, layer by layer; ``measured`` ones are the losses of nets in which one decision alone was
    changed, by the name of the decision. ``images`` were looked at; ``probes`` were drawn for each batch and leave the
    traces with these standard ``errors``, relative, by layer. ``network`` is a digest of the weights.
    """

    model_config = ConfigDict(extra="allow")

    format: Literal["dnas.sensitivity/1"] = "dnas.sensitivity/1"
    kind: SensitivityKind
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weights: Mapping[str, _Row]
    inputs: Mapping[str, _Row]
    images: int = Field(ge=1)
    probes: int = Field(default=0, ge=0)
    errors: Mapping[str, _Finite] = Field(default_factory=dict)
    network: str = ""

    @classmethod
    def read(cls, data: Any) -> Self:
        """Read what :meth:`to_json` wrote; :class:`InputError` where a row does not fit the widths."""
        found = super().read(data)
        for rows, bits in ((found.weights, found.weight_bits), (found.inputs, found.activation_bits)):
            for layer, row in rows.items():
                if len(row) != len(bits):
                    raise InputError(f"'{layer}' has {len(row)} values for {len(bits)} widths")
        if set(found.weights) != set(found.inputs):
            raise InputError("weights and inputs are not of the same layers")
        return found

    def fits(self, space: PrecisionSpace) -> bool:
        """Whether it tells of every decision and width of a space."""
        widths = self.weight_bits == space.weight_bits and self.activation_bits == space.activation_bits
        rows = [name for decision in space.decisions for name in self._rows(decision.layers, decision.name)]
        return widths and all(name in self.weights for name in rows)

    def losses(self, space: PrecisionSpace) -> np.ndarray:
        """The increase of the loss of every cell of every decision of ``space``, float64 (D, Kw, Ka)."""
        table = np.zeros(space.allowed.shape)
        kept = np.array(space.weight_bits)[:, None] > 0  # a skipped branch has no inputs
        for index, decision in enumerate(space.decisions):
            for name in self._rows(decision.layers, decision.name):
                table[index] += np.array(self.weights[name])[:, None]
                table[index] += np.where(kept, np.array(self.inputs[name])[None, :], 0.0)
        return table

    def _rows(self, layers: tuple[str, ...], decision: str) -> list[str]:
        return [decision] if self.kind == "measured" else list(layers)

    def to_json(self) -> dict[str, Any]:
        """All keys, as plain values."""
        return self.model_dump(mode="json")

    @property
    def told(self) -> str:
        """In a sentence, what they were made from and how sure they are."""
        if self.kind == "measured":
            return f"measured sensitivities: losses on {self.images:,} images, one decision at a time"
        errors = sorted(self.errors.values())
        spread = (
            f"{errors[len(errors) // 2]:.0%} in the median layer, {errors[-1]:.0%} at most" if errors else "unknown"
        )
        return f"sensitivities: {self.images:,} images, {self.probes} probes each; standard error of a trace {spread}"
