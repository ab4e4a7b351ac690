"""What each layer of an assignment costs, by the table of the job that made it."""

from __future__ import annotations

from dnas.config.file import load_job
from dnas.jobs.planning import cost_table
from results.run.folder import Run
from search_spaces.assignments import BitAssignment
from search_spaces.costs.stored import costs_by_layer
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.spaces import build_space


def priced_by_layer(run: Run, assignment: BitAssignment) -> dict[str, dict[str, float]]:
    """Layer → cost → value; raises :class:`InputError` where the job's network or costs cannot be had any more."""
    job = load_job(run.job_file())
    network = load_model(job.model.source, arguments=job.model.arguments).module
    graph = read_graph(network, assignment.model.input_shape)
    table = cost_table(graph, build_space(graph, job.space), job.costs, job.quantizer.per_channel)
    return costs_by_layer(table, assignment.layers)
