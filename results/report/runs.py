"""All that a page shows, as plain values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from results.report.assignments import assignments_json
from results.report.courses import (
    pools_json,
    ratios_json,
    searches_json,
    sensitivities_json,
    switchable_json,
    trials_json,
)
from results.report.material import Material
from results.report.network import network_json
from results.report.points import kinds_json, points_json
from results.report.repeat import commands, differences, times_json
from results.run.folder import Run

SCHEMA = "dnas.report/1"


def report_json(runs: Sequence[Run]) -> dict[str, Any]:
    """What is shown of these runs, which are only read; :class:`InputError` where one cannot be."""
    found = [Material.of(run) for run in runs]
    names = _distinct(found)
    return {
        "schema": SCHEMA,
        "kinds": kinds_json(),
        "runs": [run_json(material) | {"name": name} for name, material in zip(names, found, strict=True)],
        "differences": differences(dict(zip(names, (material.job for material in found), strict=True))),
    }


def _distinct(found: Sequence[Material]) -> list[str]:
    """Names of runs, or their paths where two have the same name."""
    names = [material.name for material in found]
    return [name if names.count(name) == 1 else material.folder for name, material in zip(names, found, strict=True)]


def run_json(found: Material) -> dict[str, Any]:
    """What is shown of one run."""
    points = points_json(found.front)
    on_front = points["fronts"].get(found.front.x, {}).get("front", ())
    others = [point["id"] for point in points["points"]]
    assignments = assignments_json(found.assignments, [*on_front, *others])
    return {
        "folder": found.folder,
        "status": {**asdict(found.status), "place": found.status.place},
        "complete": found.complete,
        "problems": found.problems,
        **points,
        "float_score": None if found.float_score is None else found.front.metric.scale * found.float_score,
        "assignments": assignments,
        "network": network_json(found.network, assignments["layers"]),
        "switchable": switchable_json(found.front, found.assignments),
        "searches": searches_json(found.events, found.assignments),
        "pools": pools_json(found.events, found.assignments),
        "sensitivities": [sensitivities_json(each) for each in found.sensitivities],
        "trials": trials_json(found.events),
        "ratios": ratios_json(found.assignments),
        "times": times_json(found.events),
        "job": found.job,
        "environment": {key: _text(value) for key, value in found.environment.items()},
        "commands": commands(found.folder, found.events),
    }


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def titles(report: Mapping[str, Any]) -> list[str]:
    """The names of the runs in a report."""
    return [run["name"] for run in report["runs"]]
