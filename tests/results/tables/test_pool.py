"""What a pool tells: who proposed, what was free, and how much better the chosen one was, over the same images."""

from __future__ import annotations

import math
from statistics import stdev

import pytest

from results.events import Decoded, Judged, Pool
from results.pools import Candidate, compared, mean_loss, pools
from results.tables.pool import judged_text
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.provenance import Provenance


def judged(id: str, number: int, *losses: float) -> Judged:
    loss = sum(losses) / len(losses)
    return Judged(proposal=id, round=number, epochs=number, loss=loss, score=0.5, losses=losses)


def assignment(id: str) -> BitAssignment:
    made = Provenance(kind="proposal", run="any", budget="size_bytes 8%", limits={"size_bytes": 50.0})
    reference = ModelReference("zoo:any", (1, 2, 2), None)
    return BitAssignment(
        id, reference, {"a": LayerBits(2, 2)}, {"size_bytes": 40.0, "bitops": 1.0, "macs": 1.0}, {}, made
    )


A, B, C = (f"pool-1-{name}" for name in ("theta", "ilp-1", "draw-1"))
POOL = Pool(run="search-1", proposals={A: ("theta", "search-2"), B: ("ilp-1", "theta"), C: ("draw-1",)}, images=9)
ROUNDS = [judged(A, 1, 0.2, 0.4), judged(B, 1, 0.3, 0.6), judged(C, 1, 0.9, 0.9), judged(A, 2, 0.1, 0.2)]


def sentence(*events: Judged, chosen: str | None = None) -> str:
    decoded = [Decoded(assignment="search-1", kind="search", run=chosen)] if chosen else []
    [pool] = pools([POOL, *events, *decoded], {name: assignment(name) for name in (A, B, C)})
    return pool.sentence


def test_the_gain_over_the_best_that_was_free_is_that_of_all_rounds_of_both_with_its_error_over_the_same_images() -> (
    None
):
    error = stdev([0.1, 0.2]) / math.sqrt(2)
    assert sentence(*ROUNDS, chosen=A) == (
        f"search-1, budget size_bytes 8%: {A} is chosen; its loss is 0.1500 ± {error:.4f} below that of {B}, "
        "the best that was free"
    )
    both = [*ROUNDS, judged(B, 2, 0.3, 0.3)]  # 0.1 and 0.2 in one round, 0.2 and 0.1 in the other
    assert "its loss is 0.1500 ± 0.0000 below" in sentence(*both, chosen=A)


def test_rounds_on_other_images_add_their_errors_as_independent_ones_do() -> None:
    final = {"round": 3, "epochs": 5, "split": "val"}
    last = [
        judged(name, 3, *losses).model_copy(update=final) for name, losses in {A: (0.1, 0.5), B: (0.4, 0.4)}.items()
    ]
    rounds = {A: (ROUNDS[0], ROUNDS[3], last[0]), B: (ROUNDS[1], judged(B, 2, 0.3, 0.3), last[1])}
    found = compared(*(Candidate(name, (), {}, rounds[name]) for name in (A, B)))
    assert found is not None
    # Two rounds of 0.15 on images of which each half errs as much as the other, one of 0.1 that errs by 0.2.
    assert found == pytest.approx(((0.15 + 0.15 + 0.1) / 3, 0.2 / 3))


def test_what_was_free_is_told_and_so_is_that_nothing_was_or_is_chosen() -> None:
    assert sentence(*ROUNDS, chosen=B).endswith(f"{B} is chosen, which was free (ilp-1)")
    assert sentence(*ROUNDS).endswith("nothing is chosen yet")
    assert sentence(ROUNDS[0], chosen=A).endswith(f"{A} is chosen; nothing else was free")


def test_a_net_that_diverged_is_no_measure() -> None:
    gone = Judged(proposal=B, round=1, epochs=1)
    first, second = Candidate(A, (), {}, (ROUNDS[0],)), Candidate(B, (), {}, (gone,))
    assert compared(first, second) is None
    assert mean_loss([ROUNDS[0], gone]) == math.inf > mean_loss(ROUNDS)
    assert judged_text(gone) == "diverged"
    assert judged_text(ROUNDS[0]) == "0.3000 ±0.1000 (50.00 %)"


def test_a_round_that_is_told_twice_counts_once_and_budgets_come_by_number() -> None:
    numbers = (10, 2, 1)
    known = {f"pool-{n}-theta": assignment(f"pool-{n}-theta") for n in numbers}
    events = [Pool(run=f"search-{n}", proposals={f"pool-{n}-theta": ("theta",)}, images=1) for n in numbers]
    again = [judged("pool-2-theta", 1, 0.5, 0.5), judged("pool-2-theta", 1, 0.5, 0.5)]
    found = pools([*events, *again], known)
    assert [each.search for each in found] == ["search-1", "search-2", "search-10"]
    assert len(found[1].candidates[0].rounds) == 1
