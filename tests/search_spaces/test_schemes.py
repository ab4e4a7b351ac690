"""What is named in a registry is imported when it is asked for, and not before."""

from __future__ import annotations

import subprocess
import sys


def test_a_scheme_is_imported_when_it_is_met_and_needs_no_torch() -> None:
    code = """
import sys
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.schemes import SCHEMES

def seen():
    return [name for name in ("search_spaces.sparse_weights", "dnas", "torch") if name in sys.modules]

written = BitAssignment("mine", ModelReference("toy", (1,)), {"stem": LayerBits(3, 4)}).to_json()
BitAssignment.from_json(written)
print("sparse" in SCHEMES, seen())
written["layers"]["stem"]["sparse"] = {"sigma": 0.5}
print(BitAssignment.from_json(written).layers["stem"].scheme.sigma, seen())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True []", "0.5 ['search_spaces.sparse_weights']"]
