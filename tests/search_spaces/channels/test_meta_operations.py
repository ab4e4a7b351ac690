"""What an operation gives on the meta device is the same whether it is worked out or remembered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.channels.meta_operations import run_on_meta

ATEN = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CHANNELS_LAST = empty(2, 6, 5, 5).to(memory_format=torch.channels_last)
NORM = [empty(6) for _ in range(4)]
CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (ATEN.convolution.default, (empty(2, 3, 8, 8), empty(4, 3, 3, 3), None, [2], [1], [1], False, [0], 1), {}),
    (ATEN._native_batch_norm_legit_no_training.default, (CHANNELS_LAST, *NORM, 0.1, 1e-5), {}),
    (ATEN.add.Tensor, (empty(2, 1, 5), empty(3, 1)), {"alpha": 2}),
    (ATEN.add.Tensor, (empty(2, dtype=torch.int64), 1), {}),
    (ATEN.add.Tensor, (empty(2, dtype=torch.int64), 1.0), {}),
    (ATEN.add.Tensor, (empty(2, dtype=torch.bool), True), {}),
    (ATEN.cat.default, ([empty(2, 3), empty(2, 4)], 1), {}),
    (ATEN.topk.default, (empty(3, 9), 4), {}),
    (ATEN.index.Tensor, (empty(7, 3), [None, empty(4, dtype=torch.int64)]), {}),
    (ATEN.arange.default, (4,), {"device": torch.device("meta")}),
    (ATEN.arange.default, (4,), {"device": torch.device("cpu")}),
    (ATEN._to_copy.default, (empty(3).expand(2, 3),), {"dtype": torch.float16}),
]


def told(output: Any) -> Any:
    if isinstance(output, (tuple, list)):
        return [told(part) for part in output]
    return (output.shape, output.stride(), output.dtype, output.device)


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS, ids=lambda value: getattr(value, "_name", ""))
def test_what_is_remembered_is_what_is_worked_out(function: Any, args: Any, kwargs: Any) -> None:
    expected = told(function(*args, **kwargs))
    for _ in range(2):
        assert told(run_on_meta(function, args, kwargs)) == expected


def test_what_is_remembered_has_memory_of_its_own() -> None:
    x = empty(3, 11)
    first, second = (run_on_meta(ATEN.relu.default, (x,), {}) for _ in range(2))
    assert len({y.untyped_storage()._cdata for y in (x, first, second)}) == 3


def test_views_and_changes_in_place_keep_the_memory_and_values_are_kept() -> None:
    x = empty(3, 11)
    for function, args in ((ATEN.t.default, (x,)), (ATEN.relu_.default, (x,)), (ATEN.view.default, (x, [33]))):
        assert run_on_meta(function, args, {}).untyped_storage()._cdata == x.untyped_storage()._cdata
    for _ in range(2):
        assert run_on_meta(ATEN.add.Tensor, (torch.ones(2), 1), {}).tolist() == [2.0, 2.0]
        assert run_on_meta(ATEN.arange.default, (3,), {}).tolist() == [0, 1, 2]
