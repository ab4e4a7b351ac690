"""What the fields of a job file are made of: the frozen table and the kinds of values, with their limits."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from search_spaces.costs.amounts import parse_amount
from search_spaces.errors import nearest

LARGEST = 2**63 - 1
_OWN = re.compile(r"[\w.]+:[\w.]+")


def _readable_amount(amount: float | int | str) -> float | int | str:
    try:
        parse_amount(amount, 1.0, 1.0)
    except OverflowError as error:
        raise ValueError("expected an amount that a float can hold") from error
    return amount


def _device_name(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]+)?", name):
        hint = nearest(name, ("auto", "cpu", "mps", "cuda"))
        raise ValueError(f"expected auto, cpu, mps, xpu, cuda or cuda:NUMBER{hint}")
    return name


def _not_empty(entry: dict[str, float | int | str]) -> dict[str, float | int | str]:
    if not entry:
        raise ValueError("a budget is empty; write for example { size_bytes = '12%' }")
    return entry


Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Parallel = Annotated[int, Field(ge=0, le=1024)]  # hundreds of thousands of threads end the process
Workers = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
AtLeastOne = Annotated[int, Field(ge=1, le=LARGEST)]
DeviceName = Annotated[str, AfterValidator(_device_name)]
Amount = Annotated[float | int | str, AfterValidator(_readable_amount)]
WrittenBudget = Annotated[dict[str, Amount], AfterValidator(_not_empty)]


class Named:
    """One of ours by ``names``, or the user's own ``package.module:name``, which is imported where it is used."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def _checked(self, given: str) -> str:
        if given in self.names or _OWN.fullmatch(given):
            return given
        known = f"one of {', '.join(self.names)}, or " if self.names else ""
        raise ValueError(f"expected {known}your own package.module:name{nearest(given, self.names)}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self.names, "package.module:name"]}


WeightQuantizer = Annotated[str, Named("lsq", "nested", "dorefa", "binary", "logarithmic")]
ActivationQuantizer = Annotated[str, Named("pact", "lsq", "nested", "dorefa", "binary", "tanh", "logarithmic")]
OwnName = Annotated[str, Named()]
ProposerName = Annotated[str, Named("scikit-optimize", "optuna", "random")]
CriterionName = Annotated[str, Named("auto", "hamming", "geometric", "latent_l1", "bn_scale", "taylor", "random")]
TaskName = Annotated[str, Named("classification", "detection", "segmentation", "regression", "multilabel")]
SourceName = Annotated[
    str,
    Named(
        *("digits", "imagefolder", "coco", "voc", "masks", "detection-shapes", "segmentation-shapes"),
        *("mnist", "fashionmnist", "cifar10", "cifar100"),
    ),
]


class Section(BaseModel):
    """A table of the job file: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CompressionSection(Section):
    """The table of a compression, under the name that `compression` has then."""

    def check_job(self, job: Any) -> None:
        """Raise :class:`ValueError` where ``job``, a JobConfig of this compression, asks for what cannot be."""


def keys_of(kind: Any) -> dict[str, FieldInfo]:
    """Return the keys of a table of the job file, which is a model or a dataclass; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {}
    kinds = get_type_hints(kind, include_extras=True)
    written = {field.name: field for field in dataclasses.fields(kind)}
    return {name: FieldInfo.from_annotated_attribute(kinds[name], field) for name, field in written.items()}
