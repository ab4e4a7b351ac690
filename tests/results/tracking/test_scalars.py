"""What an event says in numbers is named by stage, net and figure, and stands at its own step."""

from __future__ import annotations

import pytest

from results import events
from results.events import (
    Decoded,
    Epoch,
    Event,
    Finalist,
    FloatMeasured,
    Judged,
    Measured,
    Note,
    Trial,
)
from results.scored import Proposal, TrialResult
from results.tracking.scalars import scalars_of

EVENTS: list[tuple[Event, dict[str, float], int]] = [
    (
        Epoch(stage="search", run="search-1", epoch=3, loss=0.5, score=0.75, argmax_score=0.7, temperature=0.9,
              entropy=1.5, expected={"size_bytes": 2048.0}, decision_entropy={"stem": 0.1}),
        {"search/search-1/loss": 0.5, "search/search-1/top1": 0.75, "search/search-1/argmax_top1": 0.7,
         "search/search-1/temperature": 0.9, "search/search-1/entropy": 1.5,
         "search/search-1/expected/size_bytes": 2048.0, "search/search-1/entropy_of/stem": 0.1},
        3,
    ),
    (Epoch(stage="finetune", run="a", seed=2, epoch=1, loss=0.0), {"finetune/a-seed2/loss": 0.0}, 1),
    (Epoch(stage="choice", run="p", seed=1, epoch=2, loss=1.0), {"choice/p-round1/loss": 1.0}, 2),
    (Epoch(stage="finalise", run="switchable-1", epoch=1, profiles={"a": 0.5}, metric="map"),
     {"finalise/switchable-1-seed0/map/a": 0.5}, 1),
    (Judged(proposal="p", round=2, epochs=2, loss=0.25, score=0.5), {"judged/p/loss": 0.25, "judged/p/top1": 0.5}, 2),
    (Judged(proposal="p", round=2, epochs=2), {}, 2),
    (Finalist(run="f", score=0.5, loss=0.25, number=7), {"finalist/f/top1": 0.5, "finalist/f/loss": 0.25}, 7),
    (Measured(assignment="a", seed=1, val=0.5, metric="mae"), {"val/a/mae": 0.5}, 1),
    (events.Tested(assignment="a", seed=1, test=0.25), {"test/a/top1": 0.25}, 1),
    (events.Timed(assignment="a", where="openvino", processor="p", latency_ms=2.5, spread=0.25, rounds=9),
     {"timed/a/latency_ms": 2.5, "timed/a/spread": 0.25}, 0),
    (FloatMeasured(val=0.5, test=0.25), {"float/val_top1": 0.5, "float/test_top1": 0.25}, 0),
    (
        Trial(run="prune-a", kind="random",
              trial=TrialResult(proposal=Proposal(number=4), cost={"bitops": 9.0}, loss=0.5, score=0.75)),
        {"trial/prune-a/random/loss": 0.5, "trial/prune-a/random/top1": 0.75, "trial/prune-a/random/cost/bitops": 9.0},
        4,
    ),
    (Note(text="5"), {}, 0),
    (Decoded(assignment="a", kind="search", run="s", cost={"size_bytes": 1.0}), {}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("event", "told", "step"), EVENTS)
def test_an_event_is_told_by_its_names_and_step(event: Event, told: dict[str, float], step: int) -> None:
    found = scalars_of(event.model_copy(update={"time": 12.5}))
    assert {scalar.name: scalar.value for scalar in found} == told
    assert {(scalar.step, scalar.time) for scalar in found} <= {(step, 12.5)}


def test_every_event_that_holds_a_figure_is_told() -> None:
    silent = {kind.tag for kind in Event.__subclasses__()} - {event.tag for event, told, _ in EVENTS if told}
    assert silent == {
        *("started", "resumed", "finished", "failed", "note", "stage", "decoded", "searched", "pool", "prune"),
        *("withdrawn", "finalise", "profiles", "dropped", "lost"),
    }
