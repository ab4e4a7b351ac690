"""Weights that are sparse and low-bit at once (SQuantizer: Park, Xu, Brick, arXiv 1812.08301).

Per layer and forward pass, with k bits, a sparsity knob σ and n = 2^(k-1) - 1::

    t   = mean|W| + σ std|W|,   M = (|W| >= t),   W_s = W M,   mx = max|W_s|
    W_q = sign(W_s) (round(n (|W_s| - t) / (mx - t)) / n (mx - t) + t)

which gives 2^k values beside zero, the smallest of them ±t. Ours: rounding is half-up as everywhere; std is that of
the population; t is at least the smallest magnitude but zero (a t of 0 would make the lowest level zero, and fewer
weights stay at a lower σ); with mx = t, and at 1 bit (n = 0), every weight that stays is ±t; statistics are summed in
float64, so that devices agree on who stays. ``quantize-first``, the order to compare with, rounds W to
sign(W) round(n |W| / max|W|) / n max|W| and then sets to zero what is below the t of these values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.quantization.schemes import Add, GappedWeight, SchemeQuantizer, straight_through
from search_spaces.errors import InputError
from search_spaces.sparse_weights.codes import encode, smallest
from search_spaces.sparse_weights.scheme import SparseWeights

WEIGHT_BITS = range(1, 9)


@dataclass(frozen=True)
class SparseCodes:
    """A quantized tensor: code 0 is zero, code ±m is ±(start + (m - 1) step), all of the tensor's shape or ()."""

    codes: Tensor
    start: Tensor
    step: Tensor

    def values(self) -> Tensor:
        """What the codes stand for, in the dtype of ``start``."""
        size = self.start + (self.codes.abs() - 1) * self.step
        return torch.where(self.codes == 0, torch.zeros_like(size), size) * self.codes.sign()


def moments(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ``sizes`` (any shape), two float64 scalars."""
    mean = sizes.mean(dtype=torch.float64)
    return mean, (sizes - mean).square().mean(dtype=torch.float64).sqrt()


def threshold(sizes: Tensor, sigma: Tensor | float) -> Tensor:
    """The scalar t = mean + σ std of the magnitudes ``sizes`` (any shape), at least 0."""
    mean, std = moments(sizes)
    return (mean + sigma * std).clamp_min(0).to(sizes.dtype)


def sparse_codes(weight: Tensor, sigma: Tensor | float, bits: int, order: str = "sparsify-first") -> SparseCodes:
    """Codes of ``weight`` (any shape, not empty): at most 2^(bits-1) magnitudes, as floats of integer value."""
    sizes = weight.detach().abs()
    top = 2 ** (bits - 1) - 1
    if order == "quantize-first":
        step = sizes.amax() / max(top, 1)
        magnitudes = _rounded(top * sizes, sizes.amax()).clamp_max(top)
        stays = magnitudes * step >= threshold(magnitudes * step, sigma)
        return SparseCodes(weight.detach().sign() * magnitudes * stays, step, step)
    start = torch.maximum(threshold(sizes, sigma), _smallest(sizes))
    stays = (sizes >= start) & (sizes > 0)
    span = ((sizes * stays).amax() - start).clamp_min(0)
    magnitudes = 1 + _rounded(top * (sizes - start), span).clamp(0, top)
    return SparseCodes(weight.detach().sign() * magnitudes * stays, start, span / max(top, 1))


def _smallest(sizes: Tensor) -> Tensor:
    """The smallest magnitude that is not zero; 0 where all are."""
    least = torch.where(sizes > 0, sizes, torch.inf).amin()
    return torch.where(least.isfinite(), least, torch.zeros_like(least))


def _rounded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Half-up rounding of a quotient; 0 where there is nothing to divide by."""
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return torch.where(denominator > 0, torch.floor(numerator / safe + 0.5), torch.zeros_like(numerator))


class SparseQuantizer(SchemeQuantizer):
    """The weight quantizer of a layer that is made sparse and low-bit; it has no parameter to train.

    State: ``sigma`` (), and ``active`` (): before training has got as far as the delay, weights pass as they are.
    """

    sigma: Tensor
    active: Tensor

    def __init__(self, bits: int, scheme: SparseWeights) -> None:
        super().__init__(bits, scheme)
        if bits not in WEIGHT_BITS:
            raise InputError(f"sparse weights have 1 to 8 bits, not {bits}")
        if scheme.order == "quantize-first" and bits == 1:
            raise InputError("order = 'quantize-first' needs at least 2 bits: its grid of 1 bit is zero everywhere")
        self.order, self.gradient = scheme.order, scheme.gradient
        self.register_buffer("sigma", torch.tensor(float(scheme.sigma), dtype=torch.float64))
        self.register_buffer("active", torch.tensor(True))

    def represented(self, weight: Tensor) -> Tensor:
        """Sparse, quantized weights of the same shape; ``weight`` itself while not yet active.

        The device chooses: the host would wait for it to ask.
        """
        found = self._codes(weight)
        values = torch.where(self.active, found.values(), weight.detach())
        kept = (found.codes != 0) | ~self.active
        return straight_through(weight, values, kept.to(weight.dtype) if self.gradient == "zero" else None)

    def stored(self, weight: Tensor, scheme: SparseWeights) -> SparseWeights:
        """Non-zeros, format and bits, at the σ of the net."""
        return stored(weight, self.bits[0], replace(scheme, sigma=float(self.sigma), order=self.order))

    def pack(self, name: str, weight: Tensor, scheme: SparseWeights, add: Add) -> tuple[dict[str, Any], dict[str, Any]]:
        """The codes in their smallest format, and the two numbers that make them values."""
        found, (bits,) = self._trained_codes(name, weight), self.bits
        dense = dense_bits(bits, self.order)
        data = encode(_integers(found), cast(str, scheme.storage), bits, dense)
        described = {
            "storage": scheme.storage,
            "bits": bits,
            "dense_bits": dense,
            "nonzeros": scheme.nonzeros,
            "tensor": add(f"{name}.sparse", np.frombuffer(data, dtype=np.uint8)),
        }
        return described, {"levels": add(f"{name}.levels", torch.stack([found.start, found.step]))}

    def gapped(self, name: str, weight: Tensor) -> GappedWeight:
        """The codes, t, and the distance of levels."""
        found = self._trained_codes(name, weight)
        return GappedWeight(self.words, _integers(found), float(found.start), float(found.step))

    def keep_rows(self, rows: Tensor | None) -> NoReturn:
        """Refuse to let filters be removed."""
        raise InputError("sparse weights cannot lose filters: their threshold is that of the whole layer")

    def _codes(self, weight: Tensor) -> SparseCodes:
        return sparse_codes(weight, self.sigma, self.bits[0], self.order)

    def _trained_codes(self, name: str, weight: Tensor) -> SparseCodes:
        if not self.active:
            raise InputError(f"the weights of layer '{name}' are not sparse yet; train the net to its end first")
        return self._codes(weight)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"squantizer, bits={self.bits}, sigma={float(self.sigma):g}, {self.order}"


def sparse_quantizers(network: nn.Module) -> list[SparseQuantizer]:
    """All of a network's sparse weight quantizers, in its order."""
    return [module for module in network.modules() if isinstance(module, SparseQuantizer)]


def activate(network: nn.Module) -> None:
    """Switch the sparsity of every layer on."""
    for quantizer in sparse_quantizers(network):
        quantizer.active.fill_(True)


def delayed(network: nn.Module, delay: float) -> Callable[[float], None]:
    """A callback that switches sparsity on once training has got as far as ``delay``; progress is in [0, 1)."""
    quantizers = sparse_quantizers(network)

    def switch(progress: float) -> None:
        for quantizer in quantizers:
            quantizer.active.fill_(progress >= delay)

    return switch


def stored(weight: Tensor, bits: int, sparse: SparseWeights) -> SparseWeights:
    """The same record with what ``weight`` (R, ...) takes: its non-zeros, the smallest format, the bits in it."""
    codes = codes_of(weight, bits, sparse)
    storage = smallest(codes, bits, dense_bits(bits, sparse.order))
    return replace(sparse, nonzeros=int(np.count_nonzero(codes)), storage=storage.format, stored_bits=storage.bits)


def codes_of(weight: Tensor, bits: int, sparse: SparseWeights) -> np.ndarray:
    """The integers (int64, the weight's shape) that stand for ``weight``."""
    return _integers(sparse_codes(weight, sparse.sigma, bits, sparse.order))


def _integers(found: SparseCodes) -> np.ndarray:
    return found.codes.cpu().numpy().astype(np.int64)


def dense_bits(bits: int, order: str) -> int:
    """Bits of a code in the dense format: beside 2^bits values, zero is one more than ``bits`` can tell apart."""
    return bits + 1 if order == "sparsify-first" else bits
