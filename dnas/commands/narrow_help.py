"""Help in a narrow terminal: plain lines instead of tables, whose columns would cut words there."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

LEAST_COLUMNS = 80
"""From so many on the tables of our help cut no word."""


class _AsWideAsTheTerminal:
    """Help that is told in tables where there is room for them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help as wide as the terminal is."""
        columns = shutil.get_terminal_size().columns
        if columns < LEAST_COLUMNS:
            formatter.write(plain_help(self, ctx, columns))
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_AsWideAsTheTerminal, TyperCommand):
    """A command with such help."""


class Group(_AsWideAsTheTerminal, TyperGroup):
    """A group of commands with such help."""


def plain_help(command: Any, ctx: Any, columns: int) -> str:
    """The help of a command, no line wider than ``columns`` but for a word that is; no word is cut."""
    parts = [f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", *_paragraphs(command.help)]
    lines = [line for part in parts for line in [*_wrapped(part, columns), ""]]
    for heading, entries in _sections(command, ctx):
        lines.append(f"{heading}:")
        for term, text in entries:
            lines += [*_wrapped(term, columns, "  "), *_wrapped(text, columns, "      ")]
        lines.append("")
    lines += [line for part in _paragraphs(command.epilog) for line in _wrapped(part, columns)]
    return "\n".join(lines).rstrip() + "\n"


def _sections(command: Any, ctx: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    records = [(each.param_type_name, each.get_help_record(ctx)) for each in command.get_params(ctx)]
    for heading, kind in (("Arguments", "argument"), ("Options", "option")):
        entries = [record for name, record in records if record and name == kind]
        if entries:
            yield heading, entries
    if isinstance(command, TyperGroup):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        yield "Commands", [(name, " ".join(_paragraphs(each.help)[:1])) for name, each in found.items() if each]


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n") if part.strip()]


def _wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, columns, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
