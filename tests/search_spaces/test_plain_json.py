"""JSON of files that anybody may have written: what can be computed with is read as it is, all else is a ValueError."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.plain_json import DEEPEST, LARGEST_FIGURE, parse_json

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(-LARGEST_FIGURE, LARGEST_FIGURE)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_written_is_read(data: object) -> None:
    assert parse_json(json.dumps(data)) == data
    assert parse_json(json.dumps(data).encode()) == data


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e101", "-1e101", "1e999", str(2**63 + 1), "9" * 400, "-" + "9" * 5000]
)
def test_a_number_out_of_all_proportion_is_refused_wherever_it_stands(number: str) -> None:
    for text in (number, f"[{number}]", f'{{"a": {{"b": [1, {number}]}}}}'):
        with pytest.raises(ValueError, match="is not a number that can be used") as caught:
            parse_json(text)
        assert len(str(caught.value)) < 60


def test_small_numbers_stay_what_they_are() -> None:
    assert parse_json("[5e-324, -0.0, 0]") == [5e-324, 0.0, 0]
    assert math.copysign(1, parse_json("-0.0")) == -1


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_that_nobody_could_follow_is_refused(opening: str, closing: str) -> None:
    per_level = opening.count("[") + opening.count("{")
    for count in (DEEPEST // per_level + 1, 200, 400, 5_000, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(opening * count + "1" + closing * count)
    count = DEEPEST // per_level - 1
    assert parse_json(opening * count + "1" + closing * count)


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"a": ["\uDFFF"]}', r'{"\uD83D": 1}', r'"\uDC00\uD800"'])
def test_half_a_letter_is_refused(text: str) -> None:
    for either in (text, text.encode()):
        with pytest.raises(ValueError, match="surrogates"):
            parse_json(either)
    assert parse_json(r'"\uD83D\uDE00"') == "😀"
