"""Where a run stands, told from its journal and its lock alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from results.events import Epoch, Event, Failed, Finished, Note, Resumed, StageEvent, Started, Trial
from results.run.folder import Run
from results.run.lost import sound_events

Life = Started | Resumed | Finished | Failed
Place = StageEvent | Epoch | Trial


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands; ``started`` and ``updated`` are seconds since the epoch (None before the first record).

    ``state`` is "finished", "running" (a process holds the lock), "failed", or "interrupted" (ended without either);
    "damaged" where its files do not tell.
    ``trial`` counts the trials of pruning so far, where these are what the run is at.
    ``message`` is what made it fail, else the last sentence told to the user.
    """

    state: str
    stage: str | None = None
    label: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    trial: int | None = None
    message: str = ""
    started: float | None = None
    updated: float | None = None

    @property
    def place(self) -> str:
        """What the run is at, in words; empty where nothing tells.

        >>> RunStatus("running", "search", "search-1", epoch=3, epochs=5).place
        'search search-1 epoch 3/5'
        """
        words: tuple[str | None, ...] = (self.stage, self.label)
        if self.trial is not None:
            words = (self.stage, (self.label or "").removeprefix("prune-"), f"trial {self.trial}")
        elif self.epoch is not None:
            words = (self.stage, self.label, f"epoch {self.epoch}/{self.epochs or '?'}")
        return " ".join(word for word in words if word)


def run_status(run: Run) -> RunStatus:
    """Return where ``run`` stands; raise :class:`InputError` if its journal is corrupt, emptied or replaced."""
    # The lock is asked first: a run that ends in between is then told as running, never as interrupted.
    held = run.writer is not None
    return status_of(sound_events(run), held)


def status_of(events: Sequence[Event], held: bool) -> RunStatus:
    """Return the status that these events tell, with the lock held or not."""
    life = next((event for event in reversed(events) if isinstance(event, Life)), None)
    note = next((event.text for event in reversed(events) if isinstance(event, Note)), "")
    if isinstance(life, Finished):
        state, message = "finished", ""  # a note is old news by then
    elif isinstance(life, Failed) and not held:
        state, message = "failed", life.message
    else:
        state, message = "running" if held else "interrupted", note
    return RunStatus(
        state=state,
        **_place(events),
        message=message,
        started=events[0].time if events else None,
        updated=events[-1].time if events else None,
    )


def _place(events: Sequence[Event]) -> dict[str, Any]:
    """What the run is at. The last of these kinds of event counts: a stage that has just begun has no epoch yet."""
    place = next((event for event in reversed(events) if isinstance(event, Place)), None)
    if isinstance(place, Epoch):
        return {"stage": place.stage, "label": place.run, "epoch": place.epoch, "epochs": place.epochs}
    if isinstance(place, Trial):
        stage = next((event.stage for event in reversed(events) if isinstance(event, StageEvent)), "prune")
        return {"stage": stage, "label": place.run, "trial": _trial_count(events, place)}
    return {"stage": place.stage} if place else {}


def _trial_count(events: Sequence[Event], last: Trial) -> int:
    """How many trials of the same search there are by now, one journaled twice counted once."""
    trials = [event for event in events if isinstance(event, Trial)]
    return len({t.trial.proposal.number for t in trials if (t.run, t.kind) == (last.run, last.kind)})
