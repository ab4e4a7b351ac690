"""The assignments of a run as a page shows them, and their files as `dnas export` writes them, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from results.pictures.prune_data import filters_of, parents_of
from results.tables.export import assignment_text
from results.units import amount_text
from search_spaces.assignments import BitAssignment

MOST_CHARACTERS = 6_000_000
"""Of files inside one page, each part that several have counted once; about a tenth of it is left when compressed."""
FORMATS = ("json", "csv")
_CUT = re.compile(r"\n(?! {5})")
"""Where a file is cut, behind the end of a line: an entry of a layer stays whole, and is the same in many."""


@dataclass
class Parts:
    """Texts as numbers of parts that are kept once."""

    texts: list[str] = field(default_factory=list)
    size: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> list[int] | None:
        """The numbers of the parts that make up a text; None where there is no room for what is new in it."""
        *lines, rest = _CUT.split(text)
        parts = [*(f"{line}\n" for line in lines), *([rest] if rest else [])]
        new = {part for part in parts if part not in self._numbers}
        more = sum(map(len, new))
        if self.size + more > MOST_CHARACTERS:
            return None
        self.size += more
        for part in parts:
            if part not in self._numbers:
                self._numbers[part] = len(self.texts)
                self.texts.append(part)
        return [self._numbers[part] for part in parts]


def assignments_json(assignments: Mapping[str, BitAssignment], first: Iterable[str]) -> dict[str, Any]:
    """Layers, and by assignment their bits, filters and sizes; its files, those of ``first`` before others."""
    layers = list(dict.fromkeys(name for item in assignments.values() for name in item.layers))
    parents, parts = parents_of(assignments), Parts()
    entries = {}
    for name in dict.fromkeys([*(name for name in first if name in assignments), *assignments]):
        item = assignments[name]
        entries[name] = _entry(item, layers, parents.get(name)) | {
            "files": {format: parts.add(assignment_text(item, format)) for format in FORMATS}
        }
    return {"layers": layers, "entries": entries, "parts": parts.texts}


def _entry(item: BitAssignment, layers: Sequence[str], parent: BitAssignment | None) -> dict[str, Any]:
    bits = [item.layers.get(layer) for layer in layers]
    sizes = [item.layer_costs.get(layer, {}).get("size_bytes") for layer in layers]
    filters = filters_of(item, parent)
    origin = item.provenance
    return {
        "weights": [None if each is None else each.weight_bits for each in bits],
        "inputs": [None if each is None else each.activation_bits for each in bits],
        "filters": [None if each is None else each.out_channels for each in bits],
        "kept": [filters.get(layer) for layer in layers],
        "sizes": sizes if any(size is not None for size in sizes) else None,
        "schemes": [dict(each.scheme.columns()) if each and each.scheme else None for each in bits],
        "costs": {name: amount_text(name, value) for name, value in item.cost.items()},
        "kind": origin.kind,
        "run": origin.run,
        "budget": origin.budget,
        "parent": origin.source,
        "net": origin.net,
    }
