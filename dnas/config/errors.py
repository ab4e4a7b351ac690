"""From what pydantic says about a job to sentences a person can act on: where, which key, which value, what instead."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from dnas.config.job import JobConfig
from dnas.config.toml_lines import KeyPath
from search_spaces.errors import nearest

MOST_MISTAKES = 5
MOST_LETTERS = 60

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table, such as {{ name = 1 }}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "missing": "{expected_length} values in the list",
    "model_type": "a table",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only",
    "string_too_long": "{max_length} letters at most",
    "string_type": "text in quotes",
    "too_long": "{max_length} values in the list",
    "tuple_type": "a list, such as [1, 2]",
}
_SETTING = re.compile(r"^(\w+)\.(\w+)\b")

Where = Callable[[KeyPath], str]


def sentences(error: ValidationError, data: Mapping[str, Any], where: Where) -> str:
    """Return one sentence for each mistake, joined by ``"; "``; ``where`` tells the place of a key in words."""
    grouped: dict[KeyPath, list[dict[str, Any]]] = {}
    for entry in error.errors(include_url=False):
        grouped.setdefault(_existing(entry["loc"], data), []).append(dict(entry))
    told = [_sentence(path, entries, data, where) for path, entries in grouped.items()]
    return joined(told)


def joined(told: Sequence[str]) -> str:
    """Join sentences by ``"; "``, the first few only."""
    rest = [f"and {len(told) - MOST_MISTAKES} more"] if len(told) > MOST_MISTAKES else []
    return "; ".join([*told[:MOST_MISTAKES], *rest])


def printable(text: str) -> str:
    """Return the text on one line, whatever a file's keys and values put into it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def key_name(path: KeyPath) -> str:
    """Write a path as people do.

    >>> key_name(("search", "budgets", 0, "size_bytes"))
    'search.budgets[0].size_bytes'
    """
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shortened(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def known_keys(path: KeyPath) -> list[str]:
    """Return the keys that the table at ``path`` may have; empty where any name is fine."""
    section: Any = JobConfig
    for part in path:
        fields = section.model_fields if _is_section(section) else {}
        section = fields[part].annotation if part in fields else None
    if not _is_section(section):
        return []
    return [field.alias or name for name, field in section.model_fields.items()]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _existing(path: Sequence[int | str], data: Any) -> KeyPath:
    """The part of an error's path that the data has: behind it pydantic names members of a union."""
    found: list[int | str] = []
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
        found.append(part)
    return tuple(found)


def _sentence(path: KeyPath, entries: Sequence[Mapping[str, Any]], data: Any, where: Where) -> str:
    kinds = {entry["type"] for entry in entries}
    if "extra_forbidden" in kinds:
        return _unknown_key(path, where)
    messages = [str(entry["ctx"]["error"]) for entry in entries if entry["type"] == "value_error"]
    if not path:
        message = messages[0] if messages else str(entries[0]["msg"])
        setting = _SETTING.match(message)
        return f"{where(setting.groups() if setting else ())}: {message}"
    value = data
    for part in path:
        value = value[part]
    expected = messages[0] if messages else "expected " + " or ".join(dict.fromkeys(map(_expected, entries)))
    choices = [word for entry in entries for word in re.findall(r"'([^']+)'", entry.get("ctx", {}).get("expected", ""))]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return f"{where(path)}: {key_name(path)} = {_shown(value)}: {expected}{hint}"


def _unknown_key(path: KeyPath, where: Where) -> str:
    *table, key = path
    known = known_keys(tuple(table))
    hint = nearest(str(key), known) or _other_table(str(key))
    place = f"[{key_name(tuple(table))}]" if table else "a job"
    choices = hint or f"; it has {', '.join(known)}"
    return f"{where(path)}: {place} has no key '{_shortened(str(key))}'{choices}"


def _other_table(key: str) -> str:
    """Where a key belongs that was written into the wrong table."""
    homes = [name for name in known_keys(()) if key in known_keys((name,))]
    return f"; did you mean {' or '.join(f'{home}.{key}' for home in homes)}?" if homes else ""


def _expected(entry: Mapping[str, Any]) -> str:
    if entry["type"] not in _EXPECTED:
        return str(entry["msg"])
    return _EXPECTED[entry["type"]].format(**{"expected_length": 2, **entry.get("ctx", {})})


def _shown(value: Any) -> str:
    """A value as TOML would write it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits has no decimal text
        return f"a {type(value).__name__}"
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
