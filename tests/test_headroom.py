"""Headroom: what lies between choices of bits is told apart from what lies between fine-tunings of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.finetuning import front_of
from benchmarks.headroom import ALONE, choices, deviations, measured, scores
from dnas.config.file import load_job
from dnas.jobs.context import JobContext
from results.run.folder import Run
from search_spaces.allocation.widening import allocate_widest
from tests.test_ablation import TINY


@pytest.mark.parametrize(("between", "within"), [(2.0, 0.5), (0.5, 2.0), (0.0, 1.0)])
def test_deviations_are_those_that_groups_were_drawn_with(between: float, within: float) -> None:
    generator = np.random.default_rng(0)
    groups = between * generator.normal(size=(20_000, 1)) + within * generator.normal(size=(20_000, 3))
    assert deviations(groups.tolist()) == pytest.approx((between, within), abs=0.05)


def test_deviations_by_hand() -> None:
    assert deviations([[1.0, 3.0], [5.0, 7.0]]) == pytest.approx((7**0.5, 2**0.5))
    assert deviations([[1.0, 3.0], [1.0, 3.0]]) == pytest.approx((0.0, 2**0.5))  # the means are even less far apart


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobContext]:
    """A finished job whose nets are not trained further, so that equal bits are equally good."""
    folder = tmp_path_factory.mktemp("headroom") / "run"
    settings = [*TINY, *ALONE, "space.weight_bits=[1,2,3,4,6,8]", "search.budgets=[{size_bytes='20%'}]"]
    front_of("digits", folder, [*settings, "finetune.epochs=0", "finetune.seeds=2"])
    with Run.open(folder, write=True) as run:
        yield JobContext(load_job(run.job_file(), []), run, lambda event: None)


@pytest.mark.whole
def test_draws_differ_spend_the_budget_as_the_programs_do_and_are_the_same_again(context: JobContext) -> None:
    plan, found = context.job.plan, choices(context, 3, spread=1.0)
    assert len(set(map(tuple, found))) == len(found) > 1
    assert choices(context, 3, spread=1.0) == found  # an interrupted study goes on with the same
    for cells in found:
        worth = np.full(plan.space.allowed.shape, -1.0)
        for number, (row, column) in enumerate(cells):
            worth[number, row, column] = 0.0
        assert allocate_widest(worth, plan.table, plan.budgets[0]) == cells  # nothing can be widened within the budget


@pytest.mark.whole
def test_equal_bits_are_measured_as_the_job_measured_them(context: JobContext) -> None:
    before = scores(context.log.run)
    bits = {name: context.log.run.assignment(name).pairs for name in before}
    equal = [
        (each.id, name) for each in measured(context, 8, spread=0.0) for name in before if bits[name] == each.pairs
    ]
    assert equal
    after = scores(context.log.run)
    assert [after[near] for near, _ in equal] == [before[name] for _, name in equal]
