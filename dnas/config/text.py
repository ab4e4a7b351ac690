"""What is written from the config's own fields: a job as TOML, the commented job file, the reference page."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import tomlkit
from pydantic.fields import FieldInfo

from dnas.config.fields import Section, keys_of
from dnas.config.job import JobConfig
from search_spaces.refusals import KeyPath

LONG_LINE = 88

_INTRODUCTION = """\
# The job file

A job is one TOML file: a network, a data set, what may be chosen, and the budgets. Every key has a default, an unknown
key is refused with its line, and `dnas init` writes a file with all of them. `dnas search JOB.toml --set KEY=VALUE`
overrides single keys (`--set search.epochs=20`; values as in TOML, plain text where they are none). Relative paths are
relative to the current folder.

This page is generated from the fields of `dnas.config.job`: `python -m dnas.config.file > docs/job-file.md`.
"""


def toml_value(value: Any) -> str:
    """Return a value as TOML on one line; tables inline, None left out.

    >>> toml_value([{"size_bytes": "12%"}, (1, 2.5, True)])
    '[{size_bytes = "12%"}, [1, 2.5, true]]'
    """
    if isinstance(value, Section):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        entries = (f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value if item is not None)}]"
    return tomlkit.item(value).as_string()


def toml_key(key: str) -> str:
    """Return a key as TOML, in quotes where it needs them."""
    plain = bool(key) and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key)
    return key if plain else tomlkit.item(key).as_string()


def job_text(config: JobConfig) -> str:
    """Return the whole job as TOML."""
    blocks = []
    for name, section in _sections(config):
        header = [f"[{name}]"] if name else []
        values = ((field.alias or key, getattr(section, key)) for key, field in _own_fields(section))
        blocks.append("\n".join([*header, *(_line(key, value) for key, value in values if value is not None)]))
    return "\n\n".join(blocks) + "\n"


def commented_text(config: JobConfig, given: Set[KeyPath]) -> str:
    """Return the job with one line about each key; those not among the ``given`` paths are commented out."""
    blocks = ["# A job of dnas. Keys behind a # have the value shown, or one like it where there is no default."]
    for name, section in _sections(config):
        about = [f"# {section.__doc__}", f"[{name}]"] if name else []
        lines = [line for key, field in _own_fields(section) for line in _described(name, key, field, section, given)]
        blocks.append("\n".join([*about, *lines]))
    return "\n\n".join(blocks) + "\n"


def reference_text() -> str:
    """Return the reference page in Markdown."""
    blocks = [_INTRODUCTION]
    definitions = JobConfig.model_json_schema()["$defs"]
    for name, section in _sections(JobConfig.model_construct()):
        schema = definitions[type(section).__name__] if name else JobConfig.model_json_schema()
        title = f"## `[{name}]`\n\n{section.__doc__}" if name else "## The job itself"
        rows = [_row(field.alias or key, field, schema["properties"]) for key, field in _own_fields(section)]
        head = ["| key | type | default | meaning |", "|---|---|---|---|"]
        blocks.append("\n".join([f"{title}\n", *head, *rows]) + "\n")
    return "\n".join(blocks)


def _sections(config: JobConfig) -> Iterator[tuple[str, Any]]:
    """The job itself under an empty name, then its tables."""
    yield "", config
    for name in JobConfig.model_fields:
        if keys_of(type(section := getattr(config, name))):
            yield name, section


def _own_fields(section: Any) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in keys_of(type(section)).items():
        if not keys_of(type(field.default)):
            yield name, field


def _line(key: str, value: Any) -> str:
    """``key = value``; a list of tables gets a line for each."""
    text = f"{toml_key(key)} = {toml_value(value)}"
    if len(text) <= LONG_LINE or not isinstance(value, tuple):
        return text
    return "\n".join([f"{toml_key(key)} = [", *(f"    {toml_value(item)}," for item in value), "]"])


def _described(table: str, key: str, field: FieldInfo, section: Any, given: Set[KeyPath]) -> tuple[str, str]:
    path = (table, key) if table else (key,)
    value = getattr(section, key)
    if value is None:
        value = (field.examples or [""])[0]
    line = _line(field.alias or key, value)
    # No space behind the #, so that a commented key is told from a sentence about one.
    return f"# {field.description}", line if path in given else "\n".join(f"#{part}" for part in line.splitlines())


def _row(key: str, field: FieldInfo, properties: dict[str, Any]) -> str:
    value = field.get_default(call_default_factory=True)
    default = "none" if value is None else f"`{toml_value(value)}`"
    cells = (f"`{key}`", _type_words(properties[key]), default, str(field.description))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_words(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type_words(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} {_plural(schema['prefixItems'][0])}"
        return f"list of {_plural(schema['items'])}"
    if "$ref" in schema:
        return "table"
    if schema.get("type") == "object":
        entries = schema.get("additionalProperties")
        return f"table of {_plural(entries)}" if isinstance(entries, dict) else "table"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words[schema["type"]] + _limits(schema)


def _plural(schema: dict[str, Any]) -> str:
    words = _type_words(schema)
    if words.startswith("`") or " or " in words or words == "text":
        return words
    if words.startswith("2 "):
        return f"lists of {words}"
    return words.replace("number", "numbers", 1).replace("table", "tables", 1)


def _limits(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema and schema[name] < 2**62]
    return f" {', '.join(told)}" if told else ""
