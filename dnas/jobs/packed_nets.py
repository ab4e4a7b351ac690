"""A trained net as its packed file runs it: what is measured then is what is shipped."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from dnas.export.save import save_packed
from dnas.jobs.job import Job
from dnas.quantization.conversion import QuantizerChoice
from dnas.runtime.net import Runtime
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError


class PackedNet(nn.Module):
    """Runs inputs (N, C, ...) in the packed runtime, on the CPU."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (N, ...) where ``x`` is."""
        return torch.from_numpy(self._runtime(x.detach().float().cpu().numpy())).to(x.device)


def as_packed(job: Job, network: nn.Module, assignment: BitAssignment) -> PackedNet:
    """The fixed net ``network`` of a job's assignment, written and read again.

    Raises :class:`InputError` for what the file or the runtime cannot hold.
    """
    choice = QuantizerChoice.of(assignment) if assignment.provenance.net else job.choice
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{assignment.id}.dnas"
        save_packed(path, network, job.plan.graph, assignment, choice)
        try:
            return PackedNet(Runtime(path))
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ")
            raise InputError(
                f"'{assignment.id}' cannot be measured as its packed file runs it: {why}; measure the trained net "
                "itself, without --runtime packed"
            ) from error
