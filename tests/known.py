"""What is read of a network, and that its twin is proven, is remembered for the tests that are about something else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import pytest
from torch import Tensor, nn

from dnas.export import unpack
from dnas.jobs import planning, run
from dnas.latency import measure
from dnas.quantization import conversion
from dnas.quantization.proof import check_twin
from dnas.search import supernet
from dnas.switchable import net
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph

_CLASSES = ("torch.nn.modules.", "search_spaces.models.zoo", "tests.")
_OF_EVERY_MODULE = vars(nn.Module())
_PLAIN = (bool, int, float, str, tuple, list, type(None))


def structure(model: nn.Module) -> Hashable | None:
    """All that two networks of the same code can differ in but the values of their tensors; None where that is more."""
    parts = []
    for name, part in model.named_modules():
        if not type(part).__module__.startswith(_CLASSES):
            return None
        own = {key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")}
        if any(value for key, value in own.items() if key in _OF_EVERY_MODULE and key != "training"):
            return None  # hooks
        values = {key: value for key, value in own.items() if key not in _OF_EVERY_MODULE or key == "training"}
        if not all(isinstance(value, _PLAIN) for value in values.values()):
            return None
        parts.append((name, type(part), repr(part), repr(values)))
    state = model.state_dict(keep_vars=True)
    if not all(
        isinstance(value, Tensor) and (value.is_floating_point() or not value.dim()) for value in state.values()
    ):
        return None  # an index, say, or what get_extra_state gives
    first = {id(value): name for name, value in reversed(state.items())}
    tensors = tuple(
        (name, value.shape, value.dtype, value.device, value.requires_grad, first[id(value)])
        for name, value in state.items()
    )
    return tuple(parts), tensors


def _has_a_key(value: Any) -> bool:
    many = value if isinstance(value, tuple | list) else ()
    return isinstance(value, (LayerGraph, *_PLAIN)) and all(map(_has_a_key, many))


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of a network and other arguments, called once for all networks of the same structure."""
    known: dict[Any, Any] = {}

    def remembered(model: nn.Module, *others: Any, **options: Any) -> Any:
        given = [*others, *options.items()]
        key = structure(model) if isinstance(model, nn.Module) and all(map(_has_a_key, given)) else None
        if key is None:
            return function(model, *others, **options)
        whole = (key, *(id(one) if isinstance(one, LayerGraph) else repr(one) for one in given))
        if whole not in known:
            known[whole] = given, function(model, *others, **options)  # what has an id must stay
        return known[whole][1]

    return remembered


known_graph: Callable[..., LayerGraph] = once(read_graph)


@contextmanager
def remembering() -> Iterator[None]:
    """Let jobs, nets and packed files remember. Who calls :func:`read_graph` itself reads anew."""
    prove = once(check_twin)
    with pytest.MonkeyPatch.context() as patch:
        for reader in (planning, unpack, conversion, measure):
            patch.setattr(reader, "read_graph", known_graph)
        for prover in (run, conversion, supernet, net):
            patch.setattr(prover, "check_twin", prove)
        # PyTorch lists what it can write anew for each file: half of the time that a small net takes.
        listing = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        patch.setattr(listing, "from_torchlib", staticmethod(cache(listing.from_torchlib)))
        yield
