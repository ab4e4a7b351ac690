"""From what pydantic says about a job to sentences a person can act on: where, which key, which value, what instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from dnas.config.fields import keys_of
from dnas.config.job import JobConfig
from search_spaces.errors import nearest
from search_spaces.refusals import KeyPath, Problem, key_name, own_messages, problems, shortened, value_at, wrong_value

MOST_MISTAKES = 5

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_SETTING = re.compile(r"^(\w+)\.(\w+)\b")

Where = Callable[[KeyPath], str]


def sentences(error: ValidationError, data: Mapping[str, Any], where: Where) -> str:
    """Return one sentence for each mistake, joined by ``"; "``; ``where`` tells the place of a key in words."""
    told = [_sentence(path, entries, data, where) for path, entries in problems(error, data).items()]
    return joined(told)


def joined(told: Sequence[str]) -> str:
    """Join sentences by ``"; "``, the first few only."""
    rest = [f"and {len(told) - MOST_MISTAKES} more"] if len(told) > MOST_MISTAKES else []
    return "; ".join([*told[:MOST_MISTAKES], *rest])


def known_keys(path: KeyPath) -> list[str]:
    """Return the keys that the table at ``path`` may have; empty where any name is fine."""
    section: Any = JobConfig
    for part in path:
        fields = keys_of(section)
        section = fields[str(part)].annotation if part in fields else _kind_of_entries(section)
    return [field.alias or name for name, field in keys_of(section).items()]


def _kind_of_entries(kind: Any) -> Any:
    """What the entries of a list are, or the values of a table with names of the user's own."""
    return get_args(kind)[get_origin(kind) is dict] if get_origin(kind) in (dict, tuple) else None


def _sentence(path: KeyPath, entries: Sequence[Problem], data: Any, where: Where) -> str:
    if _UNKNOWN & {entry["type"] for entry in entries}:
        return _unknown_key(path, where)
    if not path:
        message = (*own_messages(entries), str(entries[0]["msg"]))[0]
        setting = _SETTING.match(message)
        return f"{where(setting.groups() if setting else ())}: {message}"
    return f"{where(path)}: {wrong_value(key_name(path), value_at(path, data), entries)}"


def _unknown_key(path: KeyPath, where: Where) -> str:
    *table, key = path
    known = known_keys(tuple(table))
    hint = nearest(str(key), known) or _other_table(str(key))
    place = f"[{key_name(tuple(table))}]" if table else "a job"
    choices = hint or f"; it has {', '.join(known)}"
    return f"{where(path)}: {place} has no key '{shortened(str(key))}'{choices}"


def _other_table(key: str) -> str:
    """Where a key belongs that was written into the wrong table."""
    homes = [name for name in known_keys(()) if key in known_keys((name,))]
    return f"; did you mean {' or '.join(f'{home}.{key}' for home in homes)}?" if homes else ""
