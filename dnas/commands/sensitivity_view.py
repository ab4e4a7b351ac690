"""The command that shows how much each width of each layer costs in loss."""

from __future__ import annotations

from pathlib import Path

from dnas.commands.launching import opened_if_free
from dnas.commands.terminal import show, show_json, tell
from dnas.commands.written import Crew
from dnas.config.file import load_job
from dnas.jobs.sensitivity import job_sensitivities, run_sensitivities
from results.pictures.figures import save_figure
from results.pictures.plot_data import bit_text
from results.pictures.sensitivity import draw_sensitivities, loss_text
from results.tables.plain import PlainTable
from search_spaces.errors import InputError
from search_spaces.sensitivities import Sensitivities, SensitivityKind


def sensitivity(
    subject: str | None,
    folder: Path | None,
    job: str | None,
    kind: SensitivityKind,
    out: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Show the sensitivities of the run in ``folder``, or those of a network on a job's data (the job's own: None).

    With ``out`` they are drawn as well; ``device`` replaces that of the job. Raises :class:`InputError` where there is
    neither a run nor a job, which tell the images.
    """
    if job is None:
        if folder is None:
            raise InputError("name a RUN, or a job with --job")
        with opened_if_free(folder, "they are") as run:
            found = run_sensitivities(run, kind, tell, device)
    else:
        found = job_sensitivities(load_job(job, Crew(device=device).overrides), subject, kind, tell)
    if out is not None:
        save_figure(draw_sensitivities(found), out)
    if as_json:
        show_json(found.to_json())
        return
    show(_table(found), *(["", f"written: {out}"] if out else []))


def _table(found: Sensitivities) -> PlainTable:
    """One line a layer (a decision, where they were measured), weights before inputs."""
    table = PlainTable()
    table.add_column("decision" if found.kind == "measured" else "layer", fold=True)
    for letter, bits in (("W", found.weight_bits), ("A", found.activation_bits)):
        for width in bits:
            table.add_column(f"{letter}{bit_text(width)}", right=True)
    for layer, losses in found.weights.items():
        table.add_row(layer, *map(loss_text, losses), *map(loss_text, found.inputs[layer]))
    return table
