"""Frozen records of plain values, as files hold them: read once into a type, written by it, refused in one sentence."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from search_spaces.errors import InputError
from search_spaces.refusals import first_problem

Model = TypeVar("Model", bound=BaseModel)


def read_as(kind: type[Model], data: Any, what: str = "") -> Model:
    """Read plain values as a type; :class:`InputError` names the first one that is missing or wrong, after ``what``."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError(what + first_problem(error, data)) from error
    except RecursionError as error:
        raise InputError(f"{what}it is nested too deeply") from error


class Record(BaseModel):
    """A frozen record. Keys that it does not know are kept: within a version of a file, keys may be added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @classmethod
    def read(cls, data: Any) -> Self:
        """Read what :meth:`to_json` wrote; :class:`InputError` names the first value that is missing or wrong."""
        return read_as(cls, data)

    def to_json(self) -> dict[str, Any]:
        """The keys that were given, as plain values."""
        return self.model_dump(exclude_unset=True)
