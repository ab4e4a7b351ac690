"""A weight scheme of a user's own: ternary weights, stored row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from dnas.quantization.schemes import GappedWeight, SchemeQuantizer, straight_through
from search_spaces.schemes import WeightScheme
from search_spaces.sparse_weights.codes import decode, encode


@dataclass(frozen=True)
class Ternary(WeightScheme):
    words = "ternary weights"
    module = "tests.own_schemes:TernaryQuantizer"
    scale_bytes = 4

    share: float = 0.7
    nonzeros: int | None = None
    stored_bits: int | None = None

    def columns(self) -> dict[str, str]:
        return {"ternary": "" if self.nonzeros is None else str(self.nonzeros)}

    @staticmethod
    def is_sound(stored: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
        return 0 <= stored["nonzeros"] <= int(np.prod(shape))

    @staticmethod
    def decode(
        stored: Mapping[str, Any], told: Mapping[str, Any], shape: tuple[int, ...], tensors: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        codes = decode(tensors[stored["tensor"]].tobytes(), "csr", shape, stored["nonzeros"], 1)
        return codes.astype(np.float32) * tensors[told["size"]]


def ternary(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Codes -1, 0 and 1, and the one magnitude."""
    sizes = weight.detach().abs()
    stays = sizes > share * sizes.mean()
    return weight.detach().sign() * stays, sizes[stays].mean()


def _rows(codes: Tensor) -> bytes:
    return encode(codes.cpu().numpy().astype(np.int64), "csr", 1)


class TernaryQuantizer(SchemeQuantizer):
    def __init__(self, bits: int, scheme: Ternary) -> None:
        super().__init__(bits, scheme)
        self.share = scheme.share

    def represented(self, weight: Tensor) -> Tensor:
        codes, size = ternary(weight, self.share)
        return straight_through(weight, codes * size)

    def stored(self, weight: Tensor, scheme: Ternary) -> Ternary:
        codes, _ = ternary(weight, self.share)
        return replace(scheme, nonzeros=int(codes.count_nonzero()), stored_bits=8 * len(_rows(codes)))

    def pack(self, name: str, weight: Tensor, scheme: Ternary, add: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        codes, size = ternary(weight, self.share)
        tensor = add(f"{name}.rows", np.frombuffer(_rows(codes), dtype=np.uint8))
        stored = {"storage": Ternary.name, "nonzeros": scheme.nonzeros, "tensor": tensor}
        return stored, {"size": add(f"{name}.size", size)}

    def gapped(self, name: str, weight: Tensor) -> GappedWeight:
        codes, size = ternary(weight, self.share)
        return GappedWeight(self.words, codes.numpy().astype(np.int64), float(size), float(size))
