"""Headroom: what lies between choices of bits is told apart from what lies between fine-tunings of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.finetuning import front_of
from benchmarks.headroom import ALONE, deviations, drawn
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


@pytest.mark.whole
def test_draws_differ_and_spend_the_budget_as_the_programs_do(tmp_path: Path) -> None:
    settings = [*TINY, *ALONE, "space.weight_bits=[1,2,3,4,6,8]", "search.budgets=[{size_bytes='20%'}]"]
    front_of("digits", tmp_path / "run", settings)
    with Run.open(tmp_path / "run", write=True) as run:
        context = JobContext(load_job(run.job_file(), []), run, lambda event: None)
        found = list(drawn(context, 3, spread=1.0))
        again = list(drawn(context, 3, spread=1.0))
    plan = context.job.plan
    budget = plan.budgets[0]
    pairs = [plan.space.pairs_of(each.layers) for each in found]
    assert len({tuple(each) for each in pairs}) == len(found) > 1
    assert [each.id for each in again] == [each.id for each in found]  # an interrupted one goes on with the same
    for each in pairs:
        cells = plan.space.cells_of(each)
        worth = np.full(plan.space.allowed.shape, -1.0)
        for number, (row, column) in enumerate(cells):
            worth[number, row, column] = 0.0
        assert allocate_widest(worth, plan.table, budget) == cells  # nothing can be widened within the budget
