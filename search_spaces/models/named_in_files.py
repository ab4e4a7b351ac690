"""Networks that a file of somebody else names: made of known packages, plain values and what the file can pay for.

Such a file is data. It never makes us import a module of the user's, fetch or read another file, or take memory that
what it holds does not account for. A job file is code and is not read here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from search_spaces.errors import InputError
from search_spaces.models.load import load_model
from search_spaces.models.sources import KNOWN_SOURCES
from search_spaces.registry import FETCHING

_GIVE_ONE = "give a fresh network, as in dnas.load(path, model)"
_ARGUMENTS = frozenset(
    (
        *("num_classes", "in_channels", "in_chans", "channels", "image_size", "img_size", "patch_size", "window_size"),
        *("width", "width_mult", "width_per_group", "base_width", "cardinality", "groups", "stem_width", "stem_type"),
        *("stages", "norm_last", "depthwise_norm", "avg_down", "global_pool", "output_stride", "zero_init_residual"),
        *("replace_stride_with_dilation", "zero_init_last", "aux_logits", "transform_input", "init_weights"),
        *("dropout", "attention_dropout", "stochastic_depth_prob", "memory_efficient", "drop_rate", "drop_path_rate"),
        *("drop_block_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate", "embed_dim"),
        *("embed_dims", "dims", "depth", "depths", "layers", "num_heads", "num_layers", "hidden_dim", "mlp_dim"),
        *("mlp_ratio", "qkv_bias", "init_values", "class_token", "reg_tokens", "pre_norm", "fc_norm", "act_layer"),
        *("norm_layer", "aa_layer", "kernel_size", "progress", "growth_rate", "block_config", "num_init_features"),
    )
)
"""Arguments that say what is built, and nothing else."""
_LARGEST_INTEGER = 2**16
_LARGEST_DEPTH = 512
_DEPTHS = frozenset(("depth", "depths", "layers", "num_layers", "block_config"))
_FREE_PARAMETERS = 2**24
_PARAMETERS_PER_BYTE = 160
"""A stored byte holds eight weights of 1 bit; pruning and sparse weights leave a twentieth of the float network's."""
_LARGEST_INPUT = 2**26


_MAKERS = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye))


class _Outlines(TorchFunctionMode):
    """Inside it, what modules make their parameters of takes no memory; what they compute sizes with stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function, without memory where it makes a tensor of some shape."""
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func in _MAKERS else {})})


def described_network(source: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of how its float network is made: what is left of a job's words without where weights are from.

    >>> described_network("torchvision:resnet18", {"weights": "DEFAULT", "num_classes": 1000})
    {'source': 'torchvision:resnet18', 'arguments': {'num_classes': 1000}}
    """
    prefix, _, name = source.partition(":")
    if prefix not in KNOWN_SOURCES:
        return {"source": source, "arguments": dict(arguments)}
    kept = {key: value for key, value in arguments.items() if key not in FETCHING}
    if name in ("googlenet", "inception_v3") and arguments.get("weights") is not None:
        kept = {"transform_input": True, **kept}  # torchvision's own consequence of published weights
    return {"source": source, "arguments": kept}


def check_described(described: Any) -> tuple[str, dict[str, Any]]:
    """Source and arguments as a file has them; :class:`InputError` for what a file may not ask for."""
    described = described or {}
    source, arguments = str(described.get("source", "")), described.get("arguments") or {}
    if source.partition(":")[0] not in KNOWN_SOURCES:
        told = f"'{source:.100}'" if source else "no source"
        raise InputError(f"it names {told} for its network; {_GIVE_ONE}")
    if not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of its network '{source}' are no object; {_GIVE_ONE}")
    wanted = {key: value for key, value in arguments.items() if key not in FETCHING or value not in (None, False, "")}
    for key, value in wanted.items():
        if key not in _ARGUMENTS:
            raise InputError(
                f"it names the argument '{key:.60}' for its network '{source}', which a file may not give (such could "
                f"fetch or read something else); {_GIVE_ONE}"
            )
        if not _is_plain(value, _LARGEST_DEPTH if key in _DEPTHS else _LARGEST_INTEGER):
            raise InputError(f"its argument {key} = {value!r:.60} for the network '{source}' is no value; {_GIVE_ONE}")
    return source, {key: value for key, value in wanted.items() if key not in FETCHING}


def check_input(shape: tuple[int, ...]) -> None:
    """:class:`InputError` for inputs that a file may not ask for: the network is run on one."""
    if math.prod(shape) > _LARGEST_INPUT:
        raise InputError(f"its inputs of shape {shape} are larger than a file may ask for; export it again")


def load_described(
    described: Any, input_shape: tuple[int, ...], stored_bytes: int, shapes: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """The float network that a file names.

    It is first made without memory: its weights must be those whose ``shapes`` are given by layer, and all in all no
    more than a file with ``stored_bytes`` of tensors can be of. Raises :class:`InputError` before anything is
    allocated, imported or fetched.
    """
    source, arguments = check_described(described)
    check_input(input_shape)
    try:
        with warnings.catch_warnings(), _Outlines():
            warnings.simplefilter("ignore")  # what PyTorch says of initializing nothing
            outline = load_model(source, arguments=arguments).module
    except InputError as error:
        raise InputError(f"{error}; {_GIVE_ONE}") from error
    count = sum(parameter.numel() for parameter in outline.parameters())
    if count > _FREE_PARAMETERS + _PARAMETERS_PER_BYTE * stored_bytes:
        raise InputError(
            f"its network '{source}' has {count:,} parameters, which {stored_bytes:,} bytes of tensors cannot be of; "
            f"{_GIVE_ONE}"
        )
    own = {name: tuple(parameter.shape) for name, parameter in outline.named_parameters()}
    for layer, shape in shapes.items():
        found = own.get(f"{layer}.weight", shape)
        if found != shape:
            raise InputError(
                f"layer '{layer:.100}' has a weight of shape {shape} in the file and {found} in its network "
                f"'{source}'; {_GIVE_ONE}"
            )
    return load_model(source, arguments=arguments).module


def _is_plain(value: Any, largest: int) -> bool:
    """Whether a value is a small number, a short text, or a list of such."""
    match value:
        case None | bool():
            return True
        case int():
            return -largest <= value <= largest
        case float():
            return math.isfinite(value) and abs(value) <= largest
        case str():
            return len(value) <= 60
        case list() | tuple():
            return len(value) <= 64 and all(_is_plain(each, largest) for each in value)
    return False
