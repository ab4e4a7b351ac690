"""What a runtime runs in integers, as data: files of ``targets/``, or the user's own (docs/export-formats.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from results.files import read_text
from search_spaces.errors import InputError, nearest
from search_spaces.records import Record, read_as

_FOLDER = Path(__file__).parent / "targets"
DEFAULT_TARGET = "generic"
IntegerType = Literal["INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"]
Operator = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]


class Target(Record):
    """What one runtime loads, and what of it it runs in integers.

    ``weight_types`` and ``input_types`` are those that it loads, in order of preference: the first that holds the codes
    is taken, and what none holds is written in fp32. ``zero_points`` lets types without sign hold inputs with one.
    ``half_steps`` allows levels that stand between integers to be an
    addition behind DequantizeLinear where the odd integers would take a wider type. ``ranges`` says where inputs are
    cut to fewer levels than their type has: in fp32 before QuantizeLinear, or as integers behind it. ``biases`` are
    added in fp32 behind their layer, or are 32-bit ``integers`` where QuantizeLinear follows. ``linear`` is the
    operator of a Linear with rows as input. ``integer_operators`` run in integers when weights and inputs have 8 bits
    at most; those of ``quantized_outputs`` only where QuantizeLinear reads what they give.
    ``strided_integers``: the stride of a convolution of one pixel is an operator of its own on its integers.
    """

    name: str
    source: str = Field(min_length=1)
    opset: Literal[21, 25]
    weight_types: tuple[IntegerType, ...]
    input_types: tuple[IntegerType, ...]
    zero_points: bool = False
    half_steps: bool
    negative_scales: bool
    ranges: Literal["floats", "integers"]
    biases: Literal["floats", "integers"]
    linear: Literal["Gemm", "MatMul"]
    integer_operators: tuple[Operator, ...] = ()
    quantized_outputs: tuple[Operator, ...] = ()
    strided_integers: bool = False
    runtime: Literal["onnxruntime", "openvino"] | None = None

    @property
    def ir_version(self) -> int:
        """The version of the file that belongs to the opset."""
        return {21: 10, 25: 13}[self.opset]


def target_names() -> list[str]:
    """The targets that come with this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def find_target(source: str) -> Target:
    """A target by name, or by the path of a file like theirs; :class:`InputError` for any other."""
    if source in target_names():
        return _read(_FOLDER / f"{source}.toml")
    if not source.endswith(".toml"):
        known = target_names()
        raise InputError(
            f"unknown target '{source}'; choose one of {', '.join(known)}, or give the path of a capability file "
            f"(.toml){nearest(source, known)}"
        )
    return _read(Path(source))


def _read(path: Path) -> Target:
    try:
        data = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"capability file {path}: {error}") from error
    unknown = [key for key in data if key not in Target.model_fields]
    if unknown:
        known = list(Target.model_fields)
        raise InputError(f"capability file {path}: unknown key '{unknown[0]}'{nearest(unknown[0], known)}")
    return read_as(Target, data, f"capability file {path}: ")
