"""How to normalise: what is written is read again, whatever the targets are."""

from __future__ import annotations

from typing import Any

import pytest

from results.preprocessing import Preprocessing
from search_spaces.errors import InputError


@pytest.mark.parametrize(("classes", "names"), [(0, ()), (1, ("ink",)), (3, ())])
def test_what_is_written_is_read(classes: int, names: tuple[str, ...]) -> None:
    own = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), classes, names)
    assert Preprocessing.from_json(own.to_json()) == own


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", -1), ("classes", 2.5), ("classes", True), ("input_shape", [0, 8, 8]), ("std", [0.0]), ("mean", [])],
)
def test_what_cannot_be_is_refused(key: str, value: Any) -> None:
    written = Preprocessing((1, 8, 8), (0.5,), (0.2,), 10).to_json()
    with pytest.raises(InputError):
        Preprocessing.from_json({**written, key: value})
