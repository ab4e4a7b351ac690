"""What is exported: the trained net of an assignment, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dnas.quantization.conversion import QuantizerChoice
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment
from search_spaces.layers import LayerGraph


@dataclass(frozen=True)
class StoredNet:
    """The trained net of an assignment, in eval mode, with the graph of its float network.

    ``model`` names the network as a job does (``source``, ``arguments``); ``preprocessing`` is None where nobody knows.
    ``images`` are real inputs of it, normalised (N, C, H, W) or what its task makes of a batch; None where there are
    none at hand.
    """

    network: nn.Module
    graph: LayerGraph
    assignment: BitAssignment
    choice: QuantizerChoice = field(default_factory=QuantizerChoice)
    model: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    seed: int = 0
    score: float | None = None
    """The metric on validation; None where it is not known."""
    images: Any = None
