"""What each layer of an assignment costs, by the table of the job that made it."""

from __future__ import annotations

from dnas.config.file import load_job
from dnas.jobs.planning import cost_table
from results.run.folder import Run
from search_spaces.assignments import BitAssignment
from search_spaces.costs.stored import costs_by_layer
from search_spaces.errors import InputError
from search_spaces.models.named_in_files import described_network, load_described
from search_spaces.models.sources import KNOWN_SOURCES
from search_spaces.network.graph import read_graph
from search_spaces.spaces import build_space


def priced_by_layer(run: Run, assignment: BitAssignment) -> dict[str, dict[str, float]]:
    """Layer → cost → value, without running code of the user's: the costs that are functions of theirs are left out.

    Raises :class:`InputError` where the job's network is code of the user's, or the costs cannot be had any more.
    """
    job = load_job(run.job_file())
    if job.model.source.partition(":")[0] not in KNOWN_SOURCES:
        raise InputError(f"the network is {job.model.source}, which is not run to show something")
    named = described_network(job.model.source, job.model.arguments)
    network = load_described(named, assignment.model.input_shape, int(assignment.cost.get("size_bytes", 0)), {})
    graph = read_graph(network, assignment.model.example)
    ours = job.costs.model_copy(update={"functions": {}})
    table = cost_table(graph, build_space(graph, job.space), ours, job.quantizer.per_channel)
    return costs_by_layer(table, assignment.layers)
