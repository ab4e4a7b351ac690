"""Measured sensitivities: the loss of a neutral net in which one decision alone takes fewer bits.

The net has the widest choice everywhere and the float network's weights and BatchNorm statistics; nothing is trained.
Weights are changed with inputs at their widest and the other way round, and the two increases are added up (ours).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.supernet import Supernet
from dnas.training.task import CLASSIFICATION, AnyTask, outputs_of, task_of
from search_spaces.allocation.program import Cells
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.network.examples import rows_of
from search_spaces.sensitivities import Sensitivities

_CALIBRATION_BATCHES = 4


def measured_sensitivities(
    model: nn.Module,
    table: CostTable,
    choice: QuantizerChoice,
    batches: Iterable[tuple[Any, Any]],
    *,
    task: AnyTask = CLASSIFICATION,
) -> Sensitivities:
    """Measured increase of the loss of every width of every decision; D · (Kw + Ka) measurements, no training.

    ``batches`` are (images (N, C, H, W), targets (N, ...)), gone through twice, one at a time; the first four set the
    ranges. The model is left untouched. Raises :class:`InputError` where there is no batch.
    """
    space, task = table.space, task_of(task)
    supernet = Supernet(model, table.graph, space, table, choice)
    calibrate(supernet.network, [x for x, _ in islice(iter(batches), _CALIBRATION_BATCHES)])
    supernet.eval()
    widest = [_widest(allowed) for allowed in space.allowed]
    changes = {key: _changed(widest, *key) for key in single_changes(space.allowed)}
    totals, base, images = dict.fromkeys(changes, 0.0), 0.0, 0
    for x, y in batches:
        with torch.no_grad():

            def loss(cells: Cells, x: Any = x, y: Any = y) -> float:
                with supernet.sampled(supernet.one_hot(cells)):
                    return float(task.loss_sum(outputs_of(task, supernet, x, y), y))

            base += loss(widest)
            for key, cells in changes.items():
                totals[key] += loss(cells)
        images += rows_of(x)
    if not images:
        raise InputError("measured sensitivities need batches of images (N, C, H, W) and labels (N,), at least one")
    found = {key: (total - base) / images for key, total in totals.items()}
    names = [decision.name for decision in space.decisions]

    def rows(axis: int, count: int) -> dict[str, tuple[float, ...]]:
        return {name: tuple(found.get((d, axis, k), 0.0) for k in range(count)) for d, name in enumerate(names)}

    return Sensitivities(
        kind="measured",
        weight_bits=space.weight_bits,
        activation_bits=space.activation_bits,
        weights=rows(0, len(space.weight_bits)),
        inputs=rows(1, len(space.activation_bits)),
        images=images,
    )


def _widest(allowed: np.ndarray) -> tuple[int, int]:
    row, column = np.argwhere(allowed).max(0)
    return int(row), int(column)


def single_changes(allowed: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(decision, 0 for weights or 1 for inputs, position of the width) of every width on offer but the widest."""
    for d, cells in enumerate(allowed):
        for axis in (0, 1):
            offered = np.flatnonzero(cells.any(axis=1 - axis))
            yield from ((d, axis, int(k)) for k in offered[:-1])


def _changed(widest: Cells, decision: int, axis: int, position: int) -> Cells:
    row, column = widest[decision]
    cell = (position, column) if axis == 0 else (row, position)
    return [*widest[:decision], cell, *widest[decision + 1 :]]
