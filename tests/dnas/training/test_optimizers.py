"""Optimizers by name: known ones train and resume, everything else is refused with its reason before any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dnas.config.training import Optimization
from dnas.training.optimizers import build_optimizer, check_optimizer
from search_spaces.errors import InputError

TRAINS = "SGD Adam AdamW NAdam RAdam Adamax Adagrad Adadelta RMSprop ASGD Rprop Adafactor timm:lamb timm:lion".split()


class Forgetful(torch.optim.SGD):
    """It counts its steps where no state_dict looks."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step()


class Lists(torch.optim.SGD):
    """It keeps a list of tensors."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            self.state[group["params"][0]]["past"] = [torch.ones(2)]


@pytest.mark.parametrize("name", TRAINS)
def test_an_optimizer_of_torch_and_of_timm_trains_and_resumes(name: str) -> None:
    check_optimizer(Optimization(optimizer=name), "[finetune]")


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("learning_rate", [1e25, 1e37])
def test_one_that_diverges_is_not_told_to_forget(name: str, learning_rate: float) -> None:
    """NaN is no sign of a checkpoint that lacks something."""
    check_optimizer(Optimization(optimizer=name, learning_rate=learning_rate), "[finetune]")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"optimizer": "adamw"}, r"\[finetune\]: there is no optimizer 'adamw'; did you mean 'AdamW'\?"),
        ({"optimizer": "AdamV"}, "did you mean 'Adam"),
        ({"optimizer": "nothing like it"}, "torch.optim has .*AdamW"),
        ({"optimizer": "timm:lam"}, "timm has no optimizer 'lam'; did you mean 'lamb'"),
        ({"optimizer": "no_such_module:Own"}, "cannot import module 'no_such_module'"),
        ({"optimizer": f"{__name__}:Forgetfull"}, "has no 'Forgetfull'; did you mean 'Forgetful'"),
        ({"optimizer": f"{__name__}:Forgetful"}, "cannot be resumed"),
        ({"optimizer": f"{__name__}:Lists"}, "cannot be resumed"),
        ({"optimizer": "LBFGS"}, "'LBFGS' cannot train a network: .*parameter"),
        ({"optimizer": "Muon"}, "'Muon' cannot train a network: .*2D"),
        ({"optimizer": "SparseAdam"}, "'SparseAdam' cannot train a network: .*dense"),
        ({"optimizer": "AdamW", "momentum": 0.5}, "'AdamW' takes no momentum; leave momentum = 0.5 out"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "'Rprop' takes no weight_decay"),
        ({"optimizer": "AdamW", "optimizer_options": {"beta": [0.9, 0.9]}}, "takes no 'beta'; did you mean 'betas'"),
        ({"optimizer": "AdamW", "optimizer_options": {"betas": [0.9, 2.0]}}, "Invalid beta parameter"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_optimizer(Optimization.model_validate(values), "[finetune]")


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum"])
def test_what_has_a_key_of_its_own_is_refused_among_the_options(key: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer_options has '{key}'"):
        Optimization(optimizer_options={key: 0.1})


def test_milestones_rise() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        Optimization(milestones=(0.5, 0.25))


def test_lists_of_a_job_file_reach_the_optimizer_as_pairs() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    options = Optimization(optimizer="Adam", optimizer_options={"betas": [0.5, 0.25], "eps": 1e-3})
    optimizer = build_optimizer([{"params": [weight], "weight_decay": 0.0}], options)
    weight.grad = torch.full((3,), 2.0)
    optimizer.step()
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.25)
    torch.testing.assert_close(weight.detach(), torch.ones(3) - options.learning_rate * 2.0 / (2.0 + 1e-3))
