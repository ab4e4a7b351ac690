"""Where a run stands, told from its journal and its lock alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from results.run.folder import Run
from results.run.lost import sound_records

_LIFE = ("started", "resumed", "finished", "failed")
_PLACES = ("stage", "epoch", "trial")


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


def run_status(run: Run) -> RunStatus:
    """Return where ``run`` stands; raise :class:`InputError` if its journal is corrupt, emptied or replaced."""
    # The lock is asked first: a run that ends in between is then told as running, never as interrupted.
    held = run.writer is not None
    return status_of(sound_records(run), held)


def status_of(records: Sequence[dict[str, Any]], held: bool) -> RunStatus:
    """Return the status that these journal records tell, with the lock held or not."""
    life = next((record for record in reversed(records) if record["event"] in _LIFE), None)
    ended = life["event"] if life and life["event"] in ("finished", "failed") else None
    state = "finished" if ended == "finished" else "running" if held else (ended or "interrupted")
    message = "" if state == "finished" else _last(records, "note", "text", "")  # a note is old news by then
    if life and state == "failed":
        message = str(life.get("message", ""))
    # The last of these kinds counts: a stage that has just begun has no epoch yet.
    place: dict[str, Any] = next((record for record in reversed(records) if record["event"] in _PLACES), {})
    trial = place.get("event") == "trial"
    return RunStatus(
        state=state,
        stage=_last(records, "stage", "stage", "prune") if trial else place.get("stage"),
        label=place.get("run"),
        epoch=place.get("epoch"),
        epochs=place.get("epochs"),
        trial=_trial_count(records, place) if trial else None,
        message=message,
        started=records[0].get("time") if records else None,
        updated=records[-1].get("time") if records else None,
    )


def _trial_count(records: Sequence[dict[str, Any]], last: dict[str, Any]) -> int:
    """How many trials of the same search there are by now, one journaled twice counted once."""
    same = [r for r in records if r["event"] == "trial" and (r["run"], r["kind"]) == (last["run"], last["kind"])]
    return len({record["trial"]["proposal"]["number"] for record in same})


def _last(records: Sequence[dict[str, Any]], event: str, key: str, default: str) -> str:
    found: dict[str, Any] = next((record for record in reversed(records) if record["event"] == event), {})
    return str(found.get(key, default))
