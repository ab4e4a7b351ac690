"""How a command that computes ends: the front in a few lines, then what to take; `dnas show` has the rest."""

from __future__ import annotations

from rich.console import RenderableType

from dnas.commands.terminal import show, show_json
from results.pareto import ParetoFront
from results.run.folder import Run
from results.tables.advice import advice
from results.tables.report import front_rows, limited_costs, render_table
from results.tables.verdicts import verdicts
from results.units import spread
from search_spaces.errors import quoted

MOST_POINTS = 7
"""With the heading, what to take and where the rest is told these are a dozen lines."""


def conclude(run: Run, front: ParetoFront, as_json: bool) -> None:
    """Show the front and what to take of it; as JSON all that is known."""
    if as_json:
        told = {"verdicts": verdicts(front), "advice": advice(front), "files": _paths(run)}
        show_json({"run": str(run.folder), "front": front.to_json(), **told})
    else:
        show(*conclusion(front, str(run.folder)))


def conclusion(front: ParetoFront, folder: str) -> list[RenderableType]:
    """A dozen lines at most: a line a point of the front, what to take, and the commands that tell more."""
    every = front_rows(front)
    rows = [row for row in every if row["on_front"]]
    shown = spread(rows, MOST_POINTS)
    left_out = f"{len(shown)} of {len(rows)} points of the front; " if len(shown) < len(rows) else ""
    more = [f"all that was measured, beside its controls: dnas show {quoted(folder)}"]
    if any(point.kind == "switchable" for point in front.points):
        more.append(f"profiles: dnas switch {quoted(folder)}")
    table: list[RenderableType] = (
        [render_table(shown, limited=limited_costs(every))] if shown else ["nothing that was measured is on the front"]
    )
    return [*table, "", *advice(front), left_out + "; ".join(more)]


def _paths(run: Run) -> list[str]:
    """The files of a run, folders of many as one entry."""
    entries = sorted(path for path in run.folder.iterdir() if not path.name.startswith("."))
    return [f"{path}/" if path.is_dir() else str(path) for path in entries]
