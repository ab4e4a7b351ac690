"""How pixels become what a network reads, and what its outputs stand for: what every file of a trained net tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from search_spaces.errors import InputError
from search_spaces.records import Count, Figure, Record


@dataclass(frozen=True)
class Preprocessing:
    """A network reads (pixel - mean) / std of each channel, of pixels in [0, 1] (8-bit values over 255), as NCHW.

    ``input_shape`` is (C, H, W); colours are red, green, blue. ``class_names`` are those of the outputs, in order,
    and empty where they are not known. Raises :class:`InputError` for what cannot normalise.
    """

    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        channels = self.input_shape[0] if self.input_shape else 0
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or not len(self.mean) == len(self.std) == channels or min(self.std, default=0) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} do not normalise inputs of shape {self.input_shape}")

    def to_json(self, *, in_file: bool = False) -> dict[str, Any]:
        """The entry in a file's metadata; ``in_file`` says that the file normalises itself."""
        return {
            "layout": "NCHW",
            "input_shape": list(self.input_shape),
            "pixel_range": [0.0, 1.0],
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "normalised_in_file": in_file,
        }

    @classmethod
    def from_json(cls, data: Any) -> Preprocessing:
        """Read what :meth:`to_json` writes; raise :class:`InputError` for anything else."""
        try:
            told = _Entry.read(data)
        except InputError as error:
            raise InputError(f"how to normalise is damaged ({error})") from error
        return cls(told.input_shape, told.mean, told.std, told.classes, told.class_names)


class _Entry(Record):
    """The entry in a file's metadata."""

    input_shape: tuple[Count, ...]
    mean: tuple[Figure, ...]
    std: tuple[Figure, ...]
    classes: Annotated[int, Field(strict=True, ge=0)]  # 0 where numbers are learned
    class_names: tuple[str, ...]
