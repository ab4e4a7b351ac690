"""Where an assignment comes from: a type for every kind, files as they were, wrong values in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from search_spaces.provenance import KINDS, FewerBits, Profile, Provenance, Pruned, read_provenance

SEARCH = {"kind": "search", "run": "search-1", "budget": "50%", "limits": {"size_bytes": 5.0}, "seed": 3}
PRUNED = {**SEARCH, "kind": "pruned", "parent": "search-1", "criterion": "l1", "ratios": {"a": 0.5}}
PROFILE = {"kind": "switchable", "net": "switchable-1", "profile": "s", "alone": "search-1", "seeds": 2}
MINE = BitAssignment("mine", ModelReference("zoo:x", (3, 8, 8)), {"conv": LayerBits(4, 8)})


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({}, Provenance),
        ({"tool": "mine", "when": [1, 2]}, Provenance),
        (SEARCH, Provenance),
        ({**SEARCH, "quantizer": {"weights": "lsq", "activations": "pact", "per_channel": True}}, Provenance),
        ({**PRUNED, "kept_units": {"a": (4, 8)}}, Pruned),
        (PRUNED, Pruned),
        ({"kind": "fewer-bits", "parent": "search-1"}, FewerBits),
        (PROFILE, Profile),
    ],
)
def test_every_kind_is_a_type_and_its_file_stays_as_it_was(data: dict[str, Any], kind: type[Provenance]) -> None:
    found = read_provenance(data)
    assert type(found) is kind
    assert found.to_json() == data
    assert list(found.to_json()) == list(data)  # the order too, so that a file that is read and written is the same


def test_what_an_assignment_is() -> None:
    search, pruned, profile = map(read_provenance, (SEARCH, PRUNED, PROFILE))
    assert (search.kind, search.parent, search.net, search.source, search.budget) == ("search", None, None, None, "50%")
    assert (pruned.kind, pruned.parent, pruned.net, pruned.source) == ("pruned", "search-1", None, "search-1")
    assert (profile.kind, profile.parent, profile.net, profile.source) == (
        *("switchable", None),
        *("switchable-1", "search-1"),
    )
    for kind in KINDS:
        facts = {"parent": "a", "net": "n", "profile": "p", "alone": "a"}
        assert read_provenance({"kind": kind, **facts}).kind == kind


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"kind": "serch"}, r"'serch' is not a kind of assignment; did you mean 'search'\?"),
        ({"kind": "pruned"}, "it has no 'parent'"),
        ({**PROFILE, "alone": None}, "alone = None: expected text in quotes"),
        ({**PROFILE, "seeds": 0}, "seeds = 0: expected at least 1"),
        ({"limits": {"size_bytes": "big"}}, 'limits.size_bytes = "big": expected a number'),
        ({"limits": [1]}, r"limits = \[1\]: expected a table"),
        ({"limits": {"size_bytes": float("nan")}}, "limits.size_bytes = nan: expected a finite number"),
        ({"seed": "x" * 500}, r'seed = "x{58}…: expected a whole number'),
        ({"quantizer": {"wheights": "lsq"}}, "'quantizer.wheights' is not a key that it may have"),
        ({"quantizer": "lsq"}, 'quantizer = "lsq": expected a table'),
        ({**PRUNED, "kept_units": {"a": [1]}}, r"kept_units\.a = \[1\]: expected 2 values in the list"),
        ([], r"\[\]: expected a table"),
        (None, "None: expected a table"),
    ],
)
def test_what_is_wrong_is_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^provenance: {sentence}"):
        read_provenance(data)
    with pytest.raises(InputError, match=sentence):
        BitAssignment.from_json({**MINE.to_json(), "provenance": data})
    with pytest.raises(InputError, match=sentence):
        replace(MINE, provenance=data)


def test_it_is_frozen_and_may_be_given_as_its_file_has_it() -> None:
    assert replace(MINE, provenance=SEARCH).provenance == read_provenance(SEARCH)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="frozen"):
        MINE.provenance.kind = "ilp"  # type: ignore[misc]
