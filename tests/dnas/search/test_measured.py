"""Measured sensitivities: the losses of fixed nets in which one decision alone is narrower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.measured import measured_sensitivities
from search_spaces.allocation.program import Cells
from search_spaces.errors import InputError
from tests.dnas.search.test_supernet import fixed_twin
from tests.toys import Net, build_supernet, images, plan, trained

BATCHES = list(images(40).batches(16))
SPACES: dict[str, dict[str, Any]] = {
    "independent": {"first_layer": "search", "weight_bits": (1, 3, 8), "activation_bits": (2, 4, 32)},
    "tied": {"pairing": "tied", "weight_bits": (2, 4, 8), "activation_bits": (2, 4, 8)},
    "skip": {
        "granularity": "block",
        "include": ("first", "second"),
        "weight_bits": (0, 2, 8),
        "activation_bits": (2, 8),
    },
}


def loss(network: nn.Module) -> float:
    with torch.no_grad():
        return sum(F.cross_entropy(network(x), y, reduction="sum").item() for x, y in BATCHES) / 40


@pytest.mark.parametrize("options", SPACES.values(), ids=SPACES)
def test_each_row_is_the_loss_of_a_fixed_net_less_that_of_the_widest(options: dict[str, Any]) -> None:
    model, choice = trained(Net()).eval(), QuantizerChoice()
    _, space, table = plan(model, **options)
    found = measured_sensitivities(model, table, choice, BATCHES)
    assert (found.kind, found.images) == ("measured", 40)
    supernet = build_supernet(trained(Net()), **options)
    calibrate(supernet.network, [x for x, _ in BATCHES])
    last = len(space.weight_bits) - 1, len(space.activation_bits) - 1
    widest: Cells = [last] * len(space.decisions)

    least = loss(fixed_twin(supernet, widest, choice))

    def increase(index: int, cell: tuple[int, int]) -> float:
        cells = [*widest[:index], cell, *widest[index + 1 :]]
        return loss(fixed_twin(supernet, cells, choice)) - least

    for index, decision in enumerate(space.decisions):
        rows = [increase(index, (row, last[1])) for row in range(last[0] + 1)]
        columns = [increase(index, (last[0], column)) for column in range(last[1] + 1)]
        assert found.weights[decision.name] == pytest.approx(rows, abs=1e-5)
        assert found.inputs[decision.name] == pytest.approx(columns, abs=1e-5)
        expected = np.add.outer(rows, columns)
        if space.weight_bits[0] == 0:
            expected[0] = rows[0]
        assert found.losses(space)[index] == pytest.approx(expected, abs=1e-5)


def test_the_model_is_left_untouched_and_no_images_are_refused() -> None:
    model = trained(Net()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, _, table = plan(model)
    measured_sensitivities(model, table, QuantizerChoice(), BATCHES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="batch"):
        measured_sensitivities(model, table, QuantizerChoice(), [])
