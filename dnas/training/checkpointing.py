"""Modules that run again in the backward pass by ``torch.utils.checkpoint`` in its reentrant form.

That form has a backward pass of its own inside the outer one: it would go through the sample of a supernet a second
time, and where no input of the module needs a gradient, θ would get none, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces.errors import InputError
from search_spaces.network.examples import run_on

_NODE = "CheckpointFunctionBackward"


def refuse_reentrant(network: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any] = run_on) -> None:
    """Raise :class:`InputError` that names a module of ``network`` in reentrant checkpoints; ``run`` runs it."""
    seen: set[Any] = set()
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            if any([_reaches_node(tensor.grad_fn, seen) for tensor in tensors]):
                found.append(name or type(module).__name__)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    try:
        run(network, tree_map(_wanting, inputs))
    finally:
        for handle in handles:
            handle.remove()
    if found:  # the innermost comes first
        raise InputError(
            f"module '{found[0]}' uses torch.utils.checkpoint with use_reentrant=True, which a supernet cannot be "
            "trained through; give it use_reentrant=False"
        )


def _wanting(x: Any) -> Any:
    """A tensor of floats that wants a gradient; anything else as it is."""
    return x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def _reaches_node(start: Any, seen: set[Any]) -> bool:
    """Whether a reentrant checkpoint is among the nodes of the graph that were not seen before."""
    waiting, reached = [start], False
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            reached |= node.name() == _NODE
            waiting += [before for before, _ in node.next_functions]
    return reached
