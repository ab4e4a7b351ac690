"""The stage `search`: bits per layer for every budget, from a warm supernet, of the whole net or a pruned one."""

from __future__ import annotations

from collections.abc import Iterable

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.progress import Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.net_search import NetSearch, search_units, warmup_units
from dnas.jobs.stages.search_names import SEARCHING, WARMUP, drawn_ids, found_ids, search_labels


class Search(Stage):
    """One search for all budgets; ``pruned`` where it follows a pruning, if anything could be pruned.

    A search of a pruned net starts from the weights of that net's first fine-tuning. Its names begin with "pruned-".
    """

    name = SEARCHING

    def __init__(self, context: JobContext, pruned: bool = False) -> None:
        super().__init__(context)
        self.pruned = pruned

    def foresee(self, before: Foreseen) -> Foreseen:
        """One assignment for every budget, and those that are drawn during the searches."""
        labels = search_labels(self.context.job, self.pruned)
        section = self.context.job.config.search
        drawn = [
            name for label in labels for epoch in range(section.epochs) for name in drawn_ids(label, section, epoch + 1)
        ]
        return before.handing([*(name for label in labels for name in found_ids(self.context.job, label)), *drawn])

    def work(self, before: Foreseen) -> Work:
        """The warm-up, and the epochs of every search."""
        section, searches = self.context.job.config.search, len(search_labels(self.context.job, self.pruned))
        return {
            WARMUP: warmup_units(self.context.job) * section.warmup_epochs,
            self.name: search_units(self.context.job) * section.epochs * searches,
        }

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """The warm-up of the whole network's supernet, and the searches."""
        return () if self.pruned else NetSearch(self.context, None).tasks()

    def carry_out(self, findings: Findings) -> None:
        """Search for every budget; what is decoded already is not searched again."""
        findings.found = NetSearch(self.context, findings.base if self.pruned else None).assignments()
