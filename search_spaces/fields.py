"""Kinds of values that a user writes, each with its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from search_spaces.errors import nearest
from search_spaces.layers import FLOAT_BITS

LAYER_KINDS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")
ANY_KIND = "*"
BIT_WIDTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, FLOAT_BITS)


def _bit_width(bits: int) -> int:
    if bits not in BIT_WIDTHS:
        raise ValueError(f"{bits} is not a bit-width; choose from {', '.join(map(str, BIT_WIDTHS))}")
    return bits


def _some_bits(bits: int) -> int:
    if bits == 0:
        raise ValueError("0 is possible only among weight_bits, where it skips a residual branch")
    return bits


def _layer_kind(kind: str) -> str:
    if kind not in (ANY_KIND, *LAYER_KINDS):
        raise ValueError(
            f"'{kind}' is not a type of layer; choose from {', '.join(LAYER_KINDS)}{nearest(kind, LAYER_KINDS)}"
        )
    return kind


def _both_or_neither(pair: tuple[int, int]) -> tuple[int, int]:
    if (pair[0] == 0) != (pair[1] == 0):
        raise ValueError(f"{list(pair)}: a skipped branch has 0 bits for both")
    return pair


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, item in enumerate(items):
        if item in items[:place]:
            raise ValueError(f"{list(item) if isinstance(item, tuple) else item} stands there twice; name it once")
    return items


def _usable_path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("expected the path of a file or folder")
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(f"the home folder in '{text}' is not known") from error


LayerKind = Annotated[str, AfterValidator(_layer_kind)]
Bits = Annotated[int, AfterValidator(_bit_width)]
SomeBits = Annotated[Bits, AfterValidator(_some_bits)]
Pair = Annotated[tuple[Bits, Bits], AfterValidator(_both_or_neither)]
OnceEach = AfterValidator(_distinct)
FilePath = Annotated[str, AfterValidator(_usable_path)]
