"""Where each key of a TOML document stands: tomllib gives values without lines, and a mistake needs its line."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from search_spaces.refusals import KeyPath

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACES = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[KeyPath, int]:
    r"""Return the 1-based line of every key of a valid TOML document, by its path; list entries count from 0.

    >>> key_lines("[search]\nbudgets = [{ size_bytes = '12%' }]")[("search", "budgets", 0, "size_bytes")]
    2
    """
    return _Scanner(text).scan()


class _Scanner:
    """One pass over a document that tomllib has accepted, so that only keys and brackets need understanding."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.table_lists: dict[KeyPath, int] = {}
        self.counted = (0, 1)

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(_BLANK):
            table = self._header() if self._next("[") else table
            self._skip(_BLANK)
            if self.at < len(self.text) and not self._next("["):
                self._pair(table)
        return self.lines

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Move behind what matches; whether any text is left."""
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at < len(self.text)

    def _next(self, symbol: str) -> bool:
        return self.text.startswith(symbol, self.at)

    def _note(self, path: KeyPath) -> KeyPath:
        at, line = self.counted
        self.counted = (self.at, line + self.text.count("\n", at, self.at))
        for end in range(1, len(path) + 1):
            self.lines.setdefault(path[:end], self.counted[1])
        return path

    def _header(self) -> KeyPath:
        is_list = self._next("[[")
        self.at += 2 if is_list else 1
        path: KeyPath = ()
        *parents, last = self._key()
        for part in parents:
            path = self._inside((*path, part))
        path = (*path, last)
        if is_list:
            self.table_lists[path] = self.table_lists.get(path, -1) + 1
        path = self._note(self._inside(path))
        self._skip(_SPACES)
        self.at += 2 if is_list else 1
        return path

    def _inside(self, path: KeyPath) -> KeyPath:
        """The path of the newest entry where ``path`` is a list of tables."""
        return (*path, self.table_lists[path]) if path in self.table_lists else path

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_SPACES)
            found = _BARE_KEY.match(self.text, self.at)
            if found:
                parts.append(found[0])
                self.at = found.end()
            else:
                parts.append(str(tomllib.loads(f"key = {self._string()}")["key"]))
            self._skip(_SPACES)
            if not self._next("."):
                return parts
            self.at += 1

    def _string(self) -> str:
        found = _STRING.match(self.text, self.at)
        assert found, "tomllib accepted the document"
        self.at = found.end()
        return found[0]

    def _pair(self, table: KeyPath) -> None:
        self._skip(_SPACES)
        start = self.at
        path = (*table, *self._key())
        end, self.at = self.at, start
        self._note(path)
        self.at = end + 1
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACES)
        if self._next("["):
            self._items(path, "]")
        elif self._next("{"):
            self._items(path, "}")
        elif self._next('"') or self._next("'"):
            self._string()
        else:
            self._skip(_SCALAR)

    def _items(self, path: KeyPath, closing: str) -> None:
        self.at += 1
        index = 0
        while self._skip(_BLANK) and not self._next(closing):
            if self._next(","):
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._value(self._note((*path, index)))
                index += 1
        self.at += 1


def paths_of(data: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Return the paths of all keys and list entries of parsed TOML, outermost first."""
    if isinstance(data, dict):
        entries: list[tuple[str | int, Any]] = list(data.items())
    elif isinstance(data, list):
        entries = list(enumerate(data))
    else:
        return []
    return [found for key, value in entries for found in [(*path, key), *paths_of(value, (*path, key))]]
