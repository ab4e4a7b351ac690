"""Mixed-precision search for PyTorch: from an unedited network to a measured front of per-layer bit-widths.

The public names are those of ``__all__``; docs/python.md describes them. They are loaded when first used, so that
``import dnas`` and ``dnas --help`` need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from dnas.config.file import dump_job, load_job
    from dnas.config.job import JobConfig
    from dnas.data.augmentation import Augmentation
    from dnas.data.load import load_data
    from dnas.export.save import save_packed
    from dnas.export.unpack import load
    from dnas.jobs.api import finetune, search_bits
    from dnas.jobs.doctor import examine
    from dnas.jobs.planning import plan_job
    from dnas.jobs.run import evaluate_assignment, run_job
    from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
    from dnas.quantization.conversion import QuantizerChoice, apply, quantize_fixed
    from dnas.quantization.quantizers import Grid, Quantizer
    from dnas.runtime.net import Runtime
    from dnas.search.images import SearchData
    from dnas.search.sensitivity import sensitivities
    from dnas.search.supernet import Supernet
    from dnas.search.trainer import SupernetTrainer
    from dnas.switchable.net import SwitchableNet
    from dnas.switchable.profiles import Profile
    from dnas.switchable.training import SwitchableTrainer
    from dnas.training.device import Device
    from dnas.training.task import Task
    from dnas.training.trainer import Trainer, evaluate
    from results.pareto import ParetoFront
    from results.run.folder import Run
    from results.tables.advice import advice
    from results.tables.verdicts import verdicts
    from search_spaces.allocation.program import allocate
    from search_spaces.allocation.widening import allocate_widest
    from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
    from search_spaces.costs.budgets import Budget, parse_budget
    from search_spaces.costs.kinds import Cost
    from search_spaces.costs.table import CostTable, build_costs
    from search_spaces.errors import InputError, JobError
    from search_spaces.metrics import Metric
    from search_spaces.models.load import load_model
    from search_spaces.network.graph import read_graph
    from search_spaces.options import SpaceOptions
    from search_spaces.spaces import build_space

__all__ = [
    "Augmentation",
    "BitAssignment",
    "Budget",
    "Cost",
    "CostTable",
    "Device",
    "Grid",
    "InputError",
    "JobConfig",
    "JobError",
    "LayerBits",
    "Metric",
    "ModelReference",
    "ParetoFront",
    "Profile",
    "Quantizer",
    "QuantizerChoice",
    "Run",
    "Runtime",
    "SearchData",
    "SpaceOptions",
    "Supernet",
    "SupernetTrainer",
    "SwitchableNet",
    "SwitchableTrainer",
    "Task",
    "Trainer",
    "advice",
    "allocate",
    "allocate_widest",
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
    "save_packed",
    "search_bits",
    "sensitivities",
    "verdicts",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "dnas.jobs.api": ("finetune", "search_bits"),
        "dnas.quantization.calibration": ("calibrate", "recalibrate_batchnorm"),
        "dnas.config.job": ("JobConfig",),
        "dnas.quantization.conversion": ("QuantizerChoice", "apply", "quantize_fixed"),
        "dnas.data.augmentation": ("Augmentation",),
        "dnas.data.load": ("load_data",),
        "dnas.jobs.doctor": ("examine",),
        "dnas.config.file": ("dump_job", "load_job"),
        "dnas.jobs.run": ("evaluate_assignment", "run_job"),
        "dnas.jobs.planning": ("plan_job",),
        "dnas.search.trainer": ("SearchData", "SupernetTrainer"),
        "dnas.search.sensitivity": ("sensitivities",),
        "dnas.search.supernet": ("Supernet",),
        "dnas.switchable.net": ("Profile", "SwitchableNet"),
        "dnas.switchable.training": ("SwitchableTrainer",),
        "dnas.training.device": ("Device",),
        "dnas.training.task": ("Task",),
        "dnas.training.trainer": ("Trainer", "evaluate"),
        "dnas.export.save": ("save_packed",),
        "dnas.export.unpack": ("load",),
        "dnas.runtime.net": ("Runtime",),
        "results.pareto": ("ParetoFront",),
        "results.tables.advice": ("advice",),
        "results.tables.verdicts": ("verdicts",),
        "results.run.folder": ("Run",),
        "search_spaces.allocation.program": ("allocate",),
        "search_spaces.allocation.widening": ("allocate_widest",),
        "search_spaces.assignments": ("BitAssignment", "LayerBits", "ModelReference"),
        "search_spaces.costs.budgets": ("Budget", "parse_budget"),
        "search_spaces.costs.kinds": ("Cost",),
        "search_spaces.costs.table": ("CostTable", "build_costs"),
        "dnas.quantization.quantizers": ("Grid", "Quantizer"),
        "search_spaces.errors": ("InputError", "JobError"),
        "search_spaces.network.graph": ("read_graph",),
        "search_spaces.metrics": ("Metric",),
        "search_spaces.models.load": ("load_model",),
        "search_spaces.options": ("SpaceOptions",),
        "search_spaces.spaces": ("build_space",),
    },
)
