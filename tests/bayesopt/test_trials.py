"""Trials of pruning: a journal's beginning leads to the same end, failures are borne, the best are the best."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesopt.proposers import CostRange, Proposal, make_proposer
from bayesopt.ratios import RatioSpace
from bayesopt.trials import PruningTrial, best_trials, front_trials, run_trials
from search_spaces.errors import InputError, JobError
from tests.bayesopt.test_ratios import chain

NAMES = ["random", "scikit-optimize"]
UNITS = (6, 10, 8)
LIMITS = ({"size_bytes": 100.0}, {"size_bytes": 80.0, "bitops": 120.0})
RANGE = CostRange("size_bytes", 60.0, 120.0)


@dataclass(frozen=True)
class Result:
    loss: float
    score: float = 0.5


class Bowl:
    """A smooth loss over kept counts; those numbered in ``bad`` (by evaluation) come out as given there."""

    def __init__(self, bad: Mapping[int, float] | None = None) -> None:
        self.bad, self.seen = dict(bad or {}), list[dict[str, int]]()

    def __call__(self, asked: Sequence[Mapping[str, int]]) -> Iterator[Result]:
        for counts in asked:
            ratios = [1 - count / units for count, units in zip(counts.values(), UNITS, strict=False)]
            loss = sum((ratio - wished) ** 2 for ratio, wished in zip(ratios, (0.2, 0.6, 0.4), strict=False))
            self.seen.append(dict(counts))
            yield Result(self.bad.get(len(self.seen) - 1, loss), 1 - loss)


def through_json(trials: Sequence[PruningTrial]) -> list[PruningTrial]:
    return [PruningTrial.from_json(json.loads(json.dumps(trial.to_json()))) for trial in trials]


def go_on(
    name: str, known: Sequence[PruningTrial] = (), bowl: Bowl | None = None, targets: Any = LIMITS, **options: Any
) -> Iterator[PruningTrial]:
    proposer = make_proposer(name, chain(UNITS), targets, seed=3, first=4)
    return run_trials(proposer, bowl or Bowl(), known=known, **{"total": 8} | options)


@pytest.mark.whole
@pytest.mark.parametrize(("name", "batch", "targets"), [
    ("random", 1, LIMITS), ("random", 3, RANGE), ("scikit-optimize", 1, LIMITS), ("scikit-optimize", 3, LIMITS),
    ("scikit-optimize", 3, RANGE),
])  # fmt: skip
def test_any_beginning_of_the_journal_leads_to_the_same_end(name: str, batch: int, targets: Any) -> None:
    bad = {2: math.nan}
    whole = list(go_on(name, bowl=Bowl(bad), targets=targets, batch=batch))
    assert [trial.proposal.number for trial in whole] == list(range(8))
    assert "model" in {trial.proposal.source for trial in whole} or name == "random"
    for length in (1, 3, 4):  # within and between batches, before and after a failure, with and without a model
        bowl = Bowl({place - length: value for place, value in bad.items()})
        known = through_json(whole[:length])
        assert known == whole[:length]
        assert [*known, *go_on(name, known, bowl, targets, batch=batch)] == whole
        assert bowl.seen == [trial.counts for trial in whole[length:]]  # nothing is tried again


def test_a_batch_is_asked_before_any_of_it_is_told() -> None:
    sizes: list[int] = []

    def evaluate(asked: Sequence[Mapping[str, int]]) -> Iterator[Result]:
        sizes.append(len(asked))
        return Bowl()(asked)

    proposer = make_proposer("random", chain(UNITS), LIMITS, seed=3)
    known = list(itertools.islice(run_trials(proposer, evaluate, total=8, batch=3), 4))
    assert sizes == [3, 3]
    sizes.clear()
    proposer = make_proposer("random", chain(UNITS), LIMITS, seed=3)
    assert len(list(run_trials(proposer, evaluate, total=8, batch=3, known=known))) == 4
    assert sizes == [2, 2]  # what is left of the batch that was begun, then the rest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_failed_trial_is_recorded_and_the_search_goes_on(name: str, value: float) -> None:
    trials = list(go_on(name, bowl=Bowl({1: value, 2: value, 4: value})))
    assert [trial.proposal.number for trial in trials if trial.failed] == [1, 2, 4]
    for trial in trials:
        assert (trial.loss is None) == (trial.score is None) == bool(trial.failed)
        assert str(value) in trial.failed if trial.failed else math.isfinite(trial.loss or 0.0)
    configurations = [(trial.proposal.budget, *trial.counts.values()) for trial in trials]
    assert len(set(configurations)) == len(trials) == 8
    assert not [trial for trial in best_trials(trials, {}, 8) if trial.failed]
    assert not [trial for trial in front_trials(trials, "size_bytes") if trial.failed]


def fail_until_the_end(trials: Iterator[PruningTrial]) -> list[PruningTrial]:
    """The trials up to the error that three failures in a row end in."""
    found: list[PruningTrial] = []
    with pytest.raises(JobError, match="3 trials in a row failed: the loss of the pruned network is nan"):
        found.extend(trials)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 2])
def test_three_failures_in_a_row_end_the_search_with_the_reason(name: str, batch: int) -> None:
    bad = dict.fromkeys((1, 3, 4, 5, 6), math.nan)
    found = fail_until_the_end(go_on(name, bowl=Bowl(bad), batch=batch))
    assert [trial.proposal.number for trial in found if trial.failed] == [1, 3, 4, 5]
    assert len(found) == 6  # every failure is given out, so that it can be journaled


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("length", range(4, 6))
def test_failures_in_a_row_are_counted_across_a_resume(batch: int, length: int) -> None:
    bad = dict.fromkeys((3, 4, 5, 6, 7), math.nan)
    known = list(itertools.islice(go_on("random", bowl=Bowl(bad), batch=batch), length))
    always = Bowl(dict.fromkeys(range(9), math.nan))
    assert [trial.proposal.number for trial in fail_until_the_end(go_on("random", known, always, batch=batch))] == [
        *range(length, 6)
    ]
    rest = list(go_on("random", known, batch=batch))  # what made them fail is gone
    assert len(known) + len(rest) == 8
    assert not any(trial.failed for trial in rest)


def test_a_search_that_failed_can_be_resumed_and_fails_again_at_once_where_nothing_changed() -> None:
    known = fail_until_the_end(go_on("random", bowl=Bowl(dict.fromkeys((3, 4, 5), math.nan))))
    assert len(list(go_on("random", known))) == 2
    always = Bowl(dict.fromkeys(range(9), math.nan))
    with pytest.raises(JobError, match="in a row failed"):
        list(go_on("random", known, always))
    assert len(always.seen) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_small_space_is_exhausted(name: str, batch: int) -> None:
    space = RatioSpace(("a", "b"), (3, 4), lambda kept: {"size_bytes": float(kept["a"] + kept["b"])}, min_keep=1)
    limits = {"size_bytes": 4.0}
    reachable = {(a, b) for a in (1, 2, 3) for b in (1, 2, 3, 4) if a + b == 4}

    def evaluate(asked: Sequence[Mapping[str, int]]) -> Iterator[Result]:
        return (Result(counts["a"] / 10) for counts in asked)

    proposer = make_proposer(name, space, [limits], seed=0, first=2)
    trials = list(run_trials(proposer, evaluate, total=50, batch=batch))
    assert {tuple(trial.counts.values()) for trial in trials} == reachable
    assert len(trials) == len(reachable)
    again = make_proposer(name, space, [limits], seed=0, first=2)
    assert list(run_trials(again, evaluate, total=50, batch=batch, known=trials)) == []


@pytest.mark.parametrize("change", [{"counts": {"a": 1, "b": 1, "c": 1}}, {"source": "model"}, {"x": (0.0, 0.0, 0.0)}])
def test_proposals_that_are_not_those_of_the_journal_end_the_search(change: dict[str, Any]) -> None:
    known = list(itertools.islice(go_on("random", batch=3), 5))
    other = replace(known[4], proposal=replace(known[4].proposal, **change))
    bowl = Bowl()
    with pytest.raises(JobError, match="trial 4 of the journal is not what the proposer asks now; was the job changed"):
        list(go_on("random", [*known[:4], other], bowl, batch=3))
    assert bowl.seen == []
    with pytest.raises(InputError, match="does not continue this history"):
        list(go_on("random", known[1:4], bowl, batch=3))


def trial(number: int, counts: Sequence[int], loss: float | None) -> PruningTrial:
    kept = dict(zip("ab", counts, strict=True))
    proposal = Proposal(number, 0, {"size": 9.0}, kept, (0.25, 1 / 3), "model", 0.1, 0.2)
    cost = {"size": 1.0 * counts[0] + counts[1], "work": 1.0 * counts[0] * counts[1]}
    return PruningTrial(proposal, cost, loss, None if loss is None else 0.5, "" if loss is not None else "it is nan")


TRIALS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, 0.4])))
).map(lambda rows: [trial(n, (a, b), loss) for n, (a, b, loss) in enumerate(rows)])


@given(TRIALS, st.integers(2, 6), st.integers(1, 9), st.integers(1, 4))
def test_the_best_trials_are_those_of_the_lowest_loss_within_the_limits(
    trials: list[PruningTrial], size: int, work: int, count: int
) -> None:
    found = best_trials(trials, {"size": size, "work": work}, count)
    within = {}
    for one in trials:
        (a, b), loss = one.counts.values(), one.loss
        if loss is not None and a + b <= size and a * b <= work:
            within[a, b] = min(loss, within.get((a, b), math.inf))
    assert [one.loss for one in found] == sorted(within.values())[:count]
    assert all(within[tuple(one.counts.values())] == one.loss for one in found)
    assert len({tuple(one.counts.values()) for one in found}) == len(found)
    assert all(one in trials for one in found)


@given(TRIALS)
def test_the_front_is_what_no_other_trial_beats(trials: list[PruningTrial]) -> None:
    points = {(one.cost["work"], one.loss) for one in trials if one.loss is not None}
    unbeaten = [
        (cost, loss)
        for cost, loss in points
        if not any((c, n) != (cost, loss) and c <= cost and n <= loss for c, n in points)
    ]
    found = front_trials(trials, "work")
    assert [(one.cost["work"], one.loss) for one in found] == sorted(unbeaten)
    assert all(one in trials for one in found)


@pytest.mark.parametrize("one", [trial(3, (1, 2), 0.1 + 0.2), trial(0, (3, 3), None)])
def test_a_trial_goes_through_json_unchanged(one: PruningTrial) -> None:
    assert through_json([one]) == [one]
    assert one.counts == one.proposal.counts
    assert one.meets({"size": one.cost["size"]})
    assert not one.meets({"size": one.cost["size"] - 1})


@pytest.mark.parametrize("key", ["proposal", "cost", "loss", "score", "failed"])
def test_a_damaged_trial_is_told(key: str) -> None:
    whole = trial(3, (1, 2), 0.5).to_json()
    proposal = whole["proposal"]
    damaged: list[Any] = [{k: v for k, v in whole.items() if k != key}, [], None]
    damaged += [
        {**whole, "proposal": broken} for broken in (None, 7, [], {**proposal, "more": 1}, {**proposal, "x": 1})
    ]
    damaged += [{**whole, "proposal": {k: v for k, v in proposal.items() if k != gone}} for gone in ("x", "number")]
    for entry in damaged:
        with pytest.raises(InputError, match="a journaled trial is damaged"):
            PruningTrial.from_json(entry)
