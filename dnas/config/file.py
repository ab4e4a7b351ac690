"""Job files: read one or a shipped preset, apply overrides, write the resolved job, a commented one, the reference.

``python -m dnas.config.file > docs/job-file.md`` writes the reference again after a change of :mod:`dnas.config.job`.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dnas.config.errors import Where, joined, sentences
from dnas.config.job import JobConfig
from dnas.config.text import commented_text, job_text, reference_text
from dnas.config.toml_lines import key_lines, paths_of
from search_spaces.errors import InputError, check_type, nearest, printable, unreadable
from search_spaces.records import is_newer
from search_spaces.refusals import KeyPath, key_name
from search_spaces.user_files import read_regular

DEFAULT_PRESET = "digits"


def load_job(source: str | Path | None = None, overrides: Sequence[str] | str = ()) -> JobConfig:
    """Return the job of a TOML file, or of a preset (``digits`` for None), with ``KEY=VALUE`` overrides applied.

    Raises :class:`InputError` that names file, line, key, value and what is expected, for anything wrong.
    """
    try:
        given = [overrides] if isinstance(overrides, str) else overrides
        return _load(DEFAULT_PRESET if source is None else str(source), given)
    except InputError as error:
        raise InputError(printable(str(error))) from error


def dump_job(config: JobConfig) -> str:
    """Return the resolved job as TOML, every key written out except those that are None."""
    check_type(config, JobConfig, "a job", "give what dnas.load_job(source) returns")
    return job_text(config)


def commented_job() -> str:
    """Return the job file that ``dnas init`` writes: the digits preset, all other keys there but commented out."""
    text = _preset_text(DEFAULT_PRESET)
    return commented_text(load_job(DEFAULT_PRESET), set(paths_of(_parse(text, DEFAULT_PRESET))))


def preset_names() -> dict[str, str]:
    """Return the shipped presets with their descriptions, each the first comment line of its file."""
    return {name: _preset_text(name).splitlines()[0].lstrip("# ").strip() for name in _shipped()}


def job_file_reference() -> str:
    """Return docs/job-file.md: every key with its type, default and meaning."""
    return reference_text()


def _load(source: str, overrides: Sequence[str]) -> JobConfig:
    title, text = _read(source)
    try:
        return _config(title, text, overrides)
    except RecursionError as error:  # thousands of parts in a dotted key
        raise InputError(f"{title}: keys are nested too deeply") from error


def _config(title: str, text: str, overrides: Sequence[str]) -> JobConfig:
    data = _parse(text, title)
    if not data:
        raise InputError(f"job file {title} is empty: it sets no key; dnas init writes a commented one")
    settings = [(_override_path(override), override) for override in overrides]
    for path, override in settings:
        _apply(data, path, override)
    data = _of_before(data)
    where = _locator(_places(text, title) | _override_places(data, settings), title)
    schema, known = data.get("schema"), JobConfig.model_fields["schema_version"].default
    if is_newer(schema, known):  # its keys may be others
        raise InputError(
            f"{where(('schema',))}: a newer version of dnas wrote this job: its schema is '{schema}', this version "
            f"reads '{known}'; install that one"
        )
    return _validate(data, where)


def names_a_job(source: str) -> bool:
    """Whether this is a preset, or the name of a job file, be it there or not."""
    return source in _shipped() or source.lower().endswith(".toml")


def _presets() -> Any:
    return resources.files("dnas.config").joinpath("presets")


def _shipped() -> list[str]:
    """The names of the presets, the default first."""
    names = [entry.name.removesuffix(".toml") for entry in _presets().iterdir() if entry.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != DEFAULT_PRESET, name))


def _preset_text(name: str) -> str:
    return str(_presets().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def _read(source: str) -> tuple[str, str]:
    """The name to call a job by in messages, and its text."""
    presets = _shipped()
    if source in presets:
        return f"preset {source}", _preset_text(source)
    if not source.strip():  # as a path it would be the current folder
        raise InputError(f"'{source}' is no name of a job; name a job file, or a preset: {', '.join(presets)}")
    try:
        path = Path(source).expanduser()
        return source, read_regular(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        others = [*presets, *(str(path) for path in Path().glob("*.toml"))]
        hint = nearest(source, others) or f"; presets are {', '.join(presets)}"
        raise InputError(f"there is no job file and no preset '{source}'{hint}") from error
    except OSError as error:
        raise InputError(f"job file {source} cannot be read: {unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"job file {source} is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RuntimeError) as error:  # a null byte in the path, or a home folder that is not known
        raise InputError(f"job file {source!r} cannot be read: {error}") from error


def _parse(text: str, title: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{title}: brackets are nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and what Python says of numbers and dates
        message = str(error)
        found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", message, re.DOTALL)
        if found:
            raise InputError(f"{title}, line {found[2]}: not valid TOML: {found[1]}") from error
        line = f", line {len(text.splitlines())}" if "at end of document" in message else ""
        raise InputError(f"{title}{line}: not valid TOML: {message}") from error


def _override_path(override: str) -> tuple[str, ...]:
    """The key of ``KEY=VALUE`` as a path; quoted parts may hold dots."""
    key, value = _split_override(override)
    try:
        parsed: Any = tomllib.loads(f"{key} = 0")
    except (ValueError, RecursionError) as error:
        raise InputError(f"--set {override!r}: '{key}' is not a key such as search.epochs") from error
    path: list[str] = []
    while isinstance(parsed, dict) and len(parsed) == 1:
        path.append(next(iter(parsed)))
        parsed = parsed[path[-1]]
    if parsed != 0 or isinstance(parsed, dict) or value is None:
        raise InputError(f"--set {override!r} is not of the form KEY=VALUE, such as search.epochs=20")
    return tuple(path)


def _split_override(override: str) -> tuple[str, str | None]:
    """Cut at the first ``=`` outside quotes."""
    found = re.match(r"""((?:"[^"]*"|'[^']*'|[^=])*)=(.*)""", override, re.DOTALL)
    return (found[1].strip(), found[2]) if found else (override, None)


def _override_value(override: str) -> Any:
    """The value as TOML where it is some, else as the text it is."""
    text = _split_override(override)[1] or ""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _apply(data: dict[str, Any], path: Sequence[str], override: str) -> None:
    try:
        override.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"--set {override!r} is not UTF-8 text") from error
    table = data
    for end, part in enumerate(path[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {key_name(tuple(path[:end]))} is not a table; set it as a whole")
    table[path[-1]] = _override_value(override)


def _places(text: str, title: str) -> dict[KeyPath, str]:
    return {path: f"{title}, line {line}" for path, line in key_lines(text).items()}


def _override_places(data: Any, settings: Sequence[tuple[tuple[str, ...], str]]) -> dict[KeyPath, str]:
    places: dict[KeyPath, str] = {}
    for path, override in settings:
        value = data
        for part in path:
            value = value[part] if isinstance(value, dict) and part in value else None
        inside = [path, *((*path, *rest) for rest in paths_of(value))]
        places |= dict.fromkeys(inside, f"--set {override}")
    return places


def _locator(places: Mapping[KeyPath, str], title: str) -> Where:
    """Tell where a key stands, or what is set inside it, or the nearest table around it that stands anywhere."""

    def where(path: KeyPath) -> str:
        inside = (place for key, place in places.items() if path and key[: len(path)] == path)
        around = (places[path[:end]] for end in range(len(path) - 1, 0, -1) if path[:end] in places)
        return places.get(path) or next(inside, None) or next(around, title)

    return where


def _of_before(data: dict[str, Any]) -> dict[str, Any]:
    """Read `search.mixed_precision` of older files: it is `precision` of the whole job now."""
    search = data.get("search")
    if not isinstance(search, dict) or not isinstance(search.get("mixed_precision"), bool):
        return data
    kept = {key: value for key, value in search.items() if key != "mixed_precision"}
    return {"precision": "bf16" if search["mixed_precision"] else "fp32", **data, "search": kept}


def _validate(data: dict[str, Any], where: Where) -> JobConfig:
    wrong = [f"{where(path)}: {key_name(path)} {why}" for path, why in _impossible(data)]
    if wrong:
        raise InputError(joined(wrong))
    try:
        # Strictly, and as JSON: TOML knows its types, so "4" is no number and true is no 1, but a list is a tuple.
        return JobConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise InputError(sentences(error, data, where)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where(())}: cannot be read as a job ({error})") from error


def _impossible(data: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Values that TOML has and a job cannot use: dates, numbers that are not finite or have thousands of digits."""
    found: list[tuple[KeyPath, str]] = []
    for path in paths_of(data):
        value: Any = data
        for part in path:
            value = value[part]
        if isinstance(value, float) and not math.isfinite(value):
            found.append((path, f"= {value}: expected a finite number"))
        elif isinstance(value, int) and value.bit_length() > 64:
            found.append((path, "has too many digits"))
        elif not isinstance(value, (str, bool, int, float, list, dict)):
            found.append((path, f"= {value} is a date or a time; write it in quotes if it is meant as text"))
    return found


if __name__ == "__main__":
    sys.stdout.write(job_file_reference())
