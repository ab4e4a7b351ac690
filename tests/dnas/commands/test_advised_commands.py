"""Commands that a sentence advises can be copied into a shell, whatever a run is called."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dnas.commands.concluding import conclusion
from results.pareto import ParetoFront
from results.run.folder import Run
from results.run.layout import refuse_occupied
from search_spaces.errors import InputError, quoted

ROOT = Path(__file__).parents[3]
NAMES = ("runs/digits", "runs/my run", "it's", "a;b", "$HOME", "runs/früh", "a&b", "(1)", "*", "~x")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_one_word_to_a_shell(name: str) -> None:
    assert shlex.split(f"dnas resume {quoted(Path(name))}") == ["dnas", "resume", name]


def test_every_advised_command_quotes_what_it_is_given() -> None:
    sources = [
        path for room in ("dnas", "results", "search_spaces", "bayesopt") for path in (ROOT / room).rglob("*.py")
    ]
    advised = [
        found for path in sources for found in re.findall(r"\bdnas (?!reads)[a-z-]+ \{([^}]*)", path.read_text("utf-8"))
    ]
    assert len(advised) > 20
    bare = [words for words in advised if not words.startswith(("quoted(", "shlex.quote(", "told", "again"))]
    assert bare == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_taken_is_told_as_a_shell_reads_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    Run.create(folder, "seed = 1\n", {}).close()
    with pytest.raises(InputError) as refused:
        refuse_occupied(folder)
    (command,) = re.findall(r"\((dnas resume .*)\) or ", str(refused.value))
    assert shlex.split(command)[2:] == [str(folder)]
    last = conclusion(ParetoFront(()), str(folder))[-1]
    assert shlex.split(str(last).partition(": dnas show ")[2]) == [str(folder)]
