"""What is kept and shown of a job: the run folder and its journal, the Pareto front, pictures, tables and exports.

The names below are loaded when first used, so that importing ``results`` costs nothing; pictures are in
:mod:`results.pictures.front`, which alone imports matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront, hypervolume
    from results.pictures.curve_data import search_curves
    from results.pictures.prune_data import ratio_panels
    from results.pictures.trial_data import prune_trials
    from results.run.environment import environment
    from results.run.folder import Run
    from results.run.journal import Journal
    from results.run.layout import list_runs
    from results.run.status import RunStatus, run_status
    from results.tables.advice import advice
    from results.tables.export import EXPORTERS, export_assignment
    from results.tables.report import front_rows, render_table
    from results.tables.verdicts import verdicts

__all__ = [
    "EXPORTERS",
    "Estimate",
    "FloatReference",
    "FrontPoint",
    "Journal",
    "ParetoFront",
    "Run",
    "RunStatus",
    "advice",
    "environment",
    "export_assignment",
    "front_rows",
    "hypervolume",
    "list_runs",
    "prune_trials",
    "ratio_panels",
    "render_table",
    "run_status",
    "search_curves",
    "verdicts",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "results.pictures.curve_data": ("search_curves",),
        "results.tables.export": ("EXPORTERS", "export_assignment"),
        "results.run.journal": ("Journal",),
        "results.pareto": ("Estimate", "FloatReference", "FrontPoint", "ParetoFront", "hypervolume"),
        "results.pictures.prune_data": ("ratio_panels",),
        "results.pictures.trial_data": ("prune_trials",),
        "results.tables.report": ("front_rows", "render_table"),
        "results.tables.advice": ("advice",),
        "results.tables.verdicts": ("verdicts",),
        "results.run.environment": ("environment",),
        "results.run.folder": ("Run",),
        "results.run.layout": ("list_runs",),
        "results.run.status": ("RunStatus", "run_status"),
    },
)
