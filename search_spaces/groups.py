"""Which filters of a network can be removed, and what must go with each: plain immutable records.

Removing a filter takes its row of the layer's weight, its bias, its entry in the BatchNorm behind, and the columns
of every layer that reads it. Filters that meet in an addition, a gate or a depthwise convolution go together: such a
set is a *unit*, and the units of layers that are tied to one another are a *group*, which has one pruning ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search_spaces.errors import InputError, check_type, nearest

Kept = Mapping[str, tuple[int, ...]]
"""Group name → the units that stay, ascending. A group that is not named keeps all."""


@dataclass(frozen=True)
class ChannelGroup:
    """Units 0 … ``units`` - 1 that are removed one by one, with everything that belongs to each.

    ``rows`` maps each layer whose filters these are to the unit of every filter, ``columns`` each layer that reads
    them to the unit of every input channel (input feature, for a linear layer), ``vectors`` each BatchNorm (or other
    module with one entry per channel) to the unit of every entry; -1 stands for a channel outside this group.
    ``name`` is the first of its layers.
    """

    name: str
    units: int
    rows: Mapping[str, tuple[int, ...]]
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vectors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose filters these are."""
        return tuple(self.rows)


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of a network, in call order; ``frozen`` maps every other layer to the reason its filters stay.

    ``entry_bytes`` is what one entry of each module in ``vectors`` takes in fp32, where no layer accounts for it.
    ``unknown`` says why the groups could not be read at all; empty where they could.
    """

    groups: tuple[ChannelGroup, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    entry_bytes: Mapping[str, int] = field(default_factory=dict)
    unknown: str = ""

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"there is no channel group '{name}'{nearest(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all groups."""
        return tuple(group.name for group in self.groups)


def check_kept(groups: ChannelGroups, kept: Kept) -> None:
    """Raise :class:`InputError` unless ``kept`` names groups and units that exist, and leaves each group one."""
    check_type(kept, Mapping, "the units to keep", "give them by the names of the channel groups")
    for name, units in kept.items():
        group = groups[name]
        check_type(units, Sequence, f"the units of channel group '{name}'", "give a tuple of whole numbers")
        if not units:
            raise InputError(f"channel group '{name}' would lose all its {group.units} units; keep at least one")
        if list(units) != sorted(set(units)) or units[0] < 0 or units[-1] >= group.units:
            raise InputError(
                f"channel group '{name}' has units 0 to {group.units - 1}; keep some of them, each once, "
                "in ascending order"
            )


def kept_rows(groups: ChannelGroups, kept: Kept) -> dict[str, tuple[int, ...]]:
    """Layer → the filters that stay, for every layer that loses some."""
    lost: dict[str, set[int]] = {}
    for group in groups.groups:
        gone = set(range(group.units)) - set(kept.get(group.name, range(group.units)))
        for layer, units in group.rows.items() if gone else ():
            lost.setdefault(layer, set()).update(row for row, unit in enumerate(units) if unit in gone)
    widths = {layer: len(units) for group in groups.groups for layer, units in group.rows.items()}
    return {layer: tuple(row for row in range(widths[layer]) if row not in rows) for layer, rows in lost.items()}


def kept_units(groups: ChannelGroups, rows: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Invert :func:`kept_rows`: group → the units that stay, for every group that loses some.

    Raises :class:`InputError` where the rows are not those of whole units of this network.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for group in groups.groups:
        for layer, units in group.rows.items():
            stays = set(rows.get(layer, range(len(units))))
            found = tuple(sorted({unit for row, unit in enumerate(units) if unit >= 0 and row in stays}))
            if kept.setdefault(group.name, found) != found:
                raise InputError(
                    f"the filters kept of layer '{layer}' do not fit those of '{group.name}', which go together: "
                    "the assignment was made for another network, or was edited"
                )
    kept = {name: units for name, units in kept.items() if len(units) < groups[name].units}
    check_kept(groups, kept)
    if kept_rows(groups, kept) != {layer: tuple(indices) for layer, indices in rows.items()}:
        wrong = next(layer for layer in rows if kept_rows(groups, kept).get(layer) != tuple(rows[layer]))
        raise InputError(
            f"the filters kept of layer '{wrong}' cannot be removed in this network"
            + (f" ({groups.frozen[wrong]})" if wrong in groups.frozen else "")
            + ": the assignment was made for another network, or was edited"
        )
    return kept
