"""Frozen records of plain values, as files hold them: read once into a type, written by it, refused in one sentence."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from search_spaces.errors import InputError
from search_spaces.refusals import first_problem

Model = TypeVar("Model", bound=BaseModel)
Figure = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Index = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]


def check_schema(data: Any, schema: str, what: str) -> None:
    """Raise :class:`InputError` unless plain values are an object of this ``schema``, such as ``dnas.front/1``."""
    found = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if found == schema:
        return
    hint = "; a newer version of dnas wrote it: install that one" if is_newer(found, schema) else ""
    raise InputError(f"not {what}: its schema is {found!r:.60}, this version reads '{schema}'{hint}")


def is_newer(found: Any, schema: str) -> bool:
    """Whether this is a later version of a schema.

    >>> is_newer("dnas.job/2", "dnas.job/1"), is_newer("dnas.front/2", "dnas.job/1")
    (True, False)
    """
    family, _, version = schema.rpartition("/")
    own, _, other = found.rpartition("/") if isinstance(found, str) else ("", "", "")
    return own == family and other.isdecimal() and len(other) < 10 and int(other) > int(version)


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
