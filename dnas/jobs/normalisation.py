"""How the images of a job are normalised, as its files tell it."""

from __future__ import annotations

from dnas.config.file import load_job
from dnas.data.image_sets import DataSplits
from dnas.jobs.job import load_splits
from results.preprocessing import Preprocessing
from results.run.folder import Run
from results.run.layout import FRONT_JSON
from search_spaces.errors import InputError


def preprocessing_of(data: DataSplits) -> Preprocessing | None:
    """What the job's networks are given; None for images that do not tell their mean and std."""
    mean, std = (getattr(data.train, key, None) for key in ("mean", "std"))
    if mean is None or std is None:
        return None
    means, stds = (tuple(float(value) for value in values) for values in (mean, std))
    return Preprocessing(tuple(data.input_shape), means, stds, data.classes, data.class_names)


def stored_preprocessing(run: Run) -> Preprocessing | None:
    """What a run's nets were trained on: what its front tells, or (an earlier run) its data; None without either."""
    if (run.folder / FRONT_JSON).exists():
        told = run.load_front().preprocessing
        if told is not None:
            return told
    try:
        return preprocessing_of(load_splits(load_job(run.job_file())))
    except InputError:  # the images are not here any more
        return None
