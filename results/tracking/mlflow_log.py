"""A run in MLflow, at the server that MLflow's own variable MLFLOW_TRACKING_URI names.

The server's run is found again by a mark that lies in the run folder, and is told only what it does not know yet.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that does not answer must not hold a job up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from results.files import read_text, write_text
from results.run.folder import Run
from results.run.layout import ENVIRONMENT, FRONT_CSV, FRONT_JSON, FRONT_PICTURE, JOB, MLFLOW, assignment_file
from results.tracking.scalars import Scalar
from results.tracking.tracker import Tracker
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, one_line

_TAG = "dnas.run"
_MOST_METRICS, _MOST_PARAMETERS, _LONGEST = 1000, 100, 500
"""Of one request, and the letters of a parameter."""


class MlflowLog(Tracker):
    """A run of MLflow: metrics by epoch, the job's keys as parameters, the files of the front and of assignments.

    The experiment is that of MLFLOW_EXPERIMENT_NAME, or is called as the job. Raises :class:`InputError` where the
    server cannot be used.
    """

    title = "MLflow"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._known: dict[str, set[int]] = defaultdict(set)
        self._job = tomllib.loads(run.job_toml())
        self._name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(self._job["name"])
        try:
            self._client = MlflowClient()
            self._id = self._found()
        except Exception as error:  # whatever its stores raise
            raise InputError(
                f"log.mlflow = true: {mlflow.get_tracking_uri()} cannot be used ({one_line(_cause(error))}); start a "
                "server there, or name another one in MLFLOW_TRACKING_URI"
            ) from error

    def _found(self) -> str | None:
        """The run that an earlier process made, if the server has it."""
        path, experiment = self.run.folder / MLFLOW, self._client.get_experiment_by_name(self._name)
        if not experiment or not path.exists():
            return None
        mark = re.sub(r"\W", "", read_text(path))
        found = self._client.search_runs([experiment.experiment_id], f"tags.`{_TAG}` = '{mark}'", max_results=1)
        if not found:
            return None
        id = str(found[0].info.run_id)
        self._client.update_run(id, "RUNNING")
        self._introduce(id, known=found[0].data.params)
        for name in found[0].data.metrics:
            self._known[name] = {metric.step for metric in self._client.get_metric_history(id, name)}
        return id

    @property
    def _own(self) -> str:
        """The id of the run there, made when the first is told: a job that is refused leaves none."""
        if self._id is None:
            self._id = self._created()
        return self._id

    def _created(self) -> str:
        known, mark = self._client.get_experiment_by_name(self._name), secrets.token_hex(16)
        experiment = known.experiment_id if known else self._client.create_experiment(self._name)
        write_text(self.run.folder / MLFLOW, mark)  # first: whatever fails from here on, the next process finds the run
        made = self._client.create_run(experiment, run_name=self.run.name, tags={_TAG: mark})
        self._introduce(str(made.info.run_id), known={})
        return str(made.info.run_id)

    def _introduce(self, id: str, known: Mapping[str, str]) -> None:
        """Send the job's keys that are not ``known`` there, its file, and the environment."""
        named = {_name(key): str(value)[:_LONGEST] for key, value in _flat(self._job)}
        parameters = [Param(name, value) for name, value in named.items() if name not in known]
        for some in _parts(parameters, _MOST_PARAMETERS):
            self._client.log_batch(id, params=some)
        for name in (JOB, ENVIRONMENT):
            self._client.log_artifact(id, str(self.run.folder / name))

    def scalars(self, found: Sequence[Scalar]) -> None:
        """Send the numbers that the server does not know."""
        new = []
        for scalar in found:
            name, seconds = _name(scalar.name), time.time() if scalar.time is None else scalar.time
            if scalar.step not in self._known[name]:
                self._known[name].add(scalar.step)
                new.append(Metric(name, scalar.value, int(1000 * seconds), scalar.step))
        for some in _parts(new, _MOST_METRICS):
            self._client.log_batch(self._own, metrics=some)

    def assignment(self, assignment: BitAssignment) -> None:
        """Send its file."""
        self._send(self.run.folder / assignment_file(assignment.id), "assignments")

    def front(self) -> None:
        """Send the files of the front, and those of the assignments again: they tell now what was measured."""
        for name in (FRONT_JSON, FRONT_CSV, FRONT_PICTURE):
            self._send(self.run.folder / name)
        for path in self.run.assignment_paths():
            self._send(path, "assignments")

    def close(self, finished: bool) -> None:
        """Say how it ended."""
        if self._id is not None:
            self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _send(self, path: Path, folder: str | None = None) -> None:
        if path.is_file():
            self._client.log_artifact(self._own, str(path), folder)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a job as one writes them after --set.

    >>> list(_flat({"seed": 0, "search": {"epochs": 3}}))
    [('seed', 0), ('search.epochs', 3)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _name(name: str) -> str:
    """A name that MLflow takes.

    >>> _name("finetune/a+b=c-seed0/loss")
    'finetune/a_b_c-seed0/loss'
    """
    return re.sub(r"[^\w./ -]", "_", name)


def _parts(values: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + most] for start in range(0, len(values), most))


def _cause(error: BaseException) -> BaseException:
    """What it all began with: libraries wrap one error in another."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error
