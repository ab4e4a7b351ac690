"""What a journal holds: one frozen type per event, read once from its line and written by it.

This is the one place that knows the keys of a journal; docs/file-formats.md tells them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import stdev
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from results.files import NAME
from results.scored import Scored, TrialResult
from search_spaces.errors import InputError, nearest
from search_spaces.records import Amount, Record

VERSION = 2
"""Of the journal; version 1 called the ``request`` of ``withdrawn`` a ``wish``, and told no version."""


Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=121)]


class Event(Record):
    """Something that happened, at ``time`` in seconds since the epoch (None before it is in a journal)."""

    tag: ClassVar[str] = ""

    time: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The journal's record of it."""
        return {"event": self.tag, **super().to_json()}


class Started(Event):
    """The first event of a run: the version of its journal, checksums of the weights and of the prices it goes by."""

    tag = "started"
    version: int = 1
    checkpoint_sha256: str | None = None
    prices_sha256: str | None = None


class Resumed(Event):
    """A process went on with the run."""

    tag = "resumed"
    version: int = 1


class Finished(Event):
    """Nothing is left to do."""

    tag = "finished"


class Failed(Event):
    """The job ended with an error."""

    tag = "failed"
    message: str = ""


class Note(Event):
    """A sentence for the user."""

    tag = "note"
    text: str


class StageEvent(Event):
    """A stage begins (``state`` is "start") or ends ("done")."""

    tag = "stage"
    stage: str
    state: str = "start"


class Epoch(Event, Scored):
    """One epoch of training, numbered from 1, of ``run`` in ``stage``.

    What only some kinds of training tell is None or empty elsewhere.
    """

    tag = "epoch"
    keys = {"score": "{}", "argmax_score": "argmax_{}"}  # noqa: RUF012 (a ClassVar of the base)
    stage: str
    run: Name
    seed: int = 0
    epoch: int
    epochs: int | None = None
    loss: float | None = None
    score: float | None = None
    profiles: Mapping[str, float] = Field(default_factory=dict)
    argmax_score: float | None = None
    expected: Mapping[str, float] = Field(default_factory=dict)
    budget: Mapping[str, float] | None = None
    temperature: float | None = None
    entropy: float | None = None
    decision_entropy: Mapping[str, float] = Field(default_factory=dict)
    bits: Mapping[str, tuple[int, int]] = Field(default_factory=dict)
    weight_probabilities: Mapping[str, Mapping[int, float]] = Field(default_factory=dict)
    activation_probabilities: Mapping[str, Mapping[int, float]] = Field(default_factory=dict)
    seconds: float | None = None

    @property
    def place(self) -> tuple[str, str, int, int]:
        """What tells this epoch from all others of a job."""
        return self.stage, self.run, self.seed, self.epoch


class Decoded(Event):
    """An assignment was found and saved."""

    tag = "decoded"
    assignment: Name
    kind: str
    run: Name
    cost: Mapping[str, float] = Field(default_factory=dict)


class Searched(Event):
    """A search is done."""

    tag = "searched"
    run: Name


class Pool(Event):
    """What the assignment ``run`` of a budget is chosen from: proposal → all that proposed it, the first one first.

    ``images`` of the training data judge, which no net of the pool is trained on. ``supernet``: proposal → its loss in
    the supernet, where proposals were refined.
    """

    tag = "pool"
    run: Name
    proposals: Mapping[Name, tuple[str, ...]]
    images: int
    supernet: Mapping[Name, float] = Field(default_factory=dict)


class Judged(Event, Scored):
    """A proposal was fine-tuned for some epochs in a round, from 1 on, and measured on images that judge.

    These are training images that it did not see; in a round of finalists (``split`` is ``val``) those of validation.
    ``losses`` are the mean losses of equal parts of them, from which the standard error follows; the loss of a net that
    diverged is None.
    """

    tag = "judged"
    keys = {"score": "{}"}  # noqa: RUF012
    proposal: Name
    round: int
    epochs: int
    loss: float | None = None
    score: float | None = None
    losses: tuple[float, ...] = ()
    split: Literal["train", "val"] = "train"

    @property
    def standard_error(self) -> float | None:
        """Of the loss, over the images; None where they are in one part."""
        return stdev(self.losses) / math.sqrt(len(self.losses)) if len(self.losses) > 1 else None


class Measured(Event, Scored):
    """One net of an assignment was measured on validation images; it was trained from that of ``start``, if any."""

    tag = "measured"
    keys = {"val": "val_{}"}  # noqa: RUF012
    assignment: Name
    kind: str = ""
    seed: int
    val: float
    start: str | None = None


class Tested(Event, Scored):
    """One net of an assignment was measured on the test split."""

    tag = "tested"
    keys = {"test": "test_{}"}  # noqa: RUF012
    assignment: Name
    seed: int
    test: float


class Timed(Event):
    """A net of an assignment was timed ``where`` it will run (runtime, device and threads), on a ``processor``.

    ``latency_ms`` is for one sample, over ``rounds`` calls; ``spread`` how far these lie apart, as a share.
    """

    tag = "timed"
    assignment: Name
    where: str
    processor: str
    latency_ms: Amount
    spread: Amount
    rounds: int


class FloatMeasured(Event, Scored):
    """The float network was measured."""

    tag = "float"
    keys = {"val": "val_{}", "test": "test_{}"}  # noqa: RUF012
    val: float
    test: float


class PruneRequested(Event):
    """What `dnas prune` asked for: an assignment, or uniform ``bits``, by the keys of ``[prune]``."""

    tag = "prune"
    assignment: str | None = None
    bits: int | None = None
    section: Mapping[str, Any]


class Withdrawn(Event):
    """The prune request of this number, from 0, failed and is not tried again."""

    tag = "withdrawn"
    request: int
    message: str = ""


class FinaliseRequested(Event):
    """What `dnas finalise` asked for, by the keys of ``[finalise]``."""

    tag = "finalise"
    section: Mapping[str, Any]


class Profiles(Event):
    """The assignments that were chosen as profiles of a switchable net."""

    tag = "profiles"
    net: Name
    profiles: tuple[Name, ...]


class Dropped(Event):
    """The switchable net of this number failed and is not tried again."""

    tag = "dropped"
    number: int
    message: str = ""


class Lost(Event):
    """A file of the run, by its path inside the folder, was "gone", "empty" or "damaged"."""

    tag = "lost"
    file: str
    why: str = "gone"


class Trial(Event):
    """One configuration was tried: of ``run``, by the search ("bayesian") or the control ("random")."""

    tag = "trial"
    run: Name
    kind: str
    trial: TrialResult


class Finalist(Event, Scored):
    """One of the best trials was fine-tuned shortly."""

    tag = "finalist"
    keys = {"score": "{}", "proxy_score": "proxy_{}"}  # noqa: RUF012
    run: Name
    score: float
    loss: float
    proxy_score: float | None = None
    proxy_loss: float | None = None
    number: int = 0


_TYPES: Mapping[str, type[Event]] = {kind.tag: kind for kind in Event.__subclasses__()}


def read_event(record: Mapping[str, Any]) -> Event:
    """The event of a journal's record; :class:`InputError` for an unknown event, a missing or a wrong value."""
    known = dict(record)
    tag = str(known.pop("event", ""))
    if tag not in _TYPES:
        raise InputError(
            f"'{tag}' is not an event that this version of dnas knows; "
            f"read the run with the version that wrote it{nearest(tag, _TYPES)}"
        )
    try:
        event = _TYPES[tag].read(_upgraded(tag, known))
    except InputError as error:
        raise InputError(f"event '{tag}': {error}") from error
    if isinstance(event, Started | Resumed) and event.version > VERSION:
        raise InputError(
            f"a newer version of dnas wrote the run (journal version {event.version}, this one reads up to {VERSION}); "
            "read it with that version"
        )
    return event


def read_epoch(record: Mapping[str, Any]) -> Epoch:
    """The epoch that a checkpoint was saved after; :class:`InputError` for anything else."""
    event = read_event(record)
    if not isinstance(event, Epoch):
        raise InputError(f"'{event.tag}' is not the event of an epoch")
    return event


def _upgraded(tag: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of an event as this version names them."""
    if tag == Withdrawn.tag and "wish" in values:
        return {"request": values.pop("wish"), **values}
    return values
