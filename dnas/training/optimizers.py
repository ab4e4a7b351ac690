"""Optimizers by name, and their state as plain tensors and values: what is refused is refused before any training."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnas.config.training import Optimization
from search_spaces.errors import InputError, nearest
from search_spaces.registry import hidden_working_directory, import_callable, importable_working_directory

Groups = list[dict[str, Any]]
"""Parameter groups: ``params``, ``weight_decay``, and what else an optimizer keeps for each."""

_NAMES = tuple(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
)


def build_optimizer(groups: Groups, optimization: Optimization) -> Optimizer:
    """The optimizer that ``optimization`` names over these parameter groups.

    Raises :class:`InputError` for a name that is not known, or arguments that it does not take.
    """
    make = optimizer_class(optimization.optimizer)
    accepted = inspect.signature(make).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in optimization.optimizer_options.items()}
    unknown = [key for key in options if key not in accepted and not open_ended]
    if unknown:
        hint = nearest(unknown[0], accepted) or f"; it takes {', '.join(list(accepted)[1:])}"
        raise InputError(f"optimizer '{optimization.optimizer}' takes no '{unknown[0]}'{hint}")
    _refuse_unused(optimization, accepted, open_ended)
    momentum = {"momentum": optimization.momentum} if "momentum" in accepted else {}
    return make(groups, lr=optimization.learning_rate, **momentum, **options)


def _refuse_unused(optimization: Optimization, accepted: Mapping[str, Any], open_ended: bool) -> None:
    """Refuse a momentum or weight decay that was chosen and would do nothing."""
    for key in ("momentum", "weight_decay"):
        default = Optimization.model_fields[key].default
        if key not in accepted and not open_ended and getattr(optimization, key) not in (0, default):
            raise InputError(
                f"optimizer '{optimization.optimizer}' takes no {key}; leave {key} = {getattr(optimization, key)} out"
            )


def check_optimizer(optimization: Optimization, where: str) -> None:
    """Raise :class:`InputError` that begins with ``where`` unless this optimizer can train a network and be resumed."""
    name = f"{where}: optimizer '{optimization.optimizer}'"
    try:
        resumes = _resumes(optimization.model_dump_json(include=set(Optimization.model_fields)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # an optimizer may refuse its arguments or what it is to train in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot train a network: {reason}") from error
    if not resumes:
        raise InputError(f"{name} cannot be resumed: a checkpoint does not hold all it goes by; choose another one")


@functools.cache  # a job has several sections of training, which mostly agree, and asks again at each resume
def _resumes(settings: str) -> bool:
    """Whether two steps on a small network end alike with and without a checkpoint between them."""
    optimization = Optimization.model_validate_json(settings)
    whole, stopped, resumed = (_toy(optimization) for _ in range(3))
    for parameters, optimizer in (whole, stopped):
        _toy_step(parameters, optimizer, 1)
    tensors, values = optimizer_state(stopped[1], "state")
    if not _is_plain(values):
        return False
    for new, old in zip(resumed[0], stopped[0], strict=True):
        new.data.copy_(old.data)
    restore_optimizer(resumed[1], tensors, values, "state")
    for parameters, optimizer in (whole, resumed):
        _toy_step(parameters, optimizer, 2)
    # A learning rate out of all proportion makes NaN both ways, which is told as what it is once a network is trained.
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(whole[0], resumed[0], strict=True))


def _toy(optimization: Optimization) -> tuple[list[nn.Parameter], Optimizer]:
    parameters = [nn.Parameter(torch.linspace(-1, 1, 36).view(2, 2, 3, 3)), nn.Parameter(torch.ones(2))]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(parameters, (0.1, 0.0), strict=True)]
    return parameters, build_optimizer(groups, optimization)


def _toy_step(parameters: Sequence[nn.Parameter], optimizer: Optimizer, scale: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.grad = scale * parameter.detach().cos()
        optimizer.step()


def optimizer_class(name: str) -> Callable[..., Optimizer]:
    """What makes the optimizer ``name``: of torch.optim, ``timm:NAME`` or ``package.module:Class``."""
    prefix, separator, rest = name.partition(":")
    if not separator:
        if name not in _NAMES:
            same = next((known for known in _NAMES if known.lower() == name.lower()), None)
            hint = nearest(same or name, _NAMES) or f"; torch.optim has {', '.join(_NAMES)}"
            raise InputError(f"there is no optimizer '{name}'{hint}")
        return getattr(torch.optim, name)
    if prefix == "timm":
        return _timm_class(rest)
    with importable_working_directory():
        return import_callable(name, "optimizer", [Optimizer])


def _timm_class(name: str) -> Callable[..., Optimizer]:
    try:
        with hidden_working_directory():
            module = importlib.import_module("timm.optim")
    except ImportError as error:
        raise InputError(f"optimizer 'timm:{name}' needs the package timm: pip install 'dnas[timm]'") from error
    known = module.list_optimizers()
    if name not in known:
        hint = nearest(name, known) or f"; it has {', '.join(known)}"
        raise InputError(f"timm has no optimizer '{name}'{hint}")
    plain, bound = (module.get_optimizer_class(name, bind_defaults=bind) for bind in (False, True))
    defaults = dict(getattr(bound, "keywords", {}))
    accepted = inspect.signature(plain).parameters.values()

    def make(groups: Groups, **given: Any) -> Optimizer:
        return plain(groups, **{**defaults, **given})

    make.__signature__ = inspect.Signature(list(accepted))  # type: ignore[attr-defined]
    return make


def optimizer_state(optimizer: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, named ``prefix.INDEX.KEY``, and plain values of the same names.

    INDEX is that of a parameter, or ``groupN`` for what is kept for a group of parameters.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    state = optimizer.state_dict()
    groups = {f"group{index}": _own(group) for index, group in enumerate(state["param_groups"])}
    for index, entries in [*state["state"].items(), *groups.items()]:
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{key}"] = value.clone()
            else:
                values[f"{prefix}.{index}.{key}"] = value
    return tensors, values


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any], prefix: str
) -> None:
    """Put back what :func:`optimizer_state` took out."""
    entries: dict[str, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *values.items()]:
        if name.startswith(f"{prefix}."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            # A copy: the optimizer would go on in the tensors it is given.
            entries.setdefault(index, {})[key] = value.clone() if isinstance(value, Tensor) else value
    groups = optimizer.state_dict()["param_groups"]
    merged = [{**group, **entries.pop(f"group{index}", {})} for index, group in enumerate(groups)]
    state = {int(index): values for index, values in entries.items()}
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _own(group: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept for a group of parameters: some optimizers count and estimate there."""
    return {key: v for key, v in group.items() if key != "params" and isinstance(v, Tensor | int | float | str)}


def _is_plain(value: Any) -> bool:
    """Whether a JSON file can hold this."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    return value is None or isinstance(value, bool | int | float | str)
