"""The supernet: one network that runs a mixture of all candidates, weighted by a sample of the architecture.

θ holds the preferences: one logit per candidate width of weights and one per width of activations where they are
chosen independently, one per pair otherwise. A :class:`Sample` is a value drawn from θ; it is lent to the network
inside a context manager and never stored in it, so copying and saving work at any moment.

Sources: DNAS, arXiv 1812.00090, eq. 5-9 (Gumbel-softmax over candidates); EdMIPS, arXiv 2004.05795, eq. 12 (the
composite convolution).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.data.transfer import sent
from dnas.quantization.branches import BranchedLayer, BranchGate
from dnas.quantization.conversion import QuantizerChoice, swap_branches, swap_composite
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.proof import check_twin
from dnas.training.device import widest
from search_spaces.allocation.program import Cells, dominated
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, check_type
from search_spaces.fields import Pair
from search_spaces.layers import LayerGraph
from search_spaces.models.copies import fresh_copy
from search_spaces.spaces import PrecisionSpace

Sampling = Literal["gumbel", "gumbel_hard", "softmax"]


@dataclass(frozen=True)
class Sample:
    """Shares of the candidates of D decisions: of whole cells (D, Kw, Ka), of rows (D, Kw) and of columns (D, Ka)."""

    cells: Tensor
    weights: Tensor
    activations: Tensor

    @classmethod
    def from_cells(cls, cells: Tensor) -> Sample:
        """A sample of cells with its marginals."""
        return cls(cells, cells.sum(2), cells.sum(1))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Its tensors, of which ``Sample(*parts)`` is the same sample."""
        return self.cells, self.weights, self.activations


class Theta(nn.Module):
    """The architecture parameters of D decisions, all zero at the start (every candidate equally likely)."""

    def __init__(self, space: PrecisionSpace) -> None:
        super().__init__()
        self.independent = space.independent
        allowed = torch.from_numpy(space.allowed)
        decisions, rows, columns = allowed.shape
        if self.independent:
            self.weight = nn.Parameter(torch.zeros(decisions, rows))
            self.activation = nn.Parameter(torch.zeros(decisions, columns))
        else:
            self.cell = nn.Parameter(torch.zeros(decisions, rows * columns))
        self.register_buffer("allowed", allowed, persistent=False)

    def _logits(self) -> list[Tensor]:
        allowed = cast(Tensor, self.allowed)
        if self.independent:
            masked = [(self.weight, allowed.any(2)), (self.activation, allowed.any(1))]
        else:
            masked = [(self.cell, allowed.flatten(1))]
        return [theta.masked_fill(~mask, -torch.inf) for theta, mask in masked]

    def _joint(self, parts: Sequence[Tensor]) -> Sample:
        if self.independent:
            weights, activations = parts
            return Sample(weights[:, :, None] * activations[:, None, :], weights, activations)
        return Sample.from_cells(parts[0].view(cast(Tensor, self.allowed).shape))

    def probabilities(self) -> Sample:
        """P(θ): the softmax of the logits."""
        return self._joint([logits.softmax(1) for logits in self._logits()])

    def log_probabilities(self) -> np.ndarray:
        """Log P of every cell (D, Kw, Ka) in float64; -inf where a cell is not allowed."""
        parts = [logits.detach().cpu().double().log_softmax(1) for logits in self._logits()]
        joint = parts[0][:, :, None] + parts[1][:, None, :] if self.independent else parts[0]
        return joint.reshape(cast(Tensor, self.allowed).shape).numpy()

    def sample(self, temperature: float, sampling: Sampling, generator: torch.Generator) -> Sample:
        """Draw a sample (arXiv 1812.00090, eq. 8); ``gumbel_hard`` is one-hot with the soft sample's gradient."""
        if sampling == "softmax":
            return self.probabilities()
        parts = []
        for logits in self._logits():
            noise = torch.rand(logits.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
            uniform = sent(noise, logits.device)
            soft = ((logits - torch.log(-torch.log(uniform))) / temperature).softmax(1)
            if sampling == "gumbel_hard":
                hard = nn.functional.one_hot(soft.argmax(1), soft.shape[1]).to(soft.dtype)
                soft = hard + (soft - soft.detach())
            parts.append(soft)
        return self._joint(parts)

    def entropies(self) -> Tensor:
        """Entropy of each decision's cells over that of the uniform choice: 1 undecided, 0 decided. Shape (D,)."""
        cells = self.probabilities().cells.detach().flatten(1)
        choices = cast(Tensor, self.allowed).flatten(1).sum(1)
        entropy = torch.special.entr(cells).sum(1)
        return torch.where(choices > 1, entropy / choices.log().clamp_min(1e-9), torch.zeros_like(entropy))


def _check_apart(names: Sequence[str]) -> None:
    """Refuse layers of several branches inside others: a branch is a copy, and holds copies of what is inside."""
    for name in names:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise InputError(
                f"layer '{name}' is inside layer '{outer}', which engine = \"branches\" copies whole; use engine = "
                f'"composite", or leave one out with space.exclude = ["{name}"]'
            )


class Supernet(nn.Module):
    """A quantized twin of a network that runs any mixture of the candidates of a precision space.

    ``engine="composite"`` runs one convolution per layer whatever the number of candidates; ``"branches"`` runs one
    per candidate pair, each with its own weights and BatchNorm. Calibrate before use (:func:`dnas.calibrate`).
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        space: PrecisionSpace,
        table: CostTable,
        choice: QuantizerChoice | None = None,
        engine: Literal["composite", "branches"] = "composite",
    ) -> None:
        super().__init__()
        self.space, self.table, self.engine = space, table, engine
        quantized = space.quantized
        if engine == "branches":
            _check_apart([name for decision in space.decisions for name in decision.layers])
        check_twin(model, graph, quantized, branched=engine == "branches")
        self.network = fresh_copy(model)
        self.theta = Theta(space)
        choice = choice or QuantizerChoice()
        check_type(choice, QuantizerChoice, "the choice of quantizers", "give QuantizerChoice(weights='lsq', ...)")
        if engine not in ("composite", "branches"):
            raise InputError(f"engine = {engine!r} is not one of composite, branches")
        choice.check_mixture(space.weight_bits, space.activation_bits)
        for name, (weight, activation) in space.fixed.items():
            if name in quantized:
                swap_composite(self.network, graph[name], (weight,), (activation,), choice)
        self._rows = [row for row, bits in enumerate(space.weight_bits) if bits]
        self.register_buffer("_kept_rows", torch.tensor(self._rows), persistent=False)
        self._layers: list[list[QuantizedLayer | BranchedLayer]] = []
        self._gates: list[BranchGate | None] = []
        for index, decision in enumerate(space.decisions):
            self._layers.append([self._swap(index, name, graph, choice) for name in decision.layers])
            gate = BranchGate() if decision.branch else None
            if gate and decision.branch:
                self.network.get_submodule(decision.branch.terminal).register_forward_hook(gate)
            self._gates.append(gate)
        self._entries: dict[tuple[str, torch.device], Tensor] = {}
        self.to(next(model.parameters()).device)

    def _swap(
        self, index: int, name: str, graph: LayerGraph, choice: QuantizerChoice
    ) -> QuantizedLayer | BranchedLayer:
        rows = tuple(self.space.weight_bits[row] for row in self._rows)
        if self.engine == "composite":
            return swap_composite(self.network, graph[name], rows, self.space.activation_bits, choice)
        pairs = [self.space.pair(row, column) for row, column in self._branch_cells(index)]
        return swap_branches(self.network, graph[name], pairs, choice)

    def _branch_cells(self, index: int) -> Cells:
        """Cells that have a branch of their own: the allowed ones, except skipping."""
        rows, columns = np.nonzero(self.space.allowed[index])
        return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if self.space.weight_bits[r]]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the mixture that is lent (see :meth:`sampled`), as in ``supernet(x)`` with x of shape (N, C, H, W)."""
        return self.network(*inputs, **named)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters of the network, θ not among them."""
        return list(self.network.parameters())

    def sample(self, temperature: float, sampling: Sampling, generator: torch.Generator) -> Sample:
        """Draw a sample of the architecture from θ."""
        return self.theta.sample(temperature, sampling, generator)

    def one_hot(self, cells: Cells) -> Sample:
        """The sample that runs exactly one candidate per decision; :class:`InputError` unless each has one.

        A pair of widths that the space leaves out runs as well: sensitivities are measured so.
        """
        self.space.check_cells(cells, any_pair=True)
        one_hot = np.zeros(self.space.allowed.shape, dtype=np.float32)
        one_hot[np.arange(len(cells)), *np.transpose(cells)] = 1.0
        device = next(self.theta.parameters()).device
        return Sample.from_cells(sent(torch.from_numpy(one_hot), device))

    @contextmanager
    def sampled(self, sample: Sample) -> Iterator[None]:
        """Lend ``sample`` to the network inside this context; :class:`InputError` for one of another space."""
        check_type(sample, Sample, "what is lent to a supernet", "give what its one_hot or sample returns")
        if (found := tuple(sample.cells.shape)) != (own := self.space.allowed.shape):
            raise InputError(f"the sample is of {found} cells and this supernet has {own}; draw one of this supernet")
        rows = cast(Tensor, self._kept_rows)
        kept = sample.weights.index_select(1, rows)
        kept_probability = kept.sum(1, keepdim=True)
        # The branch's output is multiplied by the probability of not skipping it, so inside it the others sum to 1.
        weights = kept if len(self._rows) == len(self.space.weight_bits) else kept / kept_probability.clamp_min(1e-12)
        activations = sample.activations
        if weights is not kept and not self.space.independent:  # the cell that skips stands in some column
            activations = sample.cells.index_select(1, cast(Tensor, self._kept_rows)).sum(
                1
            ) / kept_probability.clamp_min(1e-12)
        for index, (layers, gate) in enumerate(zip(self._layers, self._gates, strict=True)):
            for layer in layers:
                if isinstance(layer, BranchedLayer):
                    cells = torch.stack([sample.cells[index, r, c] for r, c in self._branch_cells(index)])
                    layer.lent = cells if gate is None else cells / kept_probability[index].clamp_min(1e-12)
                else:
                    layer.quantize_weight.lent = weights[index]
                    layer.quantize_input.lent = activations[index]
            if gate is not None:
                gate.lent = kept_probability[index, 0]
        try:
            yield
        finally:
            self._take_back()

    def _take_back(self) -> None:
        for layers, gate in zip(self._layers, self._gates, strict=True):
            for layer in layers:
                if isinstance(layer, BranchedLayer):
                    layer.lent = None
                else:
                    layer.quantize_weight.lent = layer.quantize_input.lent = None
            if gate is not None:
                gate.lent = None

    def expected_cost(self, name: str, sample: Sample) -> Tensor:
        """The expected cost under ``sample``, differentiable, in float64 (fp32 on MPS); exact when it is one-hot."""
        entries = self._entries_beside(name, sample.cells)
        per_decision = (sample.cells.to(entries.dtype) * entries).sum((1, 2))
        constant = self.table.constants[name]
        if self.table.costs[name].combine == "max":
            return per_decision.amax().clamp_min(constant)
        return per_decision.sum() + constant

    def _entries_beside(self, name: str, cells: Tensor) -> Tensor:
        """A cost's entries (D, Kw, Ka) where the cells of a sample are; brought there once."""
        place = name, cells.device
        if place not in self._entries:
            entries = torch.from_numpy(self.table.entries[name]).to(widest(cells.device))
            self._entries[place] = sent(entries, cells.device)
        return self._entries[place]

    def decode(self, budget: Budget | None = None, bound: Sequence[Pair] | None = None) -> Cells:
        """The likeliest cells under θ, or with a budget the likeliest a posteriori that meet it; both exact.

        With a budget, θ's probabilities are weighted by a prior that grows with the width, weight bits times
        activation bits: within its budget a wider choice should not hurt (our choice; it matters only where θ is
        undecided). What is left of the budget then is spent: the cells are widened until no single widening fits.
        No decision gets more weight bits or more activation bits than ``bound`` gives it, a pair per decision.
        """
        return self._likeliest(self.theta.log_probabilities(), budget, bound)

    def draw(self, generator: torch.Generator, budget: Budget | None = None) -> Cells:
        """Draw one architecture from P(θ); with a budget one that meets it, by the program of :meth:`decode`.

        Of the log-probabilities with Gumbel noise on each cell the largest is a draw of its decision (the Gumbel-max
        trick); within a budget the program takes the largest sum.
        """
        likelihood = self.theta.log_probabilities()
        uniform = torch.rand(likelihood.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        return self._likeliest(likelihood - np.log(-np.log(uniform.numpy())), budget, None)

    def _likeliest(self, likelihood: np.ndarray, budget: Budget | None, bound: Sequence[Pair] | None) -> Cells:
        """The cells of the largest sum of log-likelihoods (D, Kw, Ka), weighted as :meth:`decode` says."""
        if budget is not None:
            likelihood = likelihood + np.log(np.maximum(self.space.widths, 0.5))
            # A cell that is narrower and no cheaper than another is never worth taking.
            likelihood = np.where(dominated(self.table, budget, bound), -np.inf, likelihood)
        return allocate_widest(likelihood, self.table, budget, bound)
