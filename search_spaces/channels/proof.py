"""Prove channel groups before they are given out: pruned copies of the network are run and followed once more.

Every operation of a pruned copy must make exactly what it makes in the whole network, without the channels that are
gone; every layer must read what is expected there, and nothing may meet that did not meet before. So the pruned
network computes what the whole one does with these channels masked. Code that counts its channels itself, such as a
slice at a fixed position or a division by their number, fails this and keeps its filters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.channels.following import ChannelRun
from search_spaces.channels.label_tensors import Labels, one_index, only_label, squeezed
from search_spaces.channels.rules import BY_PRODUCT
from search_spaces.channels.running import NetworkCall
from search_spaces.channels.slicing import kept_indices, remove_filters
from search_spaces.channels.trace import ChannelTrace, Step
from search_spaces.groups import ChannelGroup, ChannelGroups
from search_spaces.layers import LayerSpec

_COPIES = {"clone", "alias", "detach", "_to_copy", "empty"}  # whether they run depends on the layout of memory
_GONE, _STAYS = -2, -1


@dataclass(frozen=True)
class Proof:
    """What the whole network does, to be compared with what pruned copies of it do."""

    network: nn.Module
    specs: Mapping[str, LayerSpec]
    call: NetworkCall
    trace: ChannelTrace
    groups: ChannelGroups

    def sound(self) -> list[ChannelGroup]:
        """As many groups as can be pruned together."""
        return self._grown([], self.groups.groups)

    def _grown(self, proved: Sequence[ChannelGroup], more: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """``proved`` and those of ``more`` that can be pruned with them.

        Those that take part in what fails are tried last, half by half.
        """
        failed = self._failed([*proved, *more]) if more else []
        if not failed:
            return [*proved, *more]
        suspects = [group for group in more if group.name in failed] or list(more)
        if len(suspects) < len(more):
            proved, more = self._grown(proved, [group for group in more if group not in suspects]), suspects
        if len(more) == 1:
            return list(proved)
        middle = len(more) // 2
        return self._grown(self._grown(proved, more[:middle]), more[middle:])

    def _failed(self, some: Sequence[ChannelGroup]) -> list[str]:
        """Nothing if these groups can be pruned; else the names of those that take part in what fails first."""
        return next(filter(None, (self._failed_with(kept) for kept in _tried(some))), [])

    def _failed_with(self, kept: Mapping[str, tuple[int, ...]]) -> list[str]:
        given = {**self.trace.rows, **self.trace.vectors}
        for name, labels in given.items():
            stay = kept_indices(self.groups, kept, "rows" if name in self.specs else "vectors", name)
            given[name] = labels if stay is None else labels[stay.numpy()]
        run = None
        try:
            run = ChannelRun(remove_filters(self.network, self.groups, kept), self.specs, given, self.trace.count)
            run.follow(self.call)
        except Exception:  # whatever a foreign model's code raises, it does not run without these filters
            return self._taking_part(run.trace, kept, ended=False) if run else list(kept)
        return self._taking_part(run.trace, kept, ended=True)

    def _taking_part(self, trace: ChannelTrace, kept: Mapping[str, tuple[int, ...]], ended: bool) -> list[str]:
        """The groups in the first step that differs from the whole network's by more than the channels that go."""
        number = self._numbers(kept)
        pruned = torch.full((trace.count,), _STAYS)
        pruned[: len(number)] = number
        before, after = _told(self.trace), _told(trace)
        same = (_same_step(one, other, number, pruned) for one, other in zip(before, after, strict=False))
        first = next((index for index, holds in enumerate(same) if not holds), min(len(before), len(after)))
        if ended and first == len(before) == len(after):
            wrong = (pruned != pruned[torch.from_numpy(trace.units())]) & (pruned != _GONE)
            return self._names_of(pruned[wrong]) if wrong.any() else []
        near = before[max(0, first - 1) : first + 1]
        labels = [squeezed(x).flatten() for step in near for x in (*step.read, *step.made)]
        return self._names_of(torch.cat(labels)) or list(kept)

    def _names_of(self, labels: Tensor) -> list[str]:
        """The groups that these labels belong to."""
        found = np.unique(self._owners()[labels[labels >= 0].numpy()])
        return [self.groups.names[index] for index in found if index >= 0]

    def _owners(self) -> np.ndarray:
        """Label → the index of its group, or -1."""
        unit_of, owners = self.trace.units(), np.full(self.trace.count, -1)
        for index, group in enumerate(self.groups.groups):
            for layer, units in group.rows.items():
                owners[unit_of[self.trace.rows[layer][np.array(units) >= 0]]] = index
        return np.asarray(owners[unit_of])

    def _numbers(self, kept: Mapping[str, tuple[int, ...]]) -> Tensor:
        """Label → its unit; ``_GONE`` for those that go, ``_STAYS`` for those of no group in ``kept``."""
        unit_of, numbers = self.trace.units(), np.full(self.trace.count, _STAYS)
        for group in self.groups.groups:
            for layer, units in group.rows.items() if group.name in kept else ():
                own, labels = np.array(units), unit_of[self.trace.rows[layer]]
                stay = np.isin(own, kept[group.name])
                numbers[labels[own >= 0]] = np.where(stay, labels, _GONE)[own >= 0]
        return torch.from_numpy(numbers[unit_of])


def _told(trace: ChannelTrace) -> list[Step]:
    """The steps that tell something; those that only copy are run or not by the layout of memory."""
    by_products = {label for label, why in trace.frozen.items() if why == BY_PRODUCT}
    return [
        replace(step, made=tuple(x for x in step.made if only_label(x) not in by_products))
        for step in trace.steps
        if step.name not in _COPIES
    ]


def _same_step(whole: Step, smaller: Step, number: Tensor, pruned: Tensor) -> bool:
    if (whole.name, whole.numbers) != (smaller.name, smaller.numbers):
        return False
    found, other = [*whole.read, *whole.made], [*smaller.read, *smaller.made]
    pairs = zip(found, other, strict=False)
    return len(found) == len(other) and all(_same_labels(one, other, number, pruned) for one, other in pairs)


def _same_labels(whole: Labels, smaller: Labels, number: Tensor, pruned: Tensor) -> bool:
    """Whether these are the same labels in the same order, without those that are gone."""
    if whole.dim() != smaller.dim():
        return False
    same = [axis for axis in range(whole.dim()) if whole.stride(axis) == 0 and smaller.stride(axis) == 0]
    if any(whole.shape[axis] != smaller.shape[axis] for axis in same):
        return False
    left = number[one_index(whole, same)].flatten()
    return torch.equal(left[left != _GONE], pruned[one_index(smaller, same)].flatten())


def _tried(some: Sequence[ChannelGroup]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Ways to prune these groups: without the first units, without the last, and without some of each at random.

    Groups lose different shares, so that no two shifts cancel.
    """
    generator = np.random.default_rng(0)
    yield {group.name: _without_first(group.units, index) for index, group in enumerate(some)}
    yield {group.name: _at_random(group.units, generator) for group in some}


def _without_first(units: int, index: int) -> tuple[int, ...]:
    return tuple(range(min(units - 1, 1 + index % max(1, units // 3)), units))


def _at_random(units: int, generator: np.random.Generator) -> tuple[int, ...]:
    """The first unit and some of the others, without the last."""
    some = 1 + np.flatnonzero(generator.random(max(0, units - 2)) < generator.uniform(0.3, 0.9))
    return (0, *some.tolist())
