"""Mixed-precision search for PyTorch: from an unedited network to a measured front of per-layer bit-widths.

The public names are those of ``__all__``; docs/python.md describes them. They are loaded when first used, so that
``import dnas`` and ``dnas --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnas.api import finetune, search_bits
    from dnas.calibration import calibrate, recalibrate_batchnorm
    from dnas.config import JobConfig
    from dnas.conversion import QuantizerChoice, apply, quantize_fixed
    from dnas.data import load_data
    from dnas.doctor import examine
    from dnas.jobfile import dump_job, load_job
    from dnas.jobs import evaluate_assignment, run_job
    from dnas.planning import plan_job
    from dnas.search import SearchData, SupernetTrainer
    from dnas.sensitivity import sensitivities
    from dnas.supernet import Supernet
    from dnas.switchable import Profile, SwitchableNet
    from dnas.switchable_training import SwitchableTrainer
    from dnas.training import Trainer, evaluate
    from dnas.unpacking import load
    from results.pareto import ParetoFront
    from results.report import verdicts
    from results.runs import Run
    from search_spaces.allocation import allocate
    from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
    from search_spaces.budgets import Budget, parse_budget
    from search_spaces.costs import CostTable, build_costs
    from search_spaces.errors import InputError, JobError
    from search_spaces.graph import read_graph
    from search_spaces.models import load_model
    from search_spaces.spaces import SpaceOptions, build_space

_MODULES = {
    "dnas.api": ("finetune", "search_bits"),
    "dnas.calibration": ("calibrate", "recalibrate_batchnorm"),
    "dnas.config": ("JobConfig",),
    "dnas.conversion": ("QuantizerChoice", "apply", "quantize_fixed"),
    "dnas.data": ("load_data",),
    "dnas.doctor": ("examine",),
    "dnas.jobfile": ("dump_job", "load_job"),
    "dnas.jobs": ("evaluate_assignment", "run_job"),
    "dnas.planning": ("plan_job",),
    "dnas.search": ("SearchData", "SupernetTrainer"),
    "dnas.sensitivity": ("sensitivities",),
    "dnas.supernet": ("Supernet",),
    "dnas.switchable": ("Profile", "SwitchableNet"),
    "dnas.switchable_training": ("SwitchableTrainer",),
    "dnas.training": ("Trainer", "evaluate"),
    "dnas.unpacking": ("load",),
    "results.pareto": ("ParetoFront",),
    "results.report": ("verdicts",),
    "results.runs": ("Run",),
    "search_spaces.allocation": ("allocate",),
    "search_spaces.assignments": ("BitAssignment", "LayerBits", "ModelReference"),
    "search_spaces.budgets": ("Budget", "parse_budget"),
    "search_spaces.costs": ("CostTable", "build_costs"),
    "search_spaces.errors": ("InputError", "JobError"),
    "search_spaces.graph": ("read_graph",),
    "search_spaces.models": ("load_model",),
    "search_spaces.spaces": ("SpaceOptions", "build_space"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BitAssignment",
    "Budget",
    "CostTable",
    "InputError",
    "JobConfig",
    "JobError",
    "LayerBits",
    "ModelReference",
    "ParetoFront",
    "Profile",
    "QuantizerChoice",
    "Run",
    "SearchData",
    "SpaceOptions",
    "Supernet",
    "SupernetTrainer",
    "SwitchableNet",
    "SwitchableTrainer",
    "Trainer",
    "allocate",
    "apply",
    "build_costs",
    "build_space",
    "calibrate",
    "dump_job",
    "evaluate",
    "evaluate_assignment",
    "examine",
    "finetune",
    "load",
    "load_data",
    "load_job",
    "load_model",
    "parse_budget",
    "plan_job",
    "quantize_fixed",
    "read_graph",
    "recalibrate_batchnorm",
    "run_job",
    "search_bits",
    "sensitivities",
    "verdicts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dnas' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
