"""Tensors that a module computes of others before it uses them: parametrizations, weight and spectral norm, masks.

Two ways of PyTorch's are known: ``torch.nn.utils.parametrize`` (a property of the class), and hooks before the forward
pass that set a plain attribute (``weight_norm``, ``spectral_norm`` and ``prune`` of ``torch.nn.utils``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
_SOURCES = ("_g", "_v", "_orig", "_u", "_mask")
"""What a hook reads is called as the tensor that it sets, with one of these behind."""


def hooked_name(hook: Any) -> str | None:
    """The tensor that a hook before the forward pass computes; None where it is no hook of PyTorch's that does so."""
    if not isinstance(hook, _HOOKS):
        return None
    return str(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)


def computes(hook: Any) -> bool:
    """Whether a hook is PyTorch's and serves to compute a tensor, or to load what it is computed of."""
    return hooked_name(hook) is not None or type(getattr(hook, "hook", hook)).__module__ == SpectralNorm.__module__


def computed_names(module: nn.Module) -> tuple[str, ...]:
    """The tensors of ``module`` that are computed of others, such as ``("weight",)``."""
    hooked = (hooked_name(hook) for hook in module._forward_pre_hooks.values())
    parametrized = cast(nn.ModuleDict, module.parametrizations) if parametrize.is_parametrized(module) else ()
    return tuple(dict.fromkeys([*parametrized, *(name for name in hooked if name is not None)]))


def sources_of(module: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The parameters and buffers, by name within ``module``, that serve to compute ``names`` (None: all of them)."""
    hooked = [name for hook in module._forward_pre_hooks.values() if (name := hooked_name(hook)) is not None]
    keys = list(computed_names(module) if names is None else names)
    for key in keys:  # what is computed may be the source of another, as a masked direction of weight norm
        keys += [name for name in hooked if name not in keys and name.startswith(f"{key}_")]
    ends = {f"{key}{end}" for key in keys if key in hooked for end in _SOURCES}
    parts = tuple(f"parametrizations.{key}." for key in keys)
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in tensors if name in ends or name.startswith(parts)}


@contextmanager
def reading(module: nn.Module) -> Iterator[None]:
    """Compute tensors as in eval mode inside this context: spectral norm then makes no step of its power iteration."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def current(module: nn.Module, name: str) -> Tensor | None:
    """The tensor ``name`` of ``module``, computed of what its sources are now; None where it has none."""
    with reading(module):
        for hook in module._forward_pre_hooks.values():
            if hooked_name(hook) is not None:
                hook(module, ())
        return cast("Tensor | None", getattr(module, name))


def make_plain(network: nn.Module) -> None:
    """Let every module hold as parameters what it computes of others, with the values of now, in place."""
    for module in list(network.modules()):
        names = computed_names(module)
        if not names or isinstance(module, parametrize.ParametrizationList):
            continue
        with torch.no_grad():
            values = {name: cast(Tensor, current(module, name)).detach().clone() for name in names}
        learned = any(isinstance(t, nn.Parameter) and t.requires_grad for t in sources_of(module).values())
        forget_sources(module)
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, learned and value.is_floating_point()))


def forget_sources(module: nn.Module) -> None:
    """Let ``module`` compute no tensor of others any more; it lacks those then."""
    hooked = [name for hook in module._forward_pre_hooks.values() if (name := hooked_name(hook)) is not None]
    for name in sources_of(module):
        for held in (module._parameters, module._buffers):
            held.pop(name, None)
    for name in hooked:
        vars(module).pop(name, None)
        module._parameters.pop(name, None)  # what is computed may be the source of another, as a mask of weight norm's
    for hooks in (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if computes(hook):
                del hooks[key]
    if parametrize.is_parametrized(module):
        # Not parametrize.remove_parametrizations: it changes the class, which copies of the module have, too.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
