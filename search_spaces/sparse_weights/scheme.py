"""How the weights of a layer are made sparse and low-bit at once, and what they take: its entry in an assignment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from search_spaces.errors import InputError
from search_spaces.schemes import WeightScheme
from search_spaces.sparse_weights.codes import decode, is_format

ORDERS = ("sparsify-first", "quantize-first")
GRADIENTS = ("straight-through", "zero")


@dataclass(frozen=True)
class SparseWeights(WeightScheme):
    """How the weights of one layer are made sparse, and what they take once they are.

    Threshold: mean|W| + ``sigma`` · std|W|. ``order`` says what comes first, ``gradient`` what reaches the weights
    below the threshold in training. ``nonzeros``, ``storage`` (the format) and ``stored_bits`` are None before they
    are known. Packed, the threshold and the step stand beside the codes, in fp32.
    """

    name: ClassVar[str] = "sparse"
    words: ClassVar[str] = "sparse weights"
    module: ClassVar[str] = "dnas.squantizer.quantizer:SparseQuantizer"
    scale_bytes: ClassVar[int] = 8

    sigma: float
    order: str = "sparsify-first"
    gradient: str = "straight-through"
    nonzeros: int | None = None
    storage: str | None = None
    stored_bits: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, (int, float)) or not math.isfinite(self.sigma):
            raise InputError(f"sigma = {self.sigma!r} is not a finite number")
        for name, value, known in (("order", self.order, ORDERS), ("gradient", self.gradient, GRADIENTS)):
            if value not in known:
                raise InputError(f"{name} = {value!r} of sparse weights is not one of {', '.join(known)}")
        for name in ("nonzeros", "stored_bits"):
            count = getattr(self, name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                raise InputError(f"{name} = {count!r} of sparse weights is not a number of them")
        if self.storage is not None and not (isinstance(self.storage, str) and is_format(self.storage)):
            raise InputError(f"storage = {self.storage!r} is not a format of sparse weights")

    def bits_without_index(self, weight_bits: int) -> int:
        """The values that are not zero: what published ratios seem to count, though no such file exists."""
        return (self.nonzeros or 0) * weight_bits

    def columns(self) -> dict[str, str]:
        """Weights that are not zero and the format they are stored in; empty before they are known."""
        return {
            "non-zero": "" if self.nonzeros is None else f"{self.nonzeros:,}",
            "stored as": self.storage or "",
        }

    @classmethod
    def reads(cls, storage: str) -> bool:
        """Whether that is a format of sparse codes."""
        return is_format(storage)

    @staticmethod
    def is_sound(stored: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
        """Whether the numbers of sparse codes are such that decoding them needs no more memory than the weight."""
        bits, dense, nonzeros = (stored[key] for key in ("bits", "dense_bits", "nonzeros"))
        return bits in range(1, 9) and dense in (bits, bits + 1) and nonzeros in range(math.prod(shape) + 1)

    @staticmethod
    def decode(
        stored: Mapping[str, Any], told: Mapping[str, Any], shape: tuple[int, ...], tensors: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """0, or ±(start + (m - 1) step) for a code of ±m."""
        data = tensors[stored["tensor"]].tobytes()
        codes = decode(data, stored["storage"], shape, stored["nonzeros"], stored["bits"], stored["dense_bits"])
        start, step = tensors[told["levels"]]
        sizes = start + (np.abs(codes).astype(np.float32) - 1) * step
        return cast(np.ndarray, (np.sign(codes) * np.where(codes == 0, np.float32(0), sizes)).astype(np.float32))
