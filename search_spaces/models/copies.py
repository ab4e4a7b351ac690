"""Copies of networks: whatever a module holds beyond parameters is copied too, or refused by name."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any, TypeVar

from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.models.attention import unfold_attention
from search_spaces.models.closures import FUNCTIONS, is_proxy, kept_by, rebind_functions
from search_spaces.models.extra_state import keep_extra_state_in_tensors

Network = TypeVar("Network", bound=nn.Module)


def copy_network(model: Network, memo: dict[int, Any] | None = None) -> Network:
    """A deep copy of ``model``; ``memo`` maps the ids of what is copied already to the copies, and is added to.

    Tensors that a module computed and kept (hook-based weight norm, masks of ``torch.nn.utils.prune``, the output of
    the last forward pass) are copied without the graph behind them. Functions find what they keep of the network in its
    copy. Raises :class:`InputError` that names the module and the attribute that Python cannot copy, or that tells
    modules by their place in memory, which a copy has not.
    """
    memo = {} if memo is None else memo
    _check_identities(model)
    empty = _empty_copies(model)
    attempt = empty | memo
    try:
        twin = copy.deepcopy(model, attempt)
    except Exception:  # kept tensors are looked for where Python stumbled alone: looking takes as long as copying
        given = empty | _kept_tensors(model) | memo
        attempt = dict(given)
        try:
            twin = copy.deepcopy(model, attempt)
        except Exception as error:  # an attribute may be anything, and fail in any way
            raise InputError(_refusal(model, given, error)) from error
    rebind_functions(twin, attempt)
    memo.update(attempt)
    return twin


def _check_identities(model: nn.Module) -> None:
    """Refuse attributes that find modules or parameters by ``id`` or by weak reference: in a copy they find none."""
    held = [(name, key, value) for name, module in model.named_modules() for key, value in _own_attributes(module)]
    seen: dict[int, int] = {}
    kept = [(name, key, found) for name, key, value in held for found in _identities(value, seen)]
    if not kept:
        return
    places = {id(held) for held in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, key, found in kept:
        if (found if isinstance(found, int) else id(found)) in places:
            raise InputError(
                f"the network cannot be copied, and a search works on copies: '{key}' of module "
                f"'{name or type(model).__name__}' finds modules or parameters by id() or by weak reference, which "
                "those of a copy do not have; find them by name"
            )


_COMMON = vars(nn.Module()).keys()
_HOOKS = tuple(key for key in _COMMON if key.endswith("_hooks"))
_PYTORCHS = ("_flat_weight_refs", "_torchdynamo")
"""Weak references of LSTM and GRU, which make them anew in copies, and marks of torch.compile."""
_LEAST_IDENTITY = 1 << 20
"""No address is as low; what counts or measures seldom is as high."""


def _own_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module has beyond the attributes of every module, and the functions that hang on it."""
    own = [(key, value) for key, value in vars(module).items() if key not in _COMMON and not key.startswith(_PYTORCHS)]
    hooks = [(key, vars(module).get(key)) for key in _HOOKS]
    return own + [(key, hook) for key, held in hooks if held for hook in held.values()]


def _identities(value: Any, seen: dict[int, int], depth: int = 3) -> list[Any]:
    """Whole numbers in a value that may be addresses, and what weak references in it lead to.

    ``seen`` says how deep what is shared has been looked into.
    """
    if is_proxy(value):
        return []
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, weakref.WeakKeyDictionary | weakref.WeakSet):
        return list(value)
    if isinstance(value, weakref.WeakValueDictionary):
        return list(value.values())
    if type(value) is int:
        return [value] if value >= _LEAST_IDENTITY else []
    if depth <= seen.get(id(value), 0) or not isinstance(value, (dict, list, tuple, set, frozenset, *FUNCTIONS)):
        return []
    seen[id(value)] = depth
    parts = kept_by(value)
    if isinstance(value, FUNCTIONS):  # whose weak references are made to lead into the copy
        parts = [part for part in parts if type(part) is not weakref.ref]
    return [found for part in parts for found in _identities(part, seen, depth - 1)]


def _empty_copies(model: nn.Module) -> dict[int, Any]:
    """Copies of the empty dictionaries, by id: a module has a dozen for its hooks, 40 % of a copy's time."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in values if type(value) in (dict, OrderedDict) and not value}


def _kept_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Copies of the tensors that modules computed and kept, by id."""
    waiting: list[Any] = [vars(module) for module in model.modules()]
    kept: dict[int, Tensor] = {}
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor) and value.grad_fn is not None:
            kept[id(value)] = value
        if id(value) not in seen:
            seen.add(id(value))
            waiting += kept_by(value)
    return {key: tensor.detach().clone() for key, tensor in kept.items()}


def fresh_copy(model: Network, memo: dict[int, Any] | None = None) -> Network:
    """A copy of ``model`` that is safe to quantize; the caller's model keeps its state, mode and attributes.

    Fused transformer kernels are turned off (in eval mode they read the weights past the layers), and
    ``nn.MultiheadAttention`` is unfolded into its two linear layers. In-place activations stay: a network may read
    what they overwrite, and whatever trains in the network trains in its twin. Extra state is given as tensors.
    """
    twin = copy_network(model, memo)
    unfold_attention(twin)
    keep_extra_state_in_tensors(twin)
    for module in twin.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return twin


def _refusal(model: nn.Module, memo: dict[int, Any], error: Exception) -> str:
    """Name what cannot be copied: the innermost module with an attribute that fails by itself."""
    where, reason = "it", str(error)
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(memo)) if key != "_modules" else None
            except Exception as own:  # as above
                where, reason = f"'{key}' of module '{name or type(model).__name__}'", str(own)
    sentence = (reason.strip().splitlines() or [type(error).__name__])[0]
    return (
        f"the network cannot be copied, and a search works on copies: copy.deepcopy fails on {where} ({sentence}); "
        "make that in the forward pass instead, or give its class a __deepcopy__"
    )
