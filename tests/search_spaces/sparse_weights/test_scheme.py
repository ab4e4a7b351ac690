"""The entry of a sparse layer in an assignment."""

from __future__ import annotations

import json
import math

import pytest

from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.sparse_weights.scheme import SparseWeights


def assignment(sparse: SparseWeights | None) -> BitAssignment:
    return BitAssignment("mine", ModelReference("toy", (1, 6, 6)), {"stem": LayerBits(4, 4, 3, None, sparse)})


def test_sparse_layers_survive_the_assignment_file_and_dense_ones_do_not_mention_it() -> None:
    for sparse in (SparseWeights(0.5), SparseWeights(-1.0, "quantize-first", "zero", 7, "relative-4", 123)):
        there = assignment(sparse)
        assert BitAssignment.loads(json.dumps(there.to_json())) == there
    dense = assignment(None).to_json()
    assert "sparse" not in dense["layers"]["stem"]
    assert BitAssignment.from_json(dense) == assignment(None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"sigma": math.inf}, "sigma = inf"), ({"order": "last"}, "order = 'last'"), ({"gradient": 1}, "gradient = 1")],
)
def test_nonsense_about_sparse_weights_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        SparseWeights(**{"sigma": 0.0, **wrong})  # type: ignore[arg-type]
    data = assignment(SparseWeights(0.0)).to_json()
    data["layers"]["stem"]["sparse"].update(wrong)
    with pytest.raises(InputError, match=told):
        BitAssignment.from_json(data)
