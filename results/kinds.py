"""Kinds of points: how each is named, drawn, and what it is compared with; a new one is a line here.

The kinds are those of :data:`search_spaces.provenance.KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PointKind:
    """How points of one kind are told from others.

    ``label`` is their name in legends, ``short`` that in tables (the kind itself unless given). ``controls`` are the
    kinds that their best point of each budget is compared with. Points without a budget are made for the same end,
    unless ``alone`` says that each is for its own.
    """

    colour: str
    marker: str
    label: str
    short: str = ""
    size: float = 6.5
    ring: bool = False
    controls: tuple[str, ...] = ()
    alone: bool = False


# Okabe and Ito's palette, told apart by colour-blind readers; markers tell the kinds apart without colour. A ring lets
# the same assignment trained alone be seen inside.
POINT_KINDS = {
    "search": PointKind("#0072B2", "o", "search", controls=("ilp", "measured-ilp", "uniform")),
    "squantizer": PointKind("#D55E00", "P", "SQuantizer", short="SQuant", controls=("uniform",), alone=True),
    "uniform": PointKind("#E69F00", "s", "uniform"),
    "ilp": PointKind("#009E73", "^", "ILP", short="ILP"),
    "measured-ilp": PointKind("#44AA99", "H", "ILP, measured", short="measured ILP"),
    "random": PointKind("#777777", "v", "random"),
    "control": PointKind("#117733", "d", "own control"),
    "sampled": PointKind("#CC79A7", "D", "sampled"),
    "proposal": PointKind("#661100", "8", "proposal"),
    "pruned": PointKind("#882255", "*", "pruned", size=10.5),
    "pruned-uniform": PointKind("#56B4E9", ">", "pruned, one ratio"),
    "pruned-random": PointKind("#999933", "<", "pruned, random"),
    "fewer-bits": PointKind("#000000", "X", "fewer bits, unpruned", size=7.0),
    "given": PointKind("#F0E442", "p", "given"),
    "switchable": PointKind("#CC3311", "h", "switchable net", size=10.0, ring=True),
}
