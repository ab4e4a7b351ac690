"""Mixed-precision search for PyTorch: from an unedited network to a measured front of per-layer bit-widths.

The names below are loaded when first used, so that ``import dnas`` and ``dnas --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnas.config import JobConfig
    from dnas.doctor import DoctorReport, examine
    from dnas.jobfile import dump_job, load_job, preset_names
    from dnas.planning import Plan, plan_job
    from results.pareto import ParetoFront
    from results.runs import Run
    from search_spaces.assignments import BitAssignment
    from search_spaces.errors import InputError, JobError
    from search_spaces.graph import read_graph
    from search_spaces.models import available_models, load_model

_MODULES = {
    "dnas.config": ("JobConfig",),
    "dnas.doctor": ("DoctorReport", "examine"),
    "dnas.jobfile": ("dump_job", "load_job", "preset_names"),
    "dnas.planning": ("Plan", "plan_job"),
    "results.pareto": ("ParetoFront",),
    "results.runs": ("Run",),
    "search_spaces.assignments": ("BitAssignment",),
    "search_spaces.errors": ("InputError", "JobError"),
    "search_spaces.graph": ("read_graph",),
    "search_spaces.models": ("available_models", "load_model"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BitAssignment",
    "DoctorReport",
    "InputError",
    "JobConfig",
    "JobError",
    "ParetoFront",
    "Plan",
    "Run",
    "available_models",
    "dump_job",
    "examine",
    "load_job",
    "load_model",
    "plan_job",
    "preset_names",
    "read_graph",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dnas' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
