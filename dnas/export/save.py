"""The one function that writes a packed file, of a fixed net or of a whole switchable one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dnas.export.pack import pack_fixed
from dnas.export.pack_switchable import pack_switchable
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.net import SwitchableNet
from results.packed.file import PackedFile
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.load import check_finite
from search_spaces.models.named_in_files import described_network


def save_packed(
    path: Path | str,
    network: nn.Module,
    graph: LayerGraph | None = None,
    assignment: BitAssignment | None = None,
    choice: QuantizerChoice | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> PackedFile:
    """Write a trained quantized net to ``path``, from where :func:`load` reads it; its tensors take ``size_bytes``.

    ``network`` is a fixed net, made of ``assignment`` (by :func:`apply`, :func:`quantize_fixed` or :func:`finetune`),
    with ``graph`` that of the float network; or a :class:`SwitchableNet`, which knows these itself. ``choice`` names
    its quantizers, by default those that the assignment was made with. ``model`` is {"source": ..., "arguments": ...}
    of a float network that :func:`load` can make itself, such as {"source": "torchvision:resnet18"};
    ``preprocessing`` tells readers how to normalise. The network may be on any device and stays as it is. Raises
    :class:`InputError` for a net that the format cannot hold.
    """
    check_finite(network)
    told = None if preprocessing is None else preprocessing.to_json()
    named = described_network(str(model["source"]), model.get("arguments") or {}) if model and "source" in model else {}
    more = {"model": {**(model or {}), **named}, "preprocessing": told}
    if isinstance(network, SwitchableNet):
        return pack_switchable(Path(path), network, more)
    if graph is None or assignment is None:
        raise InputError(
            "a fixed net is written with the graph of its float network and its assignment: "
            "save_packed(path, network, graph, assignment)"
        )
    return pack_fixed(Path(path), network, graph, assignment, choice or QuantizerChoice.of(assignment), more)
