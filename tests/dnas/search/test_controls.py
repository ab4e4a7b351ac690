"""The contract of a control: a finite worth for every cell, the same each time, from which every budget is met."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dnas.quantization.conversion import QuantizerChoice
from dnas.search.controls import CONTROLS, Evidence, Question
from search_spaces.allocation.program import allocate
from search_spaces.costs.budgets import parse_budget
from search_spaces.errors import InputError
from tests.toys import Net, images, plan, trained

OWN = """
import numpy as np
import torch

def early(question):
    worth = np.log(np.array(question.evidence.space.weight_bits, dtype=float))[None, :, None]
    return np.broadcast_to(worth, question.evidence.space.allowed.shape) / (1 + np.arange(len(worth)))[:, None, None]

def flat(question):
    return np.zeros(3)

def nan(question):
    return np.full(question.evidence.space.allowed.shape, np.nan)

def careless(question):
    evidence = question.evidence
    with torch.no_grad():
        for parameter in evidence.network.train().parameters():
            parameter.fill_(float("nan")).requires_grad_(False)
    evidence.network.register_forward_hook(lambda *_: 1 / 0)
    evidence.sensitivities[:] = np.nan
    evidence.measured[:] = np.nan
    return np.zeros(evidence.space.allowed.shape)

def fails(question):
    raise ZeroDivisionError("no reason")

def exits(question):
    raise SystemExit("not today")

def needs_more(question):
    raise MemoryError

number = 3
"""
NAMES = [*CONTROLS, "own_control:early"]


@pytest.fixture
def question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Question:
    (tmp_path / "own_control.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_control", raising=False)
    model = trained(Net()).eval()
    _, space, table = plan(model, weight_bits=(2, 4, 8), activation_bits=(2, 4, 8), first_layer="search")
    batches = [batch for batch in images(24).batches(12)]
    evidence = Evidence(model, space, table, QuantizerChoice(), lambda: batches)
    return Question(evidence, parse_budget({"bitops": "30% of uniform8"}, table), seed=5)


@pytest.mark.parametrize("name", NAMES)
def test_a_control_gives_a_worth_to_every_cell_and_meets_the_budget(name: str, question: Question) -> None:
    worth = CONTROLS.find(name)(question)
    assert worth.shape == question.evidence.space.allowed.shape
    assert np.isfinite(worth).all()
    assert np.array_equal(worth, CONTROLS.find(name)(question))
    cells = allocate(worth, question.evidence.table, question.budget)
    assert question.budget.met_by(question.evidence.table.cells_cost(cells))


@pytest.mark.parametrize("name", ["ilp", pytest.param("measured-ilp", marks=pytest.mark.whole)])
def test_what_a_control_of_ones_own_changes_is_its_own(name: str, question: Question) -> None:
    evidence = question.evidence
    before = {key: value.clone() for key, value in evidence.network.state_dict().items()}
    expected = CONTROLS.find(name)(replace(question, evidence=replace(evidence)))
    for _ in range(2):
        CONTROLS.find("own_control:careless")(question)
    assert np.array_equal(CONTROLS.find(name)(question), expected)
    assert not evidence.network.training
    assert all(parameter.requires_grad for parameter in evidence.network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in evidence.network.state_dict().items())


def test_draws_differ_and_are_those_of_one_generator(question: Question) -> None:
    generator = np.random.default_rng(5)
    for draw in (1, 2, 3):
        expected = generator.random(question.evidence.space.allowed.shape)
        drawn = CONTROLS["random"](Question(question.evidence, question.budget, seed=5, draw=draw))
        assert np.array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("own_control:flat", r"gives values of shape \(3,\)"),
        ("own_control:nan", "gives values that are not all finite; it must give a finite one"),
        ("own_control:fails", "failed for .*: ZeroDivisionError: no reason"),
        ("own_control:exits", "failed for .*: SystemExit: not today"),
        ("own_control:number", "'number' is an int, not a callable"),
        (
            "ilpp",
            "unknown control 'ilpp'; known are ilp, measured-ilp, random and package.module:name; did you mean 'ilp'",
        ),
    ],
)
def test_what_is_no_control_is_refused(source: str, sentence: str, question: Question) -> None:
    with pytest.raises(InputError, match=sentence):
        CONTROLS.find(source)(question)


def test_too_little_memory_is_no_fault_of_a_control(question: Question) -> None:
    with pytest.raises(MemoryError):
        CONTROLS.find("own_control:needs_more")(question)
