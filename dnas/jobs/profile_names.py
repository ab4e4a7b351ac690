"""Which assignments become the profiles of a switchable net: from the words of a job or command to assignments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dnas.config.job import FinaliseSection
from results.pareto import FLOAT
from search_spaces.assignments import BitAssignment, LayerBits, check_fits
from search_spaces.errors import InputError, nearest, unreadable
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.provenance import PROPOSAL
from search_spaces.spaces import PrecisionSpace
from search_spaces.user_files import read_regular

FRONT = "front"
_UNIFORM = re.compile(r"w(\d+)a(\d+)")
_WILD = re.compile(r"[*?\[]")


def uniform_name(weight_bits: int, activation_bits: int) -> str:
    """The name of a uniform profile.

    >>> uniform_name(4, 8)
    'w4a8'
    """
    return f"w{weight_bits}a{activation_bits}"


def uniform_pair(name: str) -> tuple[int, int] | None:
    """The widths that a name such as ``w4a8`` stands for; None for any other name."""
    found = _UNIFORM.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def uniform_layers(space: PrecisionSpace, weight_bits: int, activation_bits: int) -> dict[str, LayerBits]:
    """Every searched layer at these widths, fixed layers (first and last, say) at theirs; 32, 32 is the float net."""
    if not weight_bits:
        raise InputError(f"profile '{uniform_name(weight_bits, activation_bits)}': 0 bits would skip every layer")
    layers = space.uniform(FLOAT_BITS)
    if (weight_bits, activation_bits) == (FLOAT_BITS, FLOAT_BITS):
        return {name: LayerBits(FLOAT_BITS, FLOAT_BITS) for name in layers}
    return {
        name: LayerBits(*space.fixed[name]) if name in space.fixed else LayerBits(weight_bits, activation_bits)
        for name in layers
    }


def wanted_names(section: FinaliseSection) -> list[str]:
    """The entries of ``profiles`` and of the grid; :class:`InputError` for one that is named twice."""
    grid = [uniform_name(w, a) for w in section.weight_bits for a in section.activation_bits]
    names = [*section.profiles, *grid]
    if grid and section.profiles == FinaliseSection().profiles:
        names = grid
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"profile '{twice}' is named twice; name it once")
    if not names:
        raise InputError("no profile is named; give some, such as front or w4a4")
    return names


def read_assignment(path: str, graph: LayerGraph) -> BitAssignment:
    """An assignment from a file; :class:`InputError` for anything else, or one for another network."""
    try:
        text = read_regular(Path(path).expanduser()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = unreadable(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the assignment {path}: {why}") from error
    try:
        assignment = BitAssignment.loads(text)
        check_fits(assignment, graph)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return assignment


def check_names(section: FinaliseSection, known: Sequence[str]) -> list[str]:
    """The names wanted; :class:`InputError` for one that is no assignment of ``known`` ids, nor anything else."""
    names = wanted_names(section)
    for name in names:
        if pair := uniform_pair(name):
            LayerBits(*pair)  # which says what is no width
        if pair or name == FRONT or name.endswith(".json") or name in known:
            continue
        if name == FLOAT:
            raise InputError(
                f"'{FLOAT}' is no assignment but the network itself; as a profile it is called "
                f"'{uniform_name(FLOAT_BITS, FLOAT_BITS)}'"
            )
        if not _WILD.search(name) or not any(fnmatchcase(other, name) for other in known):
            raise InputError(
                f"no assignment is called '{name}'; name one of the run, a pattern, '{FRONT}', or a uniform width "
                f"such as w4a8{nearest(name, known)}"
            )
    return names


def matching(name: str, front: Sequence[str], known: Mapping[str, BitAssignment]) -> list[str]:
    """The ids of a run's assignments that one entry stands for; proposals only where it says ``pool-``."""
    if name == FRONT:
        return list(front)
    if name in known:
        return [name]
    named = [other for other in known if fnmatchcase(other, name)]
    return [other for other in named if name.startswith("pool-") or known[other].provenance.kind != PROPOSAL]
