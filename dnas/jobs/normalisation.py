"""How the images of a job are normalised, as its files tell it."""

from __future__ import annotations

from typing import Any

from dnas.config.file import load_job
from dnas.data.checks import first_images
from dnas.data.image_sets import DataSplits
from dnas.jobs.job import load_splits
from results.preprocessing import Preprocessing
from results.run.folder import Run
from results.run.layout import FRONT_JSON
from search_spaces.errors import InputError

_LOOKED_AT = 256
_WITHIN = 1e-6


def preprocessing_of(data: DataSplits) -> Preprocessing | None:
    """What the job's networks are given; None where the images do not tell it.

    Images that are given as they are, with mean 0 and std 1, were normalised by somebody else where they are no pixels
    in [0, 1]. Of a user's own set ``mean`` and ``std`` may be anything.
    """
    mean, std = (_numbers(getattr(data.train, key, None)) for key in ("mean", "std"))
    if mean is None or std is None or (not any(mean) and set(std) == {1.0} and not _are_pixels(data)):
        return None
    try:
        return Preprocessing(tuple(data.input_shape), mean, std, data.classes, data.class_names)
    except InputError:  # not one for each channel
        return None


def _numbers(found: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(value) for value in found)
    except (TypeError, ValueError):
        return None


def _are_pixels(data: DataSplits) -> bool:
    """Whether the first images lie in [0, 1]."""
    images, _ = first_images("training", data.train, _LOOKED_AT)
    return -_WITHIN <= float(images.min()) and float(images.max()) <= 1 + _WITHIN


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
