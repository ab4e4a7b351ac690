"""The stage `choice`: of all that proposes bits for a budget, the one that is best after a short fine-tuning.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): the better half of a pool goes on to the next round, in
which every net is trained anew, twice as long and from other draws; the mean over all rounds so far ranks. What is
judged is the loss on the images that θ was trained on: the weights never see them in this stage, and no figure that is
reported is of them. Finalists have one more round: they are fine-tuned as everything that is reported, and judged on
validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.progress import FORWARD_QUANTIZED, Work, in_all, times
from dnas.jobs.sensitivity import sensitivity_work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.evidence import sensitivity_tasks, settle
from dnas.jobs.stages.judging import (
    CHOICE,
    checkpoint_name,
    epochs_of,
    judge,
    judged_after,
    judging_work,
    mean_judgement,
    measuring_units,
    rounds,
)
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.proposing import Pools, Proposed, refining_work
from dnas.jobs.stages.search_names import proposal_id, search_labels
from dnas.search.budgets import in_search_order
from dnas.search.evidence import LEAST_ASSIGNMENTS
from dnas.search.learning import Seen
from dnas.search.pool import Widths
from dnas.search.ranking import rank_correlation
from results.events import Judged, Pool
from results.pools import THETA, mean_loss
from results.run.layout import checkpoint_file
from results.tables.pool import judged_text
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.provenance import PROPOSAL, SEARCH, Provenance
from search_spaces.sensitivities import SensitivityKind

FROM_SUPERNET = "supernet-"


class Choose(Stage):
    """Chooses one assignment for every budget, and hands it on in the place of what was proposed."""

    name = CHOICE

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.job, self.log, self.measurer = context.job, context.log, measurer
        self.section = context.job.config.choice
        self._seen: list[Seen] = []

    def foresee(self, before: Foreseen) -> Foreseen:
        """The chosen ones by the names of their searches, and everything that is no proposal."""
        labels = search_labels(self.job, pruned=False)
        others = [name for name in before.handed if not any(name.startswith(proposal_id(each, "")) for each in labels)]
        known = replace(before, sensitivities=before.sensitivities | self._kinds)
        return known.handing([*labels, *others])

    def work(self, before: Foreseen) -> Work:
        """Every budget, as if no two proposals were equal; the sensitivities that no control went by."""
        count = len(search_labels(self.job, pruned=False))
        choosing = times(count, in_all(self._work(self._most), refining_work(self.context, self._most)))
        finals = times(count, self._work_of_finals(self.section.finalists))
        return in_all(choosing, finals, sensitivity_work(self.job, self._kinds - before.sensitivities))

    @property
    def _kinds(self) -> frozenset[SensitivityKind]:
        return frozenset(("hessian", "measured") if self.section.programs else ())

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """The sensitivities that it goes by."""
        return sensitivity_tasks(self.context, self._kinds).values()

    def carry_out(self, findings: Findings) -> None:
        """Choose for every budget; with ``search.monotone`` none is wider than that of a larger budget."""
        plan, monotone = self.job.plan, self.job.config.search.monotone
        labels = search_labels(self.job, pruned=False)
        chosen: dict[str, BitAssignment] = {}
        settle(self.context, self._kinds)
        self._seen = []
        bound: Widths | None = None
        ordered = in_search_order(labels, plan.table, monotone)
        pools = Pools(self.context, findings.found)
        others = [found for found in findings.found if found.provenance.kind != PROPOSAL]
        proposed = {} if monotone else self._begun(pools.of(list(ordered), None))
        for label, budget in ordered.items():
            assert budget is not None  # the job's file is refused without any
            if monotone:
                proposed |= self._begun(pools.of([label], bound))
            judged = self._judged_once(label, pools, proposed[label], bound)
            chosen[label] = self._chosen(label, budget, judged, others)
            bound = plan.space.pairs_of(chosen[label].layers) if monotone else None
        findings.found = [*(chosen[label] for label in labels), *others]

    def _begun(self, pools: dict[str, list[Proposed]]) -> dict[str, list[Proposed]]:
        """The pools, whose first rounds begin."""
        for pool in pools.values():
            for _, epochs in list(rounds(len(pool), self.section))[:1]:
                self._announce([each.assignment for each in pool], 1, epochs)
        return pools

    def _keep(self, label: str, pool: Sequence[Proposed]) -> None:
        """Save and journal the pool of a budget; one that has grown is journaled anew."""
        log, told = self.log, {each.assignment.id: each.sources for each in pool}
        for each in pool:
            log.keep_made(each.assignment)
        if not any(event.run == label and len(event.proposals) == len(told) for event in log.events(Pool)):
            losses = {each.assignment.id: each.loss for each in pool if each.loss is not None}
            log.write(Pool(run=label, proposals=told, images=len(self.job.search_data.theta), supernet=losses))

    def _judged_once(
        self, label: str, pools: Pools, pool: Sequence[Proposed], bound: Widths | None
    ) -> dict[str, list[Judged]]:
        """The pool of a budget after its first round, with what that and those of earlier budgets teach."""
        self._keep(label, pool)
        self.context.progress.correct(-1, self._work(self._most))
        self.context.progress.correct(1, self._work(len(pool) + self.section.learned))
        judged: dict[str, list[Judged]] = {each.assignment.id: [] for each in pool}
        for _, epochs in list(rounds(len(pool), self.section))[:1]:
            self._judge([each.assignment for each in pool], 1, epochs, judged)
            self._note(label, pool, judged)
            while new := pools.learned(label, pool, self._seen, bound):
                pool = [*pool, new]
                self._keep(label, pool)
                self._judge([new.assignment], 1, epochs, judged)
                self._note(label, [new], judged)
        return judged

    def _note(self, label: str, pool: Sequence[Proposed], judged: Mapping[str, Sequence[Judged]]) -> None:
        """Let others learn from a first round."""
        space = self.job.plan.space
        for each in pool:
            cells = space.cells_of(space.pairs_of(each.assignment.layers))
            loss = judged[each.assignment.id][0].loss
            if loss is not None:
                self._seen.append(Seen(cells, label, loss))

    def _judge(self, left: Sequence[BitAssignment], number: int, epochs: int, judged: dict[str, list[Judged]]) -> None:
        """Judge what is not judged yet in a round."""
        new = [each for each in left if len(judged.setdefault(each.id, [])) < number]
        self._announce(new, number, epochs)
        for each in new:
            judged[each.id].append(self._judged(each, number, epochs))

    def _announce(self, pool: Sequence[BitAssignment], number: int, epochs: int) -> None:
        """Let a round begin."""
        known = {(event.proposal, event.round) for event in self.log.events(Judged)}
        left = [each for each in pool if (each.id, number) not in known]
        self.context.tasks.announce(self._task(each, number, epochs) for each in left)

    def _chosen(
        self, label: str, budget: Budget, judged: dict[str, list[Judged]], others: Sequence[BitAssignment]
    ) -> BitAssignment:
        """The best of a pool by successive halving after its first round, saved by the name of its search."""
        left = [self.log.run.assignment(name) for name in judged]
        for number, (count, epochs) in enumerate(rounds(len(judged), self.section), start=1):
            left = left[:count]
            self._judge(left, number, epochs, judged)
            left.sort(key=lambda each: mean_loss(judged[each.id]))  # stable: of equal ones the first in the pool
        left = left[: self.section.finalists]
        if self.section.from_supernet:
            left = self._from_either(label, left, judged)
        left = self._finals(left, judged, others)
        self.log.tell_once([_sentence(label, left[0].id, judged, len(judged), len(self.job.search_data.theta))])
        self.log.tell_once(_ranked(label, self._supernet_losses(label), judged))
        return self.log.keep(label, left[0].layers, _chosen_from(left[0]), budget)

    def _finals(
        self, left: Sequence[BitAssignment], judged: dict[str, list[Judged]], others: Sequence[BitAssignment]
    ) -> list[BitAssignment]:
        """Finalists after a round in which they are fine-tuned in full, the best first; one alone needs none.

        Whoever is among the ``others`` that are reported anyway is trained under that name, unless these are to be
        trained from wider ones.
        """
        narrows = self.job.config.finetune.start == "wider"
        known = {} if narrows else {self.measurer.key(each): each for each in others}
        trained = [known.get(self.measurer.key(each), each) for each in left] if len(left) > 1 else []
        self.context.progress.correct(-1, self._work_of_finals(self.section.finalists))
        self.context.progress.correct(1, self._work_of_finals(len(trained)))
        self.context.tasks.announce(self.measurer.tasks(trained))
        for each, net in zip(left, trained, strict=False):
            self.measurer.measure(net)
            judged[each.id].append(self._judged_in_full(each.id, net, 1 + len(judged[each.id])))
        return sorted(left, key=lambda each: mean_loss(judged[each.id]))

    def _work_of_finals(self, finalists: int) -> Work:
        """Work of the round of so many finalists."""
        nets = finalists * self.job.config.finetune.seeds if finalists > 1 else 0
        return times(nets, in_all(self.measurer.work, {CHOICE: self._units_in_full}))

    @property
    def _units_in_full(self) -> float:
        """Units of judging a net that is fine-tuned in full."""
        return FORWARD_QUANTIZED * len(self.job.data.val)

    def _judged_in_full(self, proposal: str, net: BitAssignment, number: int) -> Judged:
        """A finalist by the nets of its bits, the mean over their seeds; journaled."""
        section, units = self.job.config.finetune, self.job.config.finetune.seeds * self._units_in_full
        for known in self.log.events(Judged):
            if (known.proposal, known.round) == (proposal, number):
                self.context.progress.recall({CHOICE: units})
                return known
        trained = self.log.run.assignment(net.id)
        stored = (self.measurer.stored(trained, seed) for seed in range(section.seeds))
        told = mean_judgement([judge(self.job, each, self.job.data.val) for each in stored])
        judged = Judged(proposal=proposal, round=number, epochs=section.epochs, split="val", **told)
        self.log.write(judged)
        self.context.progress.step(CHOICE, units, stage=CHOICE, run=proposal, round=number)
        return judged

    def _from_either(
        self, label: str, best: Sequence[BitAssignment], judged: dict[str, list[Judged]]
    ) -> list[BitAssignment]:
        """As many as ``best`` of these and of the same bits from the supernet's weights, judged in the same rounds."""
        *_, pool = (event for event in self.log.events(Pool) if event.run == label)
        told = dict(pool.proposals)
        both = list(best)
        for each in best:
            source = f"{FROM_SUPERNET}{told[each.id][0]}"
            made = Provenance(kind=PROPOSAL, run=source, start="supernet")
            budget = search_labels(self.job, pruned=False)[label]
            other = self.log.keep(proposal_id(label, source), each.layers, made, budget)
            told[other.id] = (source,)
            both.append(other)
        if told != dict(pool.proposals):
            self.log.write(pool.model_copy(update={"proposals": told, "time": None}))
        for number in range(1, max(1, len(judged[best[0].id])) + 1):
            self._judge(both, number, epochs_of(number, self.section), judged)
        return sorted(both, key=lambda each: mean_loss(judged[each.id]))[: len(best)]

    def _supernet_losses(self, label: str) -> Mapping[str, float]:
        return {k: v for event in self.log.events(Pool) if event.run == label for k, v in event.supernet.items()}

    def _judged(self, proposal: BitAssignment, number: int, epochs: int) -> Judged:
        """A proposal after its fine-tuning in one round; journaled."""
        checkpoint = checkpoint_name(proposal.id, number)
        for known in self.log.events(Judged):
            if (known.proposal, known.round) == (proposal.id, number):
                self.log.run.delete_checkpoint(checkpoint)  # a kill may have come before it was
                self.context.progress.recall(judging_work(self.job, epochs))
                return known
        told = self.context.outcome(self._task(proposal, number, epochs))
        judged = Judged(proposal=proposal.id, round=number, epochs=epochs, **told)
        self.log.write(judged)
        self.log.run.delete_checkpoint(checkpoint)
        self.context.progress.step(CHOICE, measuring_units(self.job), stage=CHOICE, run=proposal.id, round=number)
        return judged

    def _task(self, proposal: BitAssignment, number: int, epochs: int) -> JobTask:
        name, work = checkpoint_name(proposal.id, number), sum(judging_work(self.job, epochs).values())
        inputs = {"proposal": proposal.to_json(), "epochs": epochs}
        return JobTask(
            f"{CHOICE} {name}",
            judged_after,
            inputs,
            number,
            work,
            self.measurer.reads(proposal, 0),
            (checkpoint_file(name),),
        )

    @property
    def _most(self) -> int:
        """As many proposals as a budget can have."""
        controls = self.job.config.controls
        free = 2 * self.section.programs + controls.ilp + controls.measured_ilp + controls.random + len(controls.own)
        return 1 + self.section.draws + free + 2 + 2 + self.section.refined + self.section.learned

    def _work(self, count: int) -> Work:
        """Work of choosing from so many proposals."""
        section = self.section
        works = [times(left, judging_work(self.job, epochs)) for left, epochs in rounds(count, section)]
        if section.from_supernet:
            works += [times(section.finalists, judging_work(self.job, epochs)) for _, epochs in rounds(count, section)]
        return in_all(*works)


def _chosen_from(proposal: BitAssignment) -> Provenance:
    return Provenance(kind=SEARCH, run=proposal.id, start=proposal.provenance.start)


def _ranked(label: str, losses: Mapping[str, float], judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    """How well the supernet ranks the proposals whose losses in it are known, by the first round, which all are in."""
    known = [name for name in losses if judged.get(name)]
    if len(known) < LEAST_ASSIGNMENTS:
        return []
    worth = [-math.inf if (loss := judged[name][0].loss) is None else -loss for name in known]
    found = rank_correlation([losses[name] for name in known], worth)
    if found["tau"] is None:
        return []
    return [
        f"{label}: the supernet ranks its {len(known)} proposals as their first fine-tuning does with Kendall's τ "
        f"{found['tau']:.2f} ± {found['error']:.2f}"
    ]


def _sentence(label: str, best: str, judged: Mapping[str, Sequence[Judged]], count: int, images: int) -> str:
    """What was chosen of how many, beside what θ says."""
    if not judged[best]:
        return f"{label}: everything proposes the same"
    own = proposal_id(label, THETA)
    last = judged[best][-1]
    told = f"{label}: {best} is chosen of {count} proposals, loss {judged_text(last)} in the last round"
    told += " on validation" if last.split == "val" else f" on {images} images"
    if best == own or not judged.get(own):
        return told
    return f"{told}; {own}: {judged_text(judged[own][-1])} in round {judged[own][-1].round}"
