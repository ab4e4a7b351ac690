"""What AIMET's documentation says of encodings 1.0.0 ("Encoding Format Specification"), as a check.

There is no schema file: its package checks its own configurations by JSON schema, encodings by none. Its tables are
here. AIMET 2.42 differs from them in two things, which its code tells: ``FLOAT`` stands for ``FP`` (and is for 16 bits
alone), and ``zero_point_shift`` is a key more. Widths below 4 are let through where ``least_bits`` says so.
"""

from __future__ import annotations

import math
from typing import Any

TOP = {
    "version": str,
    "activation_encodings": list,
    "param_encodings": list,
    "quantizer_args": dict,
    "excluded_layers": list,
}
ARGS = {
    "activation_bitwidth": int,
    "dtype": str,
    "is_symmetric": bool,
    "param_bitwidth": int,
    "per_channel_quantization": bool,
    "quant_scheme": str,
}
ENCODING = {"name": str, "enc_type": str, "dtype": str, "bw": int, "is_sym": bool, "scale": list, "offset": list}
SCHEMES = ("post_training_tf", "post_training_tf_enhanced")


def check_encodings(told: dict[str, Any], channels: dict[str, int], least_bits: int = 4) -> None:
    """Assert that ``told`` is a file of encodings; ``channels``: output channels of each parameter."""
    _typed({key: value for key, value in told.items() if key in TOP}, TOP)
    assert told["version"] == "1.0.0"
    _typed(told["quantizer_args"], ARGS)
    assert told["quantizer_args"]["quant_scheme"] in SCHEMES
    assert all(isinstance(name, str) for name in told["excluded_layers"])
    for part in ("activation_encodings", "param_encodings"):
        names = [encoding["name"] for encoding in told[part]]
        assert len(names) == len(set(names))
        for encoding in told[part]:
            _check(encoding, channels.get(encoding["name"], 1), least_bits)


def _check(encoding: dict[str, Any], channels: int, least_bits: int) -> None:
    shift = encoding.get("zero_point_shift")
    _typed({key: value for key, value in encoding.items() if key != "zero_point_shift"}, ENCODING)
    assert encoding["dtype"] == "INT"
    assert least_bits <= encoding["bw"] <= 32
    count = {"PER_TENSOR": 1, "PER_CHANNEL": channels}[encoding["enc_type"]]
    assert len(encoding["scale"]) == len(encoding["offset"]) == count
    assert all(isinstance(scale, float) and math.isfinite(scale) and scale > 0 for scale in encoding["scale"])
    lowest = -(2 ** (encoding["bw"] - 1)) if encoding["is_sym"] else None
    for offset in encoding["offset"]:
        assert isinstance(offset, int)
        assert -(2 ** encoding["bw"]) < offset <= 0
        assert lowest in (None, offset), "symmetric: as many levels on either side, and one"
    assert shift is None or (len(shift) == count and all(0 <= part < 1 for part in shift))


def _typed(told: dict[str, Any], types: dict[str, type]) -> None:
    assert told.keys() == types.keys()
    assert [key for key, kind in types.items() if type(told[key]) is not kind] == []
