"""Records that answer to the name of their metric, and to nothing else."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from bayesopt.proposals import Proposal
from bayesopt.trials import PruningTrial
from dnas.training.trainer import Measurement
from results.pareto import Estimate, FrontPoint
from search_spaces.metrics import Metric

ERROR = Metric("mae", direction="smaller", scale=1.0, unit="", title="mean error")


def test_a_figure_has_the_name_of_its_metric() -> None:
    measured = Measurement(0.9, 0.3, 10)
    assert (measured.top1, measured.score) == (0.9, 0.9)
    assert replace(measured, metric=ERROR).mae == 0.9
    with pytest.raises(AttributeError, match="Measurement has no 'top1'"):
        _ = replace(measured, metric=ERROR).top1
    for again in (copy.deepcopy(measured), pickle.loads(pickle.dumps(measured))):
        assert again == measured
        assert again.top1 == 0.9


def test_a_point_and_a_trial_have_theirs() -> None:
    point = FrontPoint("a", "search", 1.0, 2.0, 3.0, Estimate(0.9, 0.1, 2), Estimate(0.8, 0.1, 2))
    assert (point.val_top1, point.test_top1) == (point.val, point.test)
    asked = Proposal(0, 0, {}, {}, (), "random")
    assert PruningTrial(asked, {}, 0.5, 0.7).top1 == 0.7
