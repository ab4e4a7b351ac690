"""The command that tells how well a run's supernet ranks assignments of equal cost."""

from __future__ import annotations

from pathlib import Path

from dnas.commands.launching import opened_if_free
from dnas.commands.terminal import amount_text, show, show_json, tell
from dnas.commands.written import Crew
from dnas.jobs.rank_requests import RankRequest
from dnas.jobs.ranking import rank_run
from results.ranking import Ranking
from results.tables.plain import PlainTable


def rank(folder: Path, request: RankRequest, crew: Crew, as_json: bool) -> None:
    """Show the ranking, which is kept in the run if nobody is writing to it."""
    with opened_if_free(folder, "the ranking is") as run:
        found = rank_run(run, request, tell, crew.overrides)
    if as_json:
        show_json(found.to_json())
        return
    show(_table(found), "", found.told)


def _table(found: Ranking) -> PlainTable:
    """One line an assignment, the lowest loss first."""
    table = PlainTable()
    costs = list(found.limits)
    for title in (*costs, "loss in the supernet", found.scored_by.label, "rank", "bits (weights/inputs)"):
        table.add_column(title, right=not title.startswith("bits"), fold=True)
    gain = found.scored_by.gain
    worst = float("inf")
    rows = sorted(found.assignments, key=lambda row: worst if row.loss is None else row.loss)
    by_score = sorted(rows, key=lambda row: worst if row.score is None else -gain(row.score))
    for row in rows:
        table.add_row(
            *(amount_text(name, row.cost[name]) for name in costs),
            "-" if row.loss is None else f"{row.loss:.4f}",
            "-" if row.score is None else found.scored_by.text(row.score),
            str(1 + by_score.index(row)),
            " ".join(f"{weight}/{inputs}" for weight, inputs in row.bits.values()),
        )
    return table
