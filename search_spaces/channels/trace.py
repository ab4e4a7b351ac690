"""What one run over labels finds out: which labels go together, which must stay and why, and where each is used."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from search_spaces.channels.label_tensors import Labels, compact, one_index, squeezed
from search_spaces.channels.running import tensors


@dataclass(frozen=True)
class Step:
    """One operation or whole module of a run: its name, the numbers it was given, what it read and what it made."""

    name: str
    numbers: tuple[str, ...]
    read: tuple[Labels, ...]
    made: tuple[Labels, ...]


@dataclass
class ChannelTrace:
    """Labels are counted from 0. Those that are tied are one unit, which goes by one of them.

    ``frozen`` maps units that must stay to the reason. ``rows``, ``columns`` and ``vectors`` map a layer to the labels
    of its filters and of its input channels, and a module or parameter with one entry per channel to those of its
    entries. ``steps`` is all that was run, ``ties`` counts how often labels were tied.
    """

    count: int = 0
    frozen: dict[int, str] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    ties: int = 0

    def __post_init__(self) -> None:
        self._unit_of, self._stays = torch.arange(self.count), torch.zeros(self.count, dtype=torch.bool)

    def fresh(self, count: int) -> Labels:
        """Labels that nothing has yet, (count,)."""
        first = self.count
        self.count += count
        known = len(self._unit_of)
        if self.count > known:  # in large steps, as most calls ask for a few
            more = torch.arange(known, 2 * self.count)
            self._unit_of, self._stays = torch.cat([self._unit_of, more]), torch.cat([self._stays, more < 0])
        return torch.arange(first, first + count)

    def units(self) -> np.ndarray:
        """The unit of every label, (count,)."""
        return self._units(torch.arange(self.count)).numpy()

    def _units(self, labels: Labels) -> Labels:
        """The unit of each label: the end of the chain of those that it goes by."""
        units = self._unit_of[labels]
        while not torch.equal(units, further := self._unit_of[units]):
            units = further
        return units

    def current(self, x: Labels) -> Labels:
        """The units of labels, as tensor of labels in which what was tied since is one."""
        return compact(self._units(squeezed(x)).expand(x.shape))

    def unremovable(self, shape: torch.Size, why: str) -> Labels:
        """The one label of all that must stay for this reason, for a whole tensor."""
        return self._staying(why).reshape([1] * len(shape)).expand(shape)

    def _staying(self, why: str) -> Labels:
        label = next((label for label, reason in self.frozen.items() if reason == why), None)
        if label is not None:
            return torch.tensor([label])
        fresh = self.fresh(1)
        self.frozen[int(fresh)] = why
        self._stays[fresh] = True
        return fresh

    def freeze(self, values: object, why: str) -> None:
        """Note that all labels in ``values`` must stay."""
        for x in tensors(values):
            labels = torch.unique(self._units(squeezed(x)))
            self.tie(labels, self._staying(why).expand_as(labels))

    def why_all_stay(self, x: Labels) -> str | None:
        """The reason for which all of a tensor must stay, or None where something of it may go."""
        units = self._units(squeezed(x)).flatten()
        return self.frozen[int(units[0])] if bool(self._stays[units].all()) else None

    def tie(self, a: Labels, b: Labels) -> None:
        """Note that the labels at the same places of ``a`` and ``b`` (of one shape) go together."""
        both = [axis for axis in range(a.dim()) if a.stride(axis) == 0 and b.stride(axis) == 0]
        first, second = (self._units(one_index(x, both)).flatten() for x in (a, b))
        new = (first != second) & ~(self._stays[first] & self._stays[second])
        if bool(new.any()):
            pairs = torch.unique(first[new] * self.count + second[new])
            self._join(pairs // self.count, pairs % self.count)

    def _join(self, first: Labels, second: Labels) -> None:
        """Let the units of each pair go by one label; of units that stay, each keeps its reason."""
        self.ties += 1
        ranks = [units + self.count * ~self._stays[units] for units in (first, second)]
        stays, goes = torch.where(ranks[0] < ranks[1], first, second), torch.where(ranks[0] < ranks[1], second, first)
        if len(torch.unique(goes)) == len(goes) and not torch.isin(goes, stays).any():
            self._unit_of[goes] = stays
            return
        for one, other in zip(stays.tolist(), goes.tolist(), strict=True):  # chains and stars
            self.tie(torch.tensor([one]), torch.tensor([other]))

    def tie_along(self, x: Labels, axis: int) -> Labels:
        """Tie all that share an index of ``axis``; the label of each index, (x.shape[axis],)."""
        others = [other for other in range(x.dim()) if other != axis % x.dim()]
        first = one_index(x, others)
        self.tie(first.expand_as(x), x)
        return self._units(first.flatten())
