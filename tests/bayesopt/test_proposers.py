"""What every proposer promises, whatever engine it runs on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bayesopt.proposers import CostRange, Proposal, Proposer, make_proposer
from bayesopt.ratios import RatioSpace
from search_spaces.errors import InputError
from tests.bayesopt.test_ratios import chain

try:
    import optuna  # noqa: F401

    MISSING = ""
except ImportError:
    MISSING = "Optuna is not installed: pip install 'dnas[optuna]'"

NAMES = ["scikit-optimize", "random", pytest.param("optuna", marks=pytest.mark.skipif(bool(MISSING), reason=MISSING))]
UNITS = (16, 32, 32, 64)
BUDGET = {"size_bytes": 450.0}
SEVERAL = [{"size_bytes": 300.0}, {"size_bytes": 450.0, "bitops": 1700.0}]
RANGE = CostRange("size_bytes", 250.0, 600.0)
WISHED = np.array([0.1, 0.7, 0.2, 0.6])

pytestmark = pytest.mark.parametrize("name", NAMES)


def loss(proposal: Proposal) -> float:
    """A bowl around one set of ratios; cheaper networks are not better by themselves."""
    ratios = 1 - np.array(list(proposal.counts.values())) / np.array(UNITS)
    return float(np.sum((ratios - WISHED) ** 2))


def make(name: str, targets: Any = (BUDGET,), space: RatioSpace | None = None, **options: Any) -> Proposer:
    return make_proposer(name, space or chain(UNITS), targets, **{"seed": 3, "first": 5} | options)


def run(proposer: Proposer, count: int, value: Callable[[Proposal], float] = loss) -> list[tuple[Proposal, float]]:
    history = []
    for _ in range(count):
        for proposal in proposer.ask():
            history.append((proposal, value(proposal)))
            proposer.tell(*history[-1])
    return history


@pytest.mark.parametrize("targets", [[BUDGET], SEVERAL, RANGE])
def test_every_proposal_meets_its_limits_and_is_new(name: str, targets: Any) -> None:
    proposer = make(name, targets)
    asked = [proposal for proposal, _ in run(proposer, 8)]
    assert [proposal.number for proposal in asked] == list(range(8))
    for proposal in asked:
        counts = tuple(proposal.counts.values())
        costs = proposer.space.costs(counts)
        assert all(costs[cost] <= limit for cost, limit in proposal.limits.items())
        assert proposer.space.point(counts) == proposal.x
        assert proposer.space.exhausts(counts, proposal.limits)
    assert len({(p.budget, *p.counts.values()) for p in asked}) == len(asked)


def test_budgets_take_turns_and_each_has_its_best(name: str) -> None:
    proposer = make(name, SEVERAL)
    history = run(proposer, 8)
    assert [proposal.budget for proposal, _ in history] == [0, 1] * 4
    assert [dict(p.limits) for p, _ in history[:2]] == SEVERAL
    for budget, limits in enumerate(SEVERAL):
        best = proposer.best(budget)
        assert best is not None
        assert proposer.space.meets(tuple(best.counts.values()), limits)


def test_a_cost_range_is_spread_over_and_never_left(name: str) -> None:
    proposer = make(name, RANGE)
    amounts = [proposer.space.costs(tuple(p.counts.values()))["size_bytes"] for p, _ in run(proposer, 10)]
    assert max(amounts) <= RANGE.highest
    assert min(amounts) > RANGE.lowest - 60  # a rounding step
    assert np.ptp(amounts[4:]) > 0.3 * (RANGE.highest - RANGE.lowest)


@pytest.mark.parametrize("targets", [SEVERAL, RANGE])
def test_a_restored_history_goes_on_as_the_uninterrupted_one(name: str, targets: Any) -> None:
    history = run(make(name, targets), 7)
    for kept in (3, 6):
        resumed = make(name, targets)
        resumed.restore(history[:kept])
        assert run(resumed, 7 - kept) == history[kept:]


def test_a_batch_is_reproducible_and_spreads(name: str) -> None:
    first, second = (make(name), make(name))
    for proposer in (first, second):
        run(proposer, 6)
    batch = first.ask(3)
    assert batch == [proposal for _ in range(3) for proposal in second.ask()]
    assert len({tuple(p.counts.values()) for p in batch}) == 3
    resumed = make(name)
    resumed.restore([*run(make(name), 6), *((proposal, None) for proposal in batch[:2])])
    assert resumed.ask() == batch[2:]
    for proposal in reversed(batch):  # told in any order
        first.tell(proposal, loss(proposal))
    for proposal in batch:
        second.tell(proposal, loss(proposal))
    assert first.ask() == second.ask()


def test_a_failed_trial_counts_as_seen_and_never_wins(name: str) -> None:
    proposer = make(name)
    values = iter([math.nan, math.inf, 0.5, -math.inf, 0.4, math.nan, 0.3, 0.2])
    history = run(proposer, 8, lambda proposal: next(values))
    assert len({tuple(p.counts.values()) for p, _ in history}) == 8
    best = proposer.best()
    assert best is not None
    assert math.isfinite(history[best.number][1])
    assert run(make(name), 6, lambda proposal: math.nan)[-1][0].source in ("random", "initial")


def test_a_proposal_is_plain_json(name: str) -> None:
    for proposal, _ in run(make(name, SEVERAL), 7):
        text = json.dumps(proposal.to_json(), allow_nan=False)
        assert Proposal.from_json(json.loads(text)) == proposal
        assert {type(count) for count in proposal.counts.values()} == {int}
        assert {type(x) for x in proposal.x} | {type(limit) for limit in proposal.limits.values()} == {float}


def test_the_start_is_uniform_then_the_sensitivity_then_a_design_then_the_engine(name: str) -> None:
    proposer = make(name, [BUDGET], sensitivity={"a": 9.0, "b": 0.1, "c": 2.0, "d": 0.2})
    asked = [proposal for proposal, _ in run(proposer, 7)]
    engine = "random" if name == "random" else "model"
    assert [p.source for p in asked] == ["uniform", "sensitivity", *["initial"] * 3, engine, engine]
    assert tuple(asked[0].counts.values()) == proposer.space.uniform(BUDGET)
    assert asked[1].x[1] > asked[1].x[3] > asked[1].x[2] > asked[1].x[0]
    if name == "scikit-optimize":
        assert asked[-1].predicted_mean is not None
        assert asked[-1].predicted_std > 0


def test_fixed_groups_stay(name: str) -> None:
    proposer = make(name, space=chain(UNITS, fixed={"b": 0.25}))
    assert {proposal.counts["b"] for proposal, _ in run(proposer, 7)} == {24}


def test_a_small_space_is_exhausted_without_a_fuss(name: str) -> None:
    space = chain((4, 4), max_ratio=0.5)
    every = {(a, b) for a in range(2, 5) for b in range(2, 5) if space.exhausts((a, b), {"bitops": 20.0})}
    assert len(every) >= 2
    proposer = make(name, [{"bitops": 20.0}], space=space, first=2)
    history = run(proposer, 2 * len(every), lambda proposal: float(proposal.counts["a"]))
    assert {tuple(p.counts.values()) for p, _ in history} == every
    assert proposer.ask(5) == []
    wider = make(name, [{"bitops": 20.0}, {"bitops": 1e6}], space=space, first=2)
    assert len(wider.ask(50)) == len(every) + 1


def test_what_was_not_asked_is_not_told(name: str) -> None:
    proposer = make(name)
    (proposal,) = proposer.ask()
    proposer.tell(proposal, 1.0)
    with pytest.raises(InputError, match="already been told"):
        proposer.tell(proposal, 1.0)
    (other,) = make(name, SEVERAL).ask()
    with pytest.raises(InputError, match="was not asked"):
        make(name).tell(other, 1.0)
    with pytest.raises(InputError, match="does not continue"):
        proposer.restore([(proposal, 1.0)])


@pytest.mark.parametrize(
    ("targets", "options", "sentence"),
    [
        ([], {}, "no budget"),
        ([{}], {}, "a budget is empty"),
        ([{"bitops": 1.0}], {}, "bitops 1 cannot be reached"),
        (CostRange("bitops", 1.0, 9e9), {}, "bitops 1 cannot be reached"),
        ([BUDGET], {"first": 0}, "first is 0"),
        ([BUDGET], {"sensitivity": {"e": 1.0}}, "no channel group 'e'"),
        ([BUDGET], {"sensitivity": {"a": math.nan}}, "it must be finite"),
        ([BUDGET], {"space": chain(UNITS, max_ratio=0.0)}, "no ratio to search"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(name: str, targets: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make(name, targets, **options)


def test_a_model_beats_chance_on_a_simple_bowl(name: str) -> None:
    if name == "random":
        return
    found = []
    for engine in (name, "random"):
        proposer = make(engine, seed=1)
        run(proposer, 16)
        best = proposer.best()
        assert best is not None
        found.append(loss(best))
    assert found[0] < 0.5 * found[1]
