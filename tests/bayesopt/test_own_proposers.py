"""A proposer of the user's own: told what is wrong with it in a sentence, before anything is trained for its trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import pytest

from bayesopt.proposals import Suggestion
from bayesopt.proposers import Proposer, make_proposer
from bayesopt.ratios import Limits
from search_spaces.errors import InputError
from tests.bayesopt.test_ratios import chain

UNITS = (16, 32, 32, 64)
BUDGET = {"size_bytes": 450.0}


class Given(Proposer):
    """Suggests whatever it was told to."""

    says: Callable[[Proposer, Limits], Any]

    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        return type(self).says(self, limits)


def own(says: Callable[[Any, Limits], Any]) -> Proposer:
    kind = type("Mine", (Given,), {"says": says, "__module__": "mine"})
    return kind(chain(UNITS), [BUDGET], seed=3, first=2)


def fails(*_: Any, **options: Any) -> Any:
    raise KeyError("depth")


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (lambda self, limits: None, "failed: TypeError"),
        (fails, "failed: KeyError: 'depth'"),
        (lambda self, limits: [0.5], "suggests a float; yield what self.suggestion"),
        (lambda self, limits: ["more"], "suggests a str"),
        (lambda self, limits: [self.suggestion([0.5], limits, "x")], "a point has a coordinate for each of 4 free"),
        (lambda self, limits: [self.suggestion([np.nan] * 4, limits, "x")], "suggests a point that holds NaN"),
        (lambda self, limits: [self.suggestion("half", limits, "x")], "failed: ValueError"),
        (lambda self, limits: [Suggestion((1, 2), limits, "x")], r"suggests the counts \(1, 2\), which its space"),
        (lambda self, limits: [Suggestion(UNITS, limits, "x")], r"suggests the counts .*, which exceed size_bytes 450"),
        (
            lambda self, limits: [Suggestion(UNITS, {"size_bytes": 1e9}, "x")],
            r"suggests the counts .*, which exceed size_bytes 450",
        ),
        (lambda self, limits: [Suggestion(None, limits, "x")], "failed: TypeError"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_tried_is_refused_by_name(says: Callable[[Any, Limits], Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"^(proposer 'mine:Mine' )?{sentence}"):
        own(says).try_engine(total=10)


@pytest.mark.parametrize("x", [7.5, -3.0, 0.5])
def test_one_suggestion_for_ever_and_points_outside_leave_the_rest_to_chance(x: float) -> None:
    proposer = own(lambda self, limits: repeat(self.suggestion([x, x, 0.5, 0.5], limits, "x")))
    asked = []
    for _ in range(5):
        asked += proposer.ask()
        proposer.tell(asked[-1], 1.0)
    assert len({tuple(each.counts.values()) for each in asked}) == 5
    assert all(proposer.space.meets(tuple(each.counts.values()), BUDGET) for each in asked)
    assert [each.source for each in asked][3:] == ["random", "random"]


def test_a_space_that_is_used_up_hides_no_proposer() -> None:
    kind = type("Mine", (Given,), {"says": fails, "__module__": "mine"})
    proposer = kind(chain((2, 4, 4, 8)), [{"size_bytes": 33.0}], seed=3, first=2)
    with pytest.raises(InputError, match=r"^proposer 'mine:Mine' failed: KeyError: 'depth'"):
        proposer.try_engine(total=3)


def test_trials_stop_before_the_model_where_so_few_were_asked_for() -> None:
    own(fails).try_engine(total=2)


def without_arguments(self: Any) -> None:
    """As a constructor."""


def without_base(self: Any, *args: Any, **options: Any) -> None:
    """As a constructor."""


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "cannot be made: TypeError: Can't instantiate abstract class"),
        ({"suggestions": fails, "__init__": without_arguments}, "cannot be made: TypeError"),
        ({"suggestions": fails, "__init__": fails}, "cannot be made: KeyError: 'depth'"),
        ({"suggestions": fails, "__init__": without_base}, "its __init__ does not hand on"),
    ],
)
def test_a_class_that_cannot_be_made_is_refused_by_name(
    body: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.bayesopt.test_own_proposers as here

    monkeypatch.setattr(here, "Mine", type("Mine", (Proposer,), body), raising=False)
    with pytest.raises(InputError, match=f"^proposer '{__name__}:Mine':? {sentence}"):
        make_proposer(f"{__name__}:Mine", chain(UNITS), [BUDGET], seed=3)
