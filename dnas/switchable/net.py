"""The switchable net: one stored set of weights that runs at any of several per-layer assignments.

A profile is a whole assignment. Each has a *view* of the network: the modules of a fixed quantized net whose weights
and biases are those of all the others, and whose BatchNorms are its own. Switching is choosing a view: no weight is
written. What runs is the code of a fixed net, so a profile alone is that net, bit for bit.

Layers at the same bits share their quantizers. Where the quantizer of weights nests (:attr:`Quantizer.nests`) all
widths of a layer share one clip, so that one stored integer serves them all, and each has a gain of its own.

Sources: SP-Nets, arXiv 2002.02815 (private BatchNorm per switch); Any-Precision, arXiv 1911.07346.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.quantization.branches import SkippedLayer
from dnas.quantization.calibration import fit_input, layer_inputs, recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import TensorQuantizer, fit_together, float_weight
from dnas.quantization.proof import check_twin
from dnas.switchable.profiles import Profile, best, by_width, cheapest, check_profiles
from dnas.switchable.views import (
    SharedQuantizers,
    build_view,
    is_part,
    key_of,
    once_each,
    own_parts,
    part_of,
    share_norms,
)
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, nearest
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.buffers import FOLDED
from search_spaces.models.computed import current
from search_spaces.models.copies import copy_network, fresh_copy


class SwitchableNet(nn.Module):
    """Several fixed quantized nets in one: shared weights, BatchNorms per profile.

    ``assignments`` are by profile name, in any order; the first profile active is the widest. ``private_norms=False``
    makes BatchNorm shared, to compare with. The model is left untouched. Calibrate before use. Raises
    :class:`InputError` for an assignment that is for another network or cannot share its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        assignments: Mapping[str, BitAssignment],
        choice: QuantizerChoice,
        *,
        private_norms: bool = True,
    ) -> None:
        super().__init__()
        check_profiles(graph, assignments, private_norms)
        self.graph, self.choice, self.private_norms = graph, choice, private_norms
        self.profiles = {name: Profile(name, assignments[name]) for name in by_width(graph, assignments)}
        layers = {name: profile.assignment.layers for name, profile in self.profiles.items()}
        check_twin(
            model, graph, [name for name in graph.by_name if not all(bits[name].is_float for bits in layers.values())]
        )
        base = fresh_copy(model)
        owned = {spec.norm for spec in graph.layers} | graph.unused
        norms = ((key, norm) for key, norm in base.named_modules() if isinstance(norm, _BatchNorm) and key not in owned)
        self.other_norms = {key: norm.num_features for key, norm in norms}
        # Every parameter once and under its own name, before the views, which hold them too.
        parameters = dict(_unnormed(base))
        _check_parameter_names(parameters)
        self.shared = nn.ParameterDict({key_of(name): parameter for name, parameter in parameters.items()})
        first = {id(parameter): name for name, parameter in parameters.items()}
        every = base.named_parameters(remove_duplicate=False)
        self._first_names = {name: first[id(parameter)] for name, parameter in every if id(parameter) in first}
        self.quantizers = SharedQuantizers(base, graph, list(layers.values()), choice)
        # Under numbers: a module's name has no dots, a profile's may.
        self._keys = {name: f"view{number}" for number, name in enumerate(self.profiles)}
        self.views = nn.ModuleDict()
        for name, key in self._keys.items():
            view = build_view(base, graph, layers[name], choice, self.quantizers)
            if not private_norms and len(self.views):
                share_norms(self.views["view0"], view)
            self.views[key] = view
        self.active = next(iter(self.profiles))

    @classmethod
    def of_one(
        cls, network: nn.Module, graph: LayerGraph, name: str, assignment: BitAssignment, choice: QuantizerChoice
    ) -> Self:
        """The net of one profile, which a fixed net is."""
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net.graph, net.choice, net.private_norms = graph, choice, True
        net.profiles, net._keys, net.active = {name: Profile(name, assignment)}, {name: "view0"}, name
        net.other_norms, net._first_names = {}, {}
        net.shared, net.quantizers = nn.ParameterDict(), SharedQuantizers(network, graph, [], choice)
        net.views = nn.ModuleDict({"view0": network})
        return net

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the active profile, as in ``net(x)`` with x of shape (N, C, H, W)."""
        return self.view_of(self.active)(*inputs, **options)

    def view_of(self, name: str) -> nn.Module:
        """The fixed quantized net of a profile; its weights are those of all the others."""
        return self.views[self._keys[self._known(name)]]

    def use(self, name: str) -> Self:
        """Run this profile from now on; nothing is computed and no weight is written."""
        self.active = self._known(name)
        return self

    @contextmanager
    def using(self, name: str) -> Iterator[Self]:
        """Run this profile inside the context (of this object: other threads that use it switch too)."""
        before = self.active
        try:
            yield self.use(name)
        finally:
            self.active = before

    def view(self, name: str) -> Self:
        """Another net over the same weights that runs ``name``: both can run at once, in threads of their own."""
        twin = copy.copy(self)
        return twin.use(name)

    def cheapest(self, cost: str = "size_bytes", **goal: float) -> str:
        """The profile of the least ``cost`` whose metric on validation is as good as ``min_NAME``, NAME being its own.

        Of a metric of which the smaller is better the goal is a most, as in ``cheapest(max_mae=0.1)``.
        """
        return cheapest(self.profiles, cost, goal)

    def best(self, **limits: float) -> str:
        """The best profile within limits on costs, as in ``best(max_size_bytes=50_000, max_bitops=1e9)``."""
        return best(self.profiles, limits)

    def alone(self, name: str) -> nn.Module:
        """A profile as a fixed quantized net with tensors of its own."""
        net = copy_network(self.view_of(name))
        for module in list(net.modules()):
            if is_part(module):
                own_parts(module)
        return net

    def calibrate(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Set clips and gains: of weights from themselves, of inputs from float ``model`` on batches (N, C, H, W)."""
        if not self.shared:
            raise InputError(
                "a net of one profile that was loaded from a file has its ranges; load all of it to train on"
            )
        inputs = layer_inputs(model, [spec.name for spec in self.graph.layers], batches)
        with torch.no_grad():
            for spec in self.graph.layers:
                if spec.shares_weight_with is None:
                    _fit_weight(self.quantizers.of_weight(spec.name), self.weight_of(spec))
                for quantizer in self.quantizers.of_input(spec.name) if spec.name in inputs else ():
                    fit_input(quantizer, inputs[spec.name])

    def recalibrate(self, batches: Iterable[Tensor], *, allow_overflow: bool = False) -> None:
        """Replace every BatchNorm's statistics by their average over ``batches`` (N, C, H, W) and over its profiles."""

        def run(x: Tensor) -> list[Tensor]:
            return [view(x) for view in self.views.values()]

        recalibrate_batchnorm(self.views, batches, run, allow_overflow=allow_overflow)

    def tensors(self) -> dict[str, Tensor]:
        """The state with every tensor once; what :meth:`load_tensors` reads."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[name] = tensor.detach()
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what :meth:`tensors` gave; :class:`InputError` where it is that of another net."""
        own = self.tensors()
        if set(own) != set(tensors) or any(own[name].shape != tensors[name].shape for name in own):
            raise InputError("these tensors are those of another switchable net")
        self.load_state_dict(dict(tensors), strict=False)

    def whole(self, name: str) -> nn.Parameter:
        """The shared parameter that has this name, perhaps among others, in the network."""
        return self.shared[key_of(self._first_names[name])]

    def weight_of(self, spec: LayerSpec) -> Tensor:
        """The whole float weight that a layer multiplies with in any profile."""
        if spec.weight_from == "parameter":
            return self.whole(f"{spec.name}.weight").detach()
        return float_weight(self._layer_that_runs(spec), spec).detach()

    def bias_of(self, spec: LayerSpec) -> Tensor:
        """The whole bias of a layer that has one."""
        shared = self.shared[key] if (key := key_of(f"{spec.name}.bias")) in self.shared else None
        return cast(Tensor, current(self._layer_that_runs(spec), "bias") if shared is None else shared).detach()

    def _layer_that_runs(self, spec: LayerSpec) -> nn.Module:
        """A layer in a profile that does not skip it; what it computes its tensors of is shared by all."""
        found = (view.get_submodule(spec.name) for view in self.views.values())
        return next(layer for layer in found if not isinstance(layer, SkippedLayer))

    def other_parameters(self) -> dict[str, nn.Parameter]:
        """Every deployed shared parameter that is no layer's weight or bias, by its name in the network."""
        own = {f"{spec.name}.{key}" for spec in self.graph.layers for key in ("weight", "bias")} | self.graph.unused
        named = {key.replace("/", "."): parameter for key, parameter in self.shared.items()}
        return {name: parameter for name, parameter in named.items() if name not in own}

    def union_of(self, module: str, key: str) -> tuple[Tensor | None, Tensor | None]:
        """Rows and columns of a shared tensor (seen as a matrix) that any profile uses; None: all."""
        found = []
        for view in self.views.values():
            try:
                holder: Any = view.get_submodule(module)
            except AttributeError:
                continue
            if key == "clip":
                holder = getattr(holder, "quantize_weight", None)
            if holder is not None and not isinstance(holder, SkippedLayer):
                found.append(part_of(holder, key))
        return tuple(_union([part[axis] for part in found]) for axis in (0, 1))  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A module that is moved replaces its buffers; those of several views would come apart.
        return super()._apply(once_each(fn), recurse)

    def _known(self, name: str) -> str:
        if name not in self.profiles:
            raise InputError(
                f"no profile is called '{name}'; there are {', '.join(self.profiles)}{nearest(name, self.profiles)}"
            )
        return name


def _union(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All indices that occur; None where some part is the whole."""
    some = [part for part in parts if part is not None]
    return torch.cat(some).unique() if some and len(some) == len(parts) else None


def _unnormed(base: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that is no scale or shift of a BatchNorm, once, by name."""
    seen: set[int] = set()
    for module_name, module in base.named_modules():
        for key, parameter in module._parameters.items():
            normed = isinstance(module, _BatchNorm) and key in FOLDED
            if parameter is None or normed or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield f"{module_name}.{key}" if module_name else key, parameter


def _check_parameter_names(names: Iterable[str]) -> None:
    """Refuse names that a dictionary of parameters cannot have."""
    for name in names:
        if "/" in name or hasattr(nn.ParameterDict, key_of(name)):
            raise InputError(f"a switchable net cannot hold a parameter called '{name}'; rename it in the network")


def _fit_weight(quantizers: Sequence[TensorQuantizer], weight: Tensor) -> None:
    """Fit the quantizers of one weight: together where they share their clip."""
    nesting = [q for q in quantizers if isinstance(q, TensorQuantizer) and q.quantizer.nests]
    fit_together(nesting, weight)
    for quantizer in quantizers:
        if quantizer not in nesting:
            quantizer.fit(weight)
