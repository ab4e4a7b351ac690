"""From a source string to a network: the zoo, torchvision, timm, or the user's own callable, and its checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from search_spaces.errors import InputError, check_type, kind_of, nearest, one_line
from search_spaces.models.extra_state import keep_extra_state_in_tensors
from search_spaces.models.sources import KNOWN_SOURCES, ZOO, opened_weights, require_known
from search_spaces.registry import (
    hidden_working_directory,
    import_callable,
    importable_working_directory,
    refuse_fetching,
)

_TORCHVISION = (torchvision.models, torchvision.models.detection, torchvision.models.segmentation)
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile


@dataclass(frozen=True)
class LoadedModel:
    """A network and where it came from; the keys are those the checkpoint lacked or had too many."""

    module: nn.Module
    source: str
    checkpoint_sha256: str | None = None
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()


def load_model(
    source: str, *, arguments: Mapping[str, Any] | None = None, checkpoint: Path | str | None = None
) -> LoadedModel:
    """Build the network named by ``source`` with ``arguments`` and load ``checkpoint`` into it.

    ``source`` is ``zoo:NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``.
    Raises InputError where the source, the arguments or the checkpoint cannot be used.
    """
    _check_given(source, arguments)
    prefix, separator, name = source.partition(":")
    if not separator or not prefix or not name:
        known = [f"{prefix}:{name}" for prefix in ("zoo", "torchvision") for name in _names(prefix)]
        short = {full.partition(":")[2]: full for full in reversed(known)}
        hint = f"; did you mean '{short[source]}'?" if source in short else nearest(source, known)
        raise InputError(f"model '{source}' is not of the form zoo:NAME, torchvision:NAME or package.module:NAME{hint}")
    values = dict(arguments or {})
    refuse_fetching(source, values)
    # A timm.py of the current folder is not timm.
    with hidden_working_directory() if prefix in KNOWN_SOURCES else importable_working_directory():
        constructor, defaults = _constructor(prefix, name, source, values)
        module = _call(source, constructor, values, defaults)
    if not isinstance(module, nn.Module):
        raise InputError(f"model '{source}' returned {kind_of(module)}, not a torch.nn.Module")
    loaded = LoadedModel(module, source)
    if checkpoint is not None:
        loaded = LoadedModel(module, source, *load_checkpoint(module, Path(checkpoint)))
    keep_extra_state_in_tensors(module)
    try:
        check_finite(module)
    except InputError as error:
        raise InputError(f"model '{source}'{f', checkpoint {checkpoint}' if checkpoint else ''}: {error}") from error
    return loaded


def check_known_shapes(network: nn.Module) -> None:
    """Raise :class:`InputError` that names the first parameter of a network whose layers have never run."""
    lazy = (name for name, parameter in network.named_parameters() if nn.parameter.is_lazy(parameter))
    if (name := next(lazy, None)) is not None:
        raise InputError(f"the parameter '{name}' is lazy, so it has no shape yet; run the network once on an example")


def check_finite(network: nn.Module) -> None:
    """Raise :class:`InputError` that names the first parameter or BatchNorm statistic that is not finite.

    A variance of which no root can be taken makes outputs that are not.
    A parameter outside layers that holds minus infinity beside numbers is a mask, which softmax takes.
    """
    check_type(network, nn.Module, "a network", "give a torch.nn.Module")
    check_known_shapes(network)
    statistics = (
        (f"{name}.{key}" if name else key, norm.get_buffer(key))
        for name, norm in network.named_modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
        for key in ("running_mean", "running_var")
        if getattr(norm, key) is not None
    )
    for name, tensor in (*network.named_parameters(), *statistics):
        count = 0 if tensor.is_meta else int((~tensor.isfinite()).sum())
        if count and not _is_mask(network, name, tensor):
            raise InputError(
                f"'{name}' holds {count} of {tensor.numel()} values that are not finite; train or load the net again"
            )
    for name, norm in network.named_modules():
        variance = norm.running_var if isinstance(norm, _BatchNorm) else None
        if variance is not None and not variance.is_meta and bool((variance + norm.eps <= 0).any()):
            raise InputError(
                f"BatchNorm '{name}' has a variance of {float(variance.min()):.3g}, of which there is no root; train "
                "or load the net again"
            )


def _is_mask(network: nn.Module, name: str, tensor: Tensor) -> bool:
    owner = network.get_submodule(name.rpartition(".")[0])
    in_layer = isinstance(owner, (_ConvNd, nn.Linear)) or type(owner).__module__.startswith(("torch.nn.", "dnas."))
    return not (in_layer or tensor.requires_grad) and bool((tensor.isfinite() | tensor.isneginf()).all())


def _check_given(source: Any, arguments: Any) -> None:
    if not isinstance(source, str):
        raise InputError(f"a model is named by text such as 'zoo:resnet20', got {source!r}")
    if not isinstance(arguments or {}, Mapping):
        raise InputError(f"the arguments of model '{source}' must be a mapping of names to values, got {arguments!r}")


def available_models() -> dict[str, list[str]]:
    """Return the model names by prefix; ``timm`` is there only where it is installed."""
    prefixes = ["zoo", "torchvision"]
    with hidden_working_directory():
        if importlib.util.find_spec("timm") is not None:
            prefixes.append("timm")
        return {prefix: _names(prefix) for prefix in prefixes}


def load_checkpoint(module: nn.Module, path: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Load the weights in ``path`` into ``module``; return the file's sha256, the missing and the unexpected keys.

    Raises InputError where the file is no plain weights file, a shape differs, or no key matches.
    """
    sha256, content = _read_weights(path)
    own = module.state_dict()
    weights = _state_dict(content, path, own)
    for key, value in weights.items():
        if key in own and own[key].shape != value.shape:
            raise InputError(
                f"checkpoint '{path}' does not fit the model: '{key}' has shape {tuple(value.shape)} in the file "
                f"and {tuple(own[key].shape)} in the model"
            )
    matching = {key: value for key, value in weights.items() if key in own}
    if not matching:
        examples = f"the file has '{next(iter(weights), '')}', the model has '{next(iter(own), '')}'"
        raise InputError(f"checkpoint '{path}' shares no key with the model: {examples}")
    module.load_state_dict(matching, strict=False)
    missing = (key for key in own if key not in matching and not key.endswith("num_batches_tracked"))
    return sha256, tuple(missing), tuple(key for key in weights if key not in own)


def _names(prefix: str) -> list[str]:
    if prefix == "zoo":
        return list(ZOO)
    if prefix == "torchvision":
        return [name for module in _TORCHVISION for name in torchvision.models.list_models(module=module)]
    return list(_timm().list_models())


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError("models of timm need the package timm: pip install 'dnas[timm]'") from error
    return timm


def _constructor(
    prefix: str, name: str, source: str, values: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Find what builds the model, and the defaults under which it returns plain, untrained logits."""
    if prefix not in KNOWN_SOURCES:
        return import_callable(source, "model", [nn.Module]), {}
    if not (prefix == "timm" and _timm().is_model(name)):  # NAME.TAG also
        require_known(source, _names(prefix))
    if prefix == "zoo":
        return ZOO[name], {}
    if prefix == "torchvision":
        defaults = _auxiliary_defaults(name, pretrained=values.get("weights") is not None)
        if name not in torchvision.models.list_models(module=torchvision.models):
            defaults |= {"weights_backbone": None}  # torchvision would fetch them
        return lambda **given: torchvision.models.get_model(name, **given), {"weights": None, **defaults}
    # timm would read a file named by one of these without weights_only, that is, unpickle it.
    for key in ("checkpoint_path", "pretrained_cfg_overlay"):
        if key in values:
            raise InputError(f"model '{source}': give the weights file as the model's checkpoint, not as '{key}'")
    return lambda **given: _timm().create_model(name, **given), {"pretrained": False}


def _auxiliary_defaults(name: str, pretrained: bool) -> dict[str, Any]:
    """Return arguments that keep the two inception networks to plain logits, without their warnings."""
    if name not in ("googlenet", "inception_v3"):
        return {}
    if not pretrained:
        return {"aux_logits": False, "init_weights": True}
    return {"aux_logits": False} if name == "inception_v3" else {}  # googlenet drops them itself


def _call(source: str, constructor: Callable[..., Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Call the constructor; turn whatever it raises into one sentence, with the nearest argument name."""
    try:
        return constructor(**{**defaults, **values})
    except InputError as error:
        raise InputError(f"model '{source}': {error}") from error
    except (Exception, SystemExit) as error:  # a constructor may reject its arguments in any way
        hint = _argument_hint(constructor, values) if isinstance(error, TypeError) else ""
        given = f" with the arguments {dict(values)}" if values else ""
        raise InputError(f"model '{source}' cannot be built{given}: {one_line(error)}{hint}") from error


def _argument_hint(constructor: Callable[..., Any], values: Mapping[str, Any]) -> str:
    with contextlib.suppress(TypeError, ValueError):
        accepted = [key for key in inspect.signature(constructor).parameters if key != "given"]
        hints = (
            nearest(key, accepted or ["num_classes"]) for key in values if key not in (accepted or ["num_classes"])
        )
        return next((hint for hint in hints if hint), "")
    return ""


def _read_weights(path: Path) -> tuple[str, Any]:
    with opened_weights(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if path.suffix == ".safetensors":
            return sha256, safetensors.torch.load_file(path)
        return sha256, torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a corrupt archive may fail anywhere inside the reader
        raise InputError(
            f"checkpoint '{path}' is no plain weights file ({type(error).__name__}): it is corrupt or holds Python "
            "objects, which are never unpickled; save model.state_dict() with torch.save or as .safetensors"
        ) from error


def _state_dict(content: Any, path: Path, own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors in what the file held, without the prefixes that wrappers leave on every key."""
    for key in _STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise InputError(f"checkpoint '{path}' holds {kind_of(content)}, not a dictionary of tensors")
    weights = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"checkpoint '{path}' holds no tensors")
    for prefix in _WRAPPER_PREFIXES * 2:  # the two wrappers nest in either order
        if all(key.startswith(prefix) and key not in own for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
