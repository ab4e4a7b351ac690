"""Where an assignment comes from: what made it, within which budget, out of which other one; tagged by its kind.

This is the one place that knows the keys of ``provenance`` in an assignment's file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from search_spaces.errors import InputError, nearest
from search_spaces.records import Record

SEARCH, SAMPLED, PROPOSAL = "search", "sampled", "proposal"
UNIFORM, ILP, MEASURED_ILP, RANDOM, CONTROL = "uniform", "ilp", "measured-ilp", "random", "control"
PRUNED, PRUNED_UNIFORM, PRUNED_RANDOM, FEWER_BITS = "pruned", "pruned-uniform", "pruned-random", "fewer-bits"
GIVEN, PROFILE = "given", "switchable"
KINDS = (
    *(SEARCH, "squantizer", UNIFORM, ILP, MEASURED_ILP, RANDOM, CONTROL, SAMPLED, PROPOSAL),
    *(PRUNED, PRUNED_UNIFORM, PRUNED_RANDOM, FEWER_BITS),
    *(GIVEN, PROFILE),
)
"""``control`` is the user's own, ``given`` comes from elsewhere, ``switchable`` is a profile of a switchable net;
``proposal`` was in the pool that a budget's assignment was chosen from."""


class Quantizers(Record):
    """The quantizers that an assignment was made with; what is not told is the default."""

    model_config = ConfigDict(extra="forbid")

    weights: str | None = None
    activations: str | None = None
    per_channel: bool | None = None


class Provenance(Record):
    """What an assignment is: its ``kind``, the ``run`` (a search, say) that gave it, the budget it was made for.

    ``budget`` is the budget as written, ``limits`` are its figures by cost. ``parent`` is the assignment that this
    one was made from, by removing filters or bits, ``net`` the switchable net that it is a profile of. ``start`` says
    what its fine-tuning starts from, where a choice took other weights than the job's ``finetune.start``.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    kind: str = GIVEN
    run: str = GIVEN
    budget: str | None = None
    limits: Mapping[str, float] = Field(default_factory=dict)
    seed: int = 0
    quantizer: Quantizers = Field(default_factory=Quantizers)
    parent: str | None = None
    net: str | None = None
    start: Literal["supernet"] | None = None

    @property
    def source(self) -> str | None:
        """The assignment that this one was made from, or that a profile runs."""
        return self.parent


class Pruned(Provenance):
    """Filters were removed: by which criterion, which ratio of every channel group, [units kept, units]."""

    parent: str
    criterion: str = "auto"
    ratios: Mapping[str, float] = Field(default_factory=dict)
    kept_units: Mapping[str, tuple[int, int]] = Field(default_factory=dict)


class FewerBits(Provenance):
    """The parent's filters, all of them, at fewer bits."""

    parent: str


class Profile(Provenance):
    """One profile of a switchable net, trained ``seeds`` times; ``alone`` is the assignment that it runs."""

    net: str
    profile: str
    alone: str
    seeds: int = Field(default=1, ge=1)

    @property
    def source(self) -> str | None:
        """The assignment that this profile runs."""
        return self.alone


_TYPES: Mapping[str, type[Provenance]] = {
    **dict.fromkeys(KINDS, Provenance),
    **dict.fromkeys((PRUNED, PRUNED_UNIFORM, PRUNED_RANDOM), Pruned),
    FEWER_BITS: FewerBits,
    PROFILE: Profile,
}


def read_provenance(data: Any) -> Provenance:
    """What an assignment's file says of where it comes from, as the type of its kind.

    Raises :class:`InputError` for a kind that does not exist, or a value that is missing or wrong.
    """
    kind = str(data.get("kind", GIVEN)) if isinstance(data, Mapping) else GIVEN
    if kind not in _TYPES:
        raise InputError(f"provenance: '{kind}' is not a kind of assignment{nearest(kind, KINDS)}")
    try:
        return _TYPES[kind].read(data)
    except InputError as error:
        raise InputError(f"provenance: {error}") from error


def in_order(nets: Iterable[str]) -> list[str]:
    """Switchable nets by their number, others behind them.

    >>> in_order({"switchable-10", "mine", "switchable-2"})
    ['switchable-2', 'switchable-10', 'mine']
    """
    numbers = {net: re.search(r"-(\d{1,9})$", net) for net in nets}
    return sorted(numbers, key=lambda net: (int(found[1]) if (found := numbers[net]) else math.inf, net))
