"""The operations of a network, read from one real run, for a file that is to be run without the network's code.

Layers and BatchNorms are seen as modules, everything else as the operations that reach the device. What only moves
values (views, slices, padding, shuffled channels) is run on their positions as well, so that any such operation is
known by where each value comes from. docs/packed-format.md lists what can be said; the rest is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dnas.export.movements import MOST_AXES, MOVEMENTS, Moved, moved, whole
from dnas.export.parts import deployed_copy
from dnas.export.pooling import POOLS
from dnas.quantization.branches import SkippedLayer
from dnas.quantization.layers import QuantizedLayer
from search_spaces.errors import InputError, one_line
from search_spaces.layers import LayerGraph
from search_spaces.network.calls import first_input

_BATCH = 2
"""Two samples, so that what mixes samples is seen."""


def operations_of(
    network: nn.Module, graph: LayerGraph, layers: Mapping[str, Any], parameters: Mapping[str, str]
) -> dict[str, Any]:
    """The steps of a fixed net and which of their results is its output, or why they cannot be told (``refused``).

    ``layers`` and ``parameters`` (outside layers and BatchNorms) are those that the file describes, by name.
    """
    own = next((name for name, layer in layers.items() if not layer["geometry"]["standard"]), None)
    if own is not None:
        return {"refused": f"layer '{own}' has code of its own that a packed file cannot tell"}
    if isinstance(getattr(network, "transform", None), GeneralizedRCNNTransform):
        return {"refused": "a detector chooses its boxes by the values of tensors, which no list of steps can tell"}
    try:
        if graph.signature is not None:
            return {"refused": "the network is called with something else than one tensor of floats"}
        return _Recorder(deployed_copy(network), graph, parameters).record(graph.input_shape)
    except InputError as error:
        return {"refused": str(error)}
    except Exception as error:  # code of a foreign network
        return {"refused": f"the network does not run on one random input ({one_line(error)})"}


class _Recorder(TorchDispatchMode):
    """Follows values through one run; step k makes value k + 1, and value 0 is the input."""

    def __init__(self, network: nn.Module, graph: LayerGraph, parameters: Mapping[str, str]) -> None:
        super().__init__()
        self.network, self.layers = network, {spec.name for spec in graph.layers}
        self.owners = {spec.norm: spec.name for spec in graph.layers if spec.norm is not None}
        self.held = {id(network.get_parameter(name)): name for name in parameters}
        self.steps: list[dict[str, Any]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.known: dict[int, Moved] = {}
        self.kept: list[Tensor] = []  # so that no later tensor has the number of an earlier one
        self.inside = 0

    def record(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Run the network once."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(_BATCH, *input_shape, generator=generator)
        self._name(x, self._value(tuple(input_shape)))
        handles = [handle for name, module in self.network.named_modules() for handle in self._hooks(name, module)]
        try:
            with torch.no_grad(), self:
                found = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(found, Tensor) or id(found) not in self.known:
            raise InputError("the network returns something else than one tensor that is made of its input")
        output = self.operand(found)
        return {"input": list(input_shape), "steps": self.steps, "output": output}

    def _hooks(self, name: str, module: nn.Module) -> list[Any]:
        """Let a layer, a skipped layer or a BatchNorm be one step."""
        if isinstance(module, SkippedLayer):
            step = {"kind": "zeros"}
        elif name in self.layers:
            step = {"kind": "layer", "name": name}
        elif isinstance(module, _BatchNorm):
            owner = self.owners.get(name)
            step = {"kind": "norm", "name": name} if owner is None else {"kind": "norm", "layer": owner}
        else:
            return []

        def before(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.inside += 1

        def after(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            self.inside -= 1
            if self.inside:
                return
            source = first_input(module, inputs, options)
            if not isinstance(output, Tensor) or not isinstance(source, Tensor):
                raise InputError(f"'{name}' takes or returns something else than a tensor")
            self._check_axes(name, module, source)
            self.add({**step, "inputs": [] if step["kind"] == "zeros" else [self.operand(source)]}, output)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    @staticmethod
    def _check_axes(name: str, module: nn.Module, source: Tensor) -> None:
        """Linear layers mix the axis that is the last, all others the one that is the second."""
        kind = module.original_class if isinstance(module, QuantizedLayer) else type(module)
        if issubclass(kind, nn.Linear) and source.ndim != 2:
            raise InputError(f"the linear layer '{name}' runs over {source.ndim - 1} axes of its input, not over one")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note what it does to values that are known."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.inside:
            return output
        name = str(func.overloadpacket).removeprefix("aten.")
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(id(tensor) in self.known for tensor in read) and name not in _SHAPES_ONLY:
            self._note(name, func, args, kwargs, output)
        elif name in _VIEWS and len(read) == 1 and id(read[0]) in self.held:  # a parameter in another shape
            self.held[id(output)] = self.held[id(read[0])]
            self.kept.append(output)
        return output

    def _note(self, name: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        plain = name
        if name.endswith("_") and not name.startswith("_"):
            plain = name.rstrip("_")
            self._check_alone(args[0])
        if plain in MOVEMENTS:
            source = next(leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.known)
            for tensor, found in moved(func, args, kwargs, source, self.known[id(source)]):
                self._name(_matching(output, tensor), found)
            return
        rule = _RULES.get(plain)
        step = None if rule is None else rule(self, args, kwargs)
        if step is None:
            raise InputError(f"the network's operation '{name}' is none that a packed file can tell")
        self.add(step, output[0] if isinstance(output, tuple) else output)

    def _check_alone(self, tensor: Tensor) -> None:
        """Refuse to write into memory that another known tensor shows too."""
        storage = tensor.untyped_storage()._cdata
        for other in self.kept:
            if other is not tensor and id(other) in self.known and other.untyped_storage()._cdata == storage:
                raise InputError("the network writes into a tensor of which it has another view")

    def add(self, step: dict[str, Any], output: Tensor) -> None:
        """Note a step whose result is ``output``."""
        shape = tuple(output.shape[1:])
        if output.ndim < 2 or output.shape[0] != _BATCH or output.dtype != torch.float32:
            raise InputError(f"a step '{step['kind']}' gives no fp32 tensor of samples")
        if len(shape) > MOST_AXES:
            raise InputError(f"a step '{step['kind']}' gives {len(shape)} axes for each sample")
        self.steps.append({**step, "shape": list(shape)})
        self._name(output, self._value(shape))

    def _value(self, shape: tuple[int, ...]) -> Moved:
        self.shapes.append(shape)
        return whole(len(self.shapes) - 1, (_BATCH, *shape))

    def _name(self, tensor: Tensor, value: Moved) -> None:
        self.known[id(tensor)] = value
        self.kept.append(tensor)

    def operand(self, tensor: Any) -> int:
        """The number of the value that ``tensor`` is; movements since become steps."""
        if id(tensor) not in self.known:
            return self._constant(tensor)
        found = self.known[id(tensor)]
        if not found.is_one_step and found.through is not None and found.rest is not None:
            found = Moved(*self._made(found.through), found.rest)
        value, shape = self._made(found)
        self.known[id(tensor)] = whole(value, (_BATCH, *shape))
        return value

    def _made(self, found: Moved) -> tuple[int, tuple[int, ...]]:
        """The number and the shape of the value that this is, by a step more where it was moved."""
        if found.step is None:
            return found.value, found.shape
        step = {key: value for key, value in found.step.items() if key != "to"}
        self.add({**step, "inputs": [found.value]}, torch.empty((_BATCH, *found.step["to"])))
        return len(self.shapes) - 1, found.step["to"]

    def _constant(self, tensor: Any) -> int:
        """A parameter that the file holds, as the value of a step; its first axis may be that of samples."""
        name = self.held.get(id(tensor)) if isinstance(tensor, Tensor) else None
        if name is None:
            raise InputError("the network reads a tensor that is neither made of its input nor a parameter of its own")
        shape = list(tensor.shape)
        shape = shape[1:] if shape[:1] == [1] and len(shape) > 1 else shape
        self.add({"kind": "parameter", "name": name, "inputs": []}, tensor.new_empty((_BATCH, *shape)))
        return len(self.shapes) - 1


def _matching(output: Any, at: int) -> Tensor:
    return tree_leaves(output)[at]


_SHAPES_ONLY = {"sym_size", "size", "new_zeros", "new_ones", "new_empty", "zeros_like", "ones_like", "empty_like"}
_VIEWS = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "alias", "detach"}
_Rule = Callable[[_Recorder, Any, Any], "dict[str, Any] | None"]


def _clamp(low: Any, high: Any) -> dict[str, Any]:
    return {"kind": "clamp", "low": None if low is None else float(low), "high": None if high is None else float(high)}


def _of_one(step: Callable[..., dict[str, Any] | None]) -> _Rule:
    """A rule for an operation of one tensor and numbers; ``step`` makes the step of the numbers."""

    def rule(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
        if any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values())):
            return None
        found = step(*args[1:], **kwargs)
        return found and {**found, "inputs": [recorder.operand(args[0])]}

    return rule


def _sum(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    return _combined(recorder, args, float(kwargs.get("alpha", 1)))


def _difference(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    return _combined(recorder, args, -float(kwargs.get("alpha", 1)))


def _difference_from(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    second, factor = args[1], float(kwargs.get("alpha", args[2] if len(args) > 2 else 1))
    if isinstance(second, Tensor) and second.ndim:
        return None
    return {"kind": "scale", "slope": -factor, "offset": float(second), "inputs": [recorder.operand(args[0])]}


def _combined(recorder: _Recorder, args: Any, factor: float) -> dict[str, Any]:
    """The first and factor times the second, which may be a number."""
    first, second = args[:2]
    if isinstance(second, Tensor) and second.ndim:
        return _pair(recorder, "add", first, second, factor=factor)
    return {"kind": "scale", "slope": 1.0, "offset": factor * float(second), "inputs": [recorder.operand(first)]}


def _product(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    first, second = args[:2]
    if isinstance(second, Tensor) and second.ndim:
        return _pair(recorder, "multiply", first, second)
    return {"kind": "scale", "slope": float(second), "offset": 0.0, "inputs": [recorder.operand(first)]}


def _quotient(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    if kwargs or (isinstance(args[1], Tensor) and args[1].ndim):
        return None
    return {"kind": "scale", "slope": 1 / float(args[1]), "offset": 0.0, "inputs": [recorder.operand(args[0])]}


def _pair(recorder: _Recorder, kind: str, first: Any, second: Any, **told: Any) -> dict[str, Any]:
    """Of two tensors, of which the second may have size 1 where the first has more; not the other way round."""
    if first.numel() < second.numel() and told.get("factor", 1.0) == 1.0:
        first, second = second, first
    numbers = [recorder.operand(first), recorder.operand(second)]
    large, small = (recorder.shapes[number] for number in numbers)
    fits = len(large) == len(small) and all(b in (a, 1) for a, b in zip(large, small, strict=True))
    if len(small) == 1 and len(large) == 1:
        fits = small in (large, (1,))
    if not fits or (small != large and small != (large[0],) + (1,) * (len(large) - 1)):
        raise InputError(f"the network combines tensors of {large} and {small}, which a packed file cannot tell")
    return {"kind": kind, "inputs": numbers, **told}


def _slope(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """A PReLU: a slope for each channel, or one."""
    numbers = [recorder.operand(args[0]), recorder.operand(args[1])]
    return {"kind": "prelu", "inputs": numbers}


def _concatenated(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if axis % args[0][0].ndim != 1:
        return None
    return {"kind": "concatenate", "inputs": [recorder.operand(tensor) for tensor in args[0]]}


def _pooled(name: str) -> _Rule:
    def rule(recorder: _Recorder, args: Any, kwargs: Any) -> dict[str, Any] | None:
        number = recorder.operand(args[0])
        found = POOLS[name](recorder.shapes[number], *args[1:], **kwargs)
        return found and {"kind": "pool", "inputs": [number], **found}

    return rule


_RULES: Mapping[str, _Rule] = {
    "relu": _of_one(lambda: _clamp(0, None)),
    "hardtanh": _of_one(lambda low=-1, high=1: _clamp(low, high)),
    "relu6": _of_one(lambda: _clamp(0, 6)),
    "clamp": _of_one(lambda low=None, high=None, **named: _clamp(named.get("min", low), named.get("max", high))),
    "clamp_min": _of_one(lambda low: _clamp(low, None)),
    "clamp_max": _of_one(lambda high: _clamp(None, high)),
    "leaky_relu": _of_one(lambda slope=0.01: {"kind": "leaky", "slope": float(slope)}),
    "hardsigmoid": _of_one(lambda: {"kind": "hardsigmoid"}),
    "hardswish": _of_one(lambda: {"kind": "hardswish"}),
    "sigmoid": _of_one(lambda: {"kind": "sigmoid"}),
    "silu": _of_one(lambda: {"kind": "silu"}),
    "tanh": _of_one(lambda: {"kind": "tanh"}),
    "neg": _of_one(lambda: {"kind": "scale", "slope": -1.0, "offset": 0.0}),
    "add": _sum,
    "sub": _difference,
    "rsub": _difference_from,
    "mul": _product,
    "div": _quotient,
    "cat": _concatenated,
    "_prelu_kernel": _slope,
    "prelu": _slope,
    **{name: _pooled(name) for name in POOLS},
}
