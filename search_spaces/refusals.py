"""From what pydantic says about values that a user wrote to a sentence: which one, what it is, what is expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from search_spaces.errors import kind_of, nearest

KeyPath = tuple[str | int, ...]
Problem = Mapping[str, Any]

MOST_LETTERS = 60

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "dict_type": "a table, such as {{ name = 1 }}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list, such as [1, 2]",
    "literal_error": "{expected}",
    "missing": "{expected_length} values in the list",
    "model_type": "a table",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only",
    "string_too_long": "{max_length} letters at most",
    "string_type": "text in quotes",
    "too_long": "{max_length} values in the list",
    "tuple_type": "a list, such as [1, 2]",
}


def first_problem(error: ValidationError, data: Any, prefix: KeyPath = ()) -> str:
    """Say what is wrong with the first wrong value of ``data``, which itself stands at ``prefix``."""
    path, entries = next(iter(problems(error, data).items()))
    place = key_name((*prefix, *entries[0]["loc"]))
    if entries[0]["type"] == "missing" and isinstance(value_at(path, data), Mapping):
        return f"it has no '{place}'"
    if entries[0]["type"] == "extra_forbidden":
        return f"'{place}' is not a key that it may have"
    return wrong_value(key_name((*prefix, *path)), value_at(path, data), entries)


def problems(error: ValidationError, data: Any) -> dict[KeyPath, list[Problem]]:
    """Return what is said of each wrong value of ``data``, by its place; a union says one thing for each member."""
    grouped: dict[KeyPath, list[Problem]] = {}
    for entry in error.errors(include_url=False):
        grouped.setdefault(_existing(entry["loc"], data), []).append({**entry})
    return grouped


def wrong_value(name: str, value: Any, entries: Sequence[Problem]) -> str:
    """Return ``NAME = VALUE: expected ...``, with the nearest choice where there are some; a file's root has no name.

    >>> print(wrong_value("first_layer", "serach", [{"type": "literal_error", "ctx": {"expected": "'search'"}}]))
    first_layer = "serach": expected 'search'; did you mean 'search'?
    """
    messages = own_messages(entries)
    expected = messages[0] if messages else "expected " + " or ".join(dict.fromkeys(map(_expected, entries)))
    choices = [word for entry in entries for word in re.findall(r"'([^']+)'", entry.get("ctx", {}).get("expected", ""))]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return f"{name}{' = ' * bool(name)}{_shown(value)}: {expected}{hint}"


def own_messages(entries: Sequence[Problem]) -> list[str]:
    """Return the sentences of our own checks among what pydantic says."""
    return [str(entry["ctx"]["error"]) for entry in entries if entry["type"] == "value_error"]


def value_at(path: KeyPath, data: Any) -> Any:
    """Return the value at a place of nested tables and lists."""
    for part in path:
        data = data[part]
    return data


def key_name(path: KeyPath) -> str:
    """Write a path as people do.

    >>> key_name(("search", "budgets", 0, "size_bytes"))
    'search.budgets[0].size_bytes'
    """
    parts = [f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def shortened(text: str) -> str:
    """Cut what is too long to be read in a sentence."""
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


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


def _expected(entry: Problem) -> str:
    if entry["type"] not in _EXPECTED:
        return str(entry["msg"]).removeprefix("Input should be ")
    if entry["type"] == "missing" and isinstance(entry["loc"][-1], str):
        return f"a table with the key '{entry['loc'][-1]}'"
    return _EXPECTED[entry["type"]].format(**{"expected_length": 2, **entry.get("ctx", {})})


def _shown(value: Any) -> str:
    """A value as TOML would write it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits has no decimal text
        return kind_of(value)
    return shortened(text)
