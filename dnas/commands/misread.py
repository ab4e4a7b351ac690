"""What of a command line no command takes, such as an option of no such name: told as every other mistake is."""

from __future__ import annotations

import sys
from typing import Any

import typer

from dnas.commands.exits import forget_stdout, tell_wrong_input
from dnas.commands.narrow_help import Group
from search_spaces.errors import flowing

_Misread: Any = typer.BadParameter.__bases__[0]  # of click, or of the part of it that typer brings along


_TOLD = {". Did you mean": "; did you mean", ": Input should be": ": it should be", "Value error, ": ""}


class Program(Group):
    """The group of all commands, which ends in one sentence where a command line cannot be read."""

    def main(self, *args: Any, **keywords: Any) -> Any:
        """Carry a command line out, and leave with its exit code unless another program asks for it."""
        carry_out: Any = super().main
        alone = keywords.pop("standalone_mode", True)
        if not alone:
            return carry_out(*args, standalone_mode=False, **keywords)
        try:
            code = carry_out(*args, standalone_mode=False, **keywords)
        except _Misread as error:
            code = _shown_help(error) if type(error).__name__ == "NoArgsIsHelpError" else _told(error)
        sys.exit(code or 0)


def sentence_of(error: Any) -> str:
    """What is wrong, of which value, and where to read what is right."""
    text = error.format_message().rstrip(".")
    for written, told in _TOLD.items():
        text = text.replace(written, told)
    given = _given(error)
    if given and given not in text:
        text = text.replace("Invalid value for ", f"Invalid value {given} for ", 1)
    command = error.ctx.command_path if error.ctx else "dnas"
    return flowing(f"{text[:1].lower()}{text[1:]}; see: {command} --help")


def _given(error: Any) -> str:
    """The value that was refused, where the error knows it."""
    found: Any = getattr(error.__cause__, "errors", list)()
    return repr(found[0]["input"]) if found and "input" in found[0] else ""


def _told(error: Any) -> int:
    return tell_wrong_input(sentence_of(error))


def _shown_help(error: Any) -> int:
    """Show the help that was asked for by no word at all; its tables were shown as the error was made."""
    try:
        if text := error.format_message():
            print(text, flush=True)
    except BrokenPipeError:
        forget_stdout()
    return int(error.exit_code)
