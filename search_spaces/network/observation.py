"""Run a network once and note what happens to every layer, every parameter and every BatchNorm.

What is seen are the operations that reach the device (a dispatch mode), so that a weight is recognised by its memory,
whatever view of it is read and wherever the code that reads it stands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from search_spaces.channels.meta_operations import run_on_meta
from search_spaces.channels.running import tensors
from search_spaces.errors import kind_of
from search_spaces.models.computed import computed_names, sources_of
from search_spaces.models.multiplied import Products, memory
from search_spaces.network.calls import first_input
from search_spaces.network.examples import Call
from search_spaces.network.origins import Origins, factors_told, making_told

# Operations that make a tensor of the shape or type of another: they read none of its values.
_MAKERS = ("new_", "empty", "zeros", "ones", "full", "rand")
_VALUES = {Tensor.tolist, Tensor.numpy, Tensor.__array__}  # they reach no operation


@dataclass
class LayerRecord:
    """What one layer did: its calls, and how its weight was read in them and outside them.

    ``made`` are weights of the shape of its own that it multiplied with and that are held nowhere: its code made them.
    ``odd_call`` says how it was called otherwise than from one plain tensor to one, or what it multiplied its weight
    with beside its first input; empty where it was not. ``odd_weight`` says what its weight is made of that leaves it
    another one each time.
    """

    module: nn.Module
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    running: bool = False
    products: int = 0
    reads_outside: int = 0
    macs: int = 0
    first_call: int = -1
    norms: list[str] = field(default_factory=list)
    other_readers: int = 0
    made: list[Tensor] = field(default_factory=list)
    odd_call: str = ""
    odd_weight: str = ""


@dataclass
class Observation:
    """One forward pass in eval mode.

    ``read`` holds the memory (see :func:`memory`) of all parameters and buffers that were read, ``multiplied`` of
    those that were factors of a product outside the layers; ``macs`` counts the multiply-accumulates of all products.
    ``depends_on_data`` says that the code asked for values of tensors, so that another input may take another path.
    ``norm_calls`` counts the calls of each BatchNorm. ``computed`` is the memory of what was computed of the input or
    of parameters, as far as it is no parameter itself; ``registered`` are parameters and buffers that came by the run.
    """

    layers: dict[str, LayerRecord]
    read: set[int] = field(default_factory=set)
    multiplied: set[int] = field(default_factory=set)
    norm_calls: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    depends_on_data: bool = False
    computed: set[int] = field(default_factory=set)
    registered: dict[str, Tensor] = field(default_factory=dict)

    def folded_norm(self, record: LayerRecord) -> str | None:
        """The BatchNorm that reads every output of a layer, and nothing else, and that nothing else reads beside."""
        names = set(record.norms)
        if len(names) != 1 or record.other_readers:
            return None
        (name,) = names
        calls = len(record.outputs)
        return name if len(record.norms) == self.norm_calls[name] == calls else None


def observe(
    network: nn.Module, call: Call, layer_types: tuple[type[nn.Module], ...], original: nn.Module
) -> Observation:
    """Run ``network`` (which is put in eval mode) once and say what was seen.

    It is a copy of ``original``, whose weights code that was not copied may still read, such as a closure.
    """
    records = {name: LayerRecord(module) for name, module in network.named_modules() if isinstance(module, layer_types)}
    seen = Observation(records)
    network.eval()
    watch = _Watch(network, seen, original)
    seen.computed |= {memory(tensor) for tensor in call.tensors} - watch.held
    before = _state(network)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the network's own run says it again, where it is the user's to see
        stack.enter_context(torch.no_grad())
        stack.enter_context(_hooks(network, watch))
        stack.enter_context(_tensors_kept(network))
        stack.enter_context(Products(watch.note_weight))
        # Without values the input cannot choose the path: what is asked for then are constants.
        if not any(tensor.is_meta for tensor in call.tensors):
            stack.enter_context(_Values(seen))
        stack.enter_context(watch)
        given = call.run(network)
    for tensor in tensors(given):
        watch.note_reading(tensor)
    seen.registered = {name: tensor for name, tensor in _state(network).items() if name not in before}
    return seen


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each under all of its names."""
    return dict((*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)))


class _Watch(TorchDispatchMode):
    """Sees every operation: who reads a weight, who reads a layer's output, how much is multiplied."""

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module, seen: Observation, original: nn.Module) -> None:
        super().__init__()
        self.seen = seen
        self.on_meta = any(tensor.is_meta for tensor in network.parameters())
        self.norm_inputs: list[int] = []
        self.kept: list[Any] = []  # so that no later tensor can take an id
        self.calls: list[tuple[LayerRecord, Origins]] = []  # those that are running
        self.producers: dict[int, LayerRecord] = {}
        self.held = {memory(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self.owners: dict[int, list[LayerRecord]] = {}
        for record in seen.layers.values():
            for tensor in _weights(record.module):
                self.owners.setdefault(memory(tensor), []).append(record)
        self.elsewhere: set[int] = set()
        for name, module in original.named_modules():
            for tensor in _weights(module) if name in seen.layers else ():
                self.owners.setdefault(memory(tensor), []).append(seen.layers[name])
                self.held.add(memory(tensor))
                self.elsewhere.add(memory(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            with self:
                first, _ = (branch(*args[3]) for branch in args[1:3])  # both are deployed
                return first
        if not isinstance(func, OpOverload):
            return NotImplemented
        if func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = run_on_meta(func, args, kwargs)
        operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self._note_data(func, operands)
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        for _, origins in self.calls:
            origins.operation(operands, output, func._schema.is_mutable, drawn)
        makes = func._overloadpacket.__name__.startswith(_MAKERS)
        self._note_computed([] if makes else operands, output)
        if drawn:  # it is another one each time, too
            self.seen.computed |= {memory(tensor) for tensor in tensors(output)}
        if not func.is_view and not makes:
            macs = self._macs(func, args, kwargs, output)
            for operand in operands:
                self.note_reading(operand, macs)
            if macs is not None:
                self._note_factors(_factors(func, args, operands))
        return output

    def _note_computed(self, operands: list[Tensor], output: Any) -> None:
        """Note what is computed of the input, and what of parameters; freed memory may come back as something else."""
        computed, made = self.seen.computed, {memory(tensor) for tensor in tensors(output)}
        read = {memory(tensor) for tensor in operands}
        if (read - made) & computed:
            computed |= made  # a buffer that is written to is one, too
        elif (read - made) & self.held:
            computed |= made - self.held
        elif not read & made:
            computed -= made

    def is_computed(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed as the network ran, and is no parameter."""
        return memory(tensor) in self.seen.computed

    def _macs(self, func: Any, args: Any, kwargs: Any, output: Any) -> int | None:
        """Multiply-accumulates of a product; None for another operation."""
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            return None
        macs = int(count(*args, **kwargs, out_val=output)) // 2
        self.seen.macs += macs
        return macs

    def note_reading(self, operand: Tensor, macs: int | None = None) -> None:
        """Note that the values of ``operand`` are read, in a product of so many ``macs``."""
        place = memory(operand)
        if place in self.held:
            self.seen.read.add(place)
            if macs is not None and not any(record.running for record in self.seen.layers.values()):
                self.seen.multiplied.add(place)
            self._note_weight(place, operand, macs)
        elif place in self.producers and place not in self.norm_inputs:
            self.producers[place].other_readers += 1

    def _note_weight(self, place: int, operand: Tensor, macs: int | None) -> None:
        owners = self.owners.get(place, [])
        # Who reads the weight of the original calls what was not copied, such as a forward kept by a closure.
        running = [record for record in owners if record.running and place not in self.elsewhere]
        for record in running:
            weight = record.module._parameters.get("weight")
            if weight is not None and macs is not None and operand.numel() == weight.numel():
                record.products += 1
                record.macs += macs
        for record in owners if not running else ():
            record.reads_outside += 1

    def _note_factors(self, factors: list[Tensor]) -> None:
        """Note what a layer multiplies with its weight, and what it makes that of."""
        for record, origins in self.calls:
            weights = {memory(tensor) for tensor in (*_weights(record.module), *record.made)}
            others = [factor for factor in factors if memory(factor) not in weights]
            if len(others) < len(factors):
                own = [factor for factor in factors if memory(factor) in weights]
                record.odd_call = record.odd_call or factors_told(origins.first, origins.of(others))
                record.odd_weight = record.odd_weight or making_told(origins.of(own))

    def note_weight(self, weight: Tensor) -> Tensor:
        """Note a weight that somebody multiplies with; it is given back as it is."""
        if memory(weight) not in self.held:
            for record in self.seen.layers.values():
                if record.running and weight.shape == cast(Tensor, record.module.weight).shape:
                    record.made.append(weight)
        return weight

    def _note_data(self, func: Any, operands: list[Tensor]) -> None:
        dynamic = torch.Tag.dynamic_output_shape in func.tags
        if func._overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put):
            dynamic = any(operand.dtype in (torch.bool, torch.uint8) for operand in operands[1:])
        asks = dynamic or torch.Tag.data_dependent_output in func.tags
        self.seen.depends_on_data |= asks and not self.on_meta


def _factors(func: OpOverload, args: Any, operands: list[Tensor]) -> list[Tensor]:
    """What a product multiplies: all that it reads but a bias."""
    name = func._overloadpacket.__name__
    if name in ("addmm", "baddbmm"):
        return list(args[1:3])
    return list(args[:2]) if "conv" in name else operands


def _weights(layer: nn.Module) -> list[Tensor]:
    """The layer's weight, or what it is computed of."""
    weight = layer._parameters.get("weight")
    return [*sources_of(layer, ("weight",)).values()] if weight is None else [weight]


class _Values(TorchFunctionMode):
    """Sees the values of tensors go to Python past all operations."""

    def __init__(self, seen: Observation) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.depends_on_data |= func in _VALUES
        return func(*args, **(kwargs or {}))


@contextmanager
def _tensors_kept(network: nn.Module) -> Iterator[None]:
    """Give modules back, afterwards, the tensors and the memory that their code replaces as it runs."""
    held: list[tuple[Any, str, Tensor, Tensor]] = [
        (own, key, tensor, tensor.data)
        for module in network.modules()
        for own in (module._parameters, module._buffers)
        for key, tensor in own.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        for own, key, tensor, values in held:
            own[key] = tensor
            if memory(tensor) != memory(values):
                tensor.data = values


@contextmanager
def _hooks(network: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tell the watch which layer and which BatchNorm is running."""
    produced: dict[int, LayerRecord] = {}
    handles: list[Any] = []
    for name, module in network.named_modules():
        if name in watch.seen.layers:
            before, after = _layer_hooks(watch, watch.seen.layers[name], produced)
        elif isinstance(module, _BatchNorm):
            before, after = _norm_hooks(watch, name, produced)
        else:
            continue
        first = bool(computed_names(module))  # what a hook computes a weight of is read inside the call
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True, prepend=first))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_hooks(
    watch: _Watch, record: LayerRecord, produced: dict[int, LayerRecord]
) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.running = True
        watch.calls.append((record, Origins(module, args, kwargs, watch.is_computed)))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        record.running = False
        watch.calls = [call for call in watch.calls if call[0] is not record]
        given = first_input(module, args, kwargs)
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            did, what = ("takes", given) if not isinstance(given, Tensor) else ("returns", output)
            record.odd_call = f"it {did} {kind_of(what)}, and a layer takes one tensor first and returns one"
            return
        if not given.numel() and cast(Tensor, module.weight).numel():  # nothing of the example came here
            watch.kept.append((given, output))
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(given):
            record.odd_call = "it is called inside torch.vmap or another transformation of torch.func"
        if not record.inputs:
            record.first_call = len(produced)
        record.inputs.append(given)
        record.outputs.append(output)  # kept, so that no later tensor can take its id or its memory
        produced[id(output)] = record
        watch.producers[memory(output)] = record

    return before, after


def _norm_hooks(
    watch: _Watch, name: str, produced: dict[int, LayerRecord]
) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls = watch.seen.norm_calls
        calls[name] = calls.get(name, 0) + 1
        given = first_input(module, args, kwargs)
        record = produced.get(id(given))
        if record is not None:
            record.norms.append(name)
        watch.norm_inputs.append(-1 if record is None else memory(given))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        watch.norm_inputs.pop()

    return before, after
