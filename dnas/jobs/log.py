"""What a job leaves behind: events in the journal, assignments, checkpoints; and what it finds when it goes on.

Resuming is replaying: every stage looks for what it left behind (an event, a checkpoint) and goes on from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

from dnas.jobs.compressions import compression_of
from dnas.jobs.job import Job
from dnas.jobs.progress import Report
from results.events import Decoded, Epoch, Event, Note, Started, read_event
from results.run.folder import Run
from results.run.lost import sound_events, standing
from search_spaces.allocation.program import Cells
from search_spaces.allocation.solver import NotProven
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.costs.stored import costs_by_layer
from search_spaces.errors import InputError
from search_spaces.layers import LayerSpec
from search_spaces.provenance import Provenance, Quantizers

Happened = TypeVar("Happened", bound=Event)
ASSIGNMENT = "assignment_to_keep"
"""The key under which a task tells of an assignment."""


def check_weights(job: Job, run: Run, events: Iterable[Event]) -> None:
    """Refuse to go on with a run from other weights than those that it was started from."""
    for event in events:
        if isinstance(event, Started) and event.checkpoint_sha256 not in (None, job.loaded.checkpoint_sha256):
            raise InputError(
                f"the checkpoint '{job.config.model.checkpoint}' is not the file that {run.folder} was started from: "
                "its SHA-256 is another one; restore it, or start again with another --run"
            )


def prices_sha256(job: Job) -> str | None:
    """The checksum of what the costs that the job file brings say: its latency table's and its functions'."""
    section = job.config.costs
    names = [*(["latency_ms"] if section.latency_table else []), *section.functions]
    return job.plan.table.prices_sha256(names) if names else None


def check_prices(job: Job, run: Run, events: Iterable[Event]) -> None:
    """Refuse to go on with a run by other prices than those that it was started with."""
    for event in events:
        if isinstance(event, Started) and event.prices_sha256 not in (None, prices_sha256(job)):
            raise InputError(
                f"[costs] says other prices than when {run.folder} was started: its latency_table or one of its "
                "functions was changed; restore it, or start again with another --run"
            )


class RunLog:
    """The run folder of one job; every event is written before it is reported."""

    def __init__(self, run: Run, job: Job, report: Report) -> None:
        self.run, self.job, self.report = run, job, report
        self.history: list[Event] = standing(sound_events(run))
        self._epochs = {event.place for event in self.events(Epoch)}

    def write(self, event: Event) -> None:
        """Write an event to the journal and report it."""
        self.run.journal.append(event.to_json())
        self.history.append(event)
        if isinstance(event, Epoch):
            self._epochs.add(event.place)
        self.report(event.to_json())

    def events(self, kind: type[Happened]) -> list[Happened]:
        """Journaled events of one kind."""
        return [event for event in self.history if isinstance(event, kind)]

    @property
    def decoded(self) -> list[str]:
        """The ids of the assignments that are saved and journaled, in order."""
        return [event.assignment for event in self.events(Decoded)]

    def take(self, record: Mapping[str, Any]) -> None:
        """Journal what a task told, once: an event, or an assignment to be kept."""
        if ASSIGNMENT in record:
            self.keep_made(BitAssignment.from_json(record[ASSIGNMENT]))
            return
        event = read_event(record)
        if isinstance(event, Note):
            self.tell_once([event.text])
        elif not (isinstance(event, Epoch) and event.place in self._epochs):
            self.write(event)

    def tell_once(self, sentences: list[str]) -> None:
        """Journal each sentence for the user, unless it was told before."""
        told = {note.text for note in self.events(Note)}
        for text in sentences:
            if text not in told:
                self.write(Note(text=text))

    def keep_cells(self, name: str, cells: Cells, made: Provenance, budget: Budget | None = None) -> BitAssignment:
        """Save and journal a decoded assignment given as one cell per decision, once."""
        return self.keep(name, self.job.plan.space.layers_of(cells), made, budget)

    def keep(
        self, name: str, layers: Mapping[str, LayerBits], made: Provenance, budget: Budget | None = None
    ) -> BitAssignment:
        """Save and journal an assignment, once; a name that is known already gives what was saved then.

        ``made`` says where it comes from, but for the budget, the seed and the job's quantizers.
        """
        if name in self.decoded:
            return self.run.assignment(name)
        return self.keep_made(self.made(name, layers, made, budget))

    def keep_made(self, assignment: BitAssignment) -> BitAssignment:
        """Save and journal an assignment that :meth:`made` gave, once."""
        if assignment.id in self.decoded:
            return self.run.assignment(assignment.id)
        origin = assignment.provenance
        self.run.save_assignment(assignment)
        self.write(Decoded(assignment=assignment.id, kind=origin.kind, run=origin.run, cost=dict(assignment.cost)))
        return assignment

    def made(
        self, name: str, layers: Mapping[str, LayerBits], made: Provenance, budget: Budget | None = None
    ) -> BitAssignment:
        """The assignment that :meth:`keep` would save, wholly described."""
        job = self.job
        layers = job.device.processes.agreed(layers)
        layers = {spec.name: _with_channels(layers[spec.name], spec) for spec in job.plan.graph.layers}
        known = {
            "budget": budget.label if budget else None,
            "limits": dict(budget.limits) if budget else {},
            "seed": job.config.seed,
            "quantizer": Quantizers(**asdict(job.choice)),
        }
        told = {key: value for key, value in known.items() if key not in made.model_fields_set}
        made = made.model_copy(update=told)
        prices = compression_of(job.config).prices(job.plan.table, layers)
        by_layer = costs_by_layer(job.plan.table, layers)
        return BitAssignment(name, job.reference, layers, prices, {}, made, by_layer)


def _with_channels(bits: LayerBits, spec: LayerSpec) -> LayerBits:
    """The choice for a layer with the number of filters that it has in the end."""
    kept = bits.kept_channels
    return replace(bits, out_channels=spec.out_channels if kept is None else len(kept))


@contextmanager
def unproven_told(log: RunLog) -> Iterator[None]:
    """Journal, once, what the solver could not prove in its time; other warnings go where they went."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", NotProven)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, NotProven):
                log.tell_once([str(message)])
            else:
                show(message, category, *where, **options)

        warnings.showwarning = tell
        yield
